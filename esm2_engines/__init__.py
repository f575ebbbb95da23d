"""ESM-2 embeddings by frozen, packed, proven engines. Importing it needs NumPy alone.

>>> import esm2_engines as esm2
>>> model = esm2.load("artifacts/esm2_t6_8M_UR50D-synthetic")
>>> model.embed(["MKTAYIAKQR", "GGAVL"]).shape
(2, 320)

The names are ``runtime``'s, but for ``load``, which gives a ``Model``, and ``Client``.
"""

from runtime import (
    ArtifactError,
    AsyncInferenceRunner,
    Embedding,
    Engine,
    EngineError,
    EngineSpec,
    Esm2Error,
    InputError,
    NonFiniteError,
    OutOfMemoryError,
    OutputError,
    Outputs,
    PackedBatch,
    Record,
    Rejection,
    UnsupportedError,
    __version__,
    even_packs,
    first_fit_decreasing,
    pool,
    read_fasta,
)
from runtime.client.client import Client
from runtime.model import Model
from runtime.model import load_model as load

__all__ = [
    "ArtifactError",
    "AsyncInferenceRunner",
    "Client",
    "Embedding",
    "Engine",
    "EngineError",
    "EngineSpec",
    "Esm2Error",
    "InputError",
    "Model",
    "NonFiniteError",
    "OutOfMemoryError",
    "OutputError",
    "Outputs",
    "PackedBatch",
    "Record",
    "Rejection",
    "UnsupportedError",
    "__version__",
    "even_packs",
    "first_fit_decreasing",
    "load",
    "pool",
    "read_fasta",
]
