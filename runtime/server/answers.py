"""Arrays as the body of an answer: JSON, an Arrow stream, or NumPy's .npz; piece by piece."""

import importlib.util
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from runtime.server.problems import NotAcceptable

Values = NDArray[np.floating]

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
NPZ = "application/x-npz"
# What is square; in .npz one row after the other.
MAPS = "contacts"
# Of a piece, before it is sent: about a megabyte of text. Of more, the event loop would wait for
# the interpreter: a contact map of 2,000 residues, written at once, held it for 0.6 s.
PIECE_NUMBERS = 1 << 16
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Shape:
    """An answer in JSON: what stands around and of each sequence.

    Attributes:
        before, after: of all of them.
        item: of one, by its number; in pieces.
    """

    before: bytes
    item: Callable[[int, Values], Iterable[bytes]]
    after: bytes


def numbers(values: Values) -> bytes:
    """Lists of lists, each number as short as gives the same one back; null for NaN."""
    return orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)


def _rows(_: int, values: Values) -> Iterator[bytes]:
    """``numbers``, of many of them some rows at once."""
    step = max(1, PIECE_NUMBERS // max(1, values[:1].size))
    if values.ndim == 1 or len(values) <= step:
        yield numbers(values)
        return
    for start in range(0, len(values), step):
        yield (b"," if start else b"[") + numbers(values[start : start + step])[1:-1]
    yield b"]"


PLAIN = Shape(b"[", _rows, b"]")


def chosen(accept: str | None) -> str:
    """The type that a client wants. Raises NotAcceptable for what there is not."""
    wanted = [part.partition(";")[0].strip().lower() for part in (accept or "*/*").split(",")]
    for kind in wanted:
        if kind in (JSON, "*/*", "application/*", ""):
            return JSON
        if kind == NPZ:
            return kind
        if kind == ARROW:
            if importlib.util.find_spec("pyarrow") is None:
                raise NotAcceptable("this server has no pyarrow: accept JSON or npz")
            return kind
    raise NotAcceptable(
        f"answers are {JSON}, {ARROW} or {NPZ}, asked for {', '.join(wanted)[:200]}"
    )


def encoded(values: Sequence[Values], kind: str, name: str, shape: Shape) -> Iterator[bytes]:
    """The body; in a thread, for it takes time.

    Args:
        values: an array for each sequence, in order: all ``[E]``, or ``[L, ...]``.
        kind: one of the types.
        name: of the column, or of the array.
        shape: in JSON.
    """
    if kind == ARROW:
        return _arrow(values, name)
    if kind == NPZ:
        return _npz(values, name)
    return _json(values, shape)


def _json(values: Sequence[Values], shape: Shape) -> Iterator[bytes]:
    held, size = [shape.before], 0
    for i, each in enumerate(values):
        held += [b","] if i else []
        for text in shape.item(i, each):
            held.append(text)
            size += len(text)
            if size >= PIECE_BYTES:
                yield b"".join(held)
                held, size = [], 0
    yield b"".join([*held, shape.after])


def _arrow(values: Sequence[Values], name: str) -> Iterator[bytes]:
    import pyarrow as pa

    number = pa.float64() if values[0].dtype == np.float64 else pa.float32()
    column = pa.list_(number)
    if values[0].ndim == 2:
        column = pa.list_(column)
    schema = pa.schema([pa.field("index", pa.int32()), pa.field(name, column)])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        for start, end in _pieces(values):
            rows = [list(each) if each.ndim == 2 else each for each in values[start:end]]
            index = pa.array(range(start, end), pa.int32())
            writer.write_batch(pa.record_batch([index, pa.array(rows, column)], schema))
            yield _taken(sink)
    yield _taken(sink)


def _npz(values: Sequence[Values], name: str) -> Iterator[bytes]:
    sink = io.BytesIO()
    if values[0].ndim == 1:
        np.savez(sink, allow_pickle=False, **{name: np.stack(values)})
    else:
        # Rows of maps [L, L] are of as many lengths as there are proteins.
        parts = [each.ravel() for each in values] if name == MAPS else list(values)
        offsets = np.cumsum([0, *map(len, parts)])
        np.savez(sink, allow_pickle=False, **{name: np.concatenate(parts), "offsets": offsets})
    view = sink.getbuffer()
    for start in range(0, len(view), 1 << 20):
        yield bytes(view[start : start + (1 << 20)])


def _pieces(values: Sequence[Values]) -> Iterator[tuple[int, int]]:
    start = held = 0
    for i, each in enumerate(values):
        held += each.size
        if held >= PIECE_NUMBERS or i + 1 == len(values):
            yield start, i + 1
            start, held = i + 1, 0


def _taken(sink: io.BytesIO) -> bytes:
    piece = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return piece
