"""The kinds of heads, and how each is made: of its weights, or of an artifact's."""

from collections.abc import Mapping

from torch import Tensor

from exporter.errors import CheckpointError
from exporter.model.heads.head import Head, fill
from exporter.model.heads.linear_probe import LinearProbe
from exporter.model.heads.sequence_classification import SequenceClassification
from exporter.model.heads.token_classification import TokenClassification
from runtime.manifest_schema import HeadEntry

PREFIX = "head."
KINDS: dict[str, type[LinearProbe | SequenceClassification | TokenClassification]] = {
    "sequence_classification": SequenceClassification,
    "token_classification": TokenClassification,
    "linear_probe": LinearProbe,
}


def head_of(entry: HeadEntry, tensors: Mapping[str, Tensor], label: str, width: int) -> Head:
    """A head with weights.

    Args:
        entry: what it is.
        tensors: under the head's own names.
        label: of where they come from.
        width: E of the model.

    Raises:
        CheckpointError: a kind that this version does not know, or the weights do not fit.
    """
    if entry.kind not in KINDS:
        raise CheckpointError(
            f"{label} has a head of kind {entry.kind!r}, expected one of {', '.join(KINDS)}"
        )
    return fill(KINDS[entry.kind](entry, width), tensors, label, width)


def take_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes the head's tensors from an artifact's; returns them under the head's own names."""
    names = [name for name in state if name.startswith(PREFIX)]
    return {name.removeprefix(PREFIX): state.pop(name) for name in names}
