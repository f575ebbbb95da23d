"""What may go wrong around a server, each with nothing lost but what is named."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving import clients
from benchmarks.serving.process import FAULTY, Server
from benchmarks.serving.traffic import Truth, proteins
from tests.conftest import STORED_SCHEMAS, stored_artifact

ENGINE = ("--engine", "onnx")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_artifact(max(STORED_SCHEMAS), tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[Server]:
    with Server(artifact, *ENGINE, "--timeout", 2) as server:
        yield server


@pytest.fixture(scope="module")
def truth(artifact: Path) -> Truth:
    return Truth.of(proteins(60, longest=300), artifact)


def test_clients_hang_up(server: Server, truth: Truth) -> None:
    found = asyncio.run(clients.hang_up(server, truth, 30))
    assert found["in its body"] == found["while it waits"] == found["in its answer"] == 10
    assert 'te_request_count_total{method="/embed_all",status="499"}' in server.metrics()


def test_slow_clients(server: Server, truth: Truth) -> None:
    asyncio.run(clients.trickle(server, truth, 10, seconds=1))
    asyncio.run(clients.sip(server, truth, 3, pause=0.01))


def test_clients_that_stall_are_let_go(server: Server, truth: Truth) -> None:
    found = asyncio.run(clients.stall(server, truth, 2))
    assert 2 <= found["let go after"] < 4
