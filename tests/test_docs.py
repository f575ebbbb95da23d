"""Every block of code in README and docs: Python runs, commands are what they say."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import runtime
from exporter.cli import main as export_main
from runtime.cli import main as run_main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = {"esm2-run": run_main, "esm2-export": export_main}
NAME = "esm2_t6_8M_UR50D"
NEWCOMERS = ("README.md", "first-embedding.md")


def blocks(language: str) -> list[tuple[Path, str]]:
    return [
        (page.relative_to(ROOT), text)
        for page in PAGES
        for found, text in FENCE.findall(page.read_text())
        if found == language
    ]


def command_lines() -> list[tuple[Path, list[str]]]:
    """Words of each line that calls one of ours; a comment and a pipe end it."""
    found = []
    for page, text in blocks(""):
        for line in text.replace("\\\n", " ").splitlines():
            if not re.match(r"(\$ )?\S*(esm2-run|esm2-export) ", line):
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            ends = [i for i, word in enumerate(words) if word in ("|", "<", ">", "&&", ";")]
            found.append((page, [Path(words[0]).name, *words[1 : min(ends, default=len(words))]]))
    return found


@pytest.fixture
def place(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader is: in a checkout with an artifact and a file of proteins."""
    (tmp_path / "artifacts").mkdir()
    for name in (NAME, f"{NAME}-synthetic"):
        (tmp_path / "artifacts" / name).symlink_to(artifact)
    (tmp_path / "proteins.fasta").write_text(">a\nMKTAYIAKQR\n>b\nGGAVL\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("page", "code"), blocks("python"), ids=lambda value: str(value)[:40])
def test_python_runs(place: Path, page: Path, code: str) -> None:
    program = compile(code, str(page), "exec")
    if "tritonclient" in code:
        pytest.skip("needs a Triton server")
    if "127.0.0.1:8080" in code:
        pytest.skip("needs a server; tests/server/test_docs_lines.py has one")
    if "num_gpus" in code:
        pytest.skip("needs cards; tests/ray runs the same on cores")
    exec(program, {"__name__": "__main__"})


def test_there_are_some_of_each_kind() -> None:
    assert len(blocks("python")) >= 5
    assert len(command_lines()) >= 15
    assert {words[0] for _, words in command_lines()} == COMMANDS.keys()


def check_options(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Parsed by the command itself; nothing runs, and files need not be there."""
    if "--help" not in words and "--version" not in words:
        patch.setattr(click.Path, "convert", lambda self, value, *_: Path(value))
        COMMANDS[words[0]].commands[words[1]].make_context(words[1], words[2:])


@pytest.mark.parametrize(("page", "words"), command_lines(), ids=lambda value: str(value)[:60])
def test_commands_know_their_options(
    page: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_options(words, monkeypatch)


@pytest.mark.parametrize("group", COMMANDS)
def test_every_command_has_an_example_that_fits_a_line(
    group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, command in COMMANDS[group].commands.items():
        example = command.epilog or ""
        words = shlex.split(example.removeprefix("Example: "))
        assert words[:2] == [group, name]
        assert len(example) <= 78
        check_options(words, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        w
        for p, w in command_lines()
        if p.name in ("README.md", "first-embedding.md") and "run" in w[0]
    ],
    ids=" ".join,
)
def test_a_newcomers_commands_run(place: Path, words: list[str]) -> None:
    result = CliRunner().invoke(COMMANDS[words[0]], words[1:])
    assert result.exit_code == 0, result.output
    assert (place / "embeddings.npz").stat().st_size > 0


def test_make_knows_its_targets() -> None:
    targets = set(re.findall(r"^([a-z%-][a-z0-9%-]*):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        (page.relative_to(ROOT), name)
        for page in PAGES
        for name in re.findall(r"(?:^|`|\$ )make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert named
    known = targets | {"parity-float32", "parity-float16", "parity-bfloat16"}
    assert [pair for pair in sorted(named) if pair[1] not in known] == []


def test_the_changelog_tells_of_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(runtime.__version__)}\] - \d{{4}}-\d\d-\d\d$", text, re.M)
