"""Clients that misbehave: they hang up, send slowly, read slowly; others get their answers."""

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson

from benchmarks.serving.process import Server
from benchmarks.serving.traffic import BrokenError, Tally, Truth, keep_asking

# Bytes that a slow reader takes at once.
FLOAT_BYTES = 4
SIP = 1 << 16


def request(path: str, body: bytes) -> bytes:
    """As it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def body_of(sequences: list[str]) -> bytes:
    """For ``/embed`` and ``/embed_all``."""
    return orjson.dumps({"inputs": sequences})


async def with_others(
    server: Server, truth: Truth, misbehave: Callable[[], Any], connections: int = 4
) -> tuple[Any, Tally]:
    """What ``misbehave`` gives, while others ask; all of theirs must be answered, and right.

    Raises:
        BrokenError: one was not.
    """
    until, tally = asyncio.Event(), Tally()
    others = asyncio.create_task(keep_asking(server.url, truth, tally, connections, until))
    try:
        found = await misbehave()
    finally:
        until.set()
        await others
    tally.check()
    if not tally.statuses[200]:
        raise BrokenError("nobody else asked")
    return found, tally


async def hang_up(server: Server, truth: Truth, count: int) -> dict[str, Any]:
    """Clients that go in the midst of their body, while they wait, and while they are answered.

    Returns:
        How many went when, and how many others were answered.

    Raises:
        BrokenError: another's answer was wrong or lost, or a place in the queue is not free again.
    """
    rng = random.Random(0)
    gone: Counter[str] = Counter()

    async def one(when: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        sequences = rng.sample(truth.sequences, min(20, len(truth.sequences)))
        whole = request("/embed_all", body_of(sequences))
        writer.write(whole[: len(whole) // 2] if when == "in its body" else whole)
        await writer.drain()
        if when == "in its answer":
            await reader.read(1000)
        else:
            await asyncio.sleep(0.02 * rng.random())
        if rng.random() < 0.5:  # a reset, not an orderly end
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()
        gone[when] += 1

    async def all_of_them() -> None:
        whens = ("in its body", "while it waits", "in its answer")
        for i in range(count):
            await one(whens[i % 3])

    _, tally = await with_others(server, truth, all_of_them)
    await asyncio.to_thread(server.wait_until_idle)
    return {**gone, "others answered": tally.statuses[200]}


async def trickle(server: Server, truth: Truth, clients: int, seconds: float) -> dict[str, Any]:
    """Bodies that take ``seconds`` to come; they are answered all the same.

    Raises:
        BrokenError: an answer was wrong or lost, or others had to wait for these.
    """

    async def one(place: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        whole = request("/embed", body_of([truth.sequences[place]]))
        pieces = 20
        step = -(-len(whole) // pieces)
        for start in range(0, len(whole), step):
            writer.write(whole[start : start + step])
            await writer.drain()
            await asyncio.sleep(seconds / pieces)
        truth.artifact_of([place], orjson.loads(await answer_body(reader)))
        writer.close()

    async def all_of_them() -> None:
        places = [i % len(truth.sequences) for i in range(clients)]
        await asyncio.gather(*map(one, places))

    _, tally = await with_others(server, truth, all_of_them)
    return {"slow senders": clients, "seconds each": seconds, **_others(tally)}


async def sip(server: Server, truth: Truth, clients: int, pause: float) -> dict[str, Any]:
    """Answers of megabytes that are read in small pieces; they come whole.

    Raises:
        BrokenError: an answer was short, or another's wrong or lost.
    """
    sequences = truth.sequences[:100]

    async def one() -> int:
        limit = SIP
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=limit)
        with contextlib.closing(writer):
            writer.write(request("/embed_all", body_of(sequences)))
            answer = orjson.loads(await answer_body(reader, pause))
        if [len(each) for each in answer] != [len(each) for each in sequences]:
            raise BrokenError("an answer that was read slowly is not whole")
        return sum(len(each) * len(each[0]) for each in answer)

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(one() for _ in range(clients)))

    numbers, tally = await with_others(server, truth, all_of_them)
    return {"slow readers": clients, "numbers each": numbers[0], **_others(tally)}


async def stall(server: Server, truth: Truth, timeout: float) -> dict[str, Any]:
    """One whose body never ends, and one who never reads: both are let go after ``--timeout``.

    Raises:
        BrokenError: they are not.
    """
    sequences = truth.sequences[:100]

    async def never_ends() -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        whole = request("/embed", body_of(sequences))
        began = time.monotonic()
        writer.write(whole[:-10])
        status = int((await reader.readline()).split()[1])
        if status != 504:
            raise BrokenError(f"a body that never ends: {status}, not 504")
        writer.close()
        return time.monotonic() - began

    async def never_reads() -> None:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(request("/embed_all", body_of(sequences)))
            await asyncio.sleep(timeout + 1)
            # What others' answers hold meanwhile is far less: they ask for a vector a protein.
            most = FLOAT_BYTES * sum(map(len, sequences))
            await asyncio.to_thread(server.wait_until_held, most)

    async def both() -> float:
        took, _ = await asyncio.gather(never_ends(), never_reads())
        return took

    # Few others: on a busy machine more would themselves come late.
    took, tally = await with_others(server, truth, both, connections=1)
    return {"let go after": round(took, 2), **_others(tally)}


async def answer_body(reader: asyncio.StreamReader, pause: float = 0.0) -> bytes:
    """The body of an answer in chunks, whole. Raises BrokenError for another status than 200."""
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise BrokenError(head.decode(errors="replace")[:200])
    pieces = []
    while left := int(await reader.readline(), 16):
        while left:
            pieces.append(await reader.readexactly(min(left, SIP)))
            left -= len(pieces[-1])
            await asyncio.sleep(pause)
        await reader.readline()
    return b"".join(pieces)


def _others(tally: Tally) -> dict[str, Any]:
    return {
        "others answered": tally.statuses[200], "slowest other, s": round(max(tally.seconds), 3)
    }  # fmt: skip
