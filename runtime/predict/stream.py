"""Records in, predictions out, in input order and in bounded memory."""

from collections.abc import Callable
from dataclasses import asdict

from runtime.engine import Engine
from runtime.errors import InputError
from runtime.manifest_schema import HeadEntry
from runtime.predict.scores import Prediction, scores_of_pack
from runtime.readers.records import RecordOptions, Rejection
from runtime.results import Embedding
from runtime.runner import AsyncInferenceRunner


def predicting_runner(
    engine: Engine, head: HeadEntry, max_tokens: int | None, options: RecordOptions,
    on_rejected: Callable[[Rejection], None] | None = None,
) -> AsyncInferenceRunner:  # fmt: skip
    """A runner whose values are a head's scores.

    Args:
        engine: of an artifact with ``head``.
        head: of the artifact.
        max_tokens: budget of a pack.
        options: what is taken as a protein.
        on_rejected: as of the runner.

    Raises:
        InputError: windows: a head was trained on whole proteins, and its scores are no vectors to
            be averaged.
    """
    if options.long == "window":
        raise InputError(
            "predictions of windows cannot be joined: give --long skip or truncate, or leave "
            "--max-length out"
        )
    grows = head.rows == "tokens"
    width = engine.spec.embed_dim
    return AsyncInferenceRunner(
        engine, max_tokens, "none" if grows else "cls", **asdict(options),
        on_rejected=on_rejected, of_pack=scores_of_pack(engine, head),
        rows_of_token=-(-2 * len(head.labels) // width),  # float64, where vectors are float32
    )  # fmt: skip


def prediction_of(found: Embedding, head: HeadEntry) -> Prediction:
    """What a ``predicting_runner`` yields, with the names of its columns."""
    return Prediction(found.id, head.labels, found.values, head.problem_type)
