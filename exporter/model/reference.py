"""Loads ESM-2's weights into fair-esm's own model; the only importer of fair-esm.

Many sources (``sources``), one result (``Reference``): a model by its name, a checkpoint of
fair-esm, of ``transformers`` or of a trainer, or synthetic weights of a true architecture.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import esm
import esm.pretrained
import msgspec
import torch
from esm.model.esm2 import ESM2
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from exporter.errors import CheckpointError, ReadOtherwiseError
from exporter.model.architectures import Shape, architecture_name, known_architecture
from exporter.model.heads.head import Head
from exporter.model.packed_forward import NoLMHead
from exporter.model.sources import checkpoint as checkpoints
from exporter.model.sources.artifact import read_artifact
from exporter.model.sources.loaded import Weights
from exporter.model.sources.probe import RESIDUES, ProbeSource, read_probe
from exporter.model.sources.tensor_files import some
from exporter.model.synthetic import synthetic_state, with_outliers
from exporter.model.witness import NoWitnessError, unlike_fair_esms, unlike_transformers
from runtime.manifest_schema import Architecture, Manifest, WeightsOrigin
from runtime.pairs import CONTACTS

# Parameters of fair-esm's model that no engine uses and that a checkpoint need not have: the
# contact head comes in a file of its own, and lm_head.weight is the embedding table again.
CONTACT_HEAD = {"contact_head.regression.weight", "contact_head.regression.bias"}
OPTIONAL = CONTACT_HEAD | {"lm_head.weight"}
NO_CONTACT_HEAD = (
    "holds no weights of a contact head. fair-esm's lie in a file of their own beside the "
    "checkpoint, NAME-contact-regression.pt; transformers keeps them in the folder. Put them "
    "there, or leave --contacts out"
)

# What a checkpoint's parameters may be in; all of them are widened, or rounded, to float32.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

SourceKind = Literal["model", "checkpoint", "synthetic", "artifact"]


@dataclass(frozen=True)
class WeightsSource:
    """Where to load from.

    Attributes:
        kind: of ``value``, a name or a path.
        value: of the model.
        seed: of synthetic weights.
        contacts: whether the contact head's weights are wanted, too.
        with_head: False leaves a checkpoint's classifier out.
        probe: a linear model on top of it.
        outliers: synthetic weights that are like trained ones (``synthetic.with_outliers``).
    """

    kind: SourceKind
    value: str
    seed: int = 0
    contacts: bool = False
    with_head: bool = True
    probe: ProbeSource | None = None
    outliers: bool = False


@dataclass(frozen=True)
class Reference:
    """fair-esm's own model with the weights in it: what every engine is traced from.

    Attributes:
        model: fair-esm's ``ESM2`` in eval mode, float32, on the CPU; it has a module ``head`` more
            where one was trained on top of it.
        alphabet: fair-esm's ``Alphabet``.
        architecture: its shape.
        origin: for the manifest.
        notes: what the user is told of the weights, in sentences.
        contacts: whether the contact head is in use.
    """

    model: ESM2
    alphabet: Any
    architecture: Architecture
    origin: WeightsOrigin
    notes: tuple[str, ...] = ()
    contacts: bool = False

    @property
    def head(self) -> Head | None:
        """What was trained on top of the model."""
        return getattr(self.model, "head", None)


def load_reference(source: WeightsSource) -> Reference:
    """Loads weights into fair-esm's model.

    Raises:
        CheckpointError: one line that says what is wrong with the source.
    """
    weights = _read(source)
    if source.contacts and not weights.state.keys() >= CONTACT_HEAD:
        raise CheckpointError(f"{weights.source} {NO_CONTACT_HEAD}")
    model, alphabet = _empty_model(weights.shape, weights.token_dropout)
    _fill(model, dict(weights.state), weights.source)
    num_layers, embed_dim, num_heads = weights.shape
    head = _head_of(source, weights)
    if head is not None:
        model.head = head
    has_lm_head = not isinstance(model.lm_head, NoLMHead)
    origin = WeightsOrigin(
        kind=weights.kind,
        source=weights.source,
        seed=source.seed if weights.kind == "synthetic" else None,
        outliers=weights.kind == "synthetic" and source.outliers,
        state_sha256=state_sha256(model),
        lm_head=has_lm_head,
        left_out=list(weights.left_out),
        revision=weights.revision,
        adapter=weights.adapter,
        contact_head_sha256=_sha256(model, CONTACT_HEAD) if source.contacts else "",
    )
    architecture = Architecture(
        name=architecture_name(weights.shape),
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        head_dim=embed_dim // num_heads,
        vocab_size=len(alphabet),
        token_dropout=weights.token_dropout,
    )
    notes = [*weights.notes, *_ask_the_formats_own_loader(model, weights, has_lm_head)]
    if weights.left_out:
        notes.append(f"left out, for no engine holds it: {', '.join(weights.left_out)}")
    if not has_lm_head:
        notes.append("no LM head in this checkpoint: embeddings only, no logits")
    return Reference(
        model.eval().requires_grad_(False), alphabet, architecture, origin, tuple(notes),
        source.contacts,
    )  # fmt: skip


def _head_of(source: WeightsSource, weights: Weights) -> Head | None:
    """The checkpoint's own head, or the probe that was given.

    Raises:
        CheckpointError: there are both.
    """
    if source.probe is None:
        return weights.head
    if weights.head is not None:
        raise CheckpointError(
            f"{weights.source} has a head of its own, and an artifact holds one: give --no-head to "
            "take the probe in its place"
        )
    return read_probe(source.probe, weights.shape[1])


def _ask_the_formats_own_loader(model: ESM2, weights: Weights, has_lm_head: bool) -> list[str]:
    """What could not be asked, in sentences.

    Raises:
        ReadOtherwiseError: it reads something else.
    """
    asked = "fair-esm"
    if weights.contents is not None:
        with WithoutMemory():
            theirs, _, state = esm.pretrained._load_model_and_alphabet_core_v2(weights.contents)
        compare = partial(unlike_fair_esms, model, theirs, state)
    elif weights.folder is not None:
        asked = "transformers"
        own = weights.head if weights.head is getattr(model, "head", None) else None
        compare = partial(
            unlike_transformers, model, weights.folder, has_lm_head, own, weights.adapter_folder
        )
    else:
        return []
    try:
        different = compare()
    except NoWitnessError as error:
        return [str(error)]
    if different:
        raise ReadOtherwiseError(
            f"{weights.source} is read by {asked} otherwise than here: {some(different)} differ. "
            "That is a fault of esm2-engines or of the checkpoint: please report it"
        )
    return []


def _read(source: WeightsSource) -> Weights:
    if source.kind == "synthetic":
        shape = known_architecture(source.value)
        model, _ = _empty_model(shape, token_dropout=True)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        state = synthetic_state(shapes, source.seed)
        if source.outliers:
            state = with_outliers(state, source.seed)
        return Weights(shape, True, state, "synthetic", source.value)
    if source.kind == "artifact":
        return read_artifact(Path(source.value))
    return checkpoints.read(source.value, source.kind == "model", source.with_head, source.contacts)


def load_original(
    folder: Path, manifest: Manifest, checkpoint: str | None, probe: str | None = None
) -> Reference:
    """The reference for an artifact: the weights that it was built from, proven by their digest.

    Synthetic weights are drawn again. Others come from ``checkpoint`` if it is given, else from
    the artifact itself: equal digests show that those are the ones that were loaded. So does a
    linear probe, from ``probe``.

    Raises:
        CheckpointError: the weights are not those that the artifact was built from.
    """
    origin, entry = manifest.weights, manifest.head
    contacts = manifest.gives(CONTACTS)
    is_probe = entry is not None and entry.kind == "linear_probe"
    own_head = entry is not None and not is_probe
    given = ProbeSource(probe, entry.pool or RESIDUES) if probe and entry else None
    if checkpoint is not None:
        source = WeightsSource("checkpoint", checkpoint, 0, contacts, own_head, given)
    elif origin.kind == "synthetic":
        source = WeightsSource(
            "synthetic", origin.source, origin.seed or 0, contacts, probe=given,
            outliers=origin.outliers,
        )  # fmt: skip
    else:
        source = WeightsSource("artifact", str(folder), contacts=contacts)
    reference = load_reference(source)
    if is_probe and reference.head is None:
        stored = read_artifact(folder).head
        reference.model.head = stored
        origin = msgspec.structs.replace(
            reference.origin, state_sha256=state_sha256(reference.model)
        )
        reference = replace(reference, origin=origin)
    # Rounded weights are not the checkpoint's: only the original can be the truth for them.
    also = " and --probe" if is_probe else ""
    is_stored = source.kind == "artifact" or (is_probe and given is None)
    advice = f". Give the original with --checkpoint{also}" if is_stored else ""
    check_is_original(reference, manifest, f"{source.kind} {source.value}", folder, advice)
    return reference


def check_is_original(
    reference: Reference, manifest: Manifest, what: str, folder: Path, advice: str = ""
) -> None:
    """Raises CheckpointError unless the artifact says that it was built from ``reference``."""
    given, built = reference.origin, manifest.weights
    for got, expected, of in (
        (given.state_sha256, built.state_sha256, "parameters"),
        (given.contact_head_sha256, built.contact_head_sha256, "contact head"),
    ):
        if got != expected:
            raise CheckpointError(
                f"{what} is not what {folder} was built from: digest of its {of} {got[:12]}..., "
                f"expected {expected[:12]}...{advice}"
            )
    if reference.architecture != manifest.architecture:
        raise CheckpointError(
            f"{what} is not what {folder} was built from: its settings are "
            f"{reference.architecture}, expected {manifest.architecture}"
        )
    entry = reference.head.entry if reference.head else None
    if entry != manifest.head:
        raise CheckpointError(
            f"{what} is not what {folder} was built from: its head is {entry}, expected "
            f"{manifest.head}{advice}"
        )


def fair_esm_version() -> str:
    """For the manifest."""
    return str(esm.version.version)


# --- fair-esm's model ---------------------------------------------------------------------------


class WithoutMemory(TorchFunctionMode):
    """Inside, modules are made with parameters that hold nothing.

    ``torch.device("meta")`` would take all else along, and import PyTorch's compiler for it.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs["device"] = "meta"
        if func is nn.init.normal_:
            return kwargs["tensor"]
        return func(*args, **kwargs)


def _empty_model(shape: Shape, token_dropout: bool) -> tuple[ESM2, Any]:
    """fair-esm's ``ESM2`` without memory for its parameters."""
    num_layers, embed_dim, num_heads = shape
    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    with WithoutMemory():
        model = ESM2(num_layers, embed_dim, num_heads, alphabet, token_dropout)
    return model, alphabet


def _fill(model: ESM2, state: dict[str, Tensor], label: str) -> None:
    """Assigns ``state`` to ``model`` in float32, as fair-esm's own loader casts it.

    Raises:
        CheckpointError: names are missing, superfluous, or of another shape; says all of it.
    """
    foreign = [
        str(name)
        for name, tensor in state.items()
        if tensor.layout != torch.strided or tensor.dtype not in FLOATS
    ]
    if foreign:
        raise CheckpointError(
            f"{label} holds more than float tensors: {some(foreign)}. Quantised weights are not "
            "read: give the model in float32, float16 or bfloat16"
        )
    if not any(name.startswith("lm_head.") and name not in OPTIONAL for name in state):
        model.lm_head = NoLMHead()
        state.pop("lm_head.weight", None)
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
        f"{len(names)} tensors {what} ({some(names)})"
        for names, what in ((missing, "missing"), (unexpected, "unknown"), (wrong, "misshapen"))
        if names
    ]
    if problems:
        raise CheckpointError(f"{label} does not fit ESM-2: {'; '.join(problems)}")
    not_finite = [name for name, tensor in state.items() if not tensor.float().isfinite().all()]
    if not_finite:
        raise CheckpointError(
            f"{label} holds NaN or Inf: {some(not_finite)}. Take a checkpoint from before its "
            "training diverged"
        )
    head = state.get("lm_head.weight")
    if head is not None and not torch.equal(head, state["embed_tokens.weight"]):
        raise CheckpointError(
            f"{label} does not fit ESM-2: lm_head.weight differs from embed_tokens.weight, and "
            "ESM-2 ties them"
        )
    for name, shape in expected.items():
        if name not in state and name not in frequencies:
            state[name] = torch.zeros(shape)
    if "lm_head.weight" in expected:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    for name in frequencies:
        # esm/rotary_embedding.py:38
        dim = 2 * expected[name][0]
        computed = 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim))
        state[name] = state.get(name, computed)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    # load_state_dict(assign=True) unties what fair-esm ties.
    if "lm_head.weight" in expected:
        model.lm_head.weight = model.embed_tokens.weight


def state_sha256(model: nn.Module) -> str:
    """Digest of every parameter that all engines use, whatever format it came in."""
    return _sha256(model, model.state_dict().keys() - OPTIONAL)


def _sha256(model: nn.Module, names: Collection[str]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name in names:
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
