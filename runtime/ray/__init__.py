"""Many devices and machines, by Ray: a transform of Ray Data, and what ``embed --ray`` runs on.

``docs/ray.md`` describes both. Importing this needs no Ray; what it gives does.

>>> import ray
>>> from runtime.ray import embed
>>> proteins = ray.data.read_parquet("proteins/")
>>> embedded = embed(proteins, "artifacts/esm2_t33_650M_UR50D", concurrency=8, num_gpus=1)
>>> embedded.write_parquet("embeddings/")
"""

from runtime.ray.data import embed

__all__ = ["embed"]
