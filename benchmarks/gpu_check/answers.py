"""What contenders answered, after the timing, and what went wrong with one of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.contenders import Contender, Proteins
from benchmarks.gpu_check.results import Timing, reason_of

# Half precision, and two ways to round rotary angles: beyond this it is another model. The gate is
# where engines are judged; this shows that what was timed is what was judged.
MAX_RELATIVE_L2 = 5e-2
COMPARED_PROTEINS = 6


@contextmanager
def noting(timing: Timing) -> Iterator[None]:
    """What goes wrong with one contender inside the block is written down, and no more."""
    try:
        yield
    except Exception as error:  # of any library that runs a contender
        timing.problem = reason_of(error)


def compare(contenders: Sequence[Contender], proteins: Proteins) -> None:
    """Compares everybody's last layer on a few of ``proteins`` with the first contender's."""
    few = proteins[:COMPARED_PROTEINS]
    truth: NDArray[np.floating] | None = None
    label = ""
    for contender in contenders:
        timing = contender.timing
        if timing.problem:
            continue
        with noting(timing):
            rows = contender.rows(contender.prepare(few)(), few)
            if truth is None:
                truth, label = rows, timing.label
            error = float(np.linalg.norm(rows - truth) / np.linalg.norm(truth))
            timing.relative_l2 = error
            if not error <= MAX_RELATIVE_L2:
                timing.problem = (
                    f"wrong: relative L2 {error:.1e} against {label}, expected at most "
                    f"{MAX_RELATIVE_L2:g}"
                )
