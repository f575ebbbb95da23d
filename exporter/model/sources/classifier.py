"""The head of a folder of ``transformers``: its kind and labels from settings, and its weights."""

from collections.abc import Mapping
from typing import Any, get_args

from torch import Tensor

from exporter.errors import CheckpointError
from exporter.model.heads import sequence_classification, token_classification
from exporter.model.heads.head import Head, refuse_mixing
from exporter.model.heads.table import head_of
from exporter.model.sources.names import hugging_face_names
from runtime.manifest_schema import HeadEntry, ProblemType, Rows

NAME = "classifier"
NO_HEAD = "--no-head leaves it out, and exports embeddings alone"
# transformers' class -> our kind, what it has rows for, and its names behind "classifier".
CLASSES: dict[str, tuple[str, Rows, dict[str, str]]] = {
    "EsmForSequenceClassification": (
        "sequence_classification", "proteins", sequence_classification.RENAMES,
    ),
    "EsmForTokenClassification": (
        "token_classification", "tokens", token_classification.RENAMES,
    ),
}  # fmt: skip
# Parts of transformers' ESM classes that are no head; of others nothing is certain.
_TRUNK = ("esm.", "lm_head.")


def read_classifier(
    stored: Mapping[str, Tensor], config: Mapping[str, Any], label: str
) -> tuple[Head | None, list[str]]:
    """The head that ``config``'s class has, and what the user is told of it.

    Args:
        stored: of the folder, under their own names.
        config: the folder's ``config.json``.
        label: of the checkpoint.

    Raises:
        CheckpointError: settings and weights do not agree, or the head would mix proteins.
    """
    tensors = hugging_face_names(stored, label)
    for theirs, tensor in tensors.items():
        if not theirs.startswith(_TRUNK):
            refuse_mixing(theirs, tensor, label)
    classes = config.get("architectures")
    named = str(classes[0]) if isinstance(classes, list) and len(classes) == 1 else ""
    if named not in CLASSES:
        return None, []
    name, rows, renames = CLASSES[named]
    own = {
        theirs.removeprefix(f"{NAME}."): tensor
        for theirs, tensor in tensors.items()
        if theirs.startswith(f"{NAME}.")
    }
    if not own:
        raise CheckpointError(
            f"{label} contradicts itself: config.json says {named}, the weights hold no "
            f"{NAME}. {NO_HEAD}"
        )
    outputs = own.get("out_proj.bias", own.get("bias"))
    labels = labels_of(config, len(outputs) if outputs is not None and outputs.ndim else 0, label)
    problem_type, notes = _problem_type(config, len(labels), label)
    entry = HeadEntry(kind=name, rows=rows, problem_type=problem_type, id2label=labels)
    width = int(config["hidden_size"])
    try:
        head = head_of(entry, _renamed(own, renames), label, width)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {NO_HEAD}") from None
    return head, notes


def labels_of(config: Mapping[str, Any], count: int, label: str) -> dict[str, str]:
    """``id2label`` of settings, or transformers' own names where they hold none.

    Raises:
        CheckpointError: it is not one name for each of ``count`` outputs.
    """
    given = config.get("id2label")
    if given is None:
        return {str(number): f"LABEL_{number}" for number in range(count)}
    wanted = [str(number) for number in range(count)]
    if not isinstance(given, dict) or sorted(map(str, given)) != sorted(wanted):
        names = len(given) if isinstance(given, dict) else type(given).__name__
        raise CheckpointError(
            f"{label} contradicts itself: id2label in config.json names {names} labels, the "
            f"head gives {count}. Give the config.json that belongs to these weights"
        )
    labels = {key: str(value) for key, value in sorted(given.items(), key=lambda x: int(x[0]))}
    if twice := [name for name in labels.values() if list(labels.values()).count(name) > 1]:
        raise CheckpointError(
            f"{label} has several labels named {twice[0]!r}: give each a name of its own under "
            "id2label in config.json"
        )
    return labels


def _problem_type(
    config: Mapping[str, Any], num_labels: int, label: str
) -> tuple[ProblemType, list[str]]:
    given = config.get("problem_type")
    for known in get_args(ProblemType):
        if given == known:
            return known, []
    if given is not None:
        raise CheckpointError(
            f"{label} has problem_type {given!r} in config.json, expected one of "
            f"{', '.join(get_args(ProblemType))}"
        )
    # As transformers takes it in training, where labels are whole numbers.
    taken: ProblemType = "regression" if num_labels == 1 else "single_label_classification"
    return taken, [
        f"config.json does not say problem_type: {taken} is taken, for {num_labels} labels"
    ]


def _renamed(tensors: Mapping[str, Tensor], renames: Mapping[str, str]) -> dict[str, Tensor]:
    """Names that the table lacks are kept, and are unknown to the head."""
    found = {}
    for name, tensor in tensors.items():
        module, _, parameter = name.rpartition(".")
        found[f"{renames[module]}.{parameter}" if module in renames else name] = tensor
    return found
