"""Who is measured: the artifact's engines and the peers, and how a process of each is started."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from benchmarks import correctness
from benchmarks.environments import PEERS, PeerUnavailableError, python_of
from benchmarks.processes import Worker, WorkerDiedError
from benchmarks.results import Contender, Setting
from benchmarks.workload import packs_of, padded_batches_of
from runtime.manifest_schema import Manifest

# Name of the peer's files -> label.
PEER_LABELS = {
    "fair_esm": "eager fair-esm",
    "huggingface_sdpa": "Hugging Face, SDPA",
    "optimum_onnxruntime": "Optimum, ONNX Runtime",
    "openvino_runtime": "OpenVINO",
    "faesm_sdpa": "faESM, SDPA",
    "esmcpp_float32": "esm.cpp",
    "esmcpp_int8": "esm.cpp, int8",
}
# They run packs as the engines here do; one at a time, for all their models share one pool.
PACKED_PEERS = ("esmcpp_float32", "esmcpp_int8")
INT8_PEERS = ("esmcpp_int8",)

# fair-esm scripts/extract.py: --toks_per_batch 4096, all cores on one batch.
EXTRACT = "fair_esm_extract"
EXTRACT_LABEL = "fair-esm's extract.py defaults"
EXTRACT_SETTING = Setting(concurrency=1, max_tokens=4096)


@dataclass(frozen=True)
class Entrant:
    """A contender and how to run it.

    Attributes:
        name: key in the results.
        about: for the results; ``about.not_run`` says why it cannot start.
        start: starts a worker, from the number of threads in all and of batches at once.
        concurrencies: batches at once that are tried; the cores are shared among them.
        batches_of: from lengths and a budget of tokens to batches of lengths.
        process: whose processes it uses.
        fixed: a setting that is its own, so that none is searched.
    """

    name: str
    about: Contender
    start: Callable[[int, int], Worker]
    concurrencies: tuple[int, ...]
    batches_of: Callable[[Sequence[int], int], list[list[int]]]
    process: str
    fixed: Setting | None = None


def starter(*command: object) -> Callable[[int, int], Worker]:
    """Of processes of ``command``, which takes the threads of each batch and the concurrency."""
    return lambda threads, at_once: Worker([*command, max(1, threads // at_once), at_once])


def engines_of(artifact: Path, manifest: Manifest, cores: int) -> list[Entrant]:
    """Each engine of the artifact with one pack at a time, and with a pack on each core.

    An engine that takes one pack at a time only appears once.
    """
    float32 = correctness.float32_limit(manifest.architecture.num_layers)
    entrants = []
    for engine in sorted(manifest.engines):
        limit = correctness.limit_of(manifest, engine)
        for concurrency in sorted({1, cores}):
            about = Contender(
                label=engine if concurrency == 1 else f"{engine}, {concurrency} packs at once",
                kind="engine",
                max_relative_l2=limit,
                in_headline=limit <= float32,
            )
            entrant = Entrant(
                name=engine if concurrency == 1 else f"{engine}@{concurrency}",
                about=about,
                start=starter(sys.executable, "-m", "benchmarks.engine_worker", engine, artifact),
                concurrencies=(concurrency,),
                batches_of=packs_of,
                process=about.label,
            )
            if _starts(entrant, cores) == concurrency or concurrency == 1:
                entrants.append(entrant)
    return entrants


def peers_of(
    checkpoints: Path, cores: int, pip_arguments: str, names: Sequence[str] = tuple(PEER_LABELS)
) -> list[Entrant]:
    """The peers of ``names``, installed, models converted; one that cannot be says why."""
    entrants = []
    for name in names:
        int8, packed = name in INT8_PEERS, name in PACKED_PEERS
        about = Contender(
            label=PEER_LABELS[name],
            kind="peer",
            max_relative_l2=correctness.INT8_PEER_LIMIT if int8 else correctness.PEER_LIMIT,
            in_headline=not int8,
        )
        try:
            python: object = python_of(name, pip_arguments)
        except PeerUnavailableError as error:
            python, about.not_run = sys.executable, str(error)
        entrant = Entrant(
            name=name,
            about=about,
            start=starter(python, PEERS / "serve.py", name, checkpoints),
            concurrencies=(1,) if packed else tuple(sorted({1, cores})),
            batches_of=packs_of if packed else padded_batches_of,
            process=name,
        )
        if not about.not_run:
            _starts(entrant, cores)
        entrants.append(entrant)
        if name == "fair_esm":
            extract = msgspec.structs.replace(about, label=EXTRACT_LABEL)
            entrants.append(replace(entrant, name=EXTRACT, about=extract, fixed=EXTRACT_SETTING))
    return entrants


def _starts(entrant: Entrant, cores: int) -> int:
    """Starts a process once: files are converted and cached, failures noted.

    Returns:
        The concurrency that it got.
    """
    try:
        with entrant.start(cores, entrant.concurrencies[-1]) as worker:
            entrant.about.versions = worker.started["versions"]
            entrant.about.instructions = worker.started["instructions"]
            return int(worker.started["concurrency"])
    except WorkerDiedError as error:
        entrant.about.not_run = str(error)
        return 0
