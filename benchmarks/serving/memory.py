"""Whether memory stays flat over many requests, and whether small requests pass large ones."""

import asyncio
import time
from typing import Any

import numpy as np

from benchmarks.serving.probe import probing
from benchmarks.serving.process import Server
from benchmarks.serving.traffic import BrokenError, Tally, Truth, ask, connected

WARM_UP = 0.5  # of the requests: caches and arenas fill, 3 MB over the first 20,000
# Straight lines through noise are not quite level.
MOST_KB_A_THOUSAND = 100.0


async def flat(server: Server, truth: Truth, requests: int, connections: int) -> dict[str, Any]:
    """Resident memory over many requests of one to four proteins, each checked.

    Returns:
        The slope after the warm-up, in kB for each thousand requests.

    Raises:
        BrokenError: an answer was wrong or lost, or memory grows.
    """
    tally = Tally()
    samples: list[tuple[int, float]] = []
    left = requests
    began = time.monotonic()

    async def one(seed: int) -> None:
        nonlocal left
        random = np.random.default_rng(seed)
        async with connected(server.url) as client:
            while left > 0:
                left -= 1
                places = random.integers(len(truth.sequences), size=random.integers(1, 5))
                await ask(client, truth, places.tolist(), tally)
                if (done := requests - left) % max(1, requests // 400) == 0:
                    samples.append((done, server.rss_mb))

    await asyncio.gather(*(one(i) for i in range(connections)))
    tally.check()
    done, rss_mb = np.array(samples).T
    after = done > WARM_UP * requests
    slope = float(np.polyfit(done[after], 1024 * rss_mb[after], 1)[0] * 1000)
    found = {
        "requests": tally.statuses[200], "seconds": round(time.monotonic() - began),
        "MB after the warm-up": round(float(rss_mb[after][0]), 1),
        "MB at the end": round(float(rss_mb[-1]), 1), "kB per 1,000 requests": round(slope, 2),
    }  # fmt: skip
    if slope > MOST_KB_A_THOUSAND:
        raise BrokenError(f"memory grows: {found}")
    return found


async def fair(server: Server, truth: Truth, large: int, seconds: float) -> dict[str, Any]:
    """One client has ``large`` proteins queued, another asks for one at a time.

    Returns:
        p50 and p99 of the small requests in seconds, alone and beside the large ones; and how long
        ``/health/live`` took at most meanwhile.

    Raises:
        BrokenError: an answer was wrong or lost, or the large request ended too soon to tell.
    """
    many, alone, beside = Tally(), Tally(), Tally()
    places = [i % len(truth.sequences) for i in range(large)]
    small = connected(server.url, **{"X-Client-ID": "small"})
    bulk = connected(server.url, **{"X-Client-ID": "large"}, timeout=1000)
    async with small, bulk:
        await ask(small, truth, [0], Tally())
        await _for(seconds, small, truth, alone)
        with probing(server.port) as delays:
            waiting = asyncio.create_task(ask(bulk, truth, places, many))
            await asyncio.sleep(0.2)
            while not waiting.done() and len(beside.seconds) < 2000:
                await ask(small, truth, [len(beside.seconds) % len(truth.sequences)], beside)
            await waiting
    for tally in (many, alone, beside):
        tally.check()
    if len(beside.seconds) < 20:
        raise BrokenError(f"{len(beside.seconds)} small requests beside a large one: too few")
    return {
        "proteins of the large one": large, "its seconds": round(many.seconds[0], 1),
        "small ones meanwhile": len(beside.seconds),
        **{
            f"p{p} {name}, ms": round(1000 * float(np.percentile(tally.seconds, p)), 1)
            for name, tally in (("alone", alone), ("beside", beside))
            for p in (50, 99)
        },
        "/health/live p99, ms": round(1000 * float(np.percentile(delays, 99)), 1),
        "/health/live at most, ms": round(1000 * delays[-1], 1),
    }  # fmt: skip


async def _for(seconds: float, client: Any, truth: Truth, tally: Tally) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await ask(client, truth, [len(tally.seconds) % len(truth.sequences)], tally)
