"""The LM head's logits: whether an artifact has them, and the log-probabilities they are."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.engine import Engine
from runtime.errors import UnsupportedError
from runtime.packing import PackedBatch
from runtime.runner import check_finite
from runtime.tokenizer import ID_OF_TOKEN

if TYPE_CHECKING:
    from runtime.manifest_schema import Manifest

LOGITS = "logits"
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
# Columns of the logits, in the order of ``AMINO_ACIDS``.
AMINO_ACID_IDS = np.array([ID_OF_TOKEN[letter] for letter in AMINO_ACIDS])


def check_lm_head(manifest: "Manifest") -> None:
    """Raises UnsupportedError for an artifact without logits; says how to build one with them."""
    if not manifest.weights.lm_head or not manifest.gives(LOGITS):
        raise UnsupportedError(
            f"artifact {manifest.name!r} gives no logits: its checkpoint had no LM head. Build it "
            "from a masked language model's checkpoint, such as 'esm2-export build --model "
            f"{manifest.architecture.name}'"
        )


def logits_of(engine: Engine, batch: PackedBatch) -> NDArray[np.floating]:
    """Runs a pack.

    Returns:
        ``[T, 33]`` as the engine gives them.

    Raises:
        NonFiniteError: the engine returned NaN or Inf.
        EngineError: the engine failed.
    """
    logits = engine.run(batch, [LOGITS]).logits
    assert logits is not None  # check_lm_head
    check_finite(batch, logits, "none")
    return logits


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Natural logarithms of probabilities over all 33 tokens, in float64.

    fair-esm's variant-prediction takes all tokens too, not the amino acids alone (predict.py,
    ``main``).

    Args:
        logits: ``[R, 33]``.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
