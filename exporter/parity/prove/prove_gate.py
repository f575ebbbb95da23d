"""Plants every fault in every engine, in this process or in several; and in the loader, once."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from exporter.errors import ExportError
from exporter.model.reference import Reference
from exporter.parity.prove.faults import faults_of
from exporter.parity.prove.loader_faults import prove_loader
from exporter.parity.prove.planter import Planter
from exporter.parity.report.schema import FaultVerdict
from exporter.parity.truth.cache import Cache
from runtime.attention import Attention
from runtime.manifest_schema import Manifest
from runtime.staging import temporary_folder
from runtime.threads import usable_cores


def prove_gate(
    folder: Path,
    manifest: Manifest,
    reference: Reference,
    *,
    load: Callable[[], Reference],
    engines: Sequence[str],
    attention: Attention = "auto",
    cache: Cache | None = None,
    jobs: int = 1,
    device: str = "auto",
) -> list[FaultVerdict]:
    """Plants every fault in every engine, and those of the loader, one at a time.

    Args:
        folder: an artifact whose engines pass.
        manifest: of it.
        reference: eager fair-esm with the original weights.
        load: gives ``reference`` in each process, where there are several.
        engines: formats to plant in.
        attention: that the engines passed with.
        cache: of eager fair-esm's answers.
        jobs: processes, each with a copy of the model and its share of the cores.
        device: that the engines passed on, as ``Gate`` takes it.

    Raises:
        ExportError: an engine, or a checkpoint's file, without a fault does not pass here; or a
            process died.
    """
    tasks = [(number, engine) for engine in engines for number in range(len(faults_of(engine)))]
    with (
        temporary_folder("faults") as workspace,
        tqdm(total=len(tasks), desc="planting faults", leave=False, disable=None) as progress,
    ):
        found = prove_loader(reference, workspace)
        verdicts: Iterator[FaultVerdict]
        if jobs == 1:
            planter = Planter(
                folder,
                manifest,
                reference,
                workspace,
                attention=attention,
                cache=cache,
                device=device,
            )
            verdicts = (planter.numbered(number, engine) for number, engine in tasks)
        else:
            setting = _Setting(
                folder=folder,
                manifest=manifest,
                load=load,
                workspace=workspace,
                attention=attention,
                cache=cache,
                jobs=jobs,
                device=device,
            )
            verdicts = _in_processes(setting, tasks)
        for verdict in verdicts:
            found.append(verdict)
            progress.update()
        return found


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What a process needs to make its own ``Planter``."""

    folder: Path
    manifest: Manifest
    load: Callable[[], Reference]
    workspace: Path
    attention: Attention
    cache: Cache | None
    jobs: int
    device: str

    def make(self) -> Planter:
        threads = max(1, usable_cores() // self.jobs)
        torch.set_num_threads(threads)
        own = self.workspace / str(os.getpid())
        own.mkdir()
        return Planter(
            self.folder, self.manifest, self.load(), own, attention=self.attention,
            cache=self.cache, threads=threads, device=self.device,
        )  # fmt: skip


def _in_processes(setting: _Setting, tasks: list[tuple[int, str]]) -> Iterator[FaultVerdict]:
    with ProcessPoolExecutor(setting.jobs, get_context("spawn")) as pool:
        try:
            yield from pool.map(partial(_plant, setting), tasks)
        except BrokenProcessPool:
            raise ExportError(
                "a process that plants faults died, perhaps for lack of memory: fewer --jobs"
            ) from None


_planter: Planter | None = None


def _plant(setting: _Setting, task: tuple[int, str]) -> FaultVerdict:
    global _planter
    # Made by the first task, so that what it raises reaches the caller as it is.
    _planter = _planter or setting.make()
    number, engine = task
    return _planter.numbered(number, engine)
