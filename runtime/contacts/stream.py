"""Records in, contacts out, in input order and in bounded memory."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import numpy as np
from numpy.typing import NDArray

from runtime.engine import Engine
from runtime.errors import InputError, NonFiniteError, UnsupportedError
from runtime.manifest import Manifest
from runtime.packing import PackedBatch
from runtime.pairs import CONTACTS, pair_bounds
from runtime.readers.records import RecordOptions, Rejection
from runtime.runner import AsyncInferenceRunner


def check_contacts(manifest: Manifest) -> None:
    """Raises UnsupportedError for an artifact without contacts; says how to build one with them."""
    if not manifest.gives(CONTACTS):
        raise UnsupportedError(
            f"artifact {manifest.name!r} gives no contacts: build it with "
            "'esm2-export build --contacts', from a checkpoint with a contact head"
        )


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

    return AsyncInferenceRunner(
        engine,
        max_tokens,
        "none",
        **asdict(options),
        on_rejected=on_rejected,
        of_pack=partial(contacts_of_pack, engine),
    )


def contacts_of_pack(engine: Engine, batch: PackedBatch) -> list[NDArray[np.floating]]:
    """Runs a pack, and gives each protein's probabilities, see ``runtime.pairs``.

    Raises:
        NonFiniteError: the engine returned NaN or Inf.
        EngineError: the engine failed.
    """
    pairs = engine.run(batch).tensors[CONTACTS][:, 0]
    found = np.split(pairs, pair_bounds(batch.cu_seqlens)[1:-1])
    for i, values in enumerate(found):
        if not np.isfinite(values).all():
            raise NonFiniteError(
                f"the engine returned NaN or Inf for the contacts of {batch.name(i)!r}. A protein "
                "of <eos> alone has none; else try a float32 artifact"
            )
    return found
