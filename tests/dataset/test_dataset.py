"""``esm2-run embed -o FOLDER/``: shards, the journal, going on, refusals."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.dataset
import pytest
from click.testing import CliRunner, Result
from filelock import FileLock
from pyarrow import parquet

from runtime import cli
from runtime.dataset import folder
from runtime.dataset.cutting import Cutter
from runtime.dataset.folder import JOURNAL_FILE, LOCK_FILE, REJECTED_FILE, RUN_FILE, Dataset
from runtime.dataset.records import decode_run, encode_run
from runtime.dataset.status import duration
from runtime.errors import EngineError
from runtime.runner import AsyncInferenceRunner, Embedding
from tests.conftest import STORED_SCHEMAS, stored_artifact
from tests.dataset.torture import OPTIONS, command, read, torture, write_input

PROTEINS = 120


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return write_input(tmp_path / "in.fasta", PROTEINS)


@pytest.fixture
def embed(ready_artifact: Path, fasta: Path) -> Callable[..., Result]:
    """Runs the command with small packs and parts; an option given later counts."""

    def run(output: object, *more: object, inputs: tuple[object, ...] = (fasta,)) -> Result:
        arguments = ["embed", ready_artifact, *inputs, "-o", output, *OPTIONS, *more]
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def unfinished(
    embed: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A part is whole when the engine breaks."""
    packs = iter(range(1000))
    original = AsyncInferenceRunner._embed

    def break_down(self: AsyncInferenceRunner, pack: object) -> list[Embedding]:
        if next(packs) > 100:
            raise EngineError("the engine broke")
        return original(self, pack)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(AsyncInferenceRunner, "_embed", break_down)
        result = embed(tmp_path / "out/")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, "error: the engine broke")
    return tmp_path / "out"


def part_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("part-*"))


def said(result: Result) -> str:
    assert result.exit_code == 2, result.output
    return str(result.stderr.splitlines()[-1])


# --- What is written --------------------------------------------------------------------------


def test_rows_are_the_inputs_in_its_order(embed: Callable[..., Result], tmp_path: Path) -> None:
    assert embed(tmp_path / "out/").exit_code == 3
    table = read(tmp_path / "out").rows
    kept = [i for i in range(PROTEINS) if i % 31 != 7]
    assert table["row"].to_pylist() == kept
    assert table["ids"].to_pylist() == [f"p{i % (PROTEINS // 2)}" for i in kept]
    assert embed(tmp_path / "one.parquet").exit_code == 3
    one = parquet.read_table(tmp_path / "one.parquet")
    for column in ("ids", "num_tokens", "embeddings"):
        assert table[column].combine_chunks() == one[column].combine_chunks()
    rejected = read(tmp_path / "out").rejected.to_pylist()
    assert [each["row"] for each in rejected] == [7, 38, 69, 100]
    assert rejected[0]["record"] == "p7"
    assert "character '*'" in rejected[0]["reason"]


def test_a_reader_of_parquet_finds_the_parts_alone(
    embed: Callable[..., Result], tmp_path: Path
) -> None:
    embed(tmp_path / "out/")
    found = pyarrow.dataset.dataset(tmp_path / "out", format="parquet")
    assert found.count_rows() == len(read(tmp_path / "out").rows)
    assert {Path(file).name for file in found.files} == set(part_names(tmp_path / "out"))


def test_parts_are_bounded_and_the_journal_says_them(
    embed: Callable[..., Result], tmp_path: Path
) -> None:
    embed(tmp_path / "out/", "--part-mb", "0.001")
    *parts, last = map(json.loads, (tmp_path / "out" / JOURNAL_FILE).read_text().splitlines())
    assert last == {"kind": "finished", "rows": PROTEINS}
    assert [part["begin"] for part in parts] == [0, *(part["end"] for part in parts[:-1])]
    assert len(parts) > 2
    for part in parts:
        file = tmp_path / "out" / part["file"]
        assert part["bytes"] == file.stat().st_size
        table = parquet.read_table(file)
        assert (part["proteins"], part["tokens"]) == (
            len(table), sum(table["num_tokens"].to_pylist())
        )  # fmt: skip
        # A window of 16 packs is more than the bound.
        assert part["tokens"] < 16 * 64 + 92


def test_a_part_is_on_the_disk_before_the_journal_names_it(
    embed: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noted(original: Callable[..., Any], what: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            is_folder = what == "sync" and arguments[0].is_dir()
            done.append("sync folder" if is_folder else what)
            return original(*arguments)

        return call

    monkeypatch.setattr(folder, "_sync", noted(folder._sync, "sync"))
    monkeypatch.setattr(Path, "replace", noted(Path.replace, "rename"))
    monkeypatch.setattr(Dataset, "_append", noted(Dataset._append, "journal"))
    embed(tmp_path / "out")
    published = ["sync", "rename", "sync folder"]
    others = (len(part_names(tmp_path / "out")) - 1) * [*published, "journal"]
    assert done == [
        *published,  # _run.json
        *published, "journal", "sync folder",  # the first part, and the journal's own name
        *others,
        *published, "journal",  # what was rejected, and the end
    ]  # fmt: skip


def test_residues(embed: Callable[..., Result], tmp_path: Path) -> None:
    embed(tmp_path / "out/", "--pool", "none")
    table = read(tmp_path / "out").rows
    lengths = [len(rows) for rows in table["embeddings"].to_pylist()]
    assert lengths == [count - 2 for count in table["num_tokens"].to_pylist()]


def test_all_rejected_is_an_error(embed: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "bad.fasta").write_text(">a\nJ\n>b\n*M\n")
    result = embed(tmp_path / "out/", inputs=(tmp_path / "bad.fasta",))
    assert "none of 2 records can be run" in said(result)


# --- Going on ---------------------------------------------------------------------------------


def test_going_on_gives_the_same_bits(
    embed: Callable[..., Result], unfinished: Path, tmp_path: Path
) -> None:
    before = {name: (unfinished / name).read_bytes() for name in part_names(unfinished)}
    assert before
    result = embed(unfinished, "--resume")
    assert result.exit_code == 3
    assert "goes on behind" in result.stderr
    embed(tmp_path / "whole/")
    assert read(unfinished) == read(tmp_path / "whole")
    assert before == {name: (unfinished / name).read_bytes() for name in before}


def test_packs_are_of_the_budget_of_the_beginning(
    embed: Callable[..., Result], unfinished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Which a machine with a larger card chose."""
    path = unfinished / RUN_FILE
    run = decode_run(path.read_bytes(), str(path))
    assert run.resolved is not None
    resolved = msgspec.structs.replace(run.resolved, max_tokens=200)
    path.write_bytes(encode_run(msgspec.structs.replace(run, resolved=resolved)))
    with caplog.at_level(logging.DEBUG, "runtime"):
        embed(unfinished, "--resume")
    sizes = [int(size) for size in re.findall(r"proteins, (\d+) tokens", caplog.text)]
    assert 64 < max(sizes) <= 200


@pytest.mark.parametrize("with_cache", [False, True])
def test_a_run_that_is_killed_again_and_again(tmp_path: Path, with_cache: bool) -> None:
    fasta = write_input(tmp_path / "in.fasta.gz", 300)
    kept = write_input(tmp_path / "kept.fasta", 150) if with_cache else None
    done = torture(tmp_path, fasta, 5, seed=int.from_bytes(os.urandom(2), "big"), kept=kept)
    assert done["compared"] >= 1


@pytest.mark.parametrize("moment", range(4))
def test_a_run_that_is_killed_at_its_very_beginning(
    ready_artifact: Path, fasta: Path, tmp_path: Path, moment: int
) -> None:
    """While ``_run.json`` is written: nothing that is left stands in the way, or stays."""
    arguments = command(ready_artifact, fasta, tmp_path / "out")
    killed = subprocess.run(
        [sys.executable, "-m", "tests.dataset.saboteur", "kill", str(moment), *arguments]
    )
    assert killed.returncode < 0
    assert CliRunner().invoke(cli.main, arguments).exit_code == 3
    hidden = [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert hidden == [LOCK_FILE]


def test_resume_begins_where_nothing_is(embed: Callable[..., Result], tmp_path: Path) -> None:
    assert embed(tmp_path / "out/", "--resume").exit_code == 3
    assert embed(tmp_path / "out/", "--resume").stdout.startswith(
        f"{tmp_path / 'out'}: finished before with 116 proteins, nothing is left to do"
    )


def test_an_unfinished_run_is_not_overwritten(
    embed: Callable[..., Result], unfinished: Path
) -> None:
    before = (unfinished / JOURNAL_FILE).read_bytes()
    message = said(embed(unfinished))
    assert "holds an unfinished run with" in message
    assert "of 116 proteins: --resume goes on with it" in message
    assert (unfinished / JOURNAL_FILE).read_bytes() == before


def test_what_was_not_finished_is_removed(embed: Callable[..., Result], unfinished: Path) -> None:
    (unfinished / "part-00077.parquet").write_text("half")
    with (unfinished / JOURNAL_FILE).open("ab") as journal:
        journal.write(b'{"kind":"part","file":"part-0')
    assert embed(unfinished, "--resume").exit_code == 3
    assert "part-00077.parquet" not in part_names(unfinished)


# --- Refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--pool", "cls"), "--pool is cls, it was mean"),
        (("--layer", "1"), "--layer is 1, it was None"),
        (("--max-tokens", "65"), "--max-tokens is 65, it was 64"),
        (("--threads", "1"), "--threads is 1, it was 2"),
        (("--engine", "torchscript"), "--engine is torchscript, it was onnx"),
        (("--v1-attention",), "--attention is standard, it was None"),
        (("--upper",), "--upper is True, it was False"),
    ],
)
def test_other_options_are_named(
    embed: Callable[..., Result], unfinished: Path, options: tuple[str, ...], reason: str
) -> None:
    message = said(embed(unfinished, "--resume", *options))
    assert f"holds a run of something else: {reason}" in message


def test_another_input_is_named(
    embed: Callable[..., Result], unfinished: Path, fasta: Path
) -> None:
    message = said(embed(unfinished, "--resume", inputs=(fasta, fasta)))
    assert "there are 2 inputs, there were 1" in message
    with fasta.open("a") as file:
        file.write(">one more\nMKT\n")
    assert "is another input than" in said(embed(unfinished, "--resume"))


def test_another_artifact_is_named(unfinished: Path, fasta: Path, tmp_path: Path) -> None:
    another = stored_artifact(min(STORED_SCHEMAS), tmp_path)
    arguments = ["embed", another, fasta, "-o", unfinished, *OPTIONS, "--resume"]
    message = said(CliRunner().invoke(cli.main, [str(argument) for argument in arguments]))
    assert "the artifact is another" in message


def test_another_library_is_named(embed: Callable[..., Result], unfinished: Path) -> None:
    run = json.loads((unfinished / RUN_FILE).read_text())
    run["resolved"]["library"] = "onnxruntime 1.0"
    (unfinished / RUN_FILE).write_text(json.dumps(run))
    message = said(embed(unfinished, "--resume"))
    assert "library is onnxruntime" in message
    assert "it was onnxruntime 1.0" in message


def test_a_part_that_was_changed_is_named(embed: Callable[..., Result], unfinished: Path) -> None:
    (unfinished / "part-00000.parquet").write_bytes(b"PAR1")
    assert "part-00000.parquet is not as it was written" in said(embed(unfinished, "--resume"))


def test_a_damaged_journal_is_named(embed: Callable[..., Result], unfinished: Path) -> None:
    journal = unfinished / JOURNAL_FILE
    journal.write_bytes(b"{}\n" + journal.read_bytes())
    assert f"line 1 of {journal} is damaged" in said(embed(unfinished, "--resume"))


def test_a_folder_of_a_newer_version_is_named(
    embed: Callable[..., Result], unfinished: Path
) -> None:
    run = json.loads((unfinished / RUN_FILE).read_text())
    (unfinished / RUN_FILE).write_text(json.dumps({**run, "schema_version": 99}))
    assert "has schema version 99" in said(embed(unfinished, "--resume"))


def test_other_peoples_files_are_left_alone(embed: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("mine")
    assert "is not empty and holds no run of esm2-run: todo.txt" in said(embed(tmp_path / "notes"))


def test_what_others_have_aside_is_not_touched(
    embed: Callable[..., Result], tmp_path: Path
) -> None:
    """A refusal leaves the folder as it was; one that fails before it begins leaves none."""
    theirs = [".config.new", ".mine.partial", ".out.npz.0123456789abcdef.partial"]
    for name in theirs:
        (tmp_path / "others" / name).mkdir(parents=True)
        (tmp_path / "others" / name / "precious").touch()
    assert "is not empty" in said(embed(tmp_path / "others"))
    assert sorted(path.name for path in (tmp_path / "others").iterdir()) == theirs
    assert all((tmp_path / "others" / name / "precious").exists() for name in theirs)
    assert embed(tmp_path / "out", "--layer", "77").exit_code == 2
    assert embed(tmp_path / "new", "--engine", "tensorrt").exit_code == 2
    assert not (tmp_path / "new").exists()
    assert "-o is empty" in said(embed(""))


def test_a_finished_folder_is_whole(embed: Callable[..., Result], tmp_path: Path) -> None:
    embed(tmp_path / "out")
    for name, reason in (
        ("part-00000.parquet", "is not as it was written"),
        (REJECTED_FILE, "rejected.parquet was removed"),
    ):
        moved = (tmp_path / "out" / name).rename(tmp_path / "moved")
        assert reason in said(embed(tmp_path / "out"))
        moved.rename(tmp_path / "out" / name)
    assert embed(tmp_path / "out").exit_code == 3


@pytest.mark.parametrize("output", ["out", "out.npz"])
def test_an_input_that_changes_meanwhile(
    embed: Callable[..., Result], fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    output: str,
) -> None:  # fmt: skip
    original = AsyncInferenceRunner.run

    def changed(self: AsyncInferenceRunner, *arguments: object) -> object:
        with fasta.open("a") as file:
            file.write(">more\nMKT\n")
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(AsyncInferenceRunner, "run", changed)
    assert "in.fasta changed while it was read" in said(embed(tmp_path / output))
    if output == "out":
        assert b"finished" not in (tmp_path / "out" / JOURNAL_FILE).read_bytes()


def test_a_name_that_is_no_utf8(embed: Callable[..., Result], fasta: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.fasta")
    shutil.copy(fasta, odd)
    assert embed(tmp_path / "out", inputs=(odd,)).exit_code == 3


def test_who_asks_for_the_status_is_waited_for(
    embed: Callable[..., Result], unfinished: Path
) -> None:
    lock = FileLock(unfinished / LOCK_FILE, thread_local=False)
    lock.acquire()
    threading.Timer(0.2, lock.release).start()
    assert embed(unfinished, "--resume").exit_code == 3


def test_two_do_not_write_one_folder(embed: Callable[..., Result], unfinished: Path) -> None:
    with FileLock(unfinished / LOCK_FILE):
        assert "another process writes" in said(embed(unfinished, "--resume"))


def test_a_folder_in_no_folder(embed: Callable[..., Result], tmp_path: Path) -> None:
    assert "does not exist" in said(embed(tmp_path / "none" / "out/"))


def test_resume_is_for_folders(embed: Callable[..., Result], tmp_path: Path) -> None:
    assert "--resume is for folders" in said(embed(tmp_path / "out.npz", "--resume"))


def test_standard_input_cannot_be_gone_on_with(
    ready_artifact: Path, fasta: Path, tmp_path: Path
) -> None:
    arguments = ["embed", ready_artifact, "-", "-o", tmp_path / "out", *OPTIONS]
    embed = [sys.executable, "-m", "runtime.cli", *map(str, arguments)]
    data = fasta.read_bytes()
    assert subprocess.run(embed, input=data, capture_output=True).returncode == 3
    journal = tmp_path / "out" / JOURNAL_FILE
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    again = subprocess.run([*embed, "--resume"], input=data, capture_output=True, text=False)
    assert b"whether this is the same cannot be told" in again.stderr


def test_what_is_finished_is_not_taken_for_another_pipe(
    ready_artifact: Path, tmp_path: Path
) -> None:
    embed = [sys.executable, "-m", "runtime.cli", "embed", str(ready_artifact), "-", "-o"]
    for status in (0, 2):
        ended = subprocess.run(
            [*embed, str(tmp_path / "out")], input=b">a\nMKT\n", capture_output=True
        )
        assert ended.returncode == status
    all_bad = [*embed, str(tmp_path / "bad"), "--on-error", "skip"]
    ended = subprocess.run(all_bad, input=b">a\nM1\n", capture_output=True)
    assert ended.returncode == 2
    assert b"none of 1 records can be run" in ended.stderr


# --- Status -----------------------------------------------------------------------------------


def status(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(cli.main, ["status", str(folder), *options])


def test_status(embed: Callable[..., Result], unfinished: Path) -> None:
    result = status(unfinished)
    assert result.exit_code == 3
    assert "unfinished (" in result.stdout
    assert " of 116, " in result.stdout
    assert "go on with the same command and --resume" in result.stdout
    with FileLock(unfinished / LOCK_FILE):
        assert json.loads(status(unfinished, "--json").stdout)["state"] == "running"
    embed(unfinished, "--resume")
    result = status(unfinished, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["state"], found["seconds_left"]) == (0, "finished", None)
    assert (found["proteins"], found["of_proteins"], found["rejected"]) == (116, 116, 4)
    assert found["rejected_file"] == str(unfinished / REJECTED_FILE)


def test_status_of_what_is_no_dataset(tmp_path: Path) -> None:
    assert "is no folder that 'esm2-run embed' wrote" in said(status(tmp_path))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.4, "8 s"), (300, "5 min"), (2 * 3600 + 240, "2 h 4 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- Cutting ----------------------------------------------------------------------------------


def test_a_part_ends_behind_a_window_alone() -> None:
    embeddings = (Embedding("x", 4, np.zeros(8, "float32"), row) for row in range(10) if row != 5)
    cutter = Cutter(embeddings, deque([3, 4, 6, 11]), 2 * 32, 1e9)
    found = []
    while not cutter.is_done:
        found.append(([each.row for each in cutter.part()], cutter.end, cutter.tokens))
    assert found == [([0, 1, 2], 3, 12), ([3, 4], 6, 8), ([6, 7, 8, 9], 11, 16)]


def test_a_part_ends_in_time() -> None:
    embeddings = (Embedding("x", 4, np.zeros(8, "float32"), row) for row in range(4))
    cutter = Cutter(embeddings, deque([1, 2, 3, 4]), 1 << 30, 0)
    assert [each.row for each in cutter.part()] == [0]


def test_a_full_disk(ready_artifact: Path, fasta: Path, tmp_path: Path) -> None:
    """A file system of 20 kB, made larger afterwards."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        arguments = command(ready_artifact, fasta, place / "out")
        message = said(CliRunner().invoke(cli.main, arguments))
        assert "No space left on device" in message
        assert "the same command with --resume goes on behind them" in message
        subprocess.run(["mount", "-o", "remount,size=8m", str(place)], check=True)
        assert CliRunner().invoke(cli.main, arguments).exit_code == 3
        CliRunner().invoke(cli.main, command(ready_artifact, fasta, tmp_path / "whole"))
        assert read(place / "out") == read(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(place)], check=True)
