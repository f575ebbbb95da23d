"""Bodies of requests; shown in /docs.

msgspec reads them, as it reads manifests: it ends at the first mistake. pydantic lists all of them,
and 4 MB of ``{"inputs": [1, 1, ...]}`` took it 11 seconds and 1.9 GB.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from runtime.readers.records import RecordOptions
from runtime.tokenizer import Unknown

PerProtein = Literal["mean", "mean-with-eos", "cls"]
ONE = "MKTAYIAKQRQISFVKSHFSRQ"

Layer = Annotated[int | None, Meta(description="An exported layer; null takes the last.")]
Sequences = Annotated[
    str | list[str], Meta(description="One sequence of residues, or several.", examples=[[ONE]])
]


class Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What all bodies share: a field that is not known is an error, not ignored."""


class Proteins(Request, kw_only=True):
    """Sequences of residues."""

    inputs: Sequences
    truncate: Annotated[
        bool, Meta(description="Cut sequences that are longer than --max-length.")
    ] = False
    unknown: Annotated[
        Unknown,
        Meta(description="What becomes of characters outside the alphabet: refused, X, <unk>."),
    ] = "error"
    upper: Annotated[bool, Meta(description="Take lower case as upper case.")] = False
    strip_stop: Annotated[bool, Meta(description="Remove a single * at the end.")] = False

    @property
    def sequences(self) -> list[str]:
        """All of them."""
        return listed(self.inputs)

    @property
    def options(self) -> RecordOptions:
        """What is taken beyond ESM-2's alphabet."""
        return RecordOptions(self.unknown, self.upper, self.strip_stop)


class EmbedRequest(Proteins, kw_only=True):
    """Asks for a vector of each protein."""

    pool: Annotated[
        PerProtein, Meta(description="Over residues alone; with <eos>; or of <cls> alone.")
    ] = "mean"
    layer: Layer = None
    normalize: Annotated[bool, Meta(description="Divide each vector by its length.")] = False


class EmbedAllRequest(Proteins, kw_only=True):
    """Asks for a vector of each residue."""

    layer: Layer = None


class LogitsRequest(Proteins, kw_only=True):
    """Asks for log-probabilities at each residue."""

    columns: Annotated[
        Literal[20, 33],
        Meta(description="Amino acids ACDEFGHIKLMNPQRSTVWY, or all 33 tokens of ESM-2."),
    ] = 20


class ScoreRequest(Request, kw_only=True):
    """Asks how likely variants are."""

    wild_type: Annotated[str, Meta(description="Residues.", examples=[ONE])]
    variants: Annotated[
        list[str] | None,
        Meta(
            description="Such as K2R or K2R:T3A, positions from 1; null takes all single ones.",
            examples=[["K2R", "K2R:T3A"]],
        ),
    ] = None
    convention: Literal["masked-marginals", "wt-marginals", "pseudo-ppl"] = "masked-marginals"
    offset: Annotated[
        int, Meta(description="Number of the first residue.", ge=-1_000_000, le=1_000_000)
    ] = 1


class OpenAIRequest(Request, kw_only=True):
    """OpenAI's own, so that its clients work."""

    input: Sequences
    model: Annotated[str, Meta(description="Any; this server has one.")] = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int | None, Meta(description="The embedding's own width, or null.")] = (
        None
    )
    user: Annotated[
        Annotated[str, Meta(max_length=128)] | None,
        Meta(description="Shares the engine with other users."),
    ] = None

    @property
    def sequences(self) -> list[str]:
        """All of them."""
        return listed(self.input)


def listed(sequences: str | list[str]) -> list[str]:
    """Of one its list."""
    return [sequences] if isinstance(sequences, str) else sequences


def schema_of(body: type[Request]) -> dict[str, Any]:
    """As OpenAPI takes it."""
    _, components = msgspec.json.schema_components([body])
    found: dict[str, Any] = components[body.__name__]
    return found
