"""What becomes of a copy: it is loaded and asked in a fork of a warm process."""

import ctypes
import json
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutations import Recipe, mutate

RIGHT, REFUSED = "right", "refused"
NOTICED = "wrong, seen by selftest"
WRONG, RAW, CRASH, HANG = "wrong", "raw exception", "crash", "hang"
# The worst of several engines is a copy's; a crash and a hang end the process.
OUTCOMES = (RIGHT, REFUSED, NOTICED, WRONG, RAW, CRASH, HANG)

# Of a process, beside what the warm one has.
MEMORY_BYTES, FILE_BYTES = 1 << 30, 1 << 29
CPU_SECONDS, SECONDS = 20, 120
# Relative L2 of an answer; kernels differ by a millionth.
TOLERANCE = 1e-4
PROTEINS = ["MKTAYIAKQR", "GGAVL", "MNIFEMLRIDEGLRLKIYKDTEGYYTIG"]
LIBRARIES = ("onnxruntime", "torch", "safetensors")

Answers = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Verdict:
    """What became of a copy.

    Attributes:
        outcome: one of ``OUTCOMES``.
        said: what was said, or what went wrong.
        error: the class of a refusal.
        seconds: of all of it.
    """

    outcome: str
    said: str = ""
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Campaign:
    """What a warm process knows.

    Attributes:
        artifact: whole.
        place: for copies.
        engines: those that are asked.
        readers: which of them read a file, by its name, where not all do.
        sealed: copies get digests that are right.
        trust: a public key, or None.
    """

    artifact: Path
    place: Path
    engines: Sequence[str]
    readers: Mapping[str, list[str]]
    sealed: bool
    trust: Path | None


def answers_of(folder: Path, engine: str, trust: Path | None = None) -> Answers:
    """All that a user can ask an engine, of proteins in one pack."""
    import esm2_engines as esm2

    with esm2.load(
        folder, engine=engine, device="cpu", threads=1, concurrency=1, trust=trust
    ) as model:
        answers = {
            f"embed {layer}": model.embed(PROTEINS, layer=layer)
            for layer in model.engine.spec.layers
        }
        if model.manifest.weights.lm_head:
            answers["logits"] = np.concatenate(model.logits(PROTEINS))
        if model.manifest.gives("contacts"):
            answers["contacts"] = np.concatenate([c.ravel() for c in model.contacts(PROTEINS)])
        if model.manifest.head is not None:
            answers["head"] = np.stack([p.scores for p in model.predict(PROTEINS)])
    return answers


def same(found: Answers, expected: Answers) -> bool:
    """Whether two engines say the same."""
    if found.keys() != expected.keys():
        return False
    return all(
        found[name].shape == value.shape
        and np.linalg.norm(found[name] - value) <= TOLERANCE * np.linalg.norm(value)
        for name, value in expected.items()
    )


def _selftest(folder: Path, engine: str, trust: Path | None) -> bool:
    import runtime
    from runtime import manifest as manifests
    from runtime.selftest import selftest

    with runtime.load(folder, engine, "cpu", threads=1, trust=trust) as loaded:
        return selftest(loaded, folder, manifests.read(folder, trust=trust)).passed


def judge(folder: Path, file: str, campaign: Campaign, expected: Mapping[str, Answers]) -> Verdict:
    """In this process; the worst of all engines that read ``file``."""
    worst = Verdict(RIGHT)
    for engine in campaign.readers.get(file, campaign.engines):
        verdict = _judge_engine(folder, engine, expected[engine], campaign.trust)
        if OUTCOMES.index(verdict.outcome) > OUTCOMES.index(worst.outcome):
            worst = verdict
    seen = [name for name in LIBRARIES if name in sys.modules]
    if campaign.trust and worst.outcome == REFUSED and seen:
        return Verdict(RAW, f"refused after {', '.join(seen)} was imported")
    return worst


def _judge_engine(folder: Path, engine: str, expected: Answers, trust: Path | None) -> Verdict:
    from runtime.errors import Esm2Error

    is_right: bool | None = None
    try:
        is_right = same(answers_of(folder, engine, trust), expected)
        if not _selftest(folder, engine, trust):
            return Verdict(REFUSED if is_right else NOTICED, "by selftest", "selftest")
        return Verdict(RIGHT if is_right else WRONG)
    except Esm2Error as error:
        if "\n" in str(error):
            return Verdict(RAW, f"several lines: {error}")
        return Verdict(NOTICED if is_right is False else REFUSED, str(error), type(error).__name__)
    except Exception as error:
        return Verdict(RAW, f"{type(error).__name__}: {error}")


def answers_apart(campaign: Campaign) -> dict[str, Answers]:
    """The whole artifact's, by engine; of a fork, so that nothing is imported here."""
    reading, child = _forked(
        lambda: pickle.dumps({e: answers_of(campaign.artifact, e) for e in campaign.engines})
    )
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    found: dict[str, Answers] = pickle.loads(text)
    return found


def judged_apart(recipe: Recipe, campaign: Campaign, expected: Mapping[str, Answers]) -> Verdict:
    """Makes a copy, mutates it, and judges it in a fork with limits of time and memory."""
    folder = campaign.place / f"{os.getpid()}-copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(campaign.artifact, folder, copy_function=os.link)
    mutate(folder, recipe, campaign.sealed)

    def judged() -> bytes:
        _limit()
        _read_as_others_do()
        verdict = judge(folder, recipe.file, campaign, expected)
        return json.dumps((verdict.outcome, verdict.said[:2000], verdict.error)).encode()

    began = time.monotonic()
    reading, child = _forked(judged)
    is_ready, _, _ = select.select([reading], [], [], SECONDS)
    if not is_ready:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - began
    if text:
        return Verdict(*json.loads(text), seconds)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if not is_ready or number == signal.SIGXCPU:
        return Verdict(HANG, f"ended after {seconds:.0f} s", seconds=seconds)
    said = signal.strsignal(number) if number else f"exit {os.waitstatus_to_exitcode(status)}"
    return Verdict(CRASH, said or "", seconds=seconds)


def _forked(task: Callable[[], bytes]) -> tuple[int, int]:
    """Does a task in a silent fork; the end of a pipe from which its answer can be read."""
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        return reading, child
    os.close(reading)
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        answer = task()
    except BaseException as error:
        answer = json.dumps((RAW, f"{type(error).__name__}: {error}", "")).encode()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(answer)
    os._exit(0)


def _limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for what, limit in (
        (resource.RLIMIT_AS, used + MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit + (what == resource.RLIMIT_CPU)))


def _read_as_others_do() -> None:
    """Root may read what has no mode; without these two capabilities it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # of the third version
    sets = (ctypes.c_uint32 * 6)()
    dac_override, dac_read_search = 1 << 1, 1 << 2
    if libc.capget(header, sets) == 0:
        sets[0] &= ~(dac_override | dac_read_search)
        libc.capset(header, sets)
