"""Behind a proxy that shows the server below a path, which uvicorn puts before each one."""

import asyncio
from pathlib import Path

import httpx

from runtime.server.app import app_of
from runtime.server.service import Service
from runtime.server.settings import EngineChoice, Limits


def test_paths_are_those_without_it():
    service = Service(EngineChoice(Path("nothing")), Limits(token="secret"))

    async def talk() -> tuple[httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(app_of(service), root_path="/esm2")
        async with httpx.AsyncClient(transport=transport, base_url="http://here/esm2/") as client:
            bearer = {"Authorization": "Bearer secret"}
            body = {"input": "MK"}
            refused = await client.post("v1/embeddings", headers=bearer, json=body)
            return await client.get("health/live"), refused

    live, refused = asyncio.run(talk())
    assert live.status_code == 200, live.text
    assert refused.status_code == 503
    assert refused.json()["error"]["type"] == "Unhealthy"
    assert 'te_request_count_total{method="/v1/embeddings",status="503"} 1.0' in (
        service.metrics.text().decode()
    )
