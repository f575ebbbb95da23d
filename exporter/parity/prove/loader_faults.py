"""Faults of reading a checkpoint: engines and their reference would have them alike.

A gate that compares the two sees none of them; the loader of the checkpoint's own format must. They
are planted where it is read, on files that are written from the reference's own weights. Those hold
two layers and four heads of them: a checkpoint of 15 billion parameters takes the same way.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import torch
from torch import Tensor

from exporter.errors import CheckpointError, ExportError, ReadOtherwiseError
from exporter.model.checkpoint_files import write_fair_esm, write_hugging_face
from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.model.sources import fair_esm, hugging_face, names, settings
from exporter.model.witness import NOT_COMPARED
from exporter.parity.prove.replaced import replaced
from exporter.parity.report.schema import EVERY_ENGINE, FaultVerdict
from exporter.parity.rules.verdict import OWN_LOADER
from runtime.manifest_schema import Architecture

MAX_LAYERS, MAX_HEADS = 2, 4

State = dict[str, Tensor]
Plant = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class LoaderFault:
    """``plant()``: a context in which this project reads checkpoints with the fault."""

    name: str
    plant: Plant


def prove_loader(reference: Reference, workspace: Path) -> list[FaultVerdict]:
    """Plants every fault, and says whether the loader of the file's own format gave it away.

    Args:
        reference: eager fair-esm with the weights that the files get.
        workspace: a folder for them.

    Raises:
        ExportError: a file without a fault is refused, or was not compared.
    """
    architecture, state = _part(reference)
    file, folder = workspace / "fair-esm.pt", workspace / "hugging-face"
    write_fair_esm(file, architecture, state)
    folder.mkdir()
    write_hugging_face(folder, architecture, state)
    return [*_prove(file, fair_esm_faults()), *_prove(folder, hugging_face_faults())]


def fair_esm_faults() -> list[LoaderFault]:
    """Of a file as fair-esm has them."""
    return [LoaderFault(f"{name}, fair-esm's file", plant) for name, plant in _mapping(fair_esm)]


def hugging_face_faults() -> list[LoaderFault]:
    """Of a folder as ``transformers`` has them."""
    planted: dict[str, Plant] = {
        **dict(_mapping(hugging_face)),
        # In the table itself, where a slip would be one word.
        "q and k exchanged": partial(_table, "attention.self.query", "attention.self.key"),
        "the LayerNorms of a layer exchanged": partial(_table, "attention.LayerNorm", "LayerNorm"),
        "token dropout misread": _token_dropout,
    }
    return [LoaderFault(f"{name}, Hugging Face's folder", plant) for name, plant in planted.items()]


def _prove(place: Path, faults: Iterable[LoaderFault]) -> list[FaultVerdict]:
    def load() -> Reference:
        return load_reference(WeightsSource("checkpoint", str(place)))

    try:
        sound = load()
    except CheckpointError as error:
        raise ExportError(
            f"cannot plant faults in the loader: without one it refuses {place.name}: {error}"
        ) from error
    not_run = next((note for note in sound.notes if note.startswith(NOT_COMPARED)), "")
    return [_verdict(fault, load, sound, not_run) for fault in faults]


def _verdict(
    fault: LoaderFault, load: Callable[[], Reference], sound: Reference, not_run: str
) -> FaultVerdict:
    found = FaultVerdict(fault.name, "loader", EVERY_ENGINE, "accepted")
    change = partial(msgspec.structs.replace, found)
    if not_run:
        return change(outcome="not run", note=not_run)
    try:
        with fault.plant():
            faulty = load()
    except CheckpointError as error:
        rules = [OWN_LOADER] if isinstance(error, ReadOtherwiseError) else []
        refusal, _, _ = str(error).partition(". ")
        return change(outcome="rejected", by=refusal, rules=rules)
    same = faulty.origin == sound.origin and faulty.architecture == sound.architecture
    return change(outcome="does not apply", note="the weights are so already") if same else found


def _part(reference: Reference) -> tuple[Architecture, State]:
    """The first layers, heads and columns of the reference's own weights, as a small model's."""
    whole = reference.architecture
    heads = min(MAX_HEADS, whole.num_heads)
    width = heads * whole.head_dim
    part = msgspec.structs.replace(
        whole, num_layers=min(MAX_LAYERS, whole.num_layers), num_heads=heads, embed_dim=width
    )
    sizes = {whole.embed_dim: width, 4 * whole.embed_dim: 4 * width}
    left_out = (
        "contact_head.",
        "head.",
        *(f"layers.{number}." for number in range(part.num_layers, whole.num_layers)),
    )
    state = {
        name: tensor[tuple(slice(sizes.get(size, size)) for size in tensor.shape)].clone()
        for name, tensor in reference.model.state_dict().items()
        if not name.startswith(left_out)
    }
    return part, state


# --- faults -----------------------------------------------------------------------------------


def _mapping(source: Any) -> list[tuple[str, Plant]]:
    """Of turning a file's tensors into parameters under fair-esm's names, in any format."""

    def in_state(change: Callable[[State], State]) -> Plant:
        original = source.to_fair_esm

        def changed(stored: State, label: str) -> tuple[State, list[str]]:
            state, left_out = original(stored, label)
            return {**state, **change(state)}, left_out

        return lambda: replaced(source, "to_fair_esm", changed)

    return [
        ("q and k exchanged", in_state(_exchanged)),
        ("a square matrix transposed", in_state(_transposed)),
        ("a bias left at zero", in_state(_zeroed)),
        ("rotary frequencies of another model", in_state(_other_frequencies)),
    ]


def _exchanged(state: State) -> State:
    one, other = (f"layers.0.self_attn.{name}_proj.weight" for name in "qk")
    return {one: state[other], other: state[one]}


def _transposed(state: State) -> State:
    name = "layers.0.self_attn.out_proj.weight"
    return {name: state[name].T.contiguous()}


def _zeroed(state: State) -> State:
    name = "layers.0.fc1.bias"
    return {name: torch.zeros_like(state[name])}


def _other_frequencies(state: State) -> State:
    found = {name: tensor for name, tensor in state.items() if name.endswith("inv_freq")}
    return {
        name: 1.0 / 5000.0 ** (torch.arange(len(tensor)) / len(tensor))
        for name, tensor in found.items()
    }


@contextmanager
def _table(one: str, other: str) -> Iterator[None]:
    """Two rows of the table of names have one another's names."""
    theirs = [f"esm.encoder.layer.{{}}.{name}" for name in (one, other)]
    ours = [names.RENAMES[name] for name in reversed(theirs)]
    renames = {**names.RENAMES, **dict(zip(theirs, ours, strict=True))}
    with patch.object(names, "_PATTERNS", names._patterns(renames)):
        yield


def _token_dropout() -> AbstractContextManager[None]:
    original = settings.check_settings

    def misread(config: dict[str, Any], folder: Path) -> Any:
        shape, token_dropout = original(config, folder)
        return shape, not token_dropout

    return replaced(hugging_face, "check_settings", misread)
