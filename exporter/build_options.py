"""What to build."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.model.reference import WeightsSource
from exporter.parity.truth.packs import LONGEST
from exporter.parity.verify import ProofOptions
from exporter.signing import Signer
from runtime.pooling import Pool


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        source: of the weights.
        targets: names of formats in ``exporter.formats.table``.
        layers: to export; None takes the last.
        pool: adds a ``pooled`` output of the last exported layer.
        prove: plant faults in the verified engines, and demand that each is rejected.
        dtype: of weights and outputs, one of ``exporter.model.architectures.DTYPES``.
        out: the artifact's folder; None takes ``artifacts/<name>``.
        device: where engines are verified, as in ``runtime.load``; ``"cuda"`` runs eager fair-esm
            there too.
        of_format: options that only one format takes, by its name.
        longest: tokens of the longest protein to compare.
        keep_passed: publish the engines that passed where another failed; its verdict stays in the
            report.
        signer: signs the artifact before it is published.
    """

    source: WeightsSource
    targets: Sequence[str]
    layers: Sequence[int] | None = None
    pool: Pool | None = None
    dtype: str = "float32"
    prove: ProofOptions | None = None
    out: Path | None = None
    device: str = "auto"
    of_format: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    longest: int = LONGEST
    keep_passed: bool = False
    signer: Signer | None = None
