"""A picture of a deep scan: 20 amino acids by the residues of a protein, long ones in strips."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from runtime.extract.labels import FileNames
from runtime.lm_head import AMINO_ACIDS
from runtime.readers.records import printable
from runtime.runner import Embedding
from runtime.tokenizer import TOKENS
from runtime.variants.notation import WildType, parse

# By what their side chains are: small and hydrophobic, polar, basic, acidic.
_ORDER = "AVILMFYWCGPSTNQHKRDE"
_ROW_OF = {letter: row for row, letter in enumerate(_ORDER)}
_PER_STRIP = 100
_NUMBERED = 10
_LONGEST_ID = 60
_CELL, _LEFT, _RIGHT, _TOP, _BETWEEN, _BOTTOM = 0.115, 0.4, 1.0, 0.55, 0.62, 0.5  # inches
# Of all scores, those that the colours tell apart; a few of a real protein are far off.
_SHARE = 99.5
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "text.parse_math": False,  # a name with dollar signs is no formula
    **{f"axes.spines.{side}": False for side in ("top", "right", "left", "bottom")},
}


class DeepScores:
    """Scores of single substitutions as they come: of each wild type ``[20, L]``, else NaN.

    Args:
        wild_types: by id.
        offset: number of a protein's first residue.
    """

    def __init__(self, wild_types: Mapping[str, WildType], offset: int):
        self.of = {
            each.id: np.full((len(_ORDER), len(each.residues)), np.nan)
            for each in wild_types.values()
        }
        self._wild_types = wild_types
        self._offset = offset

    def seen(self, found: Iterable[Embedding]) -> Iterator[Embedding]:
        """Gives them on."""
        for each in found:
            wild_type = self._wild_types[each.id]
            ((place, _, mutant),) = parse(each.record.sequence, wild_type, self._offset)
            self.of[each.id][_ROW_OF[TOKENS[mutant]], place] = float(each.values)
            yield each

    def draw(self, folder: Path, convention: str) -> list[Path]:
        """A PNG for each wild type, named by its id; those that are there are replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        names = FileNames.in_folder(folder)
        paths = []
        for id_, scores in self.of.items():
            paths.append(folder / names.of(id_, ".png"))
            figure = heat_map(scores, self._wild_types[id_], self._offset, convention)
            figure.savefig(paths[-1], dpi=200)
        return paths


def heat_map(
    scores: NDArray[np.float64], wild_type: WildType, offset: int, convention: str
) -> Figure:
    """Draws it.

    Args:
        scores: ``[20, L]``, amino acids as in ``_ORDER``; NaN at the wild type's own.
        wild_type: whose residues they replace.
        offset: number of its first residue.
        convention: name of the scores.
    """
    length = scores.shape[1]
    strips = math.ceil(length / _PER_STRIP)
    columns = math.ceil(length / strips)
    width = _LEFT + columns * _CELL + _RIGHT
    height = _TOP + strips * len(_ORDER) * _CELL + (strips - 1) * _BETWEEN + _BOTTOM
    most = float(np.nanpercentile(np.abs(scores), _SHARE)) or 1.0
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(max(width, 4.5), height))
        FigureCanvasAgg(figure)
        figure.suptitle(
            f"{printable(wild_type.id)[:_LONGEST_ID]}: {convention} of single substitutions",
            x=_LEFT / figure.get_figwidth(), y=1 - 0.12 / height, ha="left", va="top", fontsize=10,
        )  # fmt: skip
        for strip in range(strips):
            begin = strip * columns
            part = scores[:, begin : begin + columns]
            top = _TOP + strip * (len(_ORDER) * _CELL + _BETWEEN)
            axes = _axes(figure, _LEFT, top, part.shape[1] * _CELL)
            image = axes.imshow(part, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
            _mark(axes, wild_type.residues[begin : begin + columns], begin + offset)
        scale = _axes(figure, _LEFT + columns * _CELL + 0.2, _TOP, 0.12)
        beyond = bool((np.abs(scores) > most).any())
        bar = figure.colorbar(image, cax=scale, extend="both" if beyond else "neither")
        bar.outline.set_visible(False)
        bar.set_label("score (below 0: less likely than the wild type)")
    return figure


def _axes(figure: Figure, left: float, top: float, width: float) -> Axes:
    """Of a strip's height, placed in inches from the figure's top left."""
    across, down = figure.get_figwidth(), figure.get_figheight()
    height = len(_ORDER) * _CELL
    place: Any = (left / across, 1 - (top + height) / down, width / across, height / down)
    return figure.add_axes(place)


def _mark(axes: Axes, residues: str, first: int) -> None:
    """A dot on the wild type's own, its letters below, numbers above."""
    axes.set_facecolor("0.85")
    own = [
        (place, _ROW_OF[letter]) for place, letter in enumerate(residues) if letter in AMINO_ACIDS
    ]
    if own:
        x, y = zip(*own, strict=True)
        axes.scatter(x, y, s=4, color="0.25", linewidths=0)
    axes.set_yticks(range(len(_ORDER)), list(_ORDER), fontsize=6.5, family="monospace")
    axes.set_xticks(range(len(residues)), list(residues), fontsize=6.5, family="monospace")
    axes.tick_params(length=0, pad=2)
    for number in range(first, first + len(residues)):
        to_next = -number % _NUMBERED
        if to_next == 0 or (number == first and to_next > 2):  # else the two would touch
            axes.annotate(
                str(number), (number - first, -0.5), (0, 2), textcoords="offset points",
                ha="center", fontsize=7, color="0.3",
            )  # fmt: skip
