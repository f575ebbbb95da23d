"""Plans of TensorRT and TensorRT-RTX."""
