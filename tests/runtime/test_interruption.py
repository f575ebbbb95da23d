"""Real processes that are told to end: at once, cleaned up, whatever their input does."""

import gzip
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import default_signals, random_sequence

SECONDS = 5
# More than a window of the default budget, so that the engine has begun.
MANY = "".join(f">p{i}\n{'MKTAYIAKQR' * 10}\n" for i in range(700)).encode()
STARTED = "attention:"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts ``esm2-run`` and waits until its engine is loaded."""
    processes = []

    def start(*arguments: object, **options: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "runtime.cli", *map(str, arguments)]
        with default_signals():
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
            )
        processes.append(process)
        while STARTED not in (line := process.stderr.readline()):
            assert line, "it ended"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def check_end(process: "subprocess.Popen[str]", status: int, line: str) -> None:
    started = time.perf_counter()
    _, said = process.communicate(timeout=60)
    assert time.perf_counter() - started < SECONDS
    assert process.returncode == status, said
    assert said.splitlines()[-1].startswith(line), said
    assert "Traceback" not in said
    assert "Fatal" not in said


ENDS = [
    (signal.SIGINT, 130, "interrupted"),
    (signal.SIGTERM, 143, "terminated"),
    (signal.SIGHUP, 129, "terminated"),
]


@pytest.mark.parametrize(("number", "status", "line"), ENDS)
@pytest.mark.parametrize("fed", [b"", MANY, gzip.compress(MANY)], ids=["silent", "fed", "gzip"])
def test_a_signal_while_a_pipe_is_silent(
    tiny_artifact: Path, tmp_path: Path, start: Start, number: signal.Signals, status: int,
    line: str, fed: bytes,
) -> None:  # fmt: skip
    reading, writing = os.pipe()
    output = tmp_path / "x.parquet"
    process = start("embed", tiny_artifact, "-", "-o", output, stdin=reading)
    os.close(reading)
    os.write(writing, fed)
    time.sleep(0.3)
    process.send_signal(number)
    check_end(process, status, line)
    os.close(writing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b">a\nMJ\n>b\nMK", gzip.compress(MANY + b">a\nMJ\n")[:-1]])
def test_an_error_while_a_pipe_is_silent(
    tiny_artifact: Path, tmp_path: Path, start: Start, content: bytes
) -> None:
    os.mkfifo(tmp_path / "fifo")
    process = start("embed", tiny_artifact, tmp_path / "fifo", "-o", tmp_path / "x.npz")
    with (tmp_path / "fifo").open("wb", buffering=0) as fifo:
        fifo.write(content)
        if content.startswith(b">"):
            check_end(process, 2, f"error: record 'a' ({tmp_path / 'fifo'}, line 1): character 'J'")
    if not content.startswith(b">"):
        check_end(process, 2, f"error: cannot read {tmp_path / 'fifo'} after 700 records: the gzip")
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


@pytest.mark.parametrize(("number", "status", "line"), ENDS[:2])
def test_a_signal_during_a_long_pack(
    tiny_artifact: Path, tmp_path: Path, start: Start, number: signal.Signals, status: int,
    line: str,
) -> None:  # fmt: skip
    """A protein of 40,000 residues takes this model longer than the test lets it."""
    source = tmp_path / "long.fasta"
    source.write_text(f">a\n{random_sequence(np.random.default_rng(0), 40_000)}\n")
    process = start("embed", tiny_artifact, source, "-o", tmp_path / "x.npz")
    time.sleep(1)
    process.send_signal(number)
    check_end(process, status, line)
    assert [path.name for path in tmp_path.iterdir()] == ["long.fasta"]


def test_a_reader_that_went_away(tiny_artifact: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "runtime.cli", "info", str(tiny_artifact)]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.parametrize("what", ["it is closed", "it is a terminal"])
def test_no_standard_input(tiny_artifact: Path, tmp_path: Path, what: str) -> None:
    closed = "closed" in what
    controller, terminal = os.openpty()
    command = [sys.executable, "-m", "runtime.cli", "embed", str(tiny_artifact), "-"]
    line = f"{shlex.join([*command, '-o', str(tmp_path / 'x.npz')])}{' <&-' if closed else ''}"
    result = subprocess.run(
        ["bash", "-c", line], stdin=terminal, capture_output=True, text=True, timeout=60
    )
    os.close(controller)
    os.close(terminal)
    assert result.returncode == 2
    assert result.stderr == (
        f"error: cannot read standard input (-): {what}. Give a file, or pipe one in\n"
    )
