"""A Triton Inference Server model repository: clients send proteins, Triton makes the packs."""
