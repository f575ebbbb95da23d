"""The study behind ``docs/divergence.md``: do flash-type, standard and eager attention agree?

Every way of attention runs the same model on the same proteins in each dtype. What is compared is
what a user would notice: labels and confidences of a fixed classifier, and pooled embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from exporter.environment import describe_environment
from exporter.errors import ExportError
from exporter.model.architectures import DTYPES
from exporter.model.packed_forward import PackedESM2
from exporter.model.precision import cast_copy
from exporter.model.reference import Reference
from exporter.parity.rules.task import compare_classifications
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import Pack, as_batch, packs_of, protein
from exporter.templates import render as render_template
from runtime import pooling
from runtime.attention import Attention
from runtime.manifest_schema import EMBEDDING
from runtime.ops import varlen_attention

MAX_TOKENS = 4096
ACCEPT, VALIDATE = 0.99, 0.95

TRUTH, EAGER, FLASH, STANDARD = "float64", "eager fair-esm", "flash-type", "standard"

Pooled = NDArray[np.floating]


@dataclass(frozen=True)
class Distance:
    """Between the embeddings of the same proteins by two ways of attention in one dtype.

    Attributes:
        dtype: of both; the truth is float64 always.
        one, other: ways of attention.
        label_agreement: share of proteins with the same label.
        confidence_correlation: Pearson's; None where confidence is constant.
        pooled_median, pooled_max: relative L2 distance of a protein's pooled embedding.
    """

    dtype: str
    one: str
    other: str
    label_agreement: float
    confidence_correlation: float | None
    pooled_median: float
    pooled_max: float

    @property
    def advice(self) -> str:
        """The decision tree's answer."""
        if self.label_agreement > ACCEPT:
            return "accept"
        return "validate on your data" if self.label_agreement >= VALIDATE else "use standard"


@dataclass(frozen=True)
class Study:
    """All distances, and what they were measured with."""

    source: str
    synthetic: bool
    num_proteins: int
    num_tokens: int
    kernels: dict[str, str]
    distances: list[Distance]
    environment: dict[str, str]


def random_sequences(count: int, seed: int) -> list[str]:
    """Proteins of log-normal lengths with a median of 120 residues."""
    random = np.random.default_rng(seed)
    lengths = np.exp(random.normal(np.log(120), 0.6, size=count)).clip(20, 1022).astype(int)
    return [protein(random, int(length)).sequence for length in lengths]


def study(reference: Reference, sequences: Sequence[str], cache: Cache | None) -> Study:
    """Runs every way of attention in every dtype.

    Args:
        reference: eager fair-esm with the weights.
        sequences: at least two, for a correlation.
        cache: of eager fair-esm's answers.

    Raises:
        InputError: there are no proteins.
        ExportError: a dtype overflows.
    """
    packs = packs_of(sequences, "pack", MAX_TOKENS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layer = reference.architecture.num_layers
    truth = _eager(reference, packs, layer, torch.float64, cache)
    distances, kernels = [], {}
    for name in DTYPES:
        dtype = getattr(torch, name)
        packed = cast_copy(PackedESM2(reference.model, (layer,)).eval(), dtype).to(device)
        embeddings = {
            TRUTH: truth,
            EAGER: _eager(reference, packs, layer, dtype, cache),
            FLASH: _packed(packed, packs, "auto"),
            STANDARD: _packed(packed, packs, "standard"),
        }
        head_dim = reference.architecture.head_dim
        kernels[name] = varlen_attention.choose(device, dtype, head_dim).name
        distances += [
            _distance(name, (one, embeddings[one]), (other, embeddings[other]))
            for one, other in combinations(embeddings, 2)
        ]
    return Study(
        source=f"{reference.origin.source} ({reference.origin.kind})",
        synthetic=reference.origin.kind == "synthetic",
        num_proteins=len(sequences),
        num_tokens=sum(as_batch(pack).num_tokens for pack in packs.values()),
        kernels=kernels,
        distances=distances,
        environment=describe_environment(),
    )


def render(study: Study, command: str) -> str:
    """The study as Markdown."""
    decided = [d for d in study.distances if (d.one, d.other) == (EAGER, FLASH)]
    return render_template(
        "divergence.md.j2",
        study=study,
        command=command,
        decided=decided,
        accept=ACCEPT,
        validate=VALIDATE,
    )


def _eager(
    reference: Reference, packs: dict[str, Pack], layer: int, dtype: torch.dtype,
    cache: Cache | None,
) -> Pooled:  # fmt: skip
    answers = run_eager(reference, packs, (layer,), "mean", dtype, cache)
    return _joined([answers[name].tensors[EMBEDDING] for name in packs])


@torch.inference_mode()
def _packed(packed: PackedESM2, packs: dict[str, Pack], attention: Attention) -> Pooled:
    weight = packed.embed_tokens.weight
    device = weight.device
    choice = varlen_attention.choose(device, weight.dtype, packed.head_dim, attention)
    pooled = []
    for pack in packs.values():
        batch = as_batch(pack)
        with varlen_attention.using(choice):
            *_, last = packed(
                torch.from_numpy(batch.input_ids).to(device),
                torch.from_numpy(batch.cu_seqlens).to(device),
                torch.tensor(batch.max_seqlen),
            )
        pooled.append(pooling.pool(last.float().cpu().numpy(), batch.cu_seqlens, "mean"))
    return _joined(pooled)


def _joined(pooled: Sequence[Pooled | None]) -> Pooled:
    return np.concatenate([values for values in pooled if values is not None]).astype(np.float64)


def _distance(dtype: str, one: tuple[str, Pooled], other: tuple[str, Pooled]) -> Distance:
    (one_name, expected), (other_name, actual) = one, other
    try:
        agreement, correlation = compare_classifications(actual, expected)
    except ValueError as error:
        raise ExportError(f"{one_name} or {other_name} attention in {dtype}: {error}") from None
    norms = np.linalg.norm(expected, axis=1)
    relative = np.linalg.norm(actual - expected, axis=1) / norms
    return Distance(
        dtype, one_name, other_name, agreement, correlation,
        float(np.median(relative)), float(relative.max()),
    )  # fmt: skip
