"""What a manifest says: the newest schema."""

from typing import Literal

import msgspec

from runtime.domain import Domain
from runtime.files import FileEntry
from runtime.weights import FILE_NAME as WEIGHTS_FILE

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

# In place of the digest that seals a manifest, while it is taken.
UNSEALED = b"0" * 64
_ROWS: dict[int | str, Rows] = {"N": "proteins", "P": "pairs"}


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
        return _ROWS.get(self.shape[0] if self.shape else "", "tokens")


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


class MixtureEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which linears of a quantised engine stayed in float, so that its error met a budget.

    Attributes:
        in_float: their names, the most sensitive first; most models need none.
        num_linears: of all that could be quantised.
        budget: relative L2 of the worst output on the calibration proteins.
        error: as it was built, in eager arithmetic.
        error_of_int8: with every linear quantised.
    """

    in_float: list[str]
    num_linears: int
    budget: float
    error: float
    error_of_int8: float


class Quantisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an engine's linears were quantised, and what its answers may differ by.

    Attributes:
        weights: their type and scales.
        activations: the same.
        file: with the quantised weights.
        budget: limit of each rule that it was judged by.
        smoothing: of its activations; None in artifacts of before.
        mixture: which linears were not quantised; None in artifacts of before: none.
    """

    weights: str
    activations: str
    file: str
    budget: dict[str, float]
    smoothing: SmoothingEntry | None = None
    mixture: MixtureEntry | None = None


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
        pooling: the graph that pools on the card what ``file`` gives; None in artifacts of before.
    """

    file: str
    lowering: str
    built_with: dict[str, str]
    op_library: str | None = None
    instructions: str | None = None
    compute_capability: str | None = None
    quantised: Quantisation | None = None
    plans: list[PlanEntry] = []
    pooling: str | None = None

    @property
    def files(self) -> list[str]:
        """What is read where it runs; plans stand in place of what they were built from."""
        if self.plans:
            refit = [WEIGHTS_FILE] if any(plan.refit for plan in self.plans) else []
            return [plan.file for plan in self.plans] + refit
        quantised = self.quantised.file if self.quantised else None
        named = [self.file, self.op_library, quantised, self.pooling, WEIGHTS_FILE]
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
    manifest_sha256: str = UNSEALED.decode()
    head: HeadEntry | None = None

    def gives(self, output: str) -> bool:
        """Whether its engines have an output of this name, such as ``contacts``."""
        return any(tensor.name == output for tensor in self.signature.outputs)

    def rows_of(self, tensor: str) -> Rows:
        """What ``tensor``, an output or ``EMBEDDING``, has one row for each of."""
        declared = {output.name: output.rows for output in self.signature.outputs}
        return "proteins" if tensor == EMBEDDING else declared[tensor]
