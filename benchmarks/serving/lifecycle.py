"""A server that is told to end, or to load anew, while many ask."""

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving.process import Server
from benchmarks.serving.traffic import BrokenError, Tally, Truth, ask, connected, keep_asking


async def end(server: Server, truth: Truth, in_flight: int) -> dict[str, Any]:
    """SIGTERM while requests wait: all of them are answered, later ones refused.

    Raises:
        BrokenError: one that was accepted has no right answer; a later one has; it ends otherwise
            than with 0.
    """
    accepted, later = Tally(), Tally()
    places = list(range(len(truth.sequences)))
    async with connected(server.url) as client, connected(server.url) as others:
        waiting = [
            asyncio.create_task(ask(client, truth, places, accepted)) for _ in range(in_flight)
        ]
        async with connected(server.url) as watcher:
            while await _accepted(watcher) < in_flight:
                await asyncio.sleep(0.01)
        server.signal(signal.SIGTERM)
        told = time.monotonic()
        refused_at: Counter[int] = Counter()
        while True:
            await ask(others, truth, [0], later)
            if later.statuses[0] > 3:  # nobody listens any more
                break
            refused_at[len(accepted.seconds)] += 1
            await asyncio.sleep(0.01)
        await asyncio.gather(*waiting)
    status = await asyncio.to_thread(server.wait, 30)
    took = time.monotonic() - told
    accepted.check()
    if status != 0:
        raise BrokenError(f"exit status {status}: {server.log()[-2000:]}")
    # One or two may come before the signal is seen.
    late = later.statuses[200]
    if late > 2 or set(later.statuses) - {200, 503, 0} or later.wrong:
        raise BrokenError(f"after SIGTERM: {later.statuses}, {later.wrong}")
    return {
        "accepted and answered": accepted.statuses[200], "503": later.statuses[503],
        "ended after, s": round(took, 2),
    }  # fmt: skip


async def end_too_soon(server: Server, truth: Truth, in_flight: int) -> dict[int, int]:
    """SIGTERM to a server that will not answer in time: who waits is told so.

    Returns:
        How many answers were of each status.

    Raises:
        BrokenError: one is not shaped as errors are, or it ends otherwise than with 0.
    """
    tally = Tally()
    places = list(range(len(truth.sequences)))
    async with connected(server.url) as client, connected(server.url) as watcher:
        waiting = [asyncio.create_task(ask(client, truth, places, tally)) for _ in range(in_flight)]
        while await _accepted(watcher) < in_flight:
            await asyncio.sleep(0.01)
        server.signal(signal.SIGTERM)
        await asyncio.gather(*waiting)
    if status := await asyncio.to_thread(server.wait, 30):
        raise BrokenError(f"exit status {status}: {server.log()[-2000:]}")
    if not all(body.get("request_id") and body.get("error") for body in tally.bodies):
        raise BrokenError(f"not errors as documented: {tally.bodies}")
    return dict(tally.statuses)


async def reload(
    server: Server, link: Path, artifacts: list[Path], truth: Truth, times: int
) -> dict[str, Any]:
    """A link is turned to another artifact, and SIGHUP or ``/-/reload`` asks to load it.

    Args:
        server: that serves ``link``.
        link: to one of them.
        artifacts: two, of different weights, in the order of ``truth.vectors``.
        truth: by both.
        times: how often.

    Raises:
        BrokenError: an answer is of neither or of both, one was lost, or what is served is not
            what the link shows.
    """
    until, tally = asyncio.Event(), Tally()
    asking = asyncio.create_task(keep_asking(server.url, truth, tally, 8, until))
    try:
        async with connected(server.url) as client:
            for i in range(times):
                await asyncio.sleep(0.2)
                before = _reloads(server, "done")
                turn(link, artifacts[(i + 1) % 2])
                if i % 2:
                    answer = await client.post("/-/reload")
                    if answer.status_code != 200:
                        raise BrokenError(f"/-/reload: {answer.status_code} {answer.text}")
                else:
                    server.signal(signal.SIGHUP)
                    while await asyncio.to_thread(_reloads, server, "done") == before:
                        await asyncio.sleep(0.02)
                now = Tally()
                await ask(client, truth, range(len(truth.sequences)), now)
                now.check()
                if list(now.artifacts) != [(i + 1) % 2]:
                    raise BrokenError(f"asked after a reload, answered by {now.artifacts}")
    finally:
        until.set()
        await asking
    tally.check()
    return {"reloads": times, **{f"by artifact {k}": n for k, n in sorted(tally.artifacts.items())}}


async def reload_damaged(server: Server, link: Path, damaged: Path, truth: Truth) -> dict[str, Any]:
    """A link is turned to what is no good: what served goes on, and a line says why.

    Raises:
        BrokenError: it does not.
    """
    until, tally = asyncio.Event(), Tally()
    asking = asyncio.create_task(keep_asking(server.url, truth, tally, 4, until))
    try:
        turn(link, damaged)
        async with connected(server.url) as client:
            answer = await client.post("/-/reload")
        found = answer.json()
        if answer.status_code != 500 or "goes on" not in found["error"]:
            raise BrokenError(f"/-/reload of a damaged one: {answer.status_code} {found}")
        before = _reloads(server, "failed")
        server.signal(signal.SIGHUP)
        while _reloads(server, "failed") == before:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
    finally:
        until.set()
        await asking
    tally.check()
    if len(tally.artifacts) != 1:
        raise BrokenError(f"served by {tally.artifacts}")
    lines = [each for each in server.log_lines() if "not reloaded" in each["message"]]
    if len(lines) != 1 or "trace" in lines[0]:
        raise BrokenError(f"the log says {lines}")
    return {"answered": tally.statuses[200], "error": found["error"], "log": lines[0]["message"]}


def turn(link: Path, target: Path) -> None:
    """Makes a link show another folder, at once."""
    aside = link.with_name(link.name + ".aside")
    aside.symlink_to(target)
    aside.replace(link)


async def _accepted(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    line = next(line for line in text.splitlines() if line.startswith("te_queue_size "))
    return float(line.split()[1])


def _reloads(server: Server, outcome: str) -> float:
    return server.metrics().get(f'esm2_reloads_total{{outcome="{outcome}"}}', 0.0)
