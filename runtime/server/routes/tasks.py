"""What an artifact computes: embeddings, logits, contacts, predictions, scores."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from runtime.pairs import as_map
from runtime.predict.scores import head_of
from runtime.server import work
from runtime.server.requests import (
    EmbedAllRequest,
    EmbedRequest,
    LogitsRequest,
    Proteins,
    ScoreRequest,
)
from runtime.server.routes.common import (
    arrays,
    check_accepted,
    nested,
    post,
    read,
    run,
    run_of,
    service_of,
)
from runtime.server.schemas import Perplexities, Scores
from runtime.server.scored import Scored, perplexities, variants
from runtime.server.service import Served

router = APIRouter(tags=["tasks"])


@post(router, "/embed", EmbedRequest, nested(2))
async def embed(request: Request) -> StreamingResponse:
    """A vector for each protein, `[N, E]`; `/info` says which layers there are."""
    check_accepted(request)
    asked = await read(request, EmbedRequest)

    def make(served: Served, client: str) -> work.Work:
        kind = work.vectors(served.manifest, asked.layer, asked.pool)
        return _proteins(kind, asked, client, request)

    _, _, values = await run(request, make)
    if asked.normalize:
        values = await asyncio.to_thread(lambda: [each / np.linalg.norm(each) for each in values])
    return arrays(request, values, "embeddings")


@post(router, "/embed_all", EmbedAllRequest, nested(3))
async def embed_all(request: Request) -> StreamingResponse:
    """A vector for each residue: `[L, E]` of each protein, neither BOS nor EOS."""
    check_accepted(request)
    asked = await read(request, EmbedAllRequest)

    def make(served: Served, client: str) -> work.Work:
        kind = work.vectors(served.manifest, asked.layer, "none")
        return _proteins(kind, asked, client, request)

    _, _, values = await run(request, make)
    return arrays(request, values, "embeddings")


@post(router, "/logits", LogitsRequest, nested(3))
async def logits(request: Request) -> StreamingResponse:
    """Natural logarithms of probabilities at each residue, `[L, 20]` or `[L, 33]`.

    The softmax is over all 33 tokens: 20 columns do not sum to 1.
    """
    check_accepted(request)
    asked = await read(request, LogitsRequest)

    def make(served: Served, client: str) -> work.Work:
        return _proteins(work.logits(served.manifest, asked.columns), asked, client, request)

    _, _, values = await run(request, make)
    return arrays(request, values, "log_probabilities")


@post(router, "/contacts", Proteins, nested(3))
async def contacts(request: Request) -> StreamingResponse:
    """Probabilities that residues touch, `[L, L]` of each protein."""
    check_accepted(request)
    asked = await read(request, Proteins)

    def make(served: Served, client: str) -> work.Work:
        return _proteins(work.contacts(served.manifest), asked, client, request)

    _, _, values = await run(request, make)
    maps = await asyncio.to_thread(lambda: [as_map(each) for each in values])
    return arrays(request, maps, "contacts")


_PREDICTIONS = {"type": "array", "items": {}}


@post(router, "/predict", Proteins, _PREDICTIONS, is_array=False)
async def predict(request: Request) -> Response:
    """Labels with probabilities, most probable first; of one sequence its list.

    Of a head that reads residues a list of them for each residue. Of a regression the values.
    """
    asked = await read(request, Proteins)

    def make(served: Served, client: str) -> work.Work:
        return _proteins(work.predictions(served.manifest), asked, client, request)

    served, _, values = await run(request, make)
    labels = head_of(served.manifest).labels
    found = await asyncio.to_thread(lambda: [_labelled(each, labels) for each in values])
    return JSONResponse(found[0] if isinstance(asked.inputs, str) else found)


@post(router, "/score", ScoreRequest, Scores)
async def score(request: Request) -> Response:
    """How likely substitutions are, by a named convention; higher is likelier."""
    asked = await read(request, ScoreRequest)

    def make(served: Served, client: str) -> Scored:
        return variants(
            served.manifest, asked.wild_type, asked.variants, asked.convention, asked.offset,
            service_of(request).limits, client,
        )  # fmt: skip

    scored, found = await _results(request, make)
    names = [record.sequence for record in scored.records]
    return JSONResponse({"variants": names, "scores": found, "convention": asked.convention})


@post(router, "/perplexity", Proteins, Perplexities)
async def perplexity(request: Request) -> Response:
    """Pseudo-perplexities: each residue is masked once."""
    asked = await read(request, Proteins)

    def make(served: Served, client: str) -> Scored:
        limits = service_of(request).limits
        return perplexities(served.manifest, asked.sequences, asked.options, limits, client)

    _, found = await _results(request, make)
    return JSONResponse({"perplexities": found})


async def _results(
    request: Request, make: Callable[[Served, str], Scored]
) -> tuple[Scored, list[float]]:
    """Runs what records share; what it comes to for each of them."""
    _, scored, values = await run_of(request, make, lambda each: each.work)
    return scored, await asyncio.to_thread(scored.results, values)


def _proteins(kind: work.Kind, asked: Proteins, client: str, request: Request) -> work.Work:
    limits = service_of(request).limits
    return work.proteins(kind, asked.sequences, asked.options, limits, client, asked.truncate)


def _labelled(scores: work.Values, labels: tuple[str, ...]) -> list[Any]:
    if scores.ndim == 2:
        return [_labelled(row, labels) for row in scores]
    order = np.argsort(-scores, kind="stable")
    return [{"label": labels[i], "score": float(scores[i])} for i in order]
