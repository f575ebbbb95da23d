"""Whether a format's own loader reads a checkpoint as this project does.

Engines and their reference get weights from one loader: a tensor in a wrong place would be in both.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporter.model.heads.head import Head

# Of hidden states in float32. Rounding leaves 1e-6; a tensor in another's place far more.
TOLERANCE = 1e-4
# Twice what bfloat16 rounds away. Those of another base are up to that base's ratio apart.
FREQUENCY_ROUNDING = 2.0**-8
SETTINGS = ("num_layers", "embed_dim", "attention_heads", "token_dropout")
# <cls>, every residue and symbol of fair-esm's alphabet, <mask>, <eos>.
TOKENS = [0, *range(3, 33), 2]
CLASS_OF_HEAD = {
    "sequence_classification": "EsmForSequenceClassification",
    "token_classification": "EsmForTokenClassification",
}
NOT_COMPARED = "not compared with what transformers reads from this folder: "


class NoWitnessError(Exception):
    """Why the format's own loader cannot be asked."""


def unlike_fair_esms(model: Any, theirs: Any, state: dict[str, Tensor]) -> list[str]:
    """What fair-esm's own loader reads otherwise, in words.

    Args:
        model: as this project loaded it.
        theirs: the empty model that fair-esm makes of the file's settings, but for its rotary
            frequencies.
        state: what fair-esm would put into it, by its names.

    Raises:
        NoWitnessError: it does not know the names, of a wrapper say.
    """
    found = [name for name in SETTINGS if getattr(model, name) != getattr(theirs, name)]
    ours = dict(model.named_parameters())
    unknown = [name for name in ours if name not in state and not name.startswith("contact_head.")]
    if unknown:
        raise NoWitnessError(
            "not compared with what fair-esm reads from this file: it does not find "
            f"{len(unknown)} tensors under their names"
        )
    ours |= model.named_buffers()
    # A file may hold no frequencies: those that fair-esm computes are used.
    expected = {**dict(theirs.named_buffers()), **state}
    return found + [
        name
        for name, tensor in expected.items()
        if name in ours and not torch.equal(tensor.float(), ours[name])
    ]


def unlike_transformers(
    model: Any, folder: Path, has_lm_head: bool, head: Head | None = None,
    adapter: Path | None = None,
) -> list[str]:  # fmt: skip
    """Which outputs transformers' model of the folder gives otherwise; empty if none.

    Args:
        model: as this project loaded it.
        folder: as transformers would load it.
        has_lm_head: whether ``model`` has one.
        head: of ``model``, where transformers has it too.
        adapter: a folder of PEFT, which is loaded on top of the other.

    Raises:
        NoWitnessError: transformers or PEFT is not installed, or does not know the names.
    """
    for library in ["transformers"] + (["peft"] if adapter else []):
        if importlib.util.find_spec(library) is None:
            raise NoWitnessError(f"{NOT_COMPARED}{library} is not installed")
    try:
        return _compare_outputs(model, folder, has_lm_head, head, adapter)
    except NoWitnessError:
        raise
    except Exception as error:  # each of its versions refuses other files, in classes of its own
        said = str(error).partition("\n")[0] or type(error).__name__
        raise NoWitnessError(f"{NOT_COMPARED}it says {said}") from error


def _compare_outputs(
    model: Any, folder: Path, has_lm_head: bool, head: Head | None, adapter: Path | None
) -> list[str]:
    tokens = torch.tensor([TOKENS])
    last = model.num_layers
    with _quiet() as transformers, torch.no_grad():
        witness = _load(transformers, folder, has_lm_head, head, adapter)
        # A folder in half precision may hold rounded ones, which not every version of transformers
        # reads; outputs are of the same.
        frequencies = model.layers[0].self_attn.rot_emb.inv_freq
        apart = False
        for name, buffer in witness.named_buffers():
            if name.endswith("inv_freq"):
                apart |= not torch.allclose(frequencies, buffer, rtol=FREQUENCY_ROUNDING, atol=0)
                buffer.copy_(frequencies)
        theirs = witness(tokens, output_hidden_states=True)
        ours = model(tokens, repr_layers=[last])
        represented = ours["representations"][last]
        pairs = {"representations": (represented, theirs.hidden_states[-1])}
        if has_lm_head:
            pairs["logits"] = ours["logits"], theirs.logits
        if head is not None:
            bounds = torch.tensor([0, len(TOKENS)])
            pairs["head"] = head(represented[0], bounds), theirs.logits.reshape(-1, head.num_labels)
    found = ["rotary frequencies"] if apart else []
    return found + [
        name for name, (a, b) in pairs.items() if not (a - b).norm() <= TOLERANCE * b.norm()
    ]


def _load(
    transformers: Any, folder: Path, has_lm_head: bool, head: Head | None, adapter: Path | None
) -> Any:
    options: dict[str, Any] = {}
    if head is not None:
        kind = getattr(transformers, CLASS_OF_HEAD[head.entry.kind])
        options["num_labels"] = head.num_labels
    elif has_lm_head:
        kind = transformers.EsmForMaskedLM
    else:
        kind, options = transformers.EsmModel, {"add_pooling_layer": False}
    witness, said = kind.from_pretrained(
        str(folder), local_files_only=True, output_loading_info=True, **options
    )
    # A folder need not have a contact head, and no output here is of one.
    elsewhere = ("contact_head.", "esm.contact_head.", *(["classifier."] if adapter else []))
    missing = [name for name in said["missing_keys"] if not name.startswith(elsewhere)]
    if missing:
        raise NoWitnessError(
            f"{NOT_COMPARED}it does not find {len(missing)} tensors under their names"
        )
    if adapter:
        import peft

        witness = peft.PeftModel.from_pretrained(witness, str(adapter))
    return witness.eval().float()


@contextmanager
def _quiet() -> Iterator[Any]:
    """transformers, which says nothing of the heads that are not read."""
    import transformers
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(ERROR)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
