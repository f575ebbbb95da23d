"""Runs frozen ESM-2 engines on packed proteins. Importing it needs NumPy alone.

>>> engine = runtime.load("artifacts/esm2_t6_8M_UR50D-synthetic")
>>> batch = runtime.PackedBatch.from_sequences(["MKTAYIAKQR", "GGAVL"])
>>> engine.run(batch).representations[6].shape
(19, 320)
"""

from runtime.bin_packing import even_packs, first_fit_decreasing
from runtime.engine import Engine, EngineSpec, Outputs
from runtime.errors import (
    ArtifactError,
    EngineError,
    Esm2Error,
    InputError,
    NonFiniteError,
    OutOfMemoryError,
    OutputError,
    UnsupportedError,
)
from runtime.loading import load
from runtime.packing import PackedBatch
from runtime.pooling import pool
from runtime.readers.fasta import read_fasta
from runtime.readers.records import Record, Rejection
from runtime.runner import AsyncInferenceRunner, Embedding

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "AsyncInferenceRunner",
    "Embedding",
    "Engine",
    "EngineError",
    "EngineSpec",
    "Esm2Error",
    "InputError",
    "NonFiniteError",
    "OutOfMemoryError",
    "OutputError",
    "Outputs",
    "PackedBatch",
    "Record",
    "Rejection",
    "UnsupportedError",
    "even_packs",
    "first_fit_decreasing",
    "load",
    "pool",
    "read_fasta",
]
