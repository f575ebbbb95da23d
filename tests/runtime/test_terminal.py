import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.terminal import wrapped

CONTINUED = """\
esm2_t6_8M_UR50D-synthetic
  engine        onnx: model.onnx, passed parity:
                worst relative L2 7.5e-07
error: record 'bad' (proteins.fasta, line 8) is
  not in ESM-2's alphabet
/a/path/that/is/longer/than/the/terminal/is/wide"""


def test_lines_continue_between_words_below_their_value() -> None:
    whole = CONTINUED.replace("\n                ", " ").replace("is\n  ", "is ")
    assert wrapped(whole, 50) == CONTINUED
    assert wrapped(whole, 200) == whole


@pytest.mark.parametrize("width", [0, 1, 12])
def test_a_sliver_of_a_terminal_cuts_lines_itself(width: int) -> None:
    assert wrapped(CONTINUED, width) == CONTINUED


def shown(command: list[str], columns: int, **variables: str) -> str:
    """What a terminal gets."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), **variables}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # how Linux says that the other end is closed
                break
            if not piece:
                break
            said += piece
        process.wait(timeout=60)
    os.close(ours)
    return said.decode().replace("\r\n", "\n")


def test_a_terminal_gets_short_lines_and_a_file_whole_ones(ready_artifact: Path) -> None:
    command = [sys.executable, "-m", "runtime.cli", "info", str(ready_artifact)]
    on_terminal = shown(command, 60)
    whole = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert max(map(len, on_terminal.splitlines())) < 60 < max(map(len, whole.splitlines()))
    assert on_terminal.split() == whole.split()
    assert "\x1b" not in whole


def test_what_is_to_be_copied_or_read_by_programs_is_not_wrapped(ready_artifact: Path) -> None:
    command = [sys.executable, "-m", "runtime.cli", "info", str(ready_artifact), "--json"]
    assert shown(command, 60) == (ready_artifact / "manifest.json").read_text()


def test_colour_is_for_terminals_that_want_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runtime.cli", "info", str(tmp_path / "nothing")]
    assert shown(command, 80).startswith("\x1b[31merror:")
    assert shown(command, 80, NO_COLOR="1").startswith("error:")
    assert subprocess.run(command, capture_output=True, text=True).stderr.startswith("error:")
