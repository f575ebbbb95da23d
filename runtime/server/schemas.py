"""Bodies of requests, and of answers where these are no bare arrays; shown in /docs."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from runtime.readers.records import RecordOptions
from runtime.tokenizer import Unknown

Pools = Literal["mean", "mean-with-eos", "cls"]
ONE = ["MKTAYIAKQRQISFVKSHFSRQ"]


class Request(BaseModel):
    """What all bodies share: a field that is not known is an error, not ignored."""

    model_config = ConfigDict(extra="forbid")


class Proteins(Request):
    """Sequences of residues."""

    inputs: str | list[str] = Field(
        description="One sequence of residues, or several.", examples=[ONE]
    )
    truncate: bool = Field(False, description="Cut sequences that are longer than --max-length.")
    unknown: Unknown = Field(
        "error", description="What becomes of characters outside the alphabet: refused, X, <unk>."
    )
    upper: bool = Field(False, description="Take lower case as upper case.")
    strip_stop: bool = Field(False, description="Remove a single * at the end.")

    @property
    def sequences(self) -> list[str]:
        """All of them."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    @property
    def options(self) -> RecordOptions:
        """What is taken beyond ESM-2's alphabet."""
        return RecordOptions(self.unknown, self.upper, self.strip_stop)


class EmbedRequest(Proteins):
    """Asks for a vector of each protein."""

    pool: Pools = Field("mean", description="Over residues alone; with <eos>; or of <cls> alone.")
    layer: int | None = Field(None, description="An exported layer; null takes the last.")
    normalize: bool = Field(False, description="Divide each vector by its length.")


class EmbedAllRequest(Proteins):
    """Asks for a vector of each residue."""

    layer: int | None = Field(None, description="An exported layer; null takes the last.")


class LogitsRequest(Proteins):
    """Asks for log-probabilities at each residue."""

    columns: Literal[20, 33] = Field(
        20, description="Amino acids ACDEFGHIKLMNPQRSTVWY, or all 33 tokens of ESM-2."
    )


class ScoreRequest(Request):
    """Asks how likely variants are."""

    wild_type: str = Field(description="Residues.", examples=ONE)
    variants: list[str] | None = Field(
        None,
        description="Such as K2R or K2R:T3S, positions from 1; null takes all single ones.",
        examples=[["K2R", "K2R:T3S"]],
    )
    convention: Literal["masked-marginals", "wt-marginals", "pseudo-ppl"] = "masked-marginals"
    offset: int = Field(1, description="Number of the first residue.", ge=-1_000_000, le=1_000_000)


class Scores(BaseModel):
    """Of variants, in the order of the request."""

    variants: list[str]
    scores: list[float]
    convention: str


class Perplexities(BaseModel):
    """Pseudo-perplexities of proteins, in the order of the request."""

    perplexities: list[float]


class LabelScore(BaseModel):
    """One label of a head."""

    label: str
    score: float


class OpenAIRequest(Request):
    """OpenAI's own, so that its clients work."""

    input: str | list[str] = Field(
        description="One sequence of residues, or several.", examples=[ONE]
    )
    model: str = Field("", description="Any; this server has one.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="The embedding's own width, or null.")
    user: str | None = Field(
        None, description="Shares the engine with other users.", max_length=128
    )


class OpenAIVector(BaseModel):
    """One embedding: numbers, or float32 little-endian in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens of a request, BOS and EOS included."""

    prompt_tokens: int
    total_tokens: int


class OpenAIAnswer(BaseModel):
    """OpenAI's own."""

    object: Literal["list"]
    data: list[OpenAIVector]
    model: str
    usage: Usage


class OpenAIModel(BaseModel):
    """OpenAI's own."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAIModels(BaseModel):
    """OpenAI's own."""

    object: Literal["list"]
    data: list[OpenAIModel]


class InfoAnswer(BaseModel):
    """What serves, and what it takes."""

    model_id: str = Field(description="The artifact's name.")
    model_dtype: str
    model_sha256: str = Field(description="Of the artifact's manifest.")
    synthetic: bool = Field(description="The weights are random: for trying the server only.")
    engine: str
    library: str
    device: str
    attention: str
    embed_dim: int
    layers: list[int]
    tasks: list[str] = Field(description="Endpoints that this artifact offers.")
    labels: list[str] | None = Field(description="Of its head.")
    max_concurrent_packs: int
    max_batch_tokens: int
    max_queue_tokens: int
    max_client_batch_size: int
    max_input_length: int = Field(description="Residues of a protein.")
    version: str


class State(BaseModel):
    """How a server stands."""

    status: str


class ErrorAnswer(BaseModel):
    """Why there is no answer."""

    error: str | dict[str, Any]
    error_type: str | None = None
    request_id: str
    details: list[dict[str, Any]] | None = Field(None, description="Of records that are wrong.")
