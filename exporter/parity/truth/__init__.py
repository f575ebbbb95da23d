"""What is right: packs of proteins, and eager fair-esm's float64 answers to them."""
