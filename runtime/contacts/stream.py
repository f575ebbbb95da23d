"""Records in, contacts out, in input order and in bounded memory."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from runtime.engine import Engine
from runtime.errors import InputError
from runtime.packing import PackedBatch
from runtime.pairs import CONTACTS, contacts_of
from runtime.readers.records import RecordOptions, Rejection
from runtime.runner import AsyncInferenceRunner


def contacts_runner(
    engine: Engine, max_tokens: int | None, options: RecordOptions,
    on_rejected: Callable[[Rejection], None] | None = None,
) -> AsyncInferenceRunner:  # fmt: skip
    """A runner whose values are probabilities of pairs, see ``runtime.pairs``.

    Args:
        engine: of an artifact that gives contacts.
        max_tokens: budget of a pack.
        options: what is taken as a protein.
        on_rejected: as of the runner.

    Raises:
        InputError: windows, whose contacts are not those of the whole.
    """
    if options.long == "window":
        raise InputError(
            "contacts of windows are not those of the whole protein: give --long skip or truncate, "
            "or leave --max-length out"
        )

    def of_pack(batch: PackedBatch) -> list[NDArray[np.floating]]:
        return contacts_of(engine.run(batch, [CONTACTS]), batch)

    return AsyncInferenceRunner(
        engine, max_tokens, "none", **asdict(options), on_rejected=on_rejected, of_pack=of_pack
    )
