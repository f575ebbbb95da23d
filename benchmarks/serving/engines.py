"""Engines that fail: only the requests of a pack that threw, or of a protein that is NaN, do."""

import asyncio
import time
from pathlib import Path
from typing import Any

from benchmarks.serving.process import FAULTY, Server
from benchmarks.serving.traffic import BrokenError, Tally, Truth, ask, connected, keep_asking

# Residues that a protein begins with whose vectors are made NaN.
MARK = "WWWWWW"


async def throw(
    artifact: Path, truth: Truth, *options: object, share: float, seconds: float
) -> Any:
    """A share of packs throws while many ask.

    Returns:
        How many requests were answered, and how many failed.

    Raises:
        BrokenError: a failed one has no id, or its id is not in the log; another is wrong.
    """
    environment = {"ESM2_FAULT_THROW": str(share)}
    with Server(artifact, *options, command=FAULTY, environment=environment) as server:
        until, tally = asyncio.Event(), Tally()
        asking = asyncio.create_task(keep_asking(server.url, truth, tally, 8, until))
        await asyncio.sleep(seconds)
        # Of few packs on a busy machine none may have been thrown.
        end = time.monotonic() + 30
        while not tally.statuses[500] and time.monotonic() < end:
            await asyncio.sleep(0.1)
        until.set()
        await asking
        tally.check(500)
        log = server.log_lines()
        lost = [line["message"] for line in log if "a pack of" in line["message"]]
        for body in tally.bodies:
            if body.get("error_type") != "Backend" or not body.get("request_id"):
                raise BrokenError(f"not an error as documented: {body}")
            if not any(str(body["request_id"]) in message for message in lost):
                raise BrokenError(f"{body['request_id']} is not in the log")
        if not tally.statuses[500] or not tally.statuses[200]:
            raise BrokenError(f"nothing failed, or all: {tally.statuses}")
        server.wait_until_idle()
        return {
            "answered": tally.statuses[200], "failed": tally.statuses[500], "packs": len(lost),
        }  # fmt: skip


async def not_a_number(artifact: Path, truth: Truth, *options: object, rounds: int) -> Any:
    """One protein's vectors are NaN; requests whose proteins shared its pack do not fail.

    Raises:
        BrokenError: another request failed or is wrong, or that one was answered.
    """
    marked = Truth([*truth.sequences, MARK + "GGAVL"], truth.vectors)
    environment = {"ESM2_FAULT_NAN": MARK}
    options = (*options, "--max-wait-ms", 50)
    with Server(artifact, *options, command=FAULTY, environment=environment) as server:
        good, bad = Tally(), Tally()
        async with connected(server.url) as client:
            for _ in range(rounds):
                others = [ask(client, truth, [i], good) for i in range(8)]
                await asyncio.gather(*others, ask(client, marked, [0, len(truth.sequences)], bad))
        good.check()
        if set(bad.statuses) != {500} or not all(body.get("request_id") for body in bad.bodies):
            raise BrokenError(f"a protein of NaN: {bad.statuses}, {bad.bodies[:1]}")
        packs = server.metrics()["te_batch_next_size_count"]
        if packs >= 9 * rounds:
            raise BrokenError("no pack was shared, so nothing was shown")
        return {"answered": good.statuses[200], "failed": bad.statuses[500]}
