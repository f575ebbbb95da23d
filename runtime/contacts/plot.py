"""A picture of a protein's contacts: a square, both axes the residues."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from runtime.readers.records import printable

_LONGEST_ID = 60
_STYLE: dict[Any, Any] = {"font.size": 9, "text.parse_math": False}


def draw(path: Path, name: str, contacts: NDArray[np.floating]) -> None:
    """Writes a PNG of ``contacts`` ``[n, n]``, probabilities."""
    length = len(contacts)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 5.0), layout="constrained", dpi=150)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        edges = (0.5, length + 0.5)
        image = axes.imshow(
            contacts, cmap="Blues", vmin=0, vmax=1, origin="lower", extent=(*edges, *edges),
            interpolation="nearest" if length <= 800 else "antialiased",
        )  # fmt: skip
        axes.set_xlabel("residue")
        axes.set_ylabel("residue")
        shown = printable(name)
        cut = shown if len(shown) <= _LONGEST_ID else f"{shown[: _LONGEST_ID - 3]}..."
        axes.set_title(f"{cut}, {length:,} residues", fontsize=10)
        figure.colorbar(image, label="probability of a contact")
        figure.savefig(path)
