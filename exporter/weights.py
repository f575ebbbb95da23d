"""Loads ESM-2's weights into fair-esm's own model; the only importer of fair-esm.

Four sources, one result (``Reference``): a model by fair-esm's name, a fair-esm checkpoint file, a
folder as Hugging Face stores ESM-2, or synthetic weights of a true architecture.
"""

import argparse
import hashlib
import pickle
import re
import urllib.error
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import esm
import torch
from esm.model.esm2 import ESM2
from safetensors.torch import load_file
from torch import Tensor, nn

from exporter.architectures import Shape, architecture_name, checked_shape, known_architecture
from exporter.errors import CheckpointError
from exporter.huggingface import read_folder
from exporter.synthetic import synthetic_state
from runtime import manifest as manifests
from runtime.manifest import Architecture, Manifest, WeightsOrigin

# esm/pretrained.py:62
DOWNLOAD_URL = "https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"

# Parameters of fair-esm's model that no engine uses and that a checkpoint need not have: the
# contact head comes in a file of its own, and lm_head.weight is the embedding table again.
OPTIONAL = {
    "contact_head.regression.weight",
    "contact_head.regression.bias",
    "lm_head.weight",
}

SourceKind = Literal["model", "checkpoint", "synthetic", "artifact"]


@dataclass(frozen=True)
class WeightsSource:
    """Where to load from: ``kind`` and the name or path, and the seed of synthetic weights."""

    kind: SourceKind
    value: str
    seed: int = 0


@dataclass(frozen=True)
class Reference:
    """fair-esm's own model with the weights in it: what every engine is traced from.

    Attributes:
        model: fair-esm's ``ESM2`` in eval mode, float32, on the CPU.
        alphabet: fair-esm's ``Alphabet``.
        architecture: its shape.
        origin: for the manifest.
    """

    model: nn.Module
    alphabet: Any
    architecture: Architecture
    origin: WeightsOrigin


def load_reference(source: WeightsSource) -> Reference:
    """Loads weights into fair-esm's model.

    Raises:
        CheckpointError: one line that says what is wrong with the source.
    """
    if source.kind == "synthetic":
        shape = known_architecture(source.value)
        model, _ = _empty_model(shape, token_dropout=True)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        state, token_dropout = synthetic_state(shapes, source.seed), True
        kind, label = "synthetic", source.value
    else:
        path = _downloaded(source.value) if source.kind == "model" else Path(source.value)
        if source.kind == "artifact":
            shape, token_dropout, state = _read_artifact(path)
            kind = "artifact"
        elif path.is_dir():
            shape, token_dropout, state = read_folder(path)
            kind = "huggingface"
        else:
            shape, token_dropout, state = _read_fair_esm_file(path)
            kind = source.kind
        label = path.resolve().stem if path.is_file() else path.resolve().name
    model, alphabet = _empty_model(shape, token_dropout)
    _fill(model, state, label)
    num_layers, embed_dim, num_heads = shape
    origin = WeightsOrigin(
        kind=kind,
        source=label,
        seed=source.seed if kind == "synthetic" else None,
        state_sha256=state_sha256(model),
    )
    architecture = Architecture(
        name=architecture_name(shape),
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        head_dim=embed_dim // num_heads,
        vocab_size=len(alphabet),
        token_dropout=token_dropout,
    )
    return Reference(model.eval().requires_grad_(False), alphabet, architecture, origin)


def load_original(folder: Path, manifest: Manifest, checkpoint: str | None) -> Reference:
    """The reference for an artifact: the weights that it was built from, proven by their digest.

    Synthetic weights are drawn again. Others come from ``checkpoint`` if it is given, else from
    the artifact itself: equal digests show that those are the ones that were loaded.

    Raises:
        CheckpointError: the weights are not those that the artifact was built from.
    """
    origin = manifest.weights
    if checkpoint is not None:
        source = WeightsSource("checkpoint", checkpoint)
    elif origin.kind == "synthetic":
        source = WeightsSource("synthetic", origin.source, origin.seed or 0)
    else:
        source = WeightsSource("artifact", str(folder))
    reference = load_reference(source)
    # Rounded weights are not the checkpoint's: only the original can be the truth for them.
    advice = ". Give the original with --checkpoint" if source.kind == "artifact" else ""
    check_is_original(reference, manifest, f"{source.kind} {source.value}", folder, advice)
    return reference


def check_is_original(
    reference: Reference, manifest: Manifest, what: str, folder: Path, advice: str = ""
) -> None:
    """Raises CheckpointError unless the artifact says that it was built from ``reference``."""
    got, expected = reference.origin.state_sha256, manifest.weights.state_sha256
    if got != expected:
        raise CheckpointError(
            f"{what} is not what {folder} was built from: digest of its parameters {got[:12]}..., "
            f"expected {expected[:12]}...{advice}"
        )
    if reference.architecture != manifest.architecture:
        raise CheckpointError(
            f"{what} is not what {folder} was built from: its settings are "
            f"{reference.architecture}, expected {manifest.architecture}"
        )


def fair_esm_version() -> str:
    """For the manifest."""
    return str(esm.version.version)


# --- fair-esm's own files ---------------------------------------------------------------------


def _downloaded(name: str) -> Path:
    """The file of a model in fair-esm's (torch.hub's) cache, downloaded if it is not there."""
    known_architecture(name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.pt"
    if not path.is_file():
        url = DOWNLOAD_URL.format(name=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except (OSError, urllib.error.URLError) as error:
            raise CheckpointError(
                f"cannot download {url}: {error}. Download it elsewhere and put it at {path}, "
                "or pass the file with --checkpoint"
            ) from None
    return path


def _read_fair_esm_file(path: Path) -> tuple[Shape, bool, dict[str, Tensor]]:
    """Shape, token dropout and parameters of a fair-esm ESM-2 checkpoint."""
    contents = _unpickle(path)
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path} holds a {type(contents).__name__}, not a checkpoint")
    if "cfg" not in contents or "model" not in contents:
        arch = getattr(contents.get("args"), "arch", None)
        what = f"an ESM-1 model ({arch})" if arch else f"a dictionary of {_some(contents)}"
        raise CheckpointError(
            f"{path} is not an ESM-2 checkpoint of fair-esm: it holds {what}, "
            "expected the keys 'cfg' and 'model'"
        )
    try:
        config = contents["cfg"]["model"]
        shape = checked_shape(
            config.encoder_layers, config.encoder_embed_dim, config.encoder_attention_heads
        )
        token_dropout = bool(config.token_dropout)
        # esm/pretrained.py:164
        state = {
            name.removeprefix("encoder.").removeprefix("sentence_encoder."): tensor
            for name, tensor in contents["model"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not an ESM-2 checkpoint of fair-esm: {error}") from None
    return shape, token_dropout, state


def _unpickle(path: Path) -> Any:
    if not path.exists():
        raise CheckpointError(f"cannot read {path}: no such file or folder")
    with path.open("rb") as file:
        start = file.read(512)
    head = start.lstrip().lower()
    if not head:
        raise CheckpointError(f"{path} is empty")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint: download the file itself")
    is_zip = start.startswith(b"PK\x03\x04")
    try:
        # Checkpoints hold their settings as a Namespace: allow that class, and nothing else.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError:
        raise
    except Exception as error:  # the unpickler's opcodes fail on foreign bytes in any way
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and blocked:
            raise CheckpointError(
                f"{path} is refused: it asks to load more than tensors and settings "
                f"({blocked.group(1)})"
            ) from None
        what = "a truncated or damaged checkpoint" if is_zip else "not a PyTorch checkpoint"
        raise CheckpointError(f"{path} is {what} ({type(error).__name__})") from None


# --- an artifact's own weights ----------------------------------------------------------------


def _read_artifact(folder: Path) -> tuple[Shape, bool, dict[str, Tensor]]:
    """Shape, token dropout and parameters of ``weights.safetensors``."""
    architecture = manifests.read(folder, check_files=False).architecture
    state = load_file(folder / "weights.safetensors")
    frequencies = state.pop("inv_freq")
    for layer in range(architecture.num_layers):
        state[f"layers.{layer}.self_attn.rot_emb.inv_freq"] = frequencies
    shape = (architecture.num_layers, architecture.embed_dim, architecture.num_heads)
    return shape, architecture.token_dropout, state


# --- fair-esm's model ---------------------------------------------------------------------------


def _empty_model(shape: Shape, token_dropout: bool) -> tuple[nn.Module, Any]:
    """fair-esm's ``ESM2`` without memory for its parameters."""
    num_layers, embed_dim, num_heads = shape
    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    with torch.device("meta"):
        model = ESM2(num_layers, embed_dim, num_heads, alphabet, token_dropout)
    return model, alphabet


def _fill(model: nn.Module, state: dict[str, Tensor], label: str) -> None:
    """Assigns ``state`` to ``model`` in float32, as fair-esm's own loader casts it.

    Raises:
        CheckpointError: names are missing, superfluous, or of another shape; says all of it.
    """
    foreign = [
        str(name)
        for name, tensor in state.items()
        if not (isinstance(name, str) and isinstance(tensor, Tensor))
        or tensor.layout != torch.strided
        or not tensor.is_floating_point()
    ]
    if foreign:
        raise CheckpointError(f"{label} holds more than float tensors: {_some(foreign)}")
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    frequencies = {name for name in expected if name.endswith("rot_emb.inv_freq")}
    missing = [n for n in expected if n not in state and n not in OPTIONAL | frequencies]
    unexpected = [n for n in state if n not in expected]
    wrong = [
        f"{n} {list(state[n].shape)} instead of {list(shape)}"
        for n, shape in expected.items()
        if n in state and state[n].shape != shape
    ]
    problems = [
        f"{len(names)} tensors {what} ({_some(names)})"
        for names, what in ((missing, "missing"), (unexpected, "unknown"), (wrong, "misshapen"))
        if names
    ]
    if problems:
        raise CheckpointError(f"{label} does not fit ESM-2: {'; '.join(problems)}")
    not_finite = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if not_finite:
        raise CheckpointError(f"{label} holds NaN or Inf: {_some(not_finite)}")
    head = state.get("lm_head.weight")
    if head is not None and not torch.equal(head, state["embed_tokens.weight"]):
        raise CheckpointError(
            f"{label} does not fit ESM-2: lm_head.weight differs from embed_tokens.weight, and "
            "ESM-2 ties them"
        )
    for name, shape in expected.items():
        if name not in state and name not in frequencies:
            state[name] = torch.zeros(shape)
    state["lm_head.weight"] = state["embed_tokens.weight"]
    for name in frequencies:
        # esm/rotary_embedding.py:38
        dim = 2 * expected[name][0]
        computed = 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim))
        state[name] = state.get(name, computed)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    # load_state_dict(assign=True) unties what fair-esm ties.
    model.lm_head.weight = model.embed_tokens.weight


def state_sha256(model: nn.Module) -> str:
    """Digest of every parameter that an engine uses, whatever format it came in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in OPTIONAL:
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _some(names: Any) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
