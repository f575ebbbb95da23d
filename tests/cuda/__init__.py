"""Engines for CUDA on a machine without a card: what a card would be asked to do."""
