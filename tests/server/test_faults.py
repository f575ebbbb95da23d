"""What may go wrong around a server, each with nothing lost but what is named."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.serving import bodies, clients, engines, lifecycle
from benchmarks.serving.process import FAULTY, Server
from benchmarks.serving.traffic import Truth, proteins
from exporter.publish import writable_copy
from tests.conftest import STORED_SCHEMAS, stored_artifact
from tests.server.doubled import doubled

ENGINE = ("--engine", "onnx")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_artifact(max(STORED_SCHEMAS), tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[Server]:
    with Server(artifact, *ENGINE, "--max-body-mb", 1) as server:
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


def test_clients_that_stall_are_let_go(artifact: Path, truth: Truth) -> None:
    with Server(artifact, *ENGINE, "--timeout", 3) as server:
        found = asyncio.run(clients.stall(server, truth, 3))
    assert found["let go after"] >= 3


def test_malformed_bodies_are_refused(server: Server) -> None:
    assert set(bodies.own(server, 50)) >= {200, 422}
    server.wait_until_idle()


def test_the_openapi_schema_says_what_is_answered(server: Server) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")
    from benchmarks.serving import openapi

    assert set(openapi.of_schema(server, 50)) >= {200, 422}
    server.wait_until_idle()


def test_huge_bodies_are_refused_and_cost_little(server: Server) -> None:
    found = bodies.huge(server, 1 << 20)
    assert found["more memory, MB"] < 60


def test_an_engine_that_throws_fails_that_pack_alone(artifact: Path, truth: Truth) -> None:
    found = asyncio.run(engines.throw(artifact, truth, *ENGINE, share=0.1, seconds=2))
    assert found["failed"] < found["answered"]


def test_a_protein_of_nan_fails_its_own_request(artifact: Path, truth: Truth) -> None:
    found = asyncio.run(engines.not_a_number(artifact, truth, *ENGINE, rounds=5))
    assert found == {"answered": 40, "failed": 5}


def test_sigterm_answers_what_was_accepted(artifact: Path, truth: Truth) -> None:
    slow = {"ESM2_FAULT_SLOW": "0.05"}
    with Server(artifact, *ENGINE, command=FAULTY, environment=slow) as server:
        found = asyncio.run(lifecycle.end(server, truth, in_flight=4))
        assert found["503"] > 0
        assert server.log_lines()[-1]["message"] == "ended"
        assert "trace" not in server.log()


def test_what_is_not_answered_in_time_gets_503(artifact: Path, truth: Truth) -> None:
    slow = {"ESM2_FAULT_SLOW": "1"}
    options = (*ENGINE, "--drain-timeout", 0.2, "--concurrency", 1)
    with Server(artifact, *options, command=FAULTY, environment=slow) as server:
        statuses = asyncio.run(lifecycle.end_too_soon(server, truth, in_flight=3))
        assert set(statuses) == {503}
        assert "trace" not in server.log()


def test_reloads_lose_nothing(artifact: Path, truth: Truth, tmp_path: Path) -> None:
    other_artifact = doubled(artifact, tmp_path / "other")
    both = Truth.of(truth.sequences, artifact, other_artifact)
    link = tmp_path / "link"
    link.symlink_to(artifact)
    with Server(link, *ENGINE) as server:
        found = asyncio.run(
            lifecycle.reload(server, link, [artifact, other_artifact], both, times=2)
        )
        assert found["by artifact 0"] and found["by artifact 1"]
        damaged = tmp_path / "damaged"
        weights = writable_copy(artifact, damaged) / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
        found = asyncio.run(lifecycle.reload_damaged(server, link, damaged, both))
        assert "weights.safetensors" in found["error"]


def test_a_kept_connection_is_answered_at_once(server: Server) -> None:
    """Small answers that wait for the client's acknowledgement take 40 ms each."""
    with httpx.Client(base_url=server.url) as client:
        seconds = [client.get("/health/live").elapsed.total_seconds() for _ in range(30)]
    assert np.median(seconds) < 0.02
