"""Writes embeddings to .npz, .parquet or .h5; ``docs/output.md`` describes the files."""

from runtime.writers.writing import check_output, write_embeddings

__all__ = ["check_output", "write_embeddings"]
