"""What becomes of a record: tokens, or a rejection that says where and why.

The scan of files, the runner and ``--on-error skip`` all ask ``prepare``, so they agree.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.sliding import windows_of
from runtime.tokenizer import UNKNOWN_CHOICES, SequenceError, Unknown, decode, tokenize

# A byte that was not UTF-8 is read as one of these (PEP 383).
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_ESCAPE = 0xDC00
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_UPPER = {code: code - 32 for code in range(ord("a"), ord("z") + 1)}  # ASCII: "ß" has no upper case
_TOKEN = re.compile(r"(<[a-z_0-9]+>)")
_LONGEST_SHOWN = 60

Long = Literal["error", "skip", "truncate", "window"]
LONG_CHOICES: tuple[str, ...] = get_args(Long)


@dataclass(frozen=True)
class Record:
    """One protein.

    Attributes:
        id: its name in results.
        sequence: its residues.
        file: where it was read, or empty.
        line: of its header in ``file``, from 1; 0 where it was not read from a file.
        header: all of it, or empty; it is checked as well as the id.
    """

    id: str
    sequence: str
    file: str = ""
    line: int = 0
    header: str = ""


@dataclass(frozen=True)
class RecordOptions:
    """What is taken beyond ESM-2's own alphabet.

    Attributes:
        unknown: see ``tokenizer.encode``.
        upper: lower case is taken as upper case: soft-masked sequences.
        strip_stop: a single ``*`` at the end is removed.
        max_length: residues of the longest protein; None takes all.
        long: what becomes of longer ones. ``"error"``: they cannot be run; ``"skip"``: they are
            left out, whatever becomes of other records that cannot be run; ``"truncate"``: their
            first ``max_length`` residues are run, between BOS and EOS, as fair-esm does it
            (esm/data.py:268); ``"window"``: all of it is run, in windows of ``max_length`` residues
            (see ``runtime.sliding``).

    Raises:
        InputError: an ``unknown`` or ``long`` that is none of its choices, or no length.
    """

    unknown: Unknown = "error"
    upper: bool = False
    strip_stop: bool = False
    max_length: int | None = None
    long: Long = "error"

    def __post_init__(self) -> None:
        if self.long not in LONG_CHOICES:
            raise InputError(f"long must be one of {', '.join(LONG_CHOICES)}, got {self.long!r}")
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length must be at least 1, got {self.max_length}")
        if self.unknown not in UNKNOWN_CHOICES:
            raise InputError(
                f"unknown must be one of {', '.join(UNKNOWN_CHOICES)}, got {self.unknown!r}"
            )


@dataclass(frozen=True)
class Prepared:
    """A record that can be run.

    Attributes:
        tokens: ``[L + 2]`` int64, BOS and EOS included.
        was_lower: lower case was taken as upper case.
        had_stop: a ``*`` was removed.
        had_unknown: a character outside the alphabet was replaced.
        was_cut: it was longer, and its end is left out.
        windows: that are run in its place, where it is longer; ``[W + 2]`` each.
    """

    tokens: NDArray[np.int64]
    was_lower: bool = False
    had_stop: bool = False
    had_unknown: bool = False
    was_cut: bool = False
    windows: tuple[NDArray[np.int64], ...] = ()

    @property
    def runs(self) -> tuple[NDArray[np.int64], ...]:
        """Tokens of what is run: the windows, or the protein itself."""
        return self.windows or (self.tokens,)

    def text(self, record: Record) -> str:
        """What was tokenized; the sequence as it was given where nothing was changed."""
        changed = self.was_lower or self.had_stop or self.had_unknown or self.was_cut
        return decode(self.tokens) if changed else record.sequence


@dataclass(frozen=True)
class Rejection:
    """A record that cannot be run.

    Attributes:
        record: its id.
        file: where it was read, or empty.
        line: of its header, or 0.
        position: in the sequence, from 1; None where the header is wrong.
        reason: in a phrase.
        advice: in a sentence without its stop.
        row: of the record in the input, from 0; 0 where that is not known.
        asked: it is left out because ``RecordOptions.long`` says so, which is no error.
    """

    record: str
    file: str
    line: int
    position: int | None
    reason: str
    advice: str
    row: int = 0
    asked: bool = False

    def __str__(self) -> str:
        """One line: what, where, why, and what to do."""
        place = f" ({printable(self.file)}, line {self.line})" if self.line else ""
        name = printable(self.record)
        shown = name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}..."
        who = f"record '{shown}'" if self.record else "sequence"
        skip = "leave such records out with on_rejected in Python or --on-error skip"
        return f"{who}{place}: {self.reason}. {self.advice}, or {skip}"


def prepare(record: Record, options: RecordOptions) -> Prepared | Rejection:
    """The tokens of ``record``, or what is wrong with it."""
    header = record.header or record.id
    if rejection := _bad_bytes(record, header) or _bad_id(record):
        return rejection
    sequence = record.sequence
    had_stop = options.strip_stop and sequence.rstrip().endswith("*")
    if had_stop:
        sequence = sequence.rstrip()[:-1]
    upper = _in_upper_case(sequence) if options.upper else sequence
    had_unknown = False
    try:
        try:
            tokens = tokenize(upper)
        except SequenceError:
            if options.unknown == "error":
                raise
            tokens = tokenize(upper, unknown=options.unknown)
            had_unknown = True
    except SequenceError as error:
        return _rejection(record, error.position, error.reason, error.advice)
    most = options.max_length
    prepared = Prepared(tokens, upper != sequence, had_stop, had_unknown)
    if most is None or len(tokens) - 2 <= most:
        return prepared
    if options.long == "window":
        return replace(prepared, windows=windows_of(tokens, most))
    if options.long == "truncate":
        tokens = np.concatenate([tokens[: most + 1], tokens[-1:]])
        return replace(prepared, tokens=tokens, was_cut=True)
    return _too_long(record, len(tokens) - 2, options)


def printable(text: str) -> str:
    r"""``text`` with bytes that were not UTF-8 and control characters as ``\x..``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if _ESCAPED_BYTE.match(character):
        return f"\\x{ord(character) - _ESCAPE:02x}"
    return character.encode("unicode_escape").decode("ascii")


def _in_upper_case(sequence: str) -> str:
    if "<" not in sequence:
        return sequence.translate(_UPPER)
    pieces = _TOKEN.split(sequence)
    pieces[::2] = [piece.translate(_UPPER) for piece in pieces[::2]]
    return "".join(pieces)


def _bad_bytes(record: Record, header: str) -> Rejection | None:
    for text, where in ((header, "header"), (record.sequence, "sequence")):
        if not text.isascii() and (found := _ESCAPED_BYTE.search(text)):
            place = found.start() + 1
            byte = ord(found.group()) - _ESCAPE
            reason = f"byte 0x{byte:02X} at position {place} of the {where} is not UTF-8"
            advice = "If the file is Latin-1, convert it with 'iconv -f ISO-8859-1 -t UTF-8'"
            return _rejection(record, place if where == "sequence" else None, reason, advice)
    return None


def _bad_id(record: Record) -> Rejection | None:
    if found := _CONTROL.search(record.id):
        reason = f"its id holds the control character {found.group()!r}"
        return _rejection(record, None, reason, "Remove it")
    return None


def _too_long(record: Record, length: int, options: RecordOptions) -> Rejection:
    rejection = _rejection(
        record, None, f"{length:,} residues are more than {options.max_length:,} (--max-length)",
        "Run such proteins in windows or cut them with --long window or truncate, leave them out "
        "with --long skip",
    )  # fmt: skip
    return replace(rejection, asked=options.long == "skip")


def _rejection(record: Record, position: int | None, reason: str, advice: str) -> Rejection:
    return Rejection(record.id, record.file, record.line, position, reason, advice)
