"""Requests whose every answer is checked against what the engine itself gives."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.workload import WORKLOADS
from runtime.model import load_model

Vectors = NDArray[np.float32]
RESIDUES = np.frombuffer(b"LAGVSERTIDPKQNFYMHWC", np.uint8)
# Packs of other proteins round otherwise: 1e-6 was seen. Other proteins differ by 0.1 and more.
MOST_RELATIVE_L2 = 1e-4


class BrokenError(Exception):
    """What must hold does not; the message says what."""


def proteins(count: int, longest: int = 1022, workload: str = "mixed", seed: int = 0) -> list[str]:
    """Random residues of the lengths of one of ``benchmarks.workload``, cut to ``longest``."""
    random = np.random.default_rng(seed)
    lengths = (WORKLOADS[workload].sample(count) - 2).clip(1, longest)
    return [random.choice(RESIDUES, length).tobytes().decode() for length in lengths]


@dataclass(frozen=True)
class Truth:
    """Proteins, and their vectors by each artifact that may serve.

    Attributes:
        sequences: P of them.
        vectors: ``[P, E]`` of each artifact.
    """

    sequences: list[str]
    vectors: list[Vectors]

    @classmethod
    def of(cls, sequences: list[str], *artifacts: Path) -> "Truth":
        """By the artifacts' own engines."""
        found = []
        for artifact in artifacts:
            with load_model(artifact) as model:
                found.append(model.embed(sequences))
        return cls(sequences, found)

    def artifact_of(self, places: Sequence[int], answer: object) -> int:
        """Which artifact an answer is of: all of it, and of these proteins in this order.

        Raises:
            BrokenError: it is of none.
        """
        try:
            got = np.asarray(answer, np.float32)
        except (ValueError, TypeError):
            raise BrokenError(f"no vectors: {str(answer)[:200]}") from None
        errors = []
        for vectors in self.vectors:
            want = vectors[list(places)]
            if got.shape != want.shape:
                raise BrokenError(f"{want.shape} numbers asked for, got {got.shape}")
            apart = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
            errors.append(float(apart.max()))
        best = int(np.argmin(errors))
        if not errors[best] <= MOST_RELATIVE_L2:
            raise BrokenError(f"a wrong answer: relative L2 {errors[best]:.1e}")
        return best


@dataclass
class Tally:
    """What became of requests.

    Attributes:
        statuses: of answers; 0 where a connection was refused or broke before one.
        artifacts: how many right answers were of each.
        seconds: of the right ones.
        wrong: what was not right, in words.
        bodies: of answers that are not 200.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    artifacts: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    bodies: list[dict[str, object]] = field(default_factory=list)

    def check(self, *allowed: int) -> None:
        """Raises BrokenError for a wrong answer, or a status beside 200 and ``allowed``."""
        others = {k: n for k, n in self.statuses.items() if k not in (200, *allowed)}
        if self.wrong or others:
            raise BrokenError(f"{others}, {self.wrong[:3]}, {self.bodies[:3]}")


async def ask(client: httpx.AsyncClient, truth: Truth, places: Sequence[int], tally: Tally) -> None:
    """One request of these proteins, checked and counted."""
    began = time.perf_counter()
    body = orjson.dumps({"inputs": [truth.sequences[i] for i in places]})
    try:
        answer = await client.post(
            "/embed", content=body, headers={"Content-Type": "application/json"}
        )
    except httpx.TransportError as error:
        tally.statuses[0] += 1
        if not isinstance(error, (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError)):
            tally.wrong.append(repr(error))
        return
    tally.statuses[answer.status_code] += 1
    if answer.status_code != 200:
        tally.bodies.append(answer.json())
        return
    try:
        tally.artifacts[truth.artifact_of(places, orjson.loads(answer.content))] += 1
        tally.seconds.append(time.perf_counter() - began)
    except BrokenError as error:
        tally.wrong.append(str(error))


def connected(url: str, timeout: float = 120, **headers: str) -> httpx.AsyncClient:
    """A client without a bound on its connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(
        base_url=url, timeout=timeout, limits=limits, headers=headers, trust_env=False
    )


async def keep_asking(
    url: str, truth: Truth, tally: Tally, connections: int, until: asyncio.Event, most: int = 4
) -> None:
    """Requests of 1 to ``most`` proteins, one after another on each connection."""

    async def one(client: httpx.AsyncClient, seed: int) -> None:
        random = np.random.default_rng(seed)
        while not until.is_set():
            places = random.integers(len(truth.sequences), size=random.integers(1, most + 1))
            await ask(client, truth, places.tolist(), tally)
            if tally.statuses[0]:
                await asyncio.sleep(0.01)  # refused: nobody is there to wait for

    async with connected(url) as client:
        await asyncio.gather(*(one(client, i) for i in range(connections)))
