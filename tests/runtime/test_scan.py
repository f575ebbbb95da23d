import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import runtime
from runtime.readers.fasta import read_fasta
from runtime.readers.records import Prepared, RecordOptions, prepare
from runtime.readers.scan import scan

PIECES = (
    "M", "K" * 9, "G", "A", "J", "*", "m", "<mask>", "<pad>", " ", "\n", "\t", "é", "\0", ">",
    "\n#x\n", "\n>b", "\n> c d\n", "\n>\n",
)  # fmt: skip
OPTIONS = st.builds(
    RecordOptions, st.sampled_from(["error", "x", "unk"]), st.booleans(), st.booleans(),
    st.sampled_from([None, 1, 5, 10]), st.sampled_from(["error", "skip", "truncate", "window"]),
)  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scan") / "x.fasta"


@given(text=st.lists(st.sampled_from(PIECES), max_size=12).map("".join), options=OPTIONS)
def test_the_scan_says_what_the_run_will(path: Path, text: str, options: RecordOptions) -> None:
    for encoding in ("utf-8", "latin-1"):
        path.write_bytes(f">a\n{text}".encode(encoding))
        found = scan([str(path)], options)
        results = [prepare(record, options) for record in read_fasta([str(path)])]
        prepared = [result for result in results if isinstance(result, Prepared)]
        lengths = [len(run) for result in prepared for run in result.runs]
        rejected = [result for result in results if not isinstance(result, Prepared)]
        assert found.num_proteins == len(prepared)
        assert found.num_tokens == sum(len(result.tokens) for result in prepared)
        assert found.tokens_to_run == sum(lengths)
        assert found.longest == max([0, *lengths])
        assert found.num_rejected == len(rejected)
        errors = [result for result in rejected if not result.asked]
        assert (found.num_errors, found.first_error) == (len(errors), (errors or [None])[0])
        assert found.num_cut == sum(result.was_cut for result in prepared)
        assert found.num_long == 0
        assert found.num_in_windows == sum(len(result.runs) > 1 for result in prepared)
        assert found.first_rejected == (rejected[0] if rejected else None)


def test_the_last_of_5000_is_found_in_under_a_second(path: Path) -> None:
    """Of processor time: other work on the machine says nothing of the scan."""
    good = "".join(f">p{i} of an organism\n{'MKTAYIAKQR' * 35}\n" for i in range(4999))
    path.write_text(f"{good}>last\nMKTJ\n")
    started = time.process_time()
    found = scan([str(path)], RecordOptions())
    assert time.process_time() - started < 1
    assert (found.num_proteins, found.num_rejected) == (4999, 1)
    with pytest.raises(runtime.InputError, match=r"record 'last' \(.*, line 9999\): .* 'J'"):
        found.check(skip=False)
    found.check(skip=True)


@pytest.mark.parametrize("odd", ["", ">x\nmk\n"])
def test_how_many_are_longer_than_esm2_was_trained_on(path: Path, odd: str) -> None:
    lines = {1022: "M" * 1022, 1023: "M" * 1023, 2000: "\n".join(["M" * 50] * 40)}
    path.write_text("".join(f">p{n}\n{body}\n" for n, body in lines.items()) + odd)
    upper = RecordOptions(upper=True)
    found = scan([str(path)], upper)
    assert (found.num_long, found.longest) == (2, 2002)
    cut = scan([str(path)], RecordOptions(upper=True, max_length=1022, long="truncate"))
    assert (cut.num_long, cut.num_cut) == (0, 2)
    windows = scan([str(path)], RecordOptions(upper=True, max_length=1022, long="window"))
    assert (windows.num_long, windows.num_in_windows) == (0, 2)


def test_several_files_and_pipes(path: Path) -> None:
    path.write_text(">a\nMJ\n>b\nMKT\n")
    found = scan([str(path), str(path), "/dev/null"], RecordOptions())
    assert (found.num_proteins, found.num_tokens, found.num_rejected) == (2, 10, 2)
    assert not found.is_whole
    assert scan([str(path)], RecordOptions()).is_whole
    with pytest.raises(runtime.InputError, match="1 more cannot be run"):
        found.check(skip=False)


def test_nothing_is_left(path: Path) -> None:
    path.write_text(">a\nMJ\n>b\nM*\n")
    found = scan([str(path)], RecordOptions())
    with pytest.raises(runtime.InputError, match="none of 2 records can be run.*record 'a'"):
        found.check(skip=True)
