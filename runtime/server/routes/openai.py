"""OpenAI's shape of embeddings, so that its clients work."""

import base64
import time

import numpy as np
import orjson
from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse

from runtime.readers.records import RecordOptions
from runtime.server import work
from runtime.server.answers import JSON, Shape, encoded, numbers
from runtime.server.problems import Malformed
from runtime.server.requests import OpenAIRequest
from runtime.server.routes.common import errors, post, read, run, service_of
from runtime.server.schemas import OpenAIAnswer, OpenAIModel, OpenAIModels
from runtime.server.service import Served

router = APIRouter(prefix="/v1", tags=["OpenAI"])
_BEGAN = int(time.time())


@post(router, "/embeddings", OpenAIRequest, OpenAIAnswer)
async def embeddings(request: Request) -> StreamingResponse:
    """The mean of the last layer over residues, as `/embed`."""
    asked = await read(request, OpenAIRequest)

    def make(served: Served, client: str) -> work.Work:
        width = served.manifest.architecture.embed_dim
        if asked.dimensions not in (None, width):
            raise Malformed(f"embeddings have {width} dimensions, got {asked.dimensions}")
        kind = work.vectors(served.manifest, None, "mean")
        limits = service_of(request).limits
        return work.proteins(kind, asked.sequences, RecordOptions(), limits, asked.user or client)

    served, done, values = await run(request, make)
    usage = {"prompt_tokens": done.num_tokens, "total_tokens": done.num_tokens}
    after = {"model": served.manifest.name, "usage": usage}
    shape = Shape(
        b'{"object":"list","data":[',
        _base64 if asked.encoding_format == "base64" else _floats,
        b"]," + orjson.dumps(after)[1:],
    )
    return StreamingResponse(encoded(values, JSON, "embedding", shape), media_type=JSON)


@router.get("/models", responses=errors(401, 403, 503))
async def models(request: Request) -> OpenAIModels:
    """The artifact that is served."""
    name = service_of(request).ready().manifest.name
    model = OpenAIModel(id=name, object="model", created=_BEGAN, owned_by="esm2-engines")
    return OpenAIModels(object="list", data=[model])


def _floats(index: int, values: work.Values) -> list[bytes]:
    return [b'{"object":"embedding","index":%d,"embedding":%b}' % (index, numbers(values))]


def _base64(index: int, values: work.Values) -> list[bytes]:
    text = base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes())
    return [b'{"object":"embedding","index":%d,"embedding":"%b"}' % (index, text)]
