"""Engines that PyTorch runs: TorchScript and AOTInductor."""
