"""What every source gives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from exporter.model.architectures import Shape
from exporter.model.heads.head import Head
from runtime.manifest_schema import AdapterEntry


@dataclass(frozen=True)
class Weights:
    """Parameters under fair-esm's names, and where they came from.

    Attributes:
        shape: layers, embed dim, heads.
        token_dropout: whether the model scales embeddings by the share of masks.
        state: by name; without ``lm_head.`` where the checkpoint has no LM head.
        kind: ``synthetic``, ``checkpoint``, ``huggingface``, ``model`` or ``artifact``.
        source: the model's name, ``organisation/name`` of the Hub's.
        revision: the commit of a model from the Hub, else empty.
        left_out: parts of the checkpoint that no engine holds, such as ``classifier``.
        notes: what the user is told, in sentences.
        contents: of fair-esm's own file, unpickled, as fair-esm would load it.
        folder: as transformers would load it.
        head: what was trained on top of it, or None.
        adapter: what was merged into ``state``, or None.
        adapter_folder: as PEFT would load it on top of ``folder``.
    """

    shape: Shape
    token_dropout: bool
    state: dict[str, Tensor]
    kind: str
    source: str
    revision: str = ""
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    contents: Any = None
    folder: Path | None = None
    head: Head | None = None
    adapter: AdapterEntry | None = None
    adapter_folder: Path | None = None
