"""``manifest.json``: what an artifact holds, and proof that its files are whole."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from runtime.coherence import contradictions
from runtime.domain import Domain
from runtime.errors import ArtifactError
from runtime.files import FileEntry, path_problem, problem_with_files
from runtime.manifest_upgrades import SCHEMA_VERSION, UPGRADES, upgraded
from runtime.trust.whom import Trust, trusted
from runtime.weights import FILE_NAME as WEIGHTS_FILE

FILE_NAME = "manifest.json"
# That of 15B in blocks of 64 MiB, with every engine, has less than 1 MB.
MAX_BYTES = 16 << 20

# What the runtime pools from the last exported layer: compared like an output of the engine.
EMBEDDING = "embedding"
# What a graph pools of the last exported layer, where an artifact was built so.
POOLED = "pooled"
# What a head that was trained on top of the model gives, where there is one.
HEAD = "head"
Rows = Literal["tokens", "proteins", "pairs"]
# transformers' names of what a head was trained for.
ProblemType = Literal[
    "single_label_classification", "multi_label_classification", "regression"
]  # fmt: skip

_ROWS: dict[int | str, Rows] = {"N": "proteins", "P": "pairs"}
_SEAL = re.compile(rb'("manifest_sha256": ")([0-9a-f]{64})(")')
_UNSEALED = b"0" * 64


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shape of the model."""

    name: str
    num_layers: int
    embed_dim: int
    num_heads: int
    head_dim: int
    vocab_size: int
    token_dropout: bool


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output of every engine of the artifact; a dimension is a number or a symbol.

    T is the tokens of a pack, N its proteins, P its pairs of residues (``runtime.pairs``).
    """

    name: str
    dtype: str
    shape: list[int | str]

    @property
    def rows(self) -> Rows:
        """What an output has one row for each of."""
        return _ROWS.get(self.shape[0], "tokens")


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs and outputs, in order."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class AdapterEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A LoRA adapter that was merged into the weights: ``W + B A`` times its scale.

    Attributes:
        kind: PEFT's name of it, ``LORA``.
        base: the model that it was trained on, as PEFT recorded it.
        rank, alpha: PEFT's ``r`` and ``lora_alpha``; of some targets others, by PEFT's patterns.
        rslora: the scale is alpha / sqrt(rank), not alpha / rank.
        targets: the linears that it changed, ``*`` for each layer's number.
        replaced: modules that it brought whole, PEFT's ``modules_to_save``.
    """

    kind: str
    base: str
    rank: int
    alpha: float
    rslora: bool
    targets: list[str]
    replaced: list[str] = []
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}


class HeadEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A head that was trained on top of the model: the output ``head``.

    Attributes:
        kind: ``sequence_classification``, ``token_classification`` or ``linear_probe``.
        rows: what it has one row for each of.
        problem_type: what its numbers are: scores of which one label, or of each label alone, is
            meant, or values.
        id2label: names of its columns, as in ``config.json`` of transformers.
        pool: of a linear probe, how each protein's vector is pooled; None: it reads every token.
    """

    kind: str
    rows: Rows
    problem_type: ProblemType
    id2label: dict[str, str]
    pool: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(self.id2label[key] for key in sorted(self.id2label, key=int))


class WeightsOrigin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights came from.

    Attributes:
        kind: ``synthetic``, ``checkpoint`` (a file), ``huggingface`` or ``model``.
        source: architecture or model name, or the name of the file or folder.
        seed: of synthetic weights.
        state_sha256: digest of the loaded parameters, independent of the file format.
        lm_head: whether there is one; without it engines give no logits.
        left_out: parts of the checkpoint that no engine holds, such as ``classifier``.
        revision: the commit of a model from the Hugging Face Hub, else empty.
        adapter: what was merged into them, or None.
        contact_head_sha256: digest of the contact head's weights, where engines give contacts.
        outliers: synthetic weights with a few large channels, as trained ones have.
    """

    kind: str
    source: str
    seed: int | None
    state_sha256: str
    lm_head: bool = True
    left_out: list[str] = []
    revision: str = ""
    adapter: AdapterEntry | None = None
    contact_head_sha256: str = ""
    outliers: bool = False


class SmoothingEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How large channels of a quantised engine's activations were made smaller.

    Attributes:
        proteins: on which they were measured: ``built in``, or the name of a user's file.
        sha256: digest of their sequences, one a line.
        num_tokens: of all of them.
        folded: inputs of linears that were smoothed in the weights before and behind them.
        multiplied: those that are multiplied in the graph.
    """

    proteins: str
    sha256: str
    num_tokens: int
    folded: int
    multiplied: int


class Quantisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an engine's linears were quantised, and what its answers may differ by.

    Attributes:
        weights: their type and scales.
        activations: the same.
        file: with the quantised weights.
        budget: limit of each rule that it was judged by.
        smoothing: of its activations; None in artifacts of before.
    """

    weights: str
    activations: str
    file: str
    budget: dict[str, float]
    smoothing: SmoothingEntry | None = None


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The largest pack that a plan takes: T, N and the longest protein; the least is 1 of each."""

    max_tokens: int
    max_proteins: int
    max_seqlen: int

    def holds(self, num_tokens: int, num_proteins: int, max_seqlen: int) -> bool:
        """Whether such a pack is within it."""
        return (
            num_tokens <= self.max_tokens
            and num_proteins <= self.max_proteins
            and max_seqlen <= self.max_seqlen
        )


class PlanEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An engine of TensorRT for one kind of card and one version of the library.

    Attributes:
        file: the serialized engine.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        version: of the library; no other reads the plan.
        compute_capability: of the card, such as ``8.9``.
        attention: the rung of ``docs/tensorrt.md`` that its attention took.
        profiles: in ascending order of ``max_seqlen``.
        refit: the plan holds no weights, they are read from ``weights.safetensors``.
        refused: what the builder did not take, each with its own sentence.
    """

    file: str
    library: str
    version: str
    compute_capability: str
    attention: str
    profiles: list[Profile]
    refit: bool
    refused: dict[str, str]


class EngineEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One engine.

    Attributes:
        file: what the engine library loads.
        lowering: how the attention op was lowered, for people.
        built_with: versions of the tools.
        op_library: the native attention op for it, or None where it was built without a compiler.
        instructions: that the processor must have, such as ``x86-64-v3``; None where any will do.
        compute_capability: of the GPU that it was compiled for, such as ``9.0``; None: any will do.
        quantised: how the linears were, or None where they are in the artifact's dtype.
        plans: what TensorRT built from ``file``, one for each kind of card.
    """

    file: str
    lowering: str
    built_with: dict[str, str]
    op_library: str | None = None
    instructions: str | None = None
    compute_capability: str | None = None
    quantised: Quantisation | None = None
    plans: list[PlanEntry] = []

    @property
    def files(self) -> list[str]:
        """What is read where it runs; plans stand in place of what they were built from."""
        if self.plans:
            refit = [WEIGHTS_FILE] if any(plan.refit for plan in self.plans) else []
            return [plan.file for plan in self.plans] + refit
        quantised = self.quantised.file if self.quantised else None
        named = [self.file, self.op_library, quantised, WEIGHTS_FILE]
        return [name for name in named if name is not None]


class ParityEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measured parity of one engine; the rows are in ``parity.json``.

    Attributes:
        passed: all of its rules.
        worst_relative_l2, worst_ratio_to_eager: of all outputs of all packs.
        packs: that were compared.
        domain: how large they were; None in artifacts of before.
    """

    passed: bool
    worst_relative_l2: float
    worst_ratio_to_eager: float
    packs: int
    domain: Domain | None = None


class GoldenEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Proteins with eager fair-esm's answers, and how far an engine's may be from them.

    Attributes:
        file: read by ``runtime.selftest``.
        limits: relative L2 error of each output.
        own_limits: the same of engines with a budget of their own, by engine.
    """

    file: str
    limits: dict[str, float]
    own_limits: dict[str, dict[str, float]]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See ``docs/artifact.md`` for the folder that this describes."""

    schema_version: int
    name: str
    built_by: dict[str, str]
    architecture: Architecture
    dtype: str
    layers: list[int]
    pool: str | None
    signature: Signature
    op: str
    weights: WeightsOrigin
    reference_layer_norm: str
    engines: dict[str, EngineEntry]
    parity: dict[str, ParityEntry]
    golden: GoldenEntry
    files: dict[str, FileEntry]
    manifest_sha256: str = _UNSEALED.decode()
    head: HeadEntry | None = None

    def gives(self, output: str) -> bool:
        """Whether its engines have an output of this name, such as ``contacts``."""
        return any(tensor.name == output for tensor in self.signature.outputs)

    def rows_of(self, tensor: str) -> Rows:
        """What ``tensor``, an output or ``EMBEDDING``, has one row for each of."""
        declared = {output.name: output.rows for output in self.signature.outputs}
        return "proteins" if tensor == EMBEDDING else declared[tensor]


def write(manifest: Manifest, folder: Path) -> None:
    """Writes ``manifest.json`` into ``folder``, sealed with a digest of its own bytes."""
    text = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2)
    text = _SEAL.sub(rb"\g<1>" + _UNSEALED + rb"\g<3>", text + b"\n")
    seal = hashlib.sha256(text).hexdigest().encode()
    (folder / FILE_NAME).write_bytes(_SEAL.sub(rb"\g<1>" + seal + rb"\g<3>", text))


def read(folder: Path, check_files: bool = True, trust: Trust | None = None) -> Manifest:
    """Reads an artifact's manifest. Whatever loads an artifact begins here.

    Manifests of older schemas are upgraded as they are read. Every name in it must be of a file in
    the folder that it lists; nothing else of the artifact is opened before that is known. Where
    somebody is trusted, the manifest is not parsed before it is known to be what they signed, and
    every file is compared.

    Args:
        folder: the artifact.
        check_files: compare the size and SHA-256 of every file.
        trust: a public key or certificates in PEM, or a file with them; None takes
            ``ESM2_TRUSTED_KEY``, and without that trusts everybody.

    Raises:
        ArtifactError: missing, damaged, unreadable, or of a newer schema; names the file. Or not
            signed by whom is trusted.
        InputError: what is trusted is no key.
        UnsupportedError: somebody is trusted, and ``cryptography`` is not installed.
    """
    path = folder / FILE_NAME
    signature = None
    if who := trusted(trust):
        from runtime.trust.signature import read_signature

        signature = read_signature(folder, who)
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ArtifactError(f"{path} is refused: it is not a file")
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        what = "is not a folder" if not folder.is_dir() else f"holds no {FILE_NAME}"
        raise ArtifactError(
            f"{folder} is not an artifact: it {what}. Build one with 'esm2-export build'"
        ) from None
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise ArtifactError(f"{path} is refused: it has more than {MAX_BYTES:,} bytes")
    if signature:
        signature.check_bytes(FILE_NAME, text)
    fields = _decoded(text, path)
    seal = _SEAL.search(text)
    unsealed = _SEAL.sub(rb"\g<1>" + _UNSEALED + rb"\g<3>", text)
    if seal is None or hashlib.sha256(unsealed).hexdigest().encode() != seal.group(2):
        raise ArtifactError(f"{path} was changed after it was built. Export again or copy it anew")
    try:
        manifest = msgspec.convert(upgraded(fields), Manifest)
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} does not follow the schema: {error}") from None
    if problems := [*_contradictions(manifest), *_problems_with_names(manifest, folder)]:
        raise ArtifactError(
            f"{path} is refused: {'; '.join(problems)}. Export again or copy it anew"
        )
    if signature:
        signature.check_files(manifest.files, FILE_NAME)
    elif check_files:
        check(manifest, folder)
    return manifest


def check(manifest: Manifest, folder: Path, names: list[str] | None = None) -> None:
    """Compares files with what was built.

    Args:
        manifest: of the artifact.
        folder: the artifact.
        names: keys of ``manifest.files``; None takes all of them.

    Raises:
        ArtifactError: files are missing, changed or unreadable; names each.
    """
    files = {name: manifest.files[name] for name in (manifest.files if names is None else names)}
    if problems := problem_with_files(folder, files):
        raise ArtifactError(
            f"artifact {folder} is damaged: {'; '.join(problems)}. Export again or copy it anew"
        )


def _contradictions(manifest: Manifest) -> Iterator[str]:
    golden = manifest.golden
    own = {f"golden.own_limits.{engine}": limits for engine, limits in golden.own_limits.items()}
    return contradictions(
        dtype=manifest.dtype,
        layers=manifest.layers,
        pool=manifest.pool,
        outputs=[output.name for output in manifest.signature.outputs],
        pooled_by_runtime=EMBEDDING,
        limits={"golden.limits": golden.limits, **own},
    )


def _problems_with_names(manifest: Manifest, folder: Path) -> list[str]:
    """Names that lead out of the folder, and files that are used and not listed; in sentences."""
    problems = []
    for name in manifest.files:
        if problem := path_problem(folder, name):
            problems.append(f"file {name!r} {problem}")
    used = {"golden": [manifest.golden.file]}
    used |= {
        f"engine {engine!r}": [entry.file, *entry.files]
        for engine, entry in manifest.engines.items()
    }
    for user, names in used.items():
        for name in dict.fromkeys(names):
            if name not in manifest.files:
                problems.append(f"{user} names {name!r}, which is not among its files")
    return problems


def _decoded(text: bytes, path: Path) -> dict[str, Any]:
    """The fields of a manifest whose schema this runtime reads."""
    advice = "Export again or copy it anew"
    try:
        fields: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged, it is not JSON ({error}). {advice}") from None
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if type(version) is not int:  # True is one, to isinstance
        raise ArtifactError(f"{path} is damaged: no schema_version. {advice}")
    oldest = min(UPGRADES)
    if not oldest <= version <= SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version}, this runtime reads {oldest} to "
            f"{SCHEMA_VERSION}. "
            f"{'Upgrade esm2-engines' if version > SCHEMA_VERSION else 'Export again'}"
        )
    return dict(fields)
