"""``esm2::varlen_attention`` for PyTorch; importing a module of this package imports torch."""
