"""The server and its peers under the same traffic, in turn, in one run.

python -m benchmarks.serving.load ARTIFACT [--docs]

Locust asks for one protein a request, of the benchmark's mixed lengths, over 200 connections; every
answer is compared with the engine's own. Between the servers ``Model.embed`` takes the same
proteins: what a server gives is a share of that. Loopback only.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import httpx
import msgspec
import numpy as np
import psutil

from benchmarks.checkpoints import checkpoints_of
from benchmarks.environments import PeerUnavailableError, python_of
from benchmarks.serving.process import ESM2_RUN, ROOT
from benchmarks.serving.traffic import Truth, Vectors, proteins
from exporter.environment import cpu_name
from exporter.model.reference import load_original
from runtime import manifest as manifests
from runtime.model import Model, load_model
from runtime.threads import usable_cores

RESULTS = Path(__file__).parents[1] / "results"
PEERS = Path(__file__).parent / "peers"
SHARES = (0.2, 0.5, 0.8)
INFINITY = "infinity"
USERS = 200
START_S = 120


class Measured(msgspec.Struct):
    """Of one server, or of ``Model.embed``, in one interval.

    Attributes:
        label: for people.
        tokens_s, proteins_s: by the clock.
        tokens_cpu_s: for each second that a core computed for it: no neighbour changes that much.
        p50_s, p99_s: from a request to its answer.
        answers, wrong: how many.
        lost: requests that got no answer.
        ready_s: from its start.
        rss_mb: at the end, of all its processes.
        not_run: why.
    """

    label: str
    tokens_s: float = 0.0
    proteins_s: float = 0.0
    tokens_cpu_s: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0
    answers: int = 0
    wrong: int = 0
    lost: int = 0
    ready_s: float = 0.0
    rss_mb: float = 0.0
    first_wrong: str = ""
    not_run: str = ""


class LoadRun(msgspec.Struct):
    """All of a run.

    Attributes:
        embed: ``Model.embed`` before, between and after.
        servers: at 200 connections that wait for nothing but answers.
        levels: of our server, by the share of its throughput that was asked for.
    """

    date: str
    machine: str
    artifact: str
    seconds: float
    embed: list[Measured] = []
    servers: list[Measured] = []
    levels: dict[str, Measured] = {}


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--seconds", default=60.0, show_default=True, help="Of each interval.")
@click.option("--docs/--no-docs", default=False, help="Also write docs/performance/serving.md.")
@click.option("--only", multiple=True, help="Servers of these names alone.")
@click.option("--levels/--no-levels", default=True, help="Also at 20, 50 and 80 % of it.")
def main(artifact: Path, seconds: float, docs: bool, only: tuple[str, ...], levels: bool) -> None:
    """Measure, and print a line for each interval."""
    artifact = artifact.resolve()
    manifest = manifests.read(artifact)
    checkpoint = checkpoints_of(load_original(artifact, manifest, None))
    run = LoadRun(
        time.strftime("%Y-%m-%d %H:%M"), f"{usable_cores()} x {cpu_name()}", manifest.name, seconds
    )
    # Who is quicker begins again.
    truth = Truth.of(proteins(250), artifact)

    def embed() -> None:
        run.embed.append(say(embedded(artifact, truth, seconds / 4)))

    with tempfile.TemporaryDirectory() as folder:
        generator = Generator(Path(folder), truth)
        # Its pooling takes BOS and EOS in, and it gives vectors of length 1.
        other = Generator(
            Path(folder),
            Truth(truth.sequences, [all_tokens(artifact, truth)]),
            SERVING_MODEL=INFINITY,
        )
        embed()
        for name, (label, command) in servers_of(artifact, checkpoint).items():
            if only and name not in only:
                continue
            if isinstance(command, str):
                run.servers.append(say(Measured(label, not_run=command)))
                continue
            try:
                with serving(command) as server:
                    measured = (other if name == INFINITY else generator).run(
                        label, server, seconds
                    )
                    run.servers.append(say(measured))
                    if name == "esm2-run" and levels:
                        for share in SHARES:
                            rate = share * measured.proteins_s
                            found = generator.run(f"{share:.0%}", server, seconds, rate)
                            run.levels[f"{share:g}"] = say(found)
                        run.levels["1"] = measured
            except NotStartedError as error:
                run.servers.append(say(Measured(label, not_run=str(error))))
                continue
            embed()
            write(run)
    write(run)
    if docs:
        from benchmarks.serving.report import write_page

        write_page(run, ROOT / "docs" / "performance")


def write(run: LoadRun) -> None:
    """To ``benchmarks/results/serving.json``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "serving.json").write_bytes(msgspec.json.format(msgspec.json.encode(run)))


def say(measured: Measured) -> Measured:
    """Prints it."""
    click.echo(json.dumps(msgspec.to_builtins(measured)))
    return measured


def all_tokens(artifact: Path, truth: Truth) -> Vectors:
    """``[P, E]``: the mean of the last layer over BOS, residues and EOS, divided by its length."""
    residues = np.array([len(each) for each in truth.sequences])[:, None]
    with load_model(artifact) as model:
        cls = model.embed(truth.sequences, "cls")
        after = model.embed(truth.sequences, "mean-with-eos")
    mean = (cls + (residues + 1) * after) / (residues + 2)
    return np.float32(mean / np.linalg.norm(mean, axis=1, keepdims=True))


def embedded(artifact: Path, truth: Truth, seconds: float) -> Measured:
    """``Model.embed`` of the same proteins, for about so many seconds."""
    with load_model(artifact) as model:
        few = truth.sequences[:20]
        began = time.perf_counter()
        model.embed(few)
        each = (time.perf_counter() - began) / len(few)
        count = int(np.clip(seconds / each, 40, len(truth.sequences)))
        return timed(model, truth.sequences[:count])


def timed(model: Model, sequences: list[str]) -> Measured:
    """One call."""
    began, used = time.perf_counter(), time.process_time()
    model.embed(sequences)
    took, used = time.perf_counter() - began, time.process_time() - used
    tokens = sum(map(len, sequences)) + 2 * len(sequences)
    return Measured(
        "Model.embed", tokens / took, len(sequences) / took, tokens / used,
        answers=len(sequences), rss_mb=psutil.Process().memory_info().rss / 2**20,
    )  # fmt: skip


# --- servers ------------------------------------------------------------------------------------


class NotStartedError(Exception):
    """A server ended, or was not ready in time; the message is the end of its output."""


class Running:
    """A server's processes."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], ready_s: float):
        self.url, self.ready_s = url, ready_s
        self._process = psutil.Process(process.pid)

    def _all(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    @property
    def cpu_s(self) -> float:
        """That all of them have computed."""
        return sum(sum(each.cpu_times()[:2]) for each in self._all())

    @property
    def rss_mb(self) -> float:
        """Of all of them."""
        return sum(each.memory_info().rss for each in self._all()) / 2**20


def servers_of(artifact: Path, checkpoint: Path) -> dict[str, tuple[str, Sequence[object] | str]]:
    """Name -> label and command, which is given a port last; or why there is none."""
    found: dict[str, tuple[str, Sequence[object] | str]] = {
        "esm2-run": ("esm2-run serve", (*ESM2_RUN, "serve", artifact, "--port", "PORT"))
    }
    plain = PEERS / "fastapi_transformers.py"
    for name, peer, label, arguments in (
        ("fastapi", "litserve", "FastAPI + transformers", (plain, checkpoint, "PORT")),
        (
            "fastapi-batch", "litserve", "FastAPI + transformers, batches of 32",
            (plain, checkpoint, "PORT", "--batch"),
        ),
        (
            "litserve", "litserve", "LitServe + transformers, batches of 32",
            (PEERS / "litserve_transformers.py", checkpoint, "PORT"),
        ),
    ):  # fmt: skip
        try:
            found[name] = (label, (python_of(peer, peers=PEERS), *arguments))
        except PeerUnavailableError as error:
            found[name] = (label, str(error))
    label = "infinity-emb, batches of 32"
    try:
        command = (
            python_of("infinity", peers=PEERS).with_name("infinity_emb"), "v2",
            "--model-id", checkpoint, "--served-model-name", INFINITY,
            "--engine", "torch", "--device", "cpu",
            "--no-bettertransformer", "--no-model-warmup", "--host", "127.0.0.1", "--port", "PORT",
        )  # fmt: skip
        found[INFINITY] = (label, command)
    except PeerUnavailableError as error:
        found[INFINITY] = (label, str(error))
    return found


@contextmanager
def serving(command: Sequence[object]) -> Iterator[Running]:
    """A server that is ready. Raises NotStartedError."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    born = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(port) if each == "PORT" else str(each) for each in command],
            cwd=ROOT, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            while not _is_ready(url):
                if process.poll() is not None or time.perf_counter() > born + START_S:
                    log.seek(0)
                    lines = log.read().decode(errors="replace").strip().splitlines()
                    raise NotStartedError(lines[-1] if lines else "no word")
                time.sleep(0.02)
            yield Running(url, process, time.perf_counter() - born)
        finally:
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
            process.kill()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        return any(
            httpx.get(f"{url}{path}", timeout=5, trust_env=False).status_code == 200
            for path in ("/health/ready", "/health")  # the last is infinity's
        )
    except httpx.TransportError:
        return False


# --- traffic ------------------------------------------------------------------------------------


class Generator:
    """Locust, in a process and an environment of its own.

    Args:
        folder: for its files.
        truth: what is asked for.
        more: variables for ``locustfile``.
    """

    def __init__(self, folder: Path, truth: Truth, **more: str):
        self._more = more
        self._python = python_of("locust", peers=PEERS)
        self._truth, self._out = folder / f"{id(self)}.npz", folder / "out.json"
        np.savez(
            self._truth, allow_pickle=False, sequences=np.array(truth.sequences),
            vectors=truth.vectors[0],
        )  # fmt: skip

    def run(self, label: str, server: Running, seconds: float, rate: float = 0.0) -> Measured:
        """Asks for ``seconds``; what is under way then is waited for, and not counted as speed.

        Args:
            label: for people.
            server: that is asked.
            seconds: without the wait.
            rate: requests a second; 0 asks again as soon as there is an answer.
        """
        users = str(USERS)
        environment = {
            **os.environ, "SERVING_TRUTH": str(self._truth), "SERVING_OUT": str(self._out),
            "SERVING_USERS": users, "SERVING_RATE": str(rate), **self._more,
        }  # fmt: skip
        used = server.cpu_s
        result = subprocess.run(
            [
                self._python, "-m", "locust", "-f", Path(__file__).parent / "locustfile.py",
                "--headless", "--only-summary", "--users", users, "--spawn-rate", users,
                "--run-time", f"{seconds:.0f}s", "--stop-timeout", "600", "--host", server.url,
                "--loglevel", "ERROR",
            ],
            env=environment, capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        if not self._out.exists():
            raise NotStartedError(result.stderr[-500:])
        used = server.cpu_s - used
        seen = json.loads(self._out.read_bytes())
        self._out.unlink()
        answers = np.array(seen["answers"]).reshape(-1, 3)
        ended, took, residues = answers.T
        # From the first request on: Locust itself takes a second to start.
        inside = ended <= (ended - took).min(initial=np.inf) + seconds
        tokens = residues + 2
        return Measured(
            label,
            tokens_s=float(tokens[inside].sum()) / seconds,
            proteins_s=float(inside.sum()) / seconds,
            tokens_cpu_s=float(tokens.sum()) / used,
            p50_s=float(np.percentile(took, 50)) if len(took) else 0.0,
            p99_s=float(np.percentile(took, 99)) if len(took) else 0.0,
            answers=len(answers),
            wrong=len(seen["wrong"]),
            lost=seen["sent"] - len(answers) - len(seen["wrong"]),
            ready_s=server.ready_s,
            rss_mb=server.rss_mb,
            first_wrong=(seen["wrong"] or [""])[0],
        )


if __name__ == "__main__":
    sys.exit(main())
