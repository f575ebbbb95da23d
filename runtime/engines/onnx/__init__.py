"""Engines that ONNX Runtime runs."""
