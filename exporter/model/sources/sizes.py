"""The sizes of an ESM-2 read off its tensors, and whether its settings say the same."""

import re
from collections.abc import Mapping

from torch import Tensor

from exporter.errors import CheckpointError
from exporter.model.architectures import ARCHITECTURES, Shape, checked_shape
from runtime.tokenizer import TOKENS

_LAYER = re.compile(r"layers\.(\d+)\.")


def check_sizes(
    state: Mapping[str, Tensor], shape: Shape, label: str, settings: str, vocabulary: object = None
) -> None:
    """Raises CheckpointError where tensors have other sizes than ``settings`` says, or tokens.

    Args:
        state: under fair-esm's names.
        shape: what the settings say.
        label: of the checkpoint.
        settings: where they stand, such as ``config.json``.
        vocabulary: how many tokens they say, if they do.
    """
    table = state.get("embed_tokens.weight")
    if table is None or table.ndim != 2:
        return  # what is missing or misshapen is said where the model is filled
    said: dict[str, object] = dict(zip(("layers", "embed dim", "heads"), shape, strict=True))
    found = {"layers": _layers(state), "embed dim": table.shape[1], "heads": _heads(state)}
    if vocabulary is not None:
        said["vocab_size"], found["vocab_size"] = vocabulary, table.shape[0]
    wrong = [
        f"{what} {said[what]} in {settings}, {value} in the weights"
        for what, value in found.items()
        if value is not None and value != said[what]
    ]
    if wrong:
        raise CheckpointError(
            f"{label} contradicts itself: {'; '.join(wrong)}. Give the {settings} that belongs to "
            "these weights"
        )
    check_tokens(table, label)


def check_tokens(table: Tensor, label: str) -> None:
    """Raises CheckpointError unless the embedding table has a row for each token of ESM-2."""
    rows = table.shape[0]
    if rows != len(TOKENS):
        why = "tokens were added to its vocabulary (resize_token_embeddings)"
        raise CheckpointError(
            f"{label} has an embedding table of {rows} rows, ESM-2 has {len(TOKENS)} tokens: "
            f"{why if rows > len(TOKENS) else 'another vocabulary'}. The runtime's tokenizer knows "
            "ESM-2's tokens alone, so such a model cannot be built"
        )


def shape_of(state: Mapping[str, Tensor], label: str) -> Shape:
    """The sizes of weights without settings.

    The number of heads leaves no trace in the weights but in the rotary frequencies, which not
    every version saves; without them it is that of the published model of the same size.

    Raises:
        CheckpointError: there is no such model, or the sizes are no ESM-2's.
    """
    table = state.get("embed_tokens.weight")
    if table is None or table.ndim != 2:
        raise CheckpointError(f"{label} does not fit ESM-2: it has no embedding table of two axes")
    check_tokens(table, label)
    layers, width = _layers(state), table.shape[1]
    heads = _heads(state) or next((s[2] for s in ARCHITECTURES.values() if s[1] == width), None)
    if heads is None:
        raise CheckpointError(
            f"{label} does not say how many attention heads it has, and no published ESM-2 is "
            f"{width} wide. Put its config.json beside it, or save it with save_pretrained"
        )
    try:
        return checked_shape(layers, width, heads)
    except ValueError as error:
        raise CheckpointError(f"{label} does not fit ESM-2: {error}") from None


def _layers(state: Mapping[str, Tensor]) -> int:
    return len({match.group(1) for name in state if (match := _LAYER.match(name))})


def _heads(state: Mapping[str, Tensor]) -> int | None:
    """From the rotary frequencies, half of a head's width; None where they are not stored."""
    width = state["embed_tokens.weight"].shape[1]
    for name, tensor in state.items():
        if name.endswith("inv_freq") and tensor.ndim == 1 and len(tensor):
            return width // (2 * len(tensor)) or None
    return None
