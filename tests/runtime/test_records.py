import pytest

from runtime.errors import InputError
from runtime.readers.records import Prepared, Record, RecordOptions, Rejection, prepare, printable
from runtime.tokenizer import decode

MASKED = "mk<mask>t"


def prepared(sequence: str, **options: object) -> Prepared:
    record = Record("a", sequence)
    result = prepare(record, RecordOptions(**options))
    assert isinstance(result, Prepared), str(result)
    # What the exporter's comparisons are given is what was tokenized.
    again = prepare(Record("a", result.text(record)), RecordOptions())
    assert isinstance(again, Prepared)
    assert again.tokens.tolist() == result.tokens.tolist()
    return result


def rejected(record: Record, **options: object) -> Rejection:
    result = prepare(record, RecordOptions(**options))
    assert isinstance(result, Rejection)
    return result


@pytest.mark.parametrize(
    ("sequence", "options", "text", "changes"),
    [
        ("MKT", {}, "MKT", (False, False, False)),
        ("mKt", {"upper": True}, "MKT", (True, False, False)),
        ("MKT", {"upper": True}, "MKT", (False, False, False)),
        (MASKED, {"upper": True}, "MK<mask>T", (True, False, False)),
        ("MKT*", {"strip_stop": True}, "MKT", (False, True, False)),
        ("MKT* \n", {"strip_stop": True}, "MKT", (False, True, False)),
        ("*", {"strip_stop": True}, "", (False, True, False)),
        ("MJ*", {"unknown": "x"}, "MXX", (False, False, True)),
        ("MJ*", {"unknown": "unk"}, "M<unk><unk>", (False, False, True)),
        ("MJ*", {"unknown": "x", "strip_stop": True}, "MX", (False, True, True)),
        ("M*K*", {"unknown": "x", "strip_stop": True}, "MXK", (False, True, True)),
        ("mj*", {"unknown": "x", "strip_stop": True, "upper": True}, "MX", (True, True, True)),
        ("mk", {"unknown": "x"}, "XX", (False, False, True)),
        ("Mλ<mask>J", {"unknown": "x"}, "MX<mask>X", (False, False, True)),
    ],
)
def test_what_is_taken(
    sequence: str, options: dict[str, object], text: str, changes: tuple[bool, bool, bool]
) -> None:
    result = prepared(sequence, **options)
    assert decode(result.tokens) == text
    assert (result.was_lower, result.had_stop, result.had_unknown) == changes


@pytest.mark.parametrize(
    ("sequence", "options", "position", "reason", "advice"),
    [
        ("MKJ", {}, 3, "character 'J' at position 3 is not in", "--unknown x"),
        ("mk", {}, 1, "character 'm' at position 1", "--upper"),
        ("MK*", {}, 3, "character '*' at position 3", "--strip-stop"),
        ("M*K", {"strip_stop": True}, 2, "character '*' at position 2", "--unknown x"),
        ("MK**", {"strip_stop": True}, 3, "character '*' at position 3", "--strip-stop"),
        ("MK>b", {}, 3, "character '>'", "Is a line break missing before a header?"),
        ("M\0K", {}, 2, r"character '\x00'", "--unknown x"),
        ("MK<pad>", {}, 3, "holds <pad> at position 3", "Remove it"),
        ("MK<pad>", {"unknown": "x"}, 3, "holds <pad> at position 3", "Remove it"),
        # Not letters of the alphabet in another case: "ſ".upper() is "S", "ß".upper() is "SS".
        ("Mſß", {"upper": True}, 2, "character 'ſ'", "--unknown x"),
        ("<MASK>", {"upper": True}, 1, "character '<'", "--unknown x"),
        ("M\udce9K", {"unknown": "x"}, 2, "byte 0xE9 at position 2 of the sequence", "iconv"),
    ],
)
def test_what_is_rejected(
    sequence: str, options: dict[str, object], position: int, reason: str, advice: str
) -> None:
    rejection = rejected(Record("a", sequence, "x.fasta", 7), **options)
    assert (rejection.record, rejection.line, rejection.position) == ("a", 7, position)
    assert reason in rejection.reason
    assert advice in rejection.advice
    assert str(rejection).startswith(f"record 'a' (x.fasta, line 7): {rejection.reason}. ")
    assert str(rejection).endswith("--on-error skip")


def test_headers_that_are_no_utf8() -> None:
    rejection = rejected(Record("p", "MK", "x.fasta", 3, "p Caf\udce9"))
    assert rejection.reason == "byte 0xE9 at position 6 of the header is not UTF-8"
    assert rejection.position is None
    assert "iconv -f ISO-8859-1 -t UTF-8" in str(rejection)


def test_ids_with_control_characters() -> None:
    """HDF5 ends a string at a NUL, and a terminal obeys an escape."""
    for character in ("\0", "\x1b", "\n", "\x7f", "\ud800"):
        assert "control character" in rejected(Record(f"a{character}b", "MK")).reason


def test_messages_stay_one_short_line() -> None:
    text = str(rejected(Record("x" * 5000, "MJ", "a\nb.fasta", 1)))
    assert "\n" not in text
    assert len(text) < 500
    assert printable("a\tb\udce9\x1b\ud800 é") == r"a\tb\xe9\x1b\ud800 é"


def test_a_wrong_option_is_no_guess() -> None:
    with pytest.raises(InputError, match="unknown must be one of error, x, unk, got 'X'"):
        RecordOptions(unknown="X")  # type: ignore[arg-type]
