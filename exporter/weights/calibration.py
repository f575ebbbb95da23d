"""How large each channel of what linears read is, on a few proteins."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exporter.model.packed_forward import PackedESM2
from exporter.weights.smoothing import Smoothing, factors_of, sites
from runtime.bin_packing import even_packs
from runtime.packing import PackedBatch
from runtime.tokenizer import tokenize

# Of a user's proteins: 650M takes two minutes for so many on two cores.
MOST_TOKENS = 8_192
PACK_TOKENS = 1_024

# Ubiquitin, hen egg-white lysozyme and green fluorescent protein (UniProt P0CG48, P00698, P42212).
_UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
_LYSOZYME = (
    "KVFGRCELAAAMKRHGLDNYRGYSLGNWVCAAKFESNFNTQATNRNTDGSTDYGILQINSRWWCNDGRTPGSRNLCNIPCSALLSSDITAS"
    "VNCAKKIVSDGNGMNAWVAWRNRCKGTDVQAWIRGCRL"
)
_FLUORESCENT = (
    "MSKGEELFTGVVPILVELDGDVNGHKFSVSGEGEGDATYGKLTLKFICTTGKLPVPWPTLVTTFSYGVQCFSRYPDHMKQHDFFKSAMPEG"
    "YVQERTIFFKDDGNYKTRAEVKFEGDTLVNRIELKGIDFKEDGNILGHKLEYNYNSHNVYIMADKQKNGIKVNFKIRHNIEDGSVQLADHY"
    "QQNTPIGDGPVLLPDNHYLSTQSALSKDPNEKRDHMVLLEFVTAAGITHGMDELYK"
)


def _masked(sequence: str, every: int) -> str:
    return "".join("<mask>" if i % every == 0 else sequence[i] for i in range(len(sequence)))


@dataclass(frozen=True)
class Calibration:
    """Proteins to measure on.

    Attributes:
        proteins: what they are called in the manifest.
        sequences: as a FASTA file gives them.
    """

    proteins: str
    sequences: Sequence[str]

    @property
    def sha256(self) -> str:
        """Of the sequences, one a line."""
        return hashlib.sha256("".join(f"{line}\n" for line in self.sequences).encode()).hexdigest()

    @property
    def num_tokens(self) -> int:
        """BOS and EOS of each included."""
        return sum(len(tokenize(sequence)) for sequence in self.sequences)


BUILT_IN = Calibration(
    "built in",
    (
        _UBIQUITIN, _LYSOZYME, _FLUORESCENT,
        _masked(_UBIQUITIN, 7), _masked(_LYSOZYME, 7), _masked(_FLUORESCENT, 2),
    ),
)  # fmt: skip


def first_proteins(proteins: str, sequences: Iterable[str]) -> Calibration:
    """As many of a user's proteins, in order, as ``MOST_TOKENS`` hold; one at least."""
    taken: list[str] = []
    tokens = 0
    for sequence in sequences:
        tokens += len(tokenize(sequence))
        if taken and tokens > MOST_TOKENS:
            break
        taken.append(sequence)
    return Calibration(proteins, tuple(taken))


def batches(calibration: Calibration) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """``input_ids``, ``cu_seqlens`` and ``max_seqlen`` of each pack of its proteins."""
    for pack in even_packs([len(tokenize(s)) for s in calibration.sequences], PACK_TOKENS):
        batch = PackedBatch.from_sequences([calibration.sequences[i] for i in pack])
        bounds = torch.from_numpy(batch.cu_seqlens)
        yield torch.from_numpy(batch.input_ids), bounds, torch.tensor(batch.max_seqlen)


@torch.no_grad()
def measure(
    packed: PackedESM2, linears: Iterable[tuple[str, nn.Linear]], calibration: Calibration
) -> Smoothing:
    """Runs ``packed`` and gives the factors of what its linears read.

    Args:
        packed: on the CPU, in float32.
        linears: of it, by name.
        calibration: the proteins to run.
    """
    of_model = dict(linears)
    all_sites = list(sites(of_model))
    largest: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for site in all_sites:
            name = site.readers[0]
            hook = of_model[name].register_forward_pre_hook(partial(_note, largest, name))
            hooks.callback(hook.remove)
        for tensors in batches(calibration):
            packed(*tensors)
    found = {
        site.readers[0]: factors_of(
            largest[site.readers[0]], [of_model[reader].weight for reader in site.readers]
        )
        for site in all_sites
    }
    return Smoothing({name: factors for name, factors in found.items() if factors is not None})


def _note(largest: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple[Any]) -> None:
    seen = inputs[0].abs().amax(dim=0)
    largest[name] = torch.maximum(largest[name], seen) if name in largest else seen
