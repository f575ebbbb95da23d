"""The web application: routes behind the guard."""

import asyncio
import logging

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

import runtime
from runtime.errors import EngineError, InputError, UnsupportedError
from runtime.server.guard import Guard, answer_of, path_of
from runtime.server.pages import Page
from runtime.server.problems import Failed, Malformed, Missing, Problem
from runtime.server.routes import openai, state, tasks
from runtime.server.service import Service
from runtime.server.ticket import ticket_of

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "ESM-2 by frozen, packed, proven engines. Proteins of all requests share packs; answers are "
    "those of `esm2-run` on the same artifact."
)


def app_of(service: Service) -> Guard:
    """An ASGI application; the caller loads and ends the service."""
    app = FastAPI(
        title="esm2-engines",
        version=runtime.__version__,
        description=DESCRIPTION,
        # Those of FastAPI load their scripts from another host.
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    for router in (tasks.router, openai.router, state.router):
        app.include_router(router)
    app.mount("/", Page())
    app.exception_handler(Problem)(_refuse)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(InputError)(_input)
    app.exception_handler(UnsupportedError)(_unsupported)
    app.exception_handler(EngineError)(_failed)
    app.exception_handler(Exception)(_failed)
    tasked, others = _routes(tasks.router, openai.router), _routes(state.router)
    work = [route.path for route in tasked if "POST" in (route.methods or ())]
    return Guard(app, service, [route.path for route in tasked + others], work)


def _routes(*routers: APIRouter) -> list[APIRoute]:
    return [each for router in routers for each in router.routes if isinstance(each, APIRoute)]


async def _refuse(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return answer_of(problem, ticket_of(request), path_of(request.scope))


async def _input(request: Request, error: Exception) -> Response:
    return await _refuse(request, Malformed(str(error)))


async def _unsupported(request: Request, error: Exception) -> Response:
    return await _refuse(request, Missing(str(error)))


async def _http(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, or method."""
    assert isinstance(error, HTTPException)
    problem = Missing(f"{request.method} {request.url.path}: {error.detail}. See /docs")
    problem.status = error.status_code
    answer = await _refuse(request, problem)
    answer.headers.update(error.headers or {})
    return answer


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, asyncio.CancelledError):
        raise error
    logger.error("request %s failed", ticket_of(request).id, exc_info=error)
    return await _refuse(request, Failed("the server failed on this request"))
