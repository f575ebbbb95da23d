"""What is answered: the numbers of ``Model``, statuses, limits, fair sharing. In one process."""

import asyncio
import base64
import io
import logging
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow as pa
import pytest

from runtime import PackedBatch
from runtime.errors import EngineError
from runtime.model import Model, load_model
from runtime.server import work
from runtime.server.app import app_of
from runtime.server.service import Service
from runtime.server.settings import EngineChoice, Limits
from tests.server.process import until

SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "GGAVL", "M", "ACDEFGHIKLMNPQRSTVWY" * 5]
# Packs differ, so that sums run in another order.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
LIMITS = Limits(max_wait=0.001)

Talk = Callable[[httpx.AsyncClient, Service], Awaitable[Any]]


def talk(artifact: Path, talking: Talk, limits: Limits = LIMITS, client: str = "127.0.0.1") -> Any:
    """Serves ``artifact`` while a client talks; returns what that returns."""

    async def serve() -> Any:
        service = Service(EngineChoice(artifact, engine="onnx", max_tokens=256), limits)
        await service.load()
        transport = httpx.ASGITransport(
            app_of(service), raise_app_exceptions=False, client=(client, 1)
        )
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
                return await talking(http, service)
        finally:
            await asyncio.to_thread(service.close)

    return asyncio.run(serve())


@pytest.fixture(scope="module")
def model(tiny_artifact: Path) -> Iterator[Model]:
    with load_model(tiny_artifact, engine="onnx") as model:
        yield model


def test_answers_are_the_models(tiny_artifact: Path, model: Model):
    async def talking(http: httpx.AsyncClient, service: Service) -> None:
        layer = model.manifest.layers[0]
        for path, more, expected in (
            ("/embed", {}, model.embed(SEQUENCES)),
            ("/embed", {"pool": "cls", "layer": layer}, model.embed(SEQUENCES, "cls", layer)),
            ("/embed_all", {}, model.embed(SEQUENCES, None)),
        ):
            answer = await http.post(path, json={"inputs": SEQUENCES, **more})
            assert answer.status_code == 200
            for got, wanted in zip(answer.json(), expected, strict=True):
                np.testing.assert_allclose(got, wanted, **CLOSE)
        logits = (await http.post("/logits", json={"inputs": SEQUENCES, "columns": 33})).json()
        for got, raw in zip(logits, model.logits(SEQUENCES), strict=True):
            wanted = raw[1:-1] - np.log(np.exp(raw[1:-1]).sum(1, keepdims=True))
            np.testing.assert_allclose(got, wanted, **CLOSE)
        variants = ["K2R", "M1A:T3G"]
        scores = await http.post("/score", json={"wild_type": SEQUENCES[0], "variants": variants})
        assert scores.json()["variants"] == variants
        wanted = model.score(SEQUENCES[0], variants)
        np.testing.assert_allclose(scores.json()["scores"], wanted, **CLOSE)
        found = (await http.post("/perplexity", json={"inputs": SEQUENCES[1:]})).json()
        np.testing.assert_allclose(found["perplexities"], model.perplexity(SEQUENCES[1:]), **CLOSE)

    talk(tiny_artifact, talking)


def test_all_single_substitutions(tiny_artifact: Path, model: Model):
    async def talking(http: httpx.AsyncClient, service: Service) -> Any:
        return (await http.post("/score", json={"wild_type": "MKTA"})).json()

    found = talk(tiny_artifact, talking)
    assert len(found["scores"]) == 4 * 19
    table = model.score("MKTA")
    first = [table[0][i] for i, letter in enumerate("ACDEFGHIKLMNPQRSTVWY") if letter != "M"]
    np.testing.assert_allclose(found["scores"][:19], first, **CLOSE)


@pytest.mark.parametrize("kind", ["application/x-npz", "application/vnd.apache.arrow.stream"])
def test_binary_answers_are_those_of_json(tiny_artifact: Path, kind: str):
    def rows(body: bytes) -> list[Any]:
        if kind.endswith("npz"):
            found = np.load(io.BytesIO(body))
            values = found["embeddings"]
            return np.split(values, found["offsets"][1:-1]) if "offsets" in found else list(values)
        table = pa.ipc.open_stream(body).read_all()
        assert table["index"].to_pylist() == list(range(len(SEQUENCES)))
        return table["embeddings"].to_pylist()

    async def talking(http: httpx.AsyncClient, service: Service) -> None:
        for path in ("/embed", "/embed_all"):
            body = {"inputs": SEQUENCES}
            wanted = (await http.post(path, json=body)).json()
            answer = await http.post(path, json=body, headers={"Accept": kind})
            assert answer.headers["content-type"] == kind
            for got, numbers in zip(rows(answer.content), wanted, strict=True):
                np.testing.assert_array_equal(np.asarray(got, np.float32), np.float32(numbers))
        refused = await http.post("/embed", json=body, headers={"Accept": "text/html"})
        assert refused.status_code == 406

    talk(tiny_artifact, talking)


def test_openai(tiny_artifact: Path, model: Model):
    async def talking(http: httpx.AsyncClient, service: Service) -> None:
        (one,) = (await http.get("/v1/models")).json()["data"]
        assert one["id"] == model.manifest.name
        expected = model.embed(SEQUENCES)
        for encoding in ("float", "base64"):
            body = {"input": SEQUENCES, "model": "any", "encoding_format": encoding}
            answer = (await http.post("/v1/embeddings", json=body)).json()
            assert answer["usage"]["total_tokens"] == sum(len(each) + 2 for each in SEQUENCES)
            for i, (each, wanted) in enumerate(zip(answer["data"], expected, strict=True)):
                got = each["embedding"]
                if encoding == "base64":
                    got = np.frombuffer(base64.b64decode(got), "<f4")
                assert each["index"] == i
                np.testing.assert_allclose(got, wanted, **CLOSE)
        wrong = await http.post("/v1/embeddings", json={"input": "M", "dimensions": 7})
        assert wrong.status_code == 422
        assert "48 dimensions" in wrong.json()["error"]["message"]

    talk(tiny_artifact, talking)


BAD = [
    ("/embed", b'{"inputs": ["MKT", "MK?A"]}', 422, "number 1: character '?' at position 3"),
    ("/embed", b'{"inputs": ["", "M"]}', 422, "no residues"),
    ("/embed", b'{"inputs": "mkt"}', 422, "position 1"),
    ("/embed", b'{"inputs": "MKT", "layer": 77}', 422, "layer 77"),
    ("/embed", b'{"inputs": "MKT", "pool": "none"}', 422, "pool"),
    ("/embed", b'{"inputs": "MKT", "normalise": true}', 422, "normalise"),
    ("/embed", b'{"inputs": 7}', 422, "inputs"),
    ("/embed", b"{", 422, "not valid"),
    ("/embed", b"", 422, "not valid"),
    ("/embed", b'{"inputs": "' + b"M" * 61 + b'"}', 413, "61 residues"),
    ("/embed", b'{"inputs": [' + b'"M",' * 20 + b'"M"]}', 413, "21 sequences"),
    ("/embed", b'{"inputs": "' + b"M" * 5000 + b'"}', 413, "more than 4,000 bytes"),
    ("/embed", b'{"inputs": "' + b"M" * 900 + b'"}', 413, "900 characters"),
    (
        "/perplexity",
        b'{"inputs": ["' + b'M", "'.join([b"M" * 50] * 4) + b'"]}',
        413,
        "tokens in one",
    ),
    (
        "/score",
        b'{"wild_type": "MKTAYIAKQRMKTAYIAKQRMKTAYIAKQRMKTAYIAKQRMKTAYIAKQR", "convention": '
        b'"pseudo-ppl", "variants": ["K2R", "K2A", "K2G", "K2L"]}',
        413,
        "tokens in one",
    ),
    ("/embed_all", b'{"inputs": ["' + b'M", "'.join([b"M" * 55] * 19) + b'"]}', 413, "the answer"),
    ("/predict", b'{"inputs": "MKT"}', 404, "no head"),
    ("/contacts", b'{"inputs": "MKT"}', 404, "--contacts"),
    ("/score", b'{"wild_type": "MKT", "variants": ["A2R", "K9R"]}', 422, "2 of 2"),
    ("/score", b'{"wild_type": "MKT", "variants": []}', 422, "nothing"),
    ("/score", b'{"wild_type": "MK<mask>", "variants": ["K2R"]}', 422, "inline tokens"),
    ("/nowhere", b"{}", 405, "/docs"),
]


def test_what_is_refused(tiny_artifact: Path):
    limits = replace(
        LIMITS,
        max_client_batch_size=20,
        max_length=60,
        max_body_bytes=4000,
        max_answer_bytes=100_000,
        max_queue_tokens=10_000,
    )

    async def talking(http: httpx.AsyncClient, service: Service) -> None:
        json = {"Content-Type": "application/json"}
        for path, body, status, said in BAD:
            answer = await http.post(path, content=body, headers=json)
            found = answer.json()
            assert answer.status_code == status, (path, body[:80], found)
            assert said in found["error"], (path, body[:80], found)
            assert found["request_id"] == answer.headers["X-Request-ID"]
        plain = await http.post("/embed", content=b"{}")
        assert plain.status_code == 415
        detail = (await http.post("/embed", json={"inputs": ["MKT", "MK?A"]})).json()["details"]
        assert detail[0]["record"] == 1 and detail[0]["position"] == 3
        assert detail[0]["character"] == "?"
        cut = await http.post("/embed", json={"inputs": "M" * 61, "truncate": True})
        whole = await http.post("/embed", json={"inputs": "M" * 60})
        np.testing.assert_allclose(cut.json(), whole.json(), **CLOSE)
        assert service.accepted == 0 and service.held_bytes == 0

    talk(tiny_artifact, talking, limits)


def test_token_and_origin(tiny_artifact: Path):
    async def talking(http: httpx.AsyncClient, service: Service) -> None:
        body = {"inputs": "MKT"}
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            answer = await http.post("/embed", json=body, headers=header)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert (await http.get("/health/ready")).status_code == 200
        assert (await http.get("/metrics")).status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert (await http.post("/embed", json=body, headers=right)).status_code == 200
        evil = {**right, "Origin": "http://evil.example"}
        assert (await http.post("/embed", json=body, headers=evil)).status_code == 403
        own = {**right, "Origin": "http://here"}
        assert (await http.post("/embed", json=body, headers=own)).status_code == 200

    talk(tiny_artifact, talking, replace(LIMITS, token="secret"))


@contextmanager
def slow_engine(service: Service) -> Iterator[asyncio.Event]:
    """An engine that answers when the event is set."""
    assert service.served is not None
    engine = service.served.engine
    embed = engine.embed
    loop, go_on = asyncio.get_running_loop(), asyncio.Event()

    def slow(*arguments: Any) -> Any:
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        return embed(*arguments)

    engine.embed = slow  # type: ignore[method-assign]
    try:
        yield go_on
    finally:
        go_on.set()
        engine.embed = embed  # type: ignore[method-assign]


def test_a_full_queue_says_when_to_come_again(tiny_artifact: Path):
    async def talking(http: httpx.AsyncClient, service: Service) -> None:
        with slow_engine(service) as go_on:
            body = {"inputs": ["M" * 100] * 9}
            first = asyncio.create_task(http.post("/embed", json=body))
            await until(lambda: service.accepted == 1 and service.queued_tokens > 0)
            second = await http.post("/embed", json=body)
            assert second.status_code == 429 and int(second.headers["Retry-After"]) >= 1
            assert second.json()["error_type"] == "Overloaded"
            go_on.set()
            assert (await first).status_code == 200
        assert service.held_bytes == 0
        text = (await http.get("/metrics")).text
        assert 'te_request_failure_total{err="Overloaded"} 1.0' in text
        assert "esm2_queue_tokens 0.0" in text

    talk(tiny_artifact, talking, replace(LIMITS, max_queue_tokens=1000))


def test_whoever_leaves_frees_the_place(tiny_artifact: Path):
    async def talking(http: httpx.AsyncClient, service: Service) -> None:
        with slow_engine(service) as go_on:
            gone = asyncio.create_task(http.post("/embed", json={"inputs": ["M" * 100] * 50}))
            await until(lambda: service.queued_tokens > 1000)
            gone.cancel()
            await until(lambda: service.accepted == 0)
            assert service.held_bytes == 0
            go_on.set()
            after = await http.post("/embed", json={"inputs": "MKT"})
            assert after.status_code == 200
        await until(lambda: service.queued_tokens == 0)

    talk(tiny_artifact, talking)


def test_a_request_that_takes_too_long(tiny_artifact: Path):
    async def talking(http: httpx.AsyncClient, service: Service) -> None:
        with slow_engine(service) as go_on:
            answer = await http.post("/embed", json={"inputs": "MKT"})
            assert answer.status_code == 504 and "0.2 seconds" in answer.json()["error"]
            go_on.set()

    talk(tiny_artifact, talking, replace(LIMITS, timeout=0.2))


def test_an_engine_that_fails_costs_its_pack_alone(
    tiny_artifact: Path, caplog: pytest.LogCaptureFixture
):
    async def talking(http: httpx.AsyncClient, service: Service) -> None:
        assert service.served is not None
        engine = service.served.engine
        embed = engine.embed

        def failing(batch: PackedBatch, *rest: Any) -> Any:
            if (np.diff(batch.cu_seqlens) == 79).any():
                raise EngineError("the card fell off")
            values = embed(batch, *rest)
            values[np.diff(batch.cu_seqlens) == 44] = np.nan
            return values

        engine.embed = failing  # type: ignore[method-assign]

        async def statuses(*lengths: int) -> list[httpx.Response]:
            posts = (http.post("/embed", json={"inputs": "M" * length}) for length in lengths)
            return await asyncio.gather(*posts)

        # NaN is its own request's, though it shared a pack; a failure is all of its pack's.
        answers = await statuses(10, 42, 12)
        assert [answer.status_code for answer in answers] == [200, 500, 200]
        assert "NaN" in answers[1].json()["error"]
        answers = await statuses(10, 77, 12)
        assert answers[1].status_code == 500
        failed = answers[1].json()
        assert "the card fell off" not in failed["error"]
        assert failed["request_id"] in caplog.text and "the card fell off" in caplog.text
        assert (await http.post("/embed", json={"inputs": "MKT"})).status_code == 200

    talk(tiny_artifact, talking)


def test_a_reload_loses_nothing_and_takes_nothing_wrong(tiny_artifact: Path, tmp_path: Path):
    served = tmp_path / "current"
    served.symlink_to(tiny_artifact)

    async def talking(http: httpx.AsyncClient, service: Service) -> None:
        assert service.served is not None
        before = service.served
        with slow_engine(service) as go_on:
            waiting = asyncio.create_task(http.post("/embed", json={"inputs": "M" * 50}))
            await until(lambda: service.accepted == 1)
            assert (await http.post("/-/reload")).status_code == 200
            assert service.served is not before
            assert (await http.post("/embed", json={"inputs": "MKT"})).status_code == 200
            go_on.set()
            assert (await waiting).status_code == 200
        damaged = tmp_path / "damaged"
        shutil.copytree(tiny_artifact, damaged)
        (damaged / "golden.npz").write_bytes(b"no")
        served.unlink()
        served.symlink_to(damaged)
        now = service.served
        answer = await http.post("/-/reload")
        assert answer.status_code == 500 and "goes on" in answer.json()["error"]
        assert service.served is now
        assert (await http.post("/embed", json={"inputs": "MKT"})).status_code == 200
        text = (await http.get("/metrics")).text
        assert 'esm2_reloads_total{outcome="done"} 1.0' in text
        assert 'esm2_reloads_total{outcome="failed"} 1.0' in text

    talk(served, talking)


def test_who_may_reload(tiny_artifact: Path):
    async def talking(http: httpx.AsyncClient, service: Service) -> Any:
        return (await http.post("/-/reload")).status_code

    assert talk(tiny_artifact, talking, client="192.0.2.7") == 403


def test_a_server_that_ends_answers_what_it_accepted(tiny_artifact: Path):
    async def talking(http: httpx.AsyncClient, service: Service) -> None:
        with slow_engine(service) as go_on:
            first = asyncio.create_task(http.post("/embed", json={"inputs": "M" * 50}))
            await until(lambda: service.accepted == 1)
            ending = asyncio.create_task(service.drain())
            await asyncio.sleep(0.01)
            refused = await http.post("/embed", json={"inputs": "MKT"})
            assert refused.status_code == 503 and refused.headers["Connection"] == "close"
            assert (await http.get("/health/ready")).status_code == 503
            assert (await http.get("/health/live")).status_code == 200
            go_on.set()
            assert (await first).status_code == 200
            assert await ending

    talk(tiny_artifact, talking)


def test_logs_hold_no_sequence(tiny_artifact: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)

    async def talking(http: httpx.AsyncClient, service: Service) -> None:
        await http.post("/embed", json={"inputs": "MKTAYIAKQRWWW"})
        await http.post("/embed", json={"inputs": "MKTAYIAKQRWWW?"})
        await http.post("/embed", content=b'{"inputs": MKTAYIAKQRWWW}')
        await http.post("/score", json={"wild_type": "MKTAYIAKQRWWW", "variants": ["X1A"]})

    talk(tiny_artifact, talking)
    ours = [record for record in caplog.records if record.name.startswith("runtime")]
    assert [record.status for record in ours if hasattr(record, "status")] == [200, 422, 415, 422]
    assert not any("MKTAYI" in orjson.dumps(vars(each), default=str).decode() for each in ours)


def test_a_request_that_is_read_while_another_artifact_is_loaded_is_answered(
    tiny_artifact: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    real = work.proteins

    def slow(*arguments: Any) -> work.Work:
        begun.set()
        go_on.wait()
        return real(*arguments)

    monkeypatch.setattr(work, "proteins", slow)

    async def talking(http: httpx.AsyncClient, service: Service) -> httpx.Response:
        asked = asyncio.create_task(http.post("/embed", json={"inputs": SEQUENCES}))
        await asyncio.to_thread(begun.wait)
        await service.load()
        await asyncio.sleep(0.2)  # the old engine is closed, if nobody knows of the request
        go_on.set()
        answer = await asked
        while service._old:
            await asyncio.sleep(0.01)
        return answer

    answer = talk(tiny_artifact, talking)
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(answer.json(), model.embed(SEQUENCES), **CLOSE)
