"""Proves that the gate can fail: plants every fault in a good artifact and demands its rejection.

Each engine with a fault runs on a few of the packs. That is enough: one failing output rejects an
engine whatever the others say. What half precision's own rounding hides is planted in float32 too.
"""

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
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
from exporter.parity.budgets import RELATIVE_RULE, TASK_RULES
from exporter.parity.cache import Cache
from exporter.parity.faults import Fault, GraphFault, ManifestFault, WeightsFault, faults
from exporter.parity.packs import parity_packs, with_names
from exporter.parity.report import FaultVerdict
from exporter.parity.verdict import Check, EngineVerdict, describe
from exporter.precision import cast_copy
from exporter.targets import exporter_of
from exporter.verify import Gate
from exporter.weights import Reference, check_is_original
from runtime import manifest as manifests
from runtime.engine import Attention, usable_cores
from runtime.errors import Esm2Error
from runtime.manifest import Manifest

PACKS = ("one residue", "every token", "many masks", "nearly all masks")


def prove_gate(
    folder: Path,
    manifest: Manifest,
    reference: Reference,
    load: Callable[[], Reference],
    engines: Sequence[str],
    attention: Attention = "auto",
    cache: Cache | None = None,
    jobs: int = 1,
) -> list[FaultVerdict]:
    """Plants every fault in every engine, one at a time.

    Args:
        folder: an artifact whose engines pass.
        manifest: of it.
        reference: eager fair-esm with the original weights.
        load: gives ``reference`` in each process, where there are several.
        engines: formats to plant in.
        attention: that the engines passed with.
        cache: of eager fair-esm's answers.
        jobs: processes, each with a copy of the model and its share of the cores.

    Raises:
        ExportError: an engine without a fault does not pass here, or a process died.
    """
    tasks = [(number, engine) for engine in engines for number in range(len(faults()))]
    with (
        tempfile.TemporaryDirectory() as workspace,
        tqdm(total=len(tasks), desc="planting faults", leave=False, disable=None) as progress,
    ):
        found = []
        if jobs == 1:
            planter = Planter(folder, manifest, reference, Path(workspace), attention, cache)
            verdicts = (planter.verdict(faults()[number], engine) for number, engine in tasks)
        else:
            setting = _Setting(folder, manifest, load, Path(workspace), attention, cache, jobs)
            verdicts = _in_processes(setting, tasks)
        for verdict in verdicts:
            found.append(verdict)
            progress.update()
        return found


@dataclass(frozen=True)
class _Setting:
    """What a process needs to make its own ``Planter``."""

    folder: Path
    manifest: Manifest
    load: Callable[[], Reference]
    workspace: Path
    attention: Attention
    cache: Cache | None
    jobs: int

    def make(self) -> "Planter":
        threads = max(1, usable_cores() // self.jobs)
        torch.set_num_threads(threads)
        own = self.workspace / str(os.getpid())
        own.mkdir()
        return Planter(
            self.folder, self.manifest, self.load(), own, self.attention, self.cache, threads
        )


def _in_processes(setting: _Setting, tasks: list[tuple[int, str]]) -> Iterator[FaultVerdict]:
    with ProcessPoolExecutor(setting.jobs, get_context("spawn")) as pool:
        try:
            yield from pool.map(functools.partial(_plant, setting), tasks)
        except BrokenProcessPool:
            raise ExportError(
                "a process that plants faults died, perhaps for lack of memory: fewer --jobs"
            ) from None


_planter: "Planter | None" = None


def _plant(setting: _Setting, task: tuple[int, str]) -> FaultVerdict:
    global _planter
    # Made by the first task, so that what it raises reaches the caller as it is.
    _planter = _planter or setting.make()
    number, engine = task
    return _planter.verdict(faults()[number], engine)


class Planter:
    """Makes artifacts with one fault each and shows them to the gate.

    Args:
        folder: a good artifact.
        manifest: of it.
        reference: eager fair-esm with the original weights.
        workspace: an empty folder for the faulty ones.
        attention: that the engines run with.
        cache: of eager fair-esm's answers.
        threads: of an engine; None takes every core.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, reference: Reference, workspace: Path,
        attention: Attention = "auto", cache: Cache | None = None, threads: int | None = None,
    ):  # fmt: skip
        self._folder = folder
        self._manifest = manifest
        self._reference = reference
        self._workspace = workspace
        self._faulty = workspace / f"faulty {manifest.dtype}"
        self._attention: Attention = attention
        self._cache = cache
        self._threads = threads
        self._gate = Gate(reference, manifest, with_names(parity_packs(), PACKS), cache)
        self._sound: set[str] = set()
        self._in_float32: Planter | None = None

    def verdict(self, fault: Fault, engine: str) -> FaultVerdict:
        """What the gate says of ``engine`` with ``fault``, in this dtype or else in float32."""
        if reason := fault.applies(self._manifest):
            found = FaultVerdict(fault.name, fault.group, engine, "does not apply")
            return msgspec.structs.replace(found, note=reason)
        self._require_sound(engine)
        with self.planted(fault, engine) as faulty:
            found, judged = self.show(fault, faulty, engine)
        if found.outcome == "rejected" or judged is None or self._manifest.dtype == "float32":
            return found
        return self._hidden(found, judged, fault, engine)

    def show(
        self, fault: Fault, faulty: Path, engine: str
    ) -> tuple[FaultVerdict, EngineVerdict | None]:
        """What the gate says of the artifact that ``planted`` gave; None if it is not even read."""
        found = FaultVerdict(fault.name, fault.group, engine, "accepted")
        try:
            judged = self._shown(fault, faulty, engine)
        except (Esm2Error, ExportError) as error:
            refusal = str(error).replace(str(self._faulty), self._manifest.name)
            return msgspec.structs.replace(found, outcome="rejected", by=refusal), None
        failed = _decisive(judged)
        return (_rejected(found, failed) if failed else found), judged

    def _shown(self, fault: Fault, faulty: Path, engine: str) -> EngineVerdict:
        if not isinstance(fault, ManifestFault):
            return self._judge(self._gate, faulty, self._manifest, engine)
        # The whole way of a command: the manifest decides what is read and compared.
        manifest = manifests.read(faulty)
        check_is_original(self._reference, manifest, "the checkpoint", faulty)
        gate = Gate(self._reference, manifest, self._gate.packs, self._cache)
        return self._judge(gate, faulty, manifest, engine)

    def _judge(self, gate: Gate, folder: Path, manifest: Manifest, engine: str) -> EngineVerdict:
        return gate.judge(folder, manifest, engine, self._attention, self._threads)

    def _require_sound(self, engine: str) -> None:
        """Without its fault the engine must pass here: else anything would be "rejected"."""
        if engine not in self._sound:
            judged = self._judge(self._gate, self._folder, self._manifest, engine)
            if judged.status == "not measured" or _decisive(judged):
                raise ExportError(
                    f"cannot plant faults in {engine!r}: without one it does not pass "
                    f"({judged.reason})"
                )
            self._sound.add(engine)

    def _hidden(
        self, found: FaultVerdict, judged: EngineVerdict, fault: Fault, engine: str
    ) -> FaultVerdict:
        """Hidden is what float32 rejects, and what is within the budget of this dtype's rounding.

        The fault alone, as the float32 engine shows it, must be within the relative rule's limit
        of eager fair-esm's own error in this dtype, in every output. All else is accepted.
        """
        twin = self._float32_twin(engine)
        twin._require_sound(engine)
        with twin.planted(fault, engine) as faulty:
            wide, alone = twin.show(fault, faulty, engine)
        if alone is None or wide.outcome != "rejected":
            return found
        allowed = {
            (row.pack, row.tensor): RELATIVE_RULE[0].limit * row.eager.relative_l2
            for row in judged.rows
            if row.eager
        }
        is_rounding = all(
            row.engine is not None
            and row.engine.relative_l2 <= allowed.get((row.pack, row.tensor), 0.0)
            for row in alone.rows
        )
        over = f" {wide.margin:.3g} x over: {wide.by}" if wide.margin else "".join(wide.exactly)
        return msgspec.structs.replace(
            found,
            outcome="hidden" if is_rounding else "accepted",
            note=(
                f"relative L2 {judged.worst_relative_l2:.1e} with the fault, "
                f"{judged.worst_ratio_to_eager:.2f} x eager's own rounding; the fault alone "
                f"{alone.worst_relative_l2:.1e}; in float32 rejected,{over}"
            ),
        )

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
                folder,
                manifest,
                self._reference,
                self._workspace,
                self._attention,
                self._cache,
                self._threads,
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
        engines = {**self._manifest.engines, engine: exporter_of(engine)(packed, self._folder)}
        files = {
            path.name: manifests.file_entry(path)
            for path in self._folder.iterdir()
            if path.name != manifests.FILE_NAME
        }
        self._manifest = msgspec.structs.replace(self._manifest, engines=engines, files=files)
        manifests.write(self._manifest, self._folder)
        shutil.rmtree(self._faulty, ignore_errors=True)


def _decisive(judged: EngineVerdict) -> list[Check]:
    """The failed checks that would fail with any more packs too.

    Faults run on a few packs: what is judged over all packs together does not count.
    """
    over_all_packs = {
        budget.name for budget in (*RELATIVE_RULE, *TASK_RULES)
        if budget.quantity in ("absolute_ratio", "top1_agreement_confident")
    }  # fmt: skip
    failed = [check for check in judged.checks if not check.passed]
    if not judged.checks:
        failed = [Check("the engine loads", False, None, None, "exact", None, judged.reason)]
    return [check for check in failed if check.name not in over_all_packs]


def _rejected(found: FaultVerdict, failed: list[Check]) -> FaultVerdict:
    """Names the budget with the largest margin, and every exact check."""
    found = msgspec.structs.replace(
        found,
        outcome="rejected",
        exactly=[describe(check) for check in failed if check.sense == "exact"],
    )
    budgets = [check for check in failed if check.margin is not None]
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
        old, new = (f'"name": "{name}"'.encode() for name in (manifest.name, changed.name))
        path.write_bytes(path.read_bytes().replace(old, new))


def _overwrite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Replaces tensors of a safetensors file in place; dtypes and shapes are the file's."""
    places = shared_weights.read_places(path)
    with path.open("r+b") as file:
        for name, tensor in tensors.items():
            data = tensor.contiguous().view(-1).view(torch.uint8)
            file.seek(places[name].offset)
            file.write(data.numpy().tobytes())
