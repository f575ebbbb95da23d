"""How the server stands: for people, orchestrators and Prometheus."""

import ipaddress

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

import runtime
from runtime.errors import Esm2Error
from runtime.server.metrics import CONTENT_TYPE
from runtime.server.problems import Failed, Forbidden, NotReady
from runtime.server.routes.common import errors, service_of
from runtime.server.schemas import InfoAnswer, State
from runtime.server.service import Served

router = APIRouter(tags=["state"])


@router.get("/info", responses=errors(401, 403, 503))
async def info(request: Request) -> InfoAnswer:
    """What serves, what it offers, and the limits of a request."""
    service = service_of(request)
    served, limits = service.ready(), service.limits
    manifest, spec = served.manifest, served.engine.spec
    return InfoAnswer(
        model_id=spec.artifact,
        model_dtype=spec.dtype,
        model_sha256=manifest.manifest_sha256,
        synthetic=spec.synthetic,
        engine=spec.format,
        library=spec.library,
        device=spec.device,
        attention=spec.attention,
        embed_dim=spec.embed_dim,
        layers=list(spec.layers),
        tasks=tasks_of(served),
        labels=list(manifest.head.labels) if manifest.head else None,
        problem_type=manifest.head.problem_type if manifest.head else None,
        max_concurrent_packs=served.engine.concurrency,
        max_batch_tokens=served.max_tokens,
        max_queue_tokens=limits.max_queue_tokens,
        max_client_batch_size=limits.max_client_batch_size,
        max_input_length=limits.max_length,
        max_answer_bytes=limits.max_answer_bytes,
        version=runtime.__version__,
    )


def tasks_of(served: Served) -> list[str]:
    """Paths of what the artifact offers."""
    manifest = served.manifest
    tasks = ["/embed", "/embed_all", "/v1/embeddings"]
    if manifest.weights.lm_head:
        tasks += ["/logits", "/score", "/perplexity"]
    if manifest.gives("contacts"):
        tasks.append("/contacts")
    if manifest.head:
        tasks.append("/predict")
    return tasks


@router.get("/health/live")
async def live() -> State:
    """The process answers."""
    return State(status="live")


@router.get("/health/ready", responses=errors(503))
@router.get("/health", responses=errors(503))
async def ready(request: Request) -> State:
    """The engine has passed its selftest on this machine, and requests are taken."""
    service_of(request).ready()
    return State(status="ready")


@router.get("/metrics", response_class=Response, responses=errors(401, 403))
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    service = service_of(request)
    service.observe()
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


@router.post("/-/reload", responses=errors(401, 403, 500, 503))
async def reload(request: Request) -> Response:
    """Loads the artifact anew, for who is on this machine; SIGHUP does the same.

    What is there now serves on until the other has passed its selftest, and answers what it has
    accepted. One that is damaged, or wrong here, changes nothing.
    """
    service = service_of(request)
    if service.is_draining:
        raise NotReady("the server ends")
    host = request.client.host if request.client else ""
    if not _is_loopback(host):
        raise Forbidden("only from this machine")
    try:
        served = await service.load()
    except Esm2Error as error:
        raise Failed(f"{error}. What served before goes on") from None
    return JSONResponse({"status": "ready", "artifact": served.manifest.name})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
