"""``esm2-run embed --ray``: the same dataset, whatever dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from runtime import cli
from runtime.dataset.folder import JOURNAL_FILE, RUN_FILE, read_journal
from runtime.dataset.records import decode_run
from runtime.ray import cluster
from runtime.ray.crew import Crew
from tests.dataset.torture import Rows, read, write_input

pytest.importorskip("ray", reason="needs ray: pip install 'esm2-engines[ray]'")

PROTEINS = 240
# Whose windows are larger than those of fewer actors.
ACTORS = 3
# Small packs and parts, one thread an actor.
OPTIONS = (
    "--engine", "onnx", "--on-error", "skip", "--max-tokens", "64", "--threads", "1",
    "--concurrency", "1", "--part-mb", "0.004",
)  # fmt: skip
SOME_REJECTED = 3


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return write_input(tmp_path / "in.fasta", PROTEINS)


@pytest.fixture
def arguments(ready_artifact: Path, fasta: Path) -> Callable[..., list[str]]:
    """Of the command; an option given later counts."""

    def arguments(output: Path, *more: object) -> list[str]:
        given = ["embed", ready_artifact, fasta, "-o", f"{output}/", *OPTIONS, *more]
        return [str(argument) for argument in given]

    return arguments


def run(arguments: list[str]) -> Result:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == SOME_REJECTED, result.output
    return result


def assert_same_rows(found: Rows, expected: Rows) -> None:
    """To the last digits: packs are others, where the number of engines is."""
    assert found.rejected == expected.rejected
    for name in ("row", "ids", "num_tokens"):
        assert found.rows[name] == expected.rows[name]
    np.testing.assert_allclose(vectors(found.rows), vectors(expected.rows), rtol=1e-4, atol=1e-5)


def vectors(rows: pa.Table) -> np.ndarray[Any, Any]:
    flat = rows["embeddings"].combine_chunks().flatten()
    return np.asarray(flat).reshape(len(rows), -1)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["logits", "score"])
def test_other_commands_write_what_they_write_without_ray(
    command: str, ready_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "usable_cores", lambda: 2)
    fasta = tmp_path / "x.fasta"
    fasta.write_text(">a\nMKTAYIAKQR\n>b\nGGAVL\n")
    given = {"logits": [fasta], "score": ["--wild-type", fasta, "--deep"]}[command]
    found = []
    for options in ([], ["--ray", "local", "--ray-actors", 2]):
        output = tmp_path / f"{len(options)}.parquet"
        words = [command, ready_artifact, *given, "-o", output, "--threads", 1, *options]
        result = CliRunner().invoke(cli.main, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        table = pa.parquet.read_table(output)
        assert ("Ray: 2 actors" in result.stderr) == bool(options)
        values = table["score" if command == "score" else "log_probabilities"]
        found.append(
            (table["ids"], np.concatenate([np.ravel(each) for each in values.to_pylist()]))
        )
    (ids, plain), (of_ray, on_ray) = found
    assert ids == of_ray
    np.testing.assert_allclose(on_ray, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_killed_driver_is_gone_on_with(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On fewer actors, and with the bits of a run that was not killed."""
    monkeypatch.setattr(cluster, "usable_cores", lambda: ACTORS)
    whole = run(arguments(tmp_path / "whole", "--ray", "local", "--ray-actors", ACTORS))
    assert whole.stdout.startswith(f"{tmp_path / 'whole'}: ")  # nothing of Ray's own
    assert f"Ray: {ACTORS} actors on 1 node, 1 CPU thread each" in whole.stderr
    run(arguments(tmp_path / "plain"))
    expected = read(tmp_path / "whole")
    assert_same_rows(expected, read(tmp_path / "plain"))

    killed = arguments(tmp_path / "killed", "--ray", "local", "--ray-actors", ACTORS)
    slowly = [sys.executable, "-m", "tests.ray.slowly", str(ACTORS), *killed]
    process = subprocess.Popen(slowly, stderr=subprocess.DEVNULL)
    journal = tmp_path / "killed" / JOURNAL_FILE
    until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 2)
    process.kill()
    process.wait()
    before = journal.read_bytes()
    assert b"finished" not in before
    result = run(arguments(tmp_path / "killed", "--ray", "local", "--ray-actors", 1, "--resume"))
    assert "goes on behind" in result.stderr
    assert journal.read_bytes().startswith(before)
    assert read(tmp_path / "killed") == expected
    # Cut where the other was: windows are counted by the actors of the beginning.
    assert ends(tmp_path / "killed") == ends(tmp_path / "whole")
    path = tmp_path / "killed" / RUN_FILE
    resolved = decode_run(path.read_bytes(), str(path)).resolved
    assert resolved is not None
    assert (resolved.actors, resolved.threads, resolved.concurrency) == (ACTORS, 1, 1)


def ends(folder: Path) -> list[int]:
    return [part.end for part in read_journal(folder)[0]]


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """Two nodes with a CPU each; the first is the driver's."""
    from ray.cluster_utils import Cluster

    quickly = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    nodes = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1, "include_dashboard": False, "_system_config": quickly,
            "object_store_memory": 100 << 20,
        },
    )  # fmt: skip
    try:
        nodes.second = nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
        nodes.wait_for_nodes()
        yield nodes
    finally:
        nodes.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of Ray's own processes
def test_an_actor_is_killed_and_a_node_goes(
    arguments: Callable[..., list[str]], tmp_path: Path, two_nodes: Any,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    raylet = two_nodes.second.all_processes["raylet"][0].process.pid
    harmed: list[int] = []
    calls = iter(range(10_000))
    original = Crew.call

    def call(self: Crew, *given: object) -> object:
        number = next(calls)
        if number == 20:
            pids = [member.description.pid for member in self._members]
            (victim,) = (pid for pid in pids if psutil.Process(pid).ppid() != raylet)
            os.kill(victim, signal.SIGKILL)
            harmed.append(victim)
        if number == 60:
            # At once, as a machine that loses power; its workers would see it some packs later.
            workers = psutil.Process(raylet).children(recursive=True)
            two_nodes.second.kill_all_processes(check_alive=False, allow_graceful=False)
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            harmed.append(0)
        return original(self, *given)

    monkeypatch.setattr(Crew, "call", call)
    result = run(arguments(tmp_path / "harmed", "--ray", two_nodes.address))
    assert "Ray: 2 actors on 2 nodes" in result.stderr
    assert result.stdout.startswith(f"{tmp_path / 'harmed'}: ")
    assert "raylet" not in result.output
    assert len(harmed) == 2
    lost = [record for record in caplog.records if "is lost" in record.getMessage()]
    assert len(lost) == 2
    monkeypatch.undo()
    run(arguments(tmp_path / "plain"))
    assert_same_rows(read(tmp_path / "harmed"), read(tmp_path / "plain"))
    assert read(tmp_path / "harmed").rows["row"].to_pylist() == [
        row for row in range(PROTEINS) if row % 31 != 7
    ]


# --- Errors -----------------------------------------------------------------------------------


def said(arguments: list[str]) -> str:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return str(result.stderr.splitlines()[-1])


def test_no_cluster(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    assert "is a Ray Client" in said(arguments(tmp_path / "out", "--ray", "ray://a:10001"))
    assert "give --ray too" in said(arguments(tmp_path / "out", "--ray-actors", 2))


def test_what_actors_raise_is_one_line(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    options = "--ray", "local", "--engine", "tensorrt"
    message = said(arguments(tmp_path / "out", *options))
    assert message.startswith("error: artifact ")
    assert "holds no engine 'tensorrt'" in message


def test_without_ray(fresh_python: Callable[..., Any], ready_artifact: Path, fasta: Path) -> None:
    code = (
        "import sys, runtime, esm2_engines, runtime.ray, runtime.cli\n"
        "runtime.cli.main(['embed', *sys.argv[1:], '-o', 'out/', '--on-error', 'skip'])"
    )
    given = ready_artifact, fasta, "--ray", "local"
    ended = fresh_python(code, *given, blocked=("ray",), cwd=fasta.parent)
    assert ended.returncode == 2
    assert ended.stderr == "error: Ray is not installed. pip install 'esm2-engines[ray]'\n"
