"""A card that is not there is one line, whoever is asked for it.

That an engine keeps to its card, ``make cuda-check`` shows.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import esm2_engines as esm2
import runtime
from runtime.cli import main

MISSING = "cuda:63"
# What each command wants behind the artifact, in a folder with ``in.fasta``.
COMMANDS = {
    "contacts": ["in.fasta", "-o", "out.npz"],
    "embed": ["in.fasta", "-o", "out.npz"],
    "extract": ["in.fasta", "out", "--include", "mean"],
    "logits": ["in.fasta", "-o", "out.npz"],
    "perplexity": ["in.fasta", "-o", "out.csv"],
    "predict": ["in.fasta", "-o", "out.csv"],
    "score": ["--wild-type", "in.fasta", "--deep", "-o", "out.csv"],
    "selftest": [],
    "serve": ["--port", "0"],
}


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "in.fasta").write_text(">a\nMKTAYIAKQR\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_commands_that_take_a_device() -> None:
    """And nothing but those that are tested here."""
    assert isinstance(main, click.Group)
    takes = {
        name
        for name, command in main.commands.items()
        if any("--device" in parameter.opts for parameter in command.params)
    }
    assert takes == COMMANDS.keys()


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"serve"}))
def test_a_command(task_artifact: Path, inside: Path, command: str) -> None:
    arguments = [command, str(task_artifact), *COMMANDS[command], "--device", MISSING]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    (said,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert MISSING in said or f"on {MISSING}: " in result.stdout
    assert {path.name for path in inside.iterdir()} <= {"in.fasta", "out"}


def test_serve(task_artifact: Path) -> None:
    command = [sys.executable, "-m", "runtime.cli", "serve", str(task_artifact)]
    ran = subprocess.run(
        [*command, *COMMANDS["serve"], "--device", MISSING], capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert ran.returncode == 2
    assert f"on {MISSING}: " in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("load", [runtime.load, esm2.load])
def test_in_python(task_artifact: Path, load: Callable[..., object]) -> None:
    with pytest.raises(runtime.UnsupportedError, match=f"on {MISSING}: ") as error:
        load(task_artifact, device=MISSING)
    assert "\n" not in str(error.value)
