"""Several vectors of one protein from one forward: of layers, by poolings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.engine import Engine
from runtime.errors import InputError
from runtime.packing import PackedBatch
from runtime.pooling import Pool, check_pool
from runtime.runner import several_of_pack


@dataclass(frozen=True)
class Vectors:
    """Which vectors of a protein are wanted: of each layer by each pooling.

    Attributes:
        layers: that the artifact exports.
        pools: how to pool; ``"none"`` goes alone.
    """

    layers: tuple[int, ...]
    pools: tuple[Pool, ...]

    @property
    def are_several(self) -> bool:
        """Whether they are more than one."""
        return len(self.layers) * len(self.pools) > 1

    @property
    def names(self) -> tuple[str, ...]:
        """Of their columns: ``embeddings``, or such as ``mean_6`` and ``cls_6``."""
        if not self.are_several:
            return ("embeddings",)
        return tuple(f"{how}_{layer}" for layer in self.layers for how in self.pools)

    def of_pack(self, engine: Engine) -> Callable[[PackedBatch], list[NDArray[np.floating]]]:
        """Gives ``[K x E]`` for each protein of a pack: K vectors, one behind the other."""
        wanted = [(layer, how) for layer in self.layers for how in self.pools]

        def run(batch: PackedBatch) -> list[NDArray[np.floating]]:
            return list(np.concatenate(several_of_pack(engine, batch, wanted), axis=1))

        return run


def check_vectors(layers: Sequence[int], pools: Sequence[Pool]) -> None:
    """Raises InputError where one vector a residue is asked for among others."""
    if "none" in pools and len(pools) * max(1, len(layers)) > 1:
        raise InputError(
            "--pool none gives a vector for each residue, and goes alone: with no other pooling, "
            "and one layer"
        )


def layers_of(given: str | None) -> tuple[int, ...]:
    """Numbers with commas, each once; empty where nothing is given."""
    names = [name.strip() for name in (given or "").split(",") if name.strip()]
    if wrong := [name for name in names if not name.isdecimal()]:
        raise InputError(f"--layer takes numbers with commas, such as 6,33, got {wrong[0]!r}")
    return tuple(dict.fromkeys(map(int, names)))


def pools_of(given: str) -> tuple[Pool, ...]:
    """Poolings with commas, each once."""
    names = tuple(dict.fromkeys(name.strip() for name in given.split(",")))
    for name in names:
        check_pool(name)
    return names  # type: ignore[return-value]
