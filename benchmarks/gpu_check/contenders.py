"""Who is measured on the card: the engines here, eager fair-esm, Hugging Face's model with SDPA.

All in one process, as they share the card. An engine brings one vector for each protein to the
host, as ``esm2-run embed`` does; its forward alone has its inputs on the card and leaves its
outputs there, which is what the kernels do. Peers leave theirs there too: what their users copy
differs.
"""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.contenders import Entrant
from benchmarks.gpu_check.engines import ENGINES
from benchmarks.gpu_check.gate import artifact_with
from benchmarks.gpu_check.plan import HALF, Job
from benchmarks.gpu_check.profiling import kernels_of
from benchmarks.gpu_check.results import reason_of
from benchmarks.peers.serve import REQUESTS, random_tokens
from benchmarks.processes import DoesNotFitError, Worker, WorkerDiedError
from benchmarks.results import Contender, Setting
from benchmarks.summary import EAGER
from benchmarks.workload import packs_of, padded_batches_of
from exporter.model.checkpoint_files import write_hugging_face
from exporter.model.precision import cast_copy
from exporter.model.reference import Reference
from runtime import load
from runtime.engine import Engine
from runtime.packing import PackedBatch
from runtime.tokenizer import PAD_ID

Proteins = Sequence[NDArray[np.int64]]
Run = Callable[[], Any]

# Half precision, and two ways to round rotary angles: beyond this it is another model. The gate is
# where engines are judged; this shows that what was timed is what was judged.
MAX_RELATIVE_L2 = 5e-2
# As PyTorch, CUDA, cuBLAS and ONNX Runtime say it.
OUT_OF_MEMORY = (
    "out of memory", "cudaerrormemoryallocation", "alloc_failed", "failed to allocate memory",
)  # fmt: skip
# Of packs with and without CUDA graphs: where launches take longer than kernels.
SMALL_PACK = Setting(concurrency=1, max_tokens=512)


class InThisProcess(Worker):
    """Answers as a contender in a process of its own does; ``make`` makes it."""

    def __init__(self, make: Callable[[], Any]):
        self._born = time.perf_counter()
        _free_memory()
        self._contender = self._noting(make)
        self.started = {"load_s": self.age_s}

    def ask(self, what: str, **fields: Any) -> dict[str, Any]:
        """See ``benchmarks/peers/serve.py``."""
        answers = {**REQUESTS, "peak": _no_peak, "kernels": _kernels}
        answer: dict[str, Any] = self._noting(partial(answers[what], self._contender, **fields))
        return answer

    def close(self) -> None:
        """Lets the contender go."""
        self._contender = None

    @staticmethod
    def _noting(act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # of any library that runs a contender
            died = WorkerDiedError(reason_of(error))
            if any(words in str(error).lower() for words in OUT_OF_MEMORY):
                died = DoesNotFitError(f"out of memory: {reason_of(error)}")
        # Only now nothing holds the tensors of the frames that failed.
        _free_memory()
        raise died


class Embedding:
    """An engine, as ``embed`` runs it."""

    concurrency = 1

    def __init__(self, engine: Engine):
        self._engine = engine
        self._layer = engine.spec.layers[-1]

    def prepare(self, proteins: Proteins) -> Run:
        """From token ids of a pack to something that runs it."""
        batch = PackedBatch.from_tokens(list(proteins))
        return lambda: self._engine.embed(batch, self._layer, "mean")

    def finish(self) -> None:
        """Waits for the card."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def rows(self, result: Any, proteins: Proteins) -> NDArray[np.floating]:
        """``[T, E]`` of these proteins: the last exported layer."""
        return self._engine.embed(PackedBatch.from_tokens(list(proteins)), self._layer, "none")


class Forward(Embedding):
    """The forward of an engine that PyTorch runs, alone."""

    _engine: Any  # runtime.engines.torch.engine.TorchEngine

    def prepare(self, proteins: Proteins) -> Run:
        """From token ids of a pack to something that runs it."""
        inputs = self._engine.inputs(PackedBatch.from_tokens(list(proteins)))
        return lambda: self._engine.forward(inputs)

    def rows(self, result: Any, proteins: Proteins) -> NDArray[np.floating]:
        """``[T, E]`` of ``result``."""
        place = self._engine.output_names.index(f"representations.{self._layer}")
        return _to_numpy(list(result)[place])


class Padded(Embedding):
    """A peer: ``run`` from ``[N, L]`` token ids on the device to ``[N, L, E]`` there."""

    def __init__(self, run: Callable[[Tensor], Tensor], device: str):
        self._run = run
        self._device = device

    def prepare(self, proteins: Proteins) -> Run:
        """From token ids of a batch to something that runs it."""
        width = max(map(len, proteins))
        input_ids = torch.full((len(proteins), width), PAD_ID)
        for row, protein in zip(input_ids, proteins, strict=True):
            row[: len(protein)] = torch.from_numpy(protein)

        @torch.inference_mode()
        def run() -> Tensor:
            return self._run(input_ids.to(self._device))

        return run

    def rows(self, result: Any, proteins: Proteins) -> NDArray[np.floating]:
        """``[T, E]`` without the padding."""
        kept = [rows[: len(protein)] for rows, protein in zip(result, proteins, strict=True)]
        return _to_numpy(torch.cat(kept))


def entrants_of(job: Job, reference: Reference, work: Path, opened: ExitStack) -> list[Entrant]:
    """The peers in float16, and each engine of ``job``; engines stay loaded in ``opened``."""
    peers = {
        EAGER: ("eager fair-esm", partial(_eager_fair_esm, reference, job.device)),
        "huggingface_sdpa": (
            "Hugging Face, SDPA",
            partial(_hugging_face, reference, job.device, work),
        ),
    }
    entrants = [
        _entrant(name, Contender(f"{label}, float16", "peer", MAX_RELATIVE_L2), make)
        for name, (label, make) in peers.items()
    ]
    for entry in job.engines:
        entrants += _of_engine(*entry.split(":"), job, work, opened)
    return entrants


def _of_engine(name: str, dtype: str, job: Job, work: Path, opened: ExitStack) -> Iterator[Entrant]:
    @cache
    def loaded(cuda_graphs: bool) -> Engine:
        folder = artifact_with(name, job.model.name, dtype, work)
        options = {"cuda_graphs": cuda_graphs, "check_files": False}
        return opened.enter_context(load(folder, name, job.device, **options))

    label = f"{name}, {dtype}"
    embedding = Contender(label, "engine", MAX_RELATIVE_L2, in_headline=dtype in HALF)
    yield _entrant(name, embedding, lambda: Embedding(loaded(False)))
    if not ENGINES[name].is_run_by_torch:
        return

    def forward(what: str, graphs: bool = False, fixed: Setting | None = None) -> Entrant:
        about = Contender(f"{label}, {what}", "engine", MAX_RELATIVE_L2, in_headline=False)
        return _entrant(f"{name}: {what}", about, lambda: Forward(loaded(graphs)), fixed)

    yield forward("left on the card")
    if job.device == "cuda":
        small = f"left on the card, {SMALL_PACK.max_tokens} a pack"
        yield forward(small, fixed=SMALL_PACK)
        yield forward(f"{small}, CUDA graphs", graphs=True, fixed=SMALL_PACK)


def _entrant(
    name: str, about: Contender, make: Callable[[], Any], fixed: Setting | None = None
) -> Entrant:
    batches_of = packs_of if about.kind == "engine" else padded_batches_of
    return Entrant(name, about, lambda *_: InThisProcess(make), (1,), batches_of, name, fixed)


def _eager_fair_esm(reference: Reference, device: str) -> Padded:
    """As ``model.half()`` gives it."""
    model: Any = cast_copy(reference.model, torch.float16).to(device, torch.float16)
    last = model.num_layers
    return Padded(lambda tokens: model(tokens, repr_layers=[last])["representations"][last], device)


def _hugging_face(reference: Reference, device: str, work: Path) -> Padded:
    """``EsmModel`` with PyTorch's scaled dot product attention.

    Not in bfloat16, in which its positions above 256 are rounded to one another.
    """
    from transformers import EsmModel

    state = {name: tensor.detach().clone() for name, tensor in reference.model.state_dict().items()}
    # Beside the artifacts: /tmp may be too small for the weights.
    with tempfile.TemporaryDirectory(dir=work) as folder:
        write_hugging_face(Path(folder), reference.architecture, state)
        model = EsmModel.from_pretrained(
            folder, attn_implementation="sdpa", add_pooling_layer=False
        )
    model = model.eval().to(device, torch.float16)
    return Padded(lambda ids: model(ids, (ids != PAD_ID).long()).last_hidden_state, device)


def _free_memory() -> None:
    """For those who do not share PyTorch's allocator."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _no_peak(contender: Any) -> dict[str, None]:
    """All share one process."""
    return {"peak_mb": None}


def _kernels(contender: Any, lengths: Sequence[int]) -> dict[str, Any]:
    random = np.random.default_rng(0)
    proteins = [random_tokens(length, random) for length in lengths]
    return {"kernels": kernels_of(contender.prepare(proteins))}


def _to_numpy(tensor: Tensor) -> NDArray[np.floating]:
    array: NDArray[np.floating] = tensor.float().cpu().numpy()
    return array
