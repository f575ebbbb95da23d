"""Bodies of answers, where these are no bare arrays; shown in /docs."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class Scores(BaseModel):
    """Of variants, in the order of the request."""

    variants: list[str]
    scores: list[float]
    convention: str


class Perplexities(BaseModel):
    """Pseudo-perplexities of proteins, in the order of the request."""

    perplexities: list[float]


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
    problem_type: str | None = Field(description="Of its head, as transformers names them.")
    max_concurrent_packs: int
    max_batch_tokens: int
    max_queue_tokens: int
    max_client_batch_size: int
    max_input_length: int = Field(description="Residues of a protein.")
    max_answer_bytes: int = Field(description="Numbers of an answer.")
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
