"""Proves that the gate can fail: plants every fault in a good artifact and demands its rejection.

Each engine with a fault runs on a few of the packs. That is enough: one failing output rejects an
engine whatever the others say. What half precision's own rounding hides is planted in float32 too.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from exporter import shared_weights
from exporter.errors import ExportError
from exporter.packed_forward import PackedESM2
from exporter.parity.cache import Cache
from exporter.parity.faults import Fault, GraphFault, ManifestFault, WeightsFault, faults
from exporter.parity.packs import parity_packs, with_names
from exporter.parity.report import FaultVerdict
from exporter.parity.verdict import EngineVerdict, describe
from exporter.precision import cast_copy
from exporter.targets import exporter_of
from exporter.verify import Gate
from exporter.weights import Reference, load_original
from runtime import manifest as manifests
from runtime.engine import usable_cores
from runtime.errors import Esm2Error
from runtime.manifest import EngineEntry, Manifest

PACKS = ("one residue", "every token", "many masks", "nearly all masks")


def prove_gate(
    folder: Path,
    manifest: Manifest,
    load: Callable[[], Reference],
    engines: Sequence[str],
    cache: Cache | None = None,
    jobs: int = 1,
) -> list[FaultVerdict]:
    """Plants every fault in every engine, one at a time.

    Args:
        folder: an artifact whose engines pass.
        manifest: of it.
        load: gives eager fair-esm with the original weights; called once in each process.
        engines: formats to plant in.
        cache: of eager fair-esm's answers.
        jobs: processes, each with a copy of the model and its share of the cores.
    """
    tasks = [(number, engine) for engine in engines for number in range(len(faults()))]
    with (
        tempfile.TemporaryDirectory() as workspace,
        ProcessPoolExecutor(
            jobs,
            mp_context=get_context("spawn"),
            initializer=_start,
            initargs=(folder, manifest, load, Path(workspace), cache, jobs),
        ) as pool,
        tqdm(total=len(tasks), desc="planting faults", leave=False, disable=None) as progress,
    ):
        found = []
        for verdict in pool.map(_plant, tasks):
            found.append(verdict)
            progress.update()
        return found


_planter: "Planter"


def _start(
    folder: Path, manifest: Manifest, load: Callable[[], Reference], workspace: Path,
    cache: Cache | None, jobs: int,
) -> None:  # fmt: skip
    global _planter
    torch.set_num_threads(max(1, usable_cores() // jobs))
    own = workspace / str(os.getpid())
    own.mkdir()
    _planter = Planter(folder, manifest, load(), own, cache, torch.get_num_threads())


def _plant(task: tuple[int, str]) -> FaultVerdict:
    number, engine = task
    return _planter.verdict(faults()[number], engine)


class Planter:
    """Makes artifacts with one fault each and shows them to the gate.

    Args:
        folder: a good artifact.
        manifest: of it.
        reference: eager fair-esm with the original weights.
        workspace: an empty folder for the faulty ones.
        cache: of eager fair-esm's answers.
        threads: of an engine; None takes every core.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, reference: Reference, workspace: Path,
        cache: Cache | None = None, threads: int | None = None,
    ):  # fmt: skip
        self._folder = folder
        self._manifest = manifest
        self._reference = reference
        self._workspace = workspace
        self._faulty = workspace / f"faulty {manifest.dtype}"
        self._cache = cache
        self._threads = threads
        self._gate = Gate(reference, manifest, with_names(parity_packs(), PACKS), cache)
        self._in_float32: Planter | None = None

    def verdict(self, fault: Fault, engine: str) -> FaultVerdict:
        """What the gate says of ``engine`` with ``fault``, in this dtype or else in float32."""
        if reason := fault.applies(self._manifest):
            found = FaultVerdict(fault.name, fault.group, engine, "does not apply")
            return msgspec.structs.replace(found, note=reason)
        with self.planted(fault, engine) as faulty:
            found = self.show(fault, faulty, engine)
        if found.outcome != "accepted" or self._manifest.dtype == "float32":
            return found
        wide = self._float32_twin(engine).verdict(fault, engine)
        over = f", {wide.margin:.3g} x over: {wide.by}" if wide.margin else ""
        return msgspec.structs.replace(
            found,
            outcome="hidden" if wide.outcome == "rejected" else "accepted",
            note=f"{found.note}; in float32: {wide.outcome}{over}",
        )

    def show(self, fault: Fault, faulty: Path, engine: str) -> FaultVerdict:
        """What the gate says of the artifact that ``planted`` gave."""
        found = FaultVerdict(fault.name, fault.group, engine, "accepted")
        try:
            judged = self._judge(fault, faulty, engine)
        except (Esm2Error, ExportError) as error:
            refusal = str(error).replace(str(self._faulty), "the artifact")
            return msgspec.structs.replace(found, outcome="rejected", by=refusal)
        if judged.status != "passed":
            return _rejected(found, judged)
        note = (
            f"relative L2 {judged.worst_relative_l2:.1e} with the fault, "
            f"{judged.worst_ratio_to_eager:.2f} x eager's own rounding"
        )
        return msgspec.structs.replace(found, note=note)

    @contextmanager
    def planted(self, fault: Fault, engine: str) -> Iterator[Path]:
        """The folder of an artifact with ``fault``, and with that alone.

        One copy of the artifact serves all of them: what a fault changed is put back after it.
        """
        if not self._faulty.exists():
            shutil.copytree(self._folder, self._faulty)
        manifests.write(self._manifest, self._faulty)
        if isinstance(fault, GraphFault):
            changed = self._exported(fault, engine)
        elif isinstance(fault, WeightsFault):
            changed = self._with_weights(fault)
        elif isinstance(fault, ManifestFault):
            _write_changed_manifest(fault, self._manifest, self._faulty)
            changed = nullcontext()
        else:
            changed = fault.plant()
        with changed:
            yield self._faulty

    def _judge(self, fault: Fault, faulty: Path, engine: str) -> EngineVerdict:
        if not isinstance(fault, ManifestFault):
            return self._gate.judge(faulty, self._manifest, engine, threads=self._threads)
        # The whole way of a command: the manifest decides what is read and compared.
        manifest = manifests.read(faulty)
        reference = load_original(faulty, manifest, None)
        packs = with_names(parity_packs(), PACKS)
        gate = Gate(reference, manifest, packs, self._cache)
        return gate.judge(faulty, manifest, engine, threads=self._threads)

    @contextmanager
    def _exported(self, fault: GraphFault, engine: str) -> Iterator[None]:
        manifest = self._manifest
        packed = PackedESM2(self._reference.model, manifest.layers, manifest.pool).eval()
        packed = cast_copy(packed, getattr(torch, manifest.dtype))
        name = manifest.engines[engine].file
        try:
            with fault.plant(packed):
                exporter_of(engine)(packed, self._faulty)
            self._seal(name)
            yield
        finally:
            shutil.copy(self._folder / name, self._faulty)

    @contextmanager
    def _with_weights(self, fault: WeightsFault) -> Iterator[None]:
        state = load_file(self._folder / shared_weights.FILE_NAME)
        changed = fault.change(state, self._manifest.architecture)
        path = self._faulty / shared_weights.FILE_NAME
        try:
            _overwrite(path, {name: x.to(state[name].dtype) for name, x in changed.items()})
            self._seal(path.name)
            yield
        finally:
            _overwrite(path, {name: state[name] for name in changed})

    def _seal(self, name: str) -> None:
        """A manifest that is right about the changed file: its digest must not give it away."""
        files = {**self._manifest.files, name: manifests.file_entry(self._faulty / name)}
        manifests.write(msgspec.structs.replace(self._manifest, files=files), self._faulty)

    def _float32_twin(self, engine: str) -> "Planter":
        """The same model in float32, exported once for each engine."""
        if self._in_float32 is None:
            folder = self._workspace / "float32"
            folder.mkdir()
            manifest = msgspec.structs.replace(
                self._manifest, dtype="float32", engines={}, files={}
            )
            self._in_float32 = Planter(
                folder, manifest, self._reference, self._workspace, self._cache, self._threads
            )
        self._in_float32._add_engine(engine)
        return self._in_float32

    def _add_engine(self, engine: str) -> None:
        if engine in self._manifest.engines:
            return
        packed = PackedESM2(
            self._reference.model, self._manifest.layers, self._manifest.pool
        ).eval()
        shared_weights.write(packed, self._folder)
        entry: EngineEntry = exporter_of(engine)(packed, self._folder)
        self._manifest = msgspec.structs.replace(
            self._manifest, engines={**self._manifest.engines, engine: entry}
        )
        files = {path.name: manifests.file_entry(path) for path in self._folder.iterdir()}
        self._manifest = msgspec.structs.replace(self._manifest, files=files)
        shutil.rmtree(self._faulty, ignore_errors=True)


def _rejected(found: FaultVerdict, judged: EngineVerdict) -> FaultVerdict:
    """Names the budget with the largest margin, and every exact check."""
    failed = [check for check in judged.checks if not check.passed]
    budgets = [check for check in failed if check.margin is not None]
    found = msgspec.structs.replace(
        found,
        outcome="rejected",
        by="" if failed else judged.reason,
        exactly=[describe(check) for check in failed if check.sense == "exact"],
    )
    if not budgets:
        return found
    worst = max(budgets, key=lambda check: check.margin or 0.0)
    return msgspec.structs.replace(
        found, by=worst.name, measured=worst.measured, limit=worst.limit, margin=worst.margin
    )


def _write_changed_manifest(fault: ManifestFault, manifest: Manifest, folder: Path) -> None:
    changed = fault.change(manifest)
    manifests.write(changed, folder)
    if not fault.sealed:
        path = folder / manifests.FILE_NAME
        manifests.write(manifest, folder)
        path.write_bytes(path.read_bytes().replace(manifest.name.encode(), changed.name.encode()))


def _overwrite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Replaces tensors of a safetensors file in place; dtypes and shapes are the file's."""
    places = shared_weights.read_places(path)
    with path.open("r+b") as file:
        for name, tensor in tensors.items():
            data = tensor.contiguous().view(-1).view(torch.uint8)
            file.seek(places[name].offset)
            file.write(data.numpy().tobytes())
