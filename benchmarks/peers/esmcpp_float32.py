"""esm.cpp in float32, packed; it chooses its kernels by the processor's instruction set."""

import os
from pathlib import Path

import esm_cpp
import numpy as np

PACKAGES = ("esm-cpp", "numpy")


class Packed:
    """``forward_scheduled``, which gives logits; representations come from another call.

    Attributes:
        instructions: what its kernels use.
    """

    def __init__(self, model: esm_cpp.Model, agreement: float):
        self._model = model
        self._agreement = agreement
        self.instructions = esm_cpp.current_isa()

    def run(self, proteins: list[np.ndarray]) -> list[np.ndarray]:
        """Logits ``[L, 33]`` of each protein, from token ids ``[L]`` int32."""
        return self._model.forward_scheduled(proteins)

    def rows(self, proteins: list[np.ndarray]) -> np.ndarray:
        """The last layer ``[T, E]``, protein by protein.

        Raises:
            ValueError: the logits beside them are not those of ``run``.
        """
        alone = [self._model.forward_with_hidden_states(protein) for protein in proteins]
        expected = np.concatenate([logits for logits, _ in alone])
        error = np.linalg.norm(np.concatenate(self.run(proteins)) - expected)
        if not error <= self._agreement * np.linalg.norm(expected):
            raise ValueError("forward_scheduled and forward_with_hidden_states differ in logits")
        return np.concatenate([states[-1] for _, states in alone])


def load_packed(folder: Path, threads: int) -> Packed:
    """``Model.load``, on a pool of ``threads`` for the whole process."""
    return Packed(model_of(folder / "model.safetensors", threads), agreement=1e-4)


def model_of(file: Path, threads: int) -> esm_cpp.Model:
    """Of Hugging Face's file as it is, or of esm.cpp's own."""
    os.environ["ESM_NUM_THREADS"] = str(threads)
    model = esm_cpp.Model.load(str(file))
    if model.num_threads != threads:
        raise ValueError(f"esm.cpp took {model.num_threads} threads instead of {threads}")
    return model
