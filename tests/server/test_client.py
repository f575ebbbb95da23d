"""``esm2_engines.Client`` against servers in processes of their own: the answers of ``Model``."""

import io
import json
import logging
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest

import esm2_engines as esm2
from runtime.client.connection import FIRST_WAIT, LONGEST_WAIT, seconds_of, wait_before
from runtime.client.parts import Bounds, Item, parts_of
from runtime.lm_head import AMINO_ACID_IDS, log_softmax
from tests.conftest import random_sequence
from tests.server.process import Scripted, Server, scripted, serving

pytest.importorskip("httpx")
pytest.importorskip("fastapi")

TOKEN = "secret-9"
# Packs differ from the model's, so that sums run in another order: relative L2.
CLOSE = 2e-6
BUDGET = 512


@pytest.fixture(scope="module")
def server(task_artifact: Path) -> Iterator[Server]:
    options = ("--max-batch-tokens", str(BUDGET), "--max-length", "400")
    with serving(task_artifact, *options, token=TOKEN) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[esm2.Client]:
    with esm2.Client(server.url, TOKEN, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def model(task_artifact: Path) -> Iterator[esm2.Model]:
    with esm2.load(task_artifact, threads=1, concurrency=1) as model:
        yield model


@pytest.fixture(scope="module")
def proteins() -> list[str]:
    """Of mixed lengths; as many as take dozens of requests."""
    random = np.random.default_rng(3)
    lengths = random.integers(1, 300, 150)
    return [random_sequence(random, int(length)) for length in lengths]


def check_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert np.linalg.norm(found - expected) <= CLOSE * np.linalg.norm(expected)


class TestAnswers:
    def test_vectors_in_order_over_many_requests(
        self, client: esm2.Client, model: esm2.Model, proteins: list[str], server: Server
    ) -> None:
        before = requests_of(server, "/embed")
        found = client.embed(proteins, layer=1)
        assert requests_of(server, "/embed") - before > 10
        expected = model.embed(proteins, layer=1)
        # Each is nearest to its own: none was swapped, and all are close.
        distances = np.linalg.norm(found[:, None] - expected[None], axis=2)
        assert (distances.argmin(1) == np.arange(len(proteins))).all()
        check_close(found, expected)

    def test_the_same_pack_gives_the_same_bits(
        self, client: esm2.Client, model: esm2.Model, proteins: list[str]
    ) -> None:
        """One protein alone; .npz rounds nothing."""
        for protein in proteins[:5]:
            assert (client.embed(protein) == model.embed(protein)).all()
            assert (client.embed_all(protein) == model.embed(protein, None)).all()

    def test_residues(self, client: esm2.Client, model: esm2.Model, proteins: list[str]) -> None:
        few = proteins[:20]
        for found in (client.embed(few, None), client.embed_all(few)):
            for got, expected in zip(found, model.embed(few, None), strict=True):
                check_close(got, expected)

    def test_logits(self, client: esm2.Client, model: esm2.Model, proteins: list[str]) -> None:
        few = proteins[:20]
        for columns in (20, 33):
            chosen = AMINO_ACID_IDS if columns == 20 else np.arange(33)
            found = client.logits(few, columns)
            for got, raw in zip(found, model.logits(few), strict=True):
                assert got.shape == (len(raw) - 2, columns)
                expected = log_softmax(raw[1:-1].astype(np.float64))[:, chosen]
                np.testing.assert_allclose(got, expected, atol=2e-5)

    def test_contacts(self, client: esm2.Client, model: esm2.Model, proteins: list[str]) -> None:
        few = proteins[:12]
        for got, expected in zip(client.contacts(few), model.contacts(few), strict=True):
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=1e-5)
        assert client.contacts(few[0]).shape == (len(few[0]),) * 2

    def test_predictions(self, client: esm2.Client, model: esm2.Model, proteins: list[str]) -> None:
        named = {f"p{i}": protein for i, protein in enumerate(proteins[:40])}
        for got, expected in zip(client.predict(named), model.predict(named), strict=True):
            assert (got.id, got.labels, got.problem_type) == (
                expected.id, expected.labels, expected.problem_type
            )  # fmt: skip
            np.testing.assert_allclose(got.scores, expected.scores, rtol=1e-5)
        assert client.predict("MKTAYIA").label == model.predict("MKTAYIA").label

    @pytest.mark.parametrize("convention", ["masked-marginals", "wt-marginals", "pseudo-ppl"])
    def test_scores(self, client: esm2.Client, model: esm2.Model, convention: str) -> None:
        wild_type, variants = "MKTAYIAKQRQISFVKSHFSRQ", ["K12R", "K12R:T13S", "M11A"]
        for given in (variants, None):
            if given is None and convention == "pseudo-ppl":
                continue
            found = client.score(wild_type, given, convention, offset=11)
            expected = model.score(wild_type, given, convention, offset=11)
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=2e-5)

    def test_perplexity(self, client: esm2.Client, model: esm2.Model) -> None:
        proteins = ["MKTAYIAKQRQISFVKSHFSRQ", "GGAVL", "ACDEFGHIKLMNPQRSTVWY"]
        np.testing.assert_allclose(
            client.perplexity(proteins), model.perplexity(proteins), rtol=1e-5
        )

    def test_shapes_of_one_and_of_none(self, client: esm2.Client) -> None:
        assert client.embed("GGAVL").shape == (48,)
        assert client.embed("GGAVL", None).shape == (5, 48)
        assert client.embed([]).shape == (0, 48)
        assert client.embed_all([]) == client.logits([]) == client.contacts([]) == []
        assert client.perplexity([]).shape == (0,)

    def test_options_are_the_models(self, client: esm2.Client, model: esm2.Model) -> None:
        options = {"upper": True, "strip_stop": True, "unknown": "x"}
        assert (client.embed("mkt!*", **options) == model.embed("mkt!*", **options)).all()
        long = "MKTAY" * 100
        assert (client.embed(long, truncate=True) == model.embed(long[:400])).all()

    def test_info(self, client: esm2.Client, model: esm2.Model) -> None:
        info = client.info()
        assert info["layers"] == [1, 2]
        assert info["embed_dim"] == 48
        assert info["max_batch_tokens"] == BUDGET
        assert info["model_sha256"] == model.manifest.manifest_sha256
        assert info["problem_type"] == "single_label_classification"


class TestRefusals:
    def test_bad_letters_are_named(self, client: esm2.Client, proteins: list[str]) -> None:
        named = {f"p{i}": protein for i, protein in enumerate(proteins)}
        named["p97"] = "MK1"
        with pytest.raises(esm2.InputError, match=r"cannot be tokenized.*'p97' \(HTTP 422, req"):
            client.embed(named)

    def test_its_own_words_name_the_request(self, client: esm2.Client) -> None:
        with pytest.raises(esm2.InputError, match=r"--max-length.*\(HTTP 413, request [0-9a-f]+\)"):
            client.embed("M" * 401)
        with pytest.raises(esm2.InputError, match=r"layer.*HTTP 422"):
            client.embed("MKT", layer=7)
        with pytest.raises(esm2.InputError, match=r"'A99G'"):
            client.score("MKT", ["M1A", "A99G"])

    @pytest.mark.parametrize("token", [None, "another"])
    def test_a_wrong_token(self, server: Server, token: str | None) -> None:
        with (
            esm2.Client(server.url, token) as client,
            pytest.raises(esm2.InputError, match=r"give the server's token.*HTTP 401"),
        ):
            client.embed("MKT")

    def test_what_the_artifact_does_not_offer(self, tiny_artifact: Path) -> None:
        with serving(tiny_artifact) as server, esm2.Client(server.url) as client:
            with pytest.raises(esm2.UnsupportedError, match="no head"):
                client.predict("MKT")
            with pytest.raises(esm2.UnsupportedError, match="contacts"):
                client.contacts("MKT")

    @pytest.mark.parametrize(
        ("url", "said"),
        [("127.0.0.1:80", "such as http://"), ("http://[::1", "cannot use the URL")],
    )
    def test_urls(self, url: str, said: str) -> None:
        with pytest.raises(esm2.InputError, match=said):
            esm2.Client(url)

    def test_arguments(self, client: esm2.Client) -> None:
        with pytest.raises(esm2.InputError, match="at_once must be"):
            esm2.Client("http://x", at_once=0)
        with pytest.raises(esm2.InputError, match="must be a string"):
            client.embed([7])
        client.close()
        with pytest.raises(esm2.EngineError, match="closed"):
            client.embed("MKT")

    def test_without_httpx(
        self, fresh_python: Callable[..., subprocess.CompletedProcess[str]]
    ) -> None:
        result = fresh_python(
            "import esm2_engines as e\ntry:\n  e.Client('http://x')\n"
            "except e.InputError as error:\n  print(error)",
            blocked=("httpx",),
        )
        assert result.stdout == "httpx is not installed. pip install 'esm2-engines[client]'\n"


class TestAgain:
    def test_a_full_queue(
        self, task_artifact: Path, model: esm2.Model, proteins: list[str]
    ) -> None:
        """Three clients whose requests fill the queue each: some get 429, and all their vectors."""
        options = ("--max-batch-tokens", "256", "--max-queue-tokens", "512")
        few = proteins[:60]
        expected = model.embed(few)

        def embed(url: str) -> np.ndarray:
            with esm2.Client(url, at_once=1, attempts=100) as client:
                return client.embed(few)

        with (
            serving(task_artifact, *options) as server,
            ThreadPoolExecutor(3) as threads,
        ):
            for found in list(threads.map(embed, [server.url] * 3)):
                check_close(found, expected)
            with esm2.Client(server.url) as client:
                text = client._connection._http.get(f"{server.url}/metrics").text
        assert 'te_request_count_total{method="/embed",status="429"}' in text

    def test_a_restart_costs_time_alone(
        self, task_artifact: Path, model: esm2.Model, proteins: list[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        """It is ended under load and comes again: 503 while it drains, then nobody listens."""
        expected = model.embed(proteins)
        with (
            serving(task_artifact, "--max-batch-tokens", "256") as server,
            esm2.Client(server.url, at_once=2) as client,
            ThreadPoolExecutor(1) as threads,
        ):
            client.info()
            future = threads.submit(client.embed, proteins)
            server.signal(signal.SIGTERM)
            server.wait(30)
            with serving(task_artifact, "--max-batch-tokens", "256", port=server.port):
                check_close(future.result(60), expected)
        assert "Asked again in" in caplog.text

    def test_retry_after_is_obeyed(self, caplog: pytest.LogCaptureFixture) -> None:
        refused = (429, {"Retry-After": "1"}, b'{"error": "full"}')
        script = Scripted([refused, (503, {}, b""), None, (200, {}, npz())])
        with scripted(script) as url, esm2.Client(url) as client:
            assert client.embed("MKT").tolist() == [1, 2]
        first, second, third, fourth = script.times
        assert 1 <= second - first < 1 + FIRST_WAIT + 0.5
        assert third - second < 2 * FIRST_WAIT + 0.5
        assert fourth - third < 4 * FIRST_WAIT + 0.5
        assert len(set(script.ids)) == 1
        assert "full (HTTP 429, request " in caplog.text

    def test_attempts_and_patience_end(self) -> None:
        script = Scripted([(503, {}, b'{"error": "the server ends"}')])
        with (
            scripted(script) as url,
            esm2.Client(url, attempts=3) as client,
            pytest.raises(esm2.EngineError, match=r"server ends \(HTTP 503, .*after 3 attempts"),
        ):
            client.embed("MKT")
        assert len(script.times) == 3
        script = Scripted([(429, {"Retry-After": "60"}, b'{"error": "full"}')])
        began = time.monotonic()
        with (
            scripted(script) as url,
            esm2.Client(url, patience=10) as client,
            pytest.raises(esm2.EngineError, match=r"full.*after 1 attempts"),
        ):
            client.embed("MKT")
        assert time.monotonic() - began < 5

    @pytest.mark.parametrize("status", [500, 504])
    def test_a_failure_is_not_repeated(self, status: int) -> None:
        script = Scripted([(status, {"X-Request-ID": "r7"}, b'{"error": "the engine failed"}')])
        with (
            scripted(script) as url,
            esm2.Client(url) as client,
            pytest.raises(esm2.EngineError, match=rf"failed \(HTTP {status}, request r7\)"),
        ):
            client.embed("MKT")
        assert len(script.times) == 1

    def test_nobody_listens(self) -> None:
        with (
            esm2.Client("http://127.0.0.1:9", attempts=2) as client,
            pytest.raises(esm2.EngineError, match="cannot be reached.*after 2 attempts"),
        ):
            client.info()

    def test_one_that_fails_ends_the_others(self) -> None:
        """Those that wait to be sent again are not waited for."""
        info = {
            "max_batch_tokens": 4, "max_concurrent_packs": 1, "max_queue_tokens": 99,
            "max_client_batch_size": 1, "max_answer_bytes": 9999, "embed_dim": 2,
        }  # fmt: skip
        full = (429, {"Retry-After": "60"}, b'{"error": "full"}')
        script = Scripted([(200, {}, json.dumps(info).encode()), full, (500, {}, b"{}")])
        began = time.monotonic()
        with (
            scripted(script) as url,
            esm2.Client(url, at_once=2) as client,
            pytest.raises(esm2.EngineError, match="HTTP 500"),
        ):
            client.embed(["MKT"] * 4)
        assert time.monotonic() - began < 10

    def test_waits_are_bounded_and_differ(self) -> None:
        waits = [wait_before(attempt, None) for attempt in range(40)]
        assert all(0 <= wait <= LONGEST_WAIT for wait in waits)
        assert len(set(waits)) == len(waits)
        assert all(7 <= wait_before(0, 7) <= 7 + FIRST_WAIT for _ in range(20))

    def test_retry_after_as_proxies_give_it(self) -> None:
        later = datetime.now(timezone.utc) + timedelta(seconds=90)
        assert 85 < seconds_of(format_datetime(later, usegmt=True)) <= 90  # type: ignore[operator]
        assert seconds_of("3") == 3
        assert seconds_of("-3") == 0
        assert seconds_of("soon") is seconds_of(None) is None


class TestStrangers:
    """What answers is no such server, or another one than before."""

    def test_pickles_stay_closed(self, tmp_path: Path) -> None:
        class Attack:
            def __reduce__(self) -> tuple[object, ...]:
                return (Path.touch, (tmp_path / "opened",))

        body = io.BytesIO()
        np.savez(body, embeddings=np.array([Attack()], dtype=object))
        for content in (body.getvalue(), b"<html>", b"", npz()[:-20], npz(name="x")):
            with (
                scripted(Scripted([(200, {}, content)])) as url,
                esm2.Client(url) as client,
                pytest.raises(esm2.EngineError, match="no answer of esm2-run serve"),
            ):
                client.embed("MKT")
        assert not (tmp_path / "opened").exists()

    def test_vectors_of_two_artifacts_are_not_mixed(self) -> None:
        info = {
            "max_batch_tokens": 4, "max_concurrent_packs": 1, "max_queue_tokens": 99,
            "max_client_batch_size": 1, "max_answer_bytes": 9999, "embed_dim": 2,
        }  # fmt: skip
        answers = [(200, {"X-Model-SHA256": model}, npz()) for model in "ab"]
        script = Scripted([(200, {}, json.dumps(info).encode()), *answers])
        with (
            scripted(script) as url,
            esm2.Client(url) as client,
            pytest.raises(esm2.EngineError, match="exchanged its artifact"),
        ):
            client.embed(["MKT"] * 2)


class TestParts:
    BOUNDS = Bounds(items=3, tokens=100, num_bytes=1000)

    @staticmethod
    def sizes(items: list[Item], bounds: Bounds = BOUNDS, bytes_each: int = 0) -> list[int]:
        return [len(part) for part in parts_of(items, bounds, lambda tokens: bytes_each)]

    def test_bounds(self) -> None:
        small = [Item("M", str(i), {i: 10}) for i in range(7)]
        assert self.sizes(small) == [3, 3, 1]
        assert self.sizes(small, bytes_each=600) == [1] * 7
        large = [Item("M", str(i), {i: 60}) for i in range(3)]
        assert self.sizes(large) == [1, 1, 1]
        assert self.sizes([Item("M", "0", {0: 1000})] + small[:1]) == [1, 1]
        assert self.sizes([]) == []

    def test_what_variants_share_is_counted_once(self) -> None:
        bounds = replace(self.BOUNDS, items=1000)
        items = [Item("", "", {f"A{i // 19}": 50}) for i in range(19 * 6)]
        assert self.sizes(items, bounds) == [38, 38, 38]


def npz(name: str = "embeddings") -> bytes:
    body = io.BytesIO()
    np.savez(body, **{name: np.array([[1.0, 2.0]], np.float32)})
    return body.getvalue()


def requests_of(server: Server, path: str) -> int:
    """From its log: each request has a line, and no sequence is in it."""
    return sum(line.get("path") == path for line in server.log_lines())


@pytest.fixture(autouse=True)
def _warnings_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
