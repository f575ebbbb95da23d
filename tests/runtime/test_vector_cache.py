"""``--cache``: what is computed once, what is never taken for something else, what may happen."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import runtime
from runtime import cli, manifest, vector_cache
from runtime.errors import InputError
from runtime.runner import AsyncInferenceRunner, Record
from runtime.several import Vectors
from runtime.vector_cache import FILE_NAME, VectorCache
from tests.conftest import random_sequence

NAMES = [f"p{i}" for i in range(40)]
PROTEINS = {name: random_sequence(np.random.default_rng(i), 3 + i) for i, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def engine(artifact: Path) -> runtime.Engine:
    with runtime.load(artifact, "onnx") as engine:
        yield engine


@pytest.fixture
def opened(engine: runtime.Engine, artifact: Path, tmp_path: Path) -> Callable[..., Any]:
    """A cache of a run of its own, of this engine's spec or a changed one."""
    of = manifest.read(artifact, check_files=False)

    def open_it(**changed: Any) -> VectorCache:
        in_spec = {name: changed.pop(name) for name in ("device", "library") if name in changed}
        options = {
            "layer": 2, "pool": "mean", "tf32": False, "newest": None, "warn": pytest.fail,
        } | changed  # fmt: skip
        vectors = Vectors((options.pop("layer"),), (options.pop("pool"),))
        spec = replace(engine.spec, **in_spec)
        return VectorCache(tmp_path / "cache", of, spec, vectors, **options)

    return open_it


def run(
    engine: runtime.Engine, kept: VectorCache, proteins: dict[str, str] = PROTEINS,
    max_tokens: int = 100, pool: Any = "mean",
) -> tuple[dict[str, np.ndarray], AsyncInferenceRunner]:  # fmt: skip
    runner = AsyncInferenceRunner(engine, max_tokens, pool, kept=kept)
    with kept:
        found = runner.run(Record(name, sequence) for name, sequence in proteins.items())
        return {each.id: each.values for each in found}, runner


@pytest.mark.parametrize("pool", ["mean", "cls", "none"])
def test_a_second_run_computes_nothing_and_gives_the_same_bits(
    engine: runtime.Engine, opened: Callable[..., VectorCache], pool: str
) -> None:
    first, _ = run(engine, opened(pool=pool), pool=pool)
    second, runner = run(engine, opened(pool=pool), pool=pool)
    assert (runner.totals.packs, runner.totals.found, runner.totals.proteins) == (0, 40, 40)
    assert list(second) == NAMES
    for name in NAMES:
        assert np.array_equal(first[name], second[name])
        second[name] += 1  # its caller's own


def test_of_a_grown_input_only_what_is_new_is_computed(
    engine: runtime.Engine, opened: Callable[..., VectorCache]
) -> None:
    grown = PROTEINS.copy()
    new = grown.pop("p7")
    before, _ = run(engine, opened(), grown)
    ran: list[int] = []
    with opened() as kept:
        runner = AsyncInferenceRunner(engine, 100, kept=kept)
        original = runner._embed
        runner._embed = lambda batch: ran.append(batch.num_proteins) or original(batch)
        now = {each.id: each for each in runner.run(Record(*pair) for pair in PROTEINS.items())}
    assert ran == [1]
    assert list(now) == NAMES
    assert all(np.array_equal(now[name].values, before[name]) for name in grown)
    expected = runtime.PackedBatch.from_sequences([new])
    np.testing.assert_allclose(
        now["p7"].values, engine.embed(expected, 2, "mean")[0], rtol=1e-4, atol=1e-5
    )


def test_equal_proteins_are_found_once_each(
    engine: runtime.Engine, opened: Callable[..., VectorCache]
) -> None:
    run(engine, opened(), {"a": PROTEINS["p9"]})
    twice = {"b": PROTEINS["p9"], "c": PROTEINS["p3"], "d": PROTEINS["p9"]}
    found, runner = run(engine, opened(), twice)
    totals = runner.totals
    assert (totals.proteins, totals.found, totals.equal, totals.packs) == (3, 2, 1, 1)
    assert np.array_equal(found["b"], found["d"])


def test_a_run_finds_what_was_there_when_it_began(
    engine: runtime.Engine, opened: Callable[..., VectorCache]
) -> None:
    """Or a run that is gone on with would have other packs, and other last bits."""
    run(engine, opened(), {"first": PROTEINS["p3"]})
    begun = opened()
    assert run(engine, begun)[1].totals.found == 1
    assert run(engine, opened(newest=begun.newest))[1].totals.found == 1
    assert run(engine, opened())[1].totals.found == 40


@pytest.mark.parametrize(
    "changed",
    [
        {"layer": 1}, {"pool": "cls"}, {"tf32": True}, {"device": "cuda:1"},
        {"library": "onnxruntime 1.0"},
    ],
)  # fmt: skip
def test_what_was_kept_under_another_option_is_never_taken(
    engine: runtime.Engine, opened: Callable[..., VectorCache], changed: dict[str, Any]
) -> None:
    run(engine, opened())
    tokens = [runtime.PackedBatch.from_sequences([PROTEINS["p5"]]).input_ids]
    with opened() as same, opened(**changed) as other:
        assert same.find(tokens)[0] is not None
        assert other.find(tokens) == [None]


def test_another_artifact_finds_nothing(
    engine: runtime.Engine, opened: Callable[..., VectorCache], artifact: Path, tmp_path: Path
) -> None:
    run(engine, opened())
    of = manifest.read(artifact, check_files=False)
    assert of.manifest_sha256
    tokens = [runtime.PackedBatch.from_sequences([PROTEINS["p5"]]).input_ids]
    other = type(of)(**{f: getattr(of, f) for f in of.__struct_fields__} | {"manifest_sha256": "0"})
    with VectorCache(
        tmp_path / "cache", other, engine.spec, Vectors((2,), ("mean",)), tf32=False,
        newest=None, warn=pytest.fail,
    ) as cache:  # fmt: skip
        assert cache.find(tokens) == [None]


def test_a_vector_that_was_changed_on_the_disk_is_not_taken(
    engine: runtime.Engine, opened: Callable[..., VectorCache]
) -> None:
    cache = opened()
    run(engine, cache)
    with closing(sqlite3.connect(cache.path)) as file, file:
        file.execute("UPDATE vectors SET vector = zeroblob(length(vector)) WHERE id = 3")
    with pytest.raises(InputError, match=r"is damaged \(a vector is not as it was written\)"):
        run(engine, opened())


def test_files_that_are_no_cache_or_a_newer_one(
    opened: Callable[..., VectorCache], tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    path = tmp_path / "cache" / FILE_NAME
    path.write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match="cannot use the cache .* not a database"):
        opened()
    path.unlink()
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("PRAGMA user_version = 7")
    with pytest.raises(InputError, match="it has version 7, this esm2-engines reads 1"):
        opened()


def test_a_disk_that_is_full_ends_the_keeping_and_not_the_run(
    engine: runtime.Engine, opened: Callable[..., VectorCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_cache, "PENDING_BYTES", 500)
    said: list[str] = []
    cache = opened(warn=said.append)
    pages = cache._file.execute("PRAGMA page_count").fetchone()[0]
    cache._file.execute(f"PRAGMA max_page_count = {pages}")
    found, _ = run(engine, cache)
    assert list(found) == NAMES
    assert len(said) == 1
    assert "database or disk is full" in said[0]


@contextmanager
def held(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


def test_a_cache_that_another_process_holds_is_waited_for(
    engine: runtime.Engine, opened: Callable[..., VectorCache]
) -> None:
    run(engine, opened())
    cache = opened()
    release = threading.Event()

    def hold() -> None:
        with held(cache.path):
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    threading.Timer(0.3, release.set).start()
    assert run(engine, cache)[1].totals.found == 40
    holder.join()


def test_a_cache_that_is_held_for_good_is_left_alone(
    engine: runtime.Engine, opened: Callable[..., VectorCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    cache = opened(warn=said.append)
    monkeypatch.setattr(vector_cache, "WAIT_SECONDS", 0.1)
    with held(cache.path):
        found, _ = run(engine, cache)
        with pytest.raises(InputError, match="database is locked.* no other process holds"):
            opened()
    assert list(found) == NAMES
    assert said == [
        f"cannot read the cache {cache.path} (database is locked): the run goes on without it"
    ]


def test_two_processes_fill_one_cache(ready_artifact: Path, tmp_path: Path) -> None:
    fasta = tmp_path / "in.fasta"
    fasta.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in PROTEINS.items()))
    both = [
        subprocess.Popen(
            [
                sys.executable, "-m", "runtime.cli", "embed", ready_artifact, fasta, "-o",
                tmp_path / f"{i}.npz", "--engine", "onnx", "--cache", tmp_path / "cache",
            ],
            env={**os.environ},
        )
        for i in range(2)
    ]  # fmt: skip
    assert [process.wait() for process in both] == [0, 0]
    with closing(sqlite3.connect(tmp_path / "cache" / FILE_NAME)) as file:
        assert file.execute("SELECT count(*) FROM vectors").fetchone() == (40,)


@pytest.fixture
def embed(ready_artifact: Path, tmp_path: Path) -> Callable[..., Result]:
    fasta = tmp_path / "in.fasta"
    fasta.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in PROTEINS.items()))

    def run_it(output: str, *more: str) -> Result:
        return CliRunner().invoke(
            cli.main,
            [
                "embed", str(ready_artifact), str(fasta), "-o", str(tmp_path / output), "--engine",
                "onnx", "--cache", str(tmp_path / "cache"), *more,
            ],
        )  # fmt: skip

    return run_it


def test_the_command_says_what_it_found(embed: Callable[..., Result], tmp_path: Path) -> None:
    assert "found" not in embed("1.npz").stdout
    assert "  found in the cache: 40\n" in embed("2.npz").stdout
    assert "  found in the cache: 40\n" in embed("parts/").stdout
    with np.load(tmp_path / "1.npz") as first, np.load(tmp_path / "2.npz") as second:
        assert np.array_equal(first["embeddings"], second["embeddings"])


def test_a_cache_that_cannot_be_written_is_one_line(
    embed: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    for output in ("1.npz", "parts/"):
        result = embed(output)
        assert result.exit_code == 2
        assert "cannot use the cache" in result.stderr
        assert not (tmp_path / output).exists()
