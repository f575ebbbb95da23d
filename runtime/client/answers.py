"""Bodies of answers as NumPy."""

import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.client.connection import Answer
from runtime.errors import EngineError

Floats = NDArray[np.float32]


def json_of(answer: Answer) -> Any:
    """What JSON says. Raises EngineError for what is none."""
    try:
        return json.loads(answer.content)
    except ValueError:
        raise _no_answer(answer) from None


def arrays_of(answer: Answer, name: str) -> tuple[Floats, NDArray[np.int64]]:
    """Of an .npz.

    Args:
        answer: with it.
        name: of the array.

    Returns:
        Values of all proteins one after the other, and where each begins and the last ends.

    Raises:
        EngineError: it is no such .npz. Nothing is ever unpickled.
    """
    try:
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as file:
            values = np.asarray(file[name], np.float32)
            offsets = file["offsets"] if "offsets" in file else np.arange(len(values) + 1)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        raise _no_answer(answer) from None
    return values, offsets


def _no_answer(answer: Answer) -> EngineError:
    return EngineError(
        f"what came is no answer of esm2-run serve (request {answer.id}): is the URL right?"
    )


def by_label(scores: list[Any], labels: Sequence[str]) -> NDArray[np.float64]:
    """``[C]``, or ``[L, C]`` of residues, in the order of the labels."""
    if isinstance(scores[0], list):
        return np.array([by_label(each, labels) for each in scores])
    found = {each["label"]: each["score"] for each in scores}
    return np.array([found[label] for label in labels], np.float64)
