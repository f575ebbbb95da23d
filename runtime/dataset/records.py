"""What a dataset says of itself: ``_run.json``, and ``_journal.jsonl`` with a line a part."""

from typing import Any

import msgspec

from runtime.errors import InputError

SCHEMA_VERSION = 1
RUN_FILE = "_run.json"
JOURNAL_FILE = "_journal.jsonl"


class Input(msgspec.Struct, frozen=True):
    """A file that was read; of standard input and pipes neither size nor digest is known."""

    path: str
    bytes: int | None
    sha256: str | None


class Resolved(msgspec.Struct, frozen=True):
    """What ran: what the options came to on the machine that began, and must come to again.

    Attributes:
        engine, device, dtype, attention, library: of ``EngineSpec``; the device without its number.
        threads, concurrency: of the engine; with Ray, of each.
        max_tokens: the budget of a pack.
        esm2_engines: the version of this package.
        actors: with Ray, those that the runner's windows are counted by; else None.
    """

    engine: str
    device: str
    dtype: str
    attention: str
    library: str
    threads: int
    concurrency: int
    max_tokens: int
    esm2_engines: str
    actors: int | None = None


class Run(msgspec.Struct, frozen=True):
    """``_run.json``: all that the numbers depend on.

    Attributes:
        schema_version: of this file and of the journal.
        artifact: its name.
        manifest_sha256: the seal of its manifest, which seals every file.
        inputs: in order.
        options: of the command, as they were given; None and ``auto`` where they were not.
        proteins, tokens: that the inputs hold, or None where they can be read only once.
        resolved: what the options came to.
        cached: the newest vector in the cache when the run began; None without a cache.
        what: its rows are, in the plural.
    """

    schema_version: int
    artifact: str
    manifest_sha256: str
    inputs: list[Input]
    options: dict[str, Any]
    proteins: int | None
    tokens: int | None
    resolved: Resolved | None = None
    cached: int | None = None
    what: str = "proteins"


class Rejected(msgspec.Struct, frozen=True):
    """A record that was left out; see ``runtime.readers.records.Rejection``."""

    row: int
    record: str
    file: str
    line: int
    position: int | None
    reason: str


class Part(msgspec.Struct, frozen=True, tag="part", tag_field="kind"):
    """A part that is whole and on the disk.

    Attributes:
        file: its name, or None where every record of it was rejected.
        begin, end: rows of the input that it is of, ``end`` not included.
        proteins, tokens, bytes: in the file.
        seconds: that it took.
        rejected: records between ``begin`` and ``end`` that were left out.
    """

    file: str | None
    begin: int
    end: int
    proteins: int
    tokens: int
    bytes: int
    seconds: float
    rejected: list[Rejected]


class Finished(msgspec.Struct, frozen=True, tag="finished", tag_field="kind"):
    """The last line of a journal."""

    rows: int


Entry = Part | Finished


def differences(before: Run, now: Run) -> list[str]:
    """What of ``now`` is not as it was when the run began, in phrases; ``resolved`` aside."""
    found = []
    if before.manifest_sha256 != now.manifest_sha256:
        found.append(f"the artifact is another {now.artifact!r}, it was {before.artifact!r}")
    for name in dict.fromkeys([*before.options, *now.options]):
        was, is_now = before.options.get(name), now.options.get(name)
        if str(was) != str(is_now):  # a layer was a number once
            found.append(f"--{name.replace('_', '-')} is {is_now}, it was {was}")
    if len(before.inputs) != len(now.inputs):
        found.append(f"there are {len(now.inputs)} inputs, there were {len(before.inputs)}")
    else:
        found += [
            f"{new.path} is another input than {old.path} was"
            for old, new in zip(before.inputs, now.inputs, strict=True)
            if old.sha256 != new.sha256
        ]
    return found


def differences_of_resolved(before: Resolved, now: Resolved) -> list[str]:
    """The same for what ran."""
    return [
        f"{name} is {getattr(now, name)}, it was {getattr(before, name)}"
        for name in Resolved.__struct_fields__
        if getattr(before, name) != getattr(now, name)
    ]


def encode_run(run: Run) -> bytes:
    """For ``_run.json``."""
    return msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n"


def decode_run(data: bytes, name: str) -> Run:
    """Raises InputError for what is no ``_run.json``, or one of a newer version."""
    try:
        version = msgspec.json.decode(data)["schema_version"]
        if version > SCHEMA_VERSION:
            raise InputError(
                f"{name} has schema version {version}, this esm2-engines reads "
                f"{SCHEMA_VERSION}: take a newer one"
            )
        run = msgspec.json.decode(data, type=Run)
        if run.resolved is None:
            raise TypeError("it does not say what ran")
        return run
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise InputError(f"{name} is damaged ({error}). Begin in another folder") from None


def encode_entry(entry: Entry) -> bytes:
    """A line of the journal."""
    return msgspec.json.encode(entry) + b"\n"


def decode_journal(data: bytes, name: str) -> tuple[list[Part], Finished | None, int]:
    """Parts, the last line if the run is finished, and the bytes of whole lines.

    A last line without its end was cut by a kill or a full disk: it is not counted.

    Raises:
        InputError: a whole line that is none.
    """
    whole = data.rfind(b"\n") + 1
    parts: list[Part] = []
    finished = None
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            entry: Entry = msgspec.json.decode(line, type=Entry)
        except msgspec.MsgspecError as error:
            raise InputError(
                f"line {number} of {name} is damaged ({error}). Begin in another folder"
            ) from None
        if isinstance(entry, Finished):
            finished = entry
        else:
            parts.append(entry)
    return parts, finished, whole
