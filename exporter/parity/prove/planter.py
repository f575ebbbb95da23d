"""Proves that the gate can fail: plants every fault in a good artifact and demands its rejection.

Each engine with a fault runs on a few of the packs. That is enough: one failing output rejects an
engine whatever the others say. What half precision's own rounding hides is planted in float32 too.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file
from torch import Tensor

from exporter.errors import ExportError
from exporter.formats.table import FORMATS
from exporter.model.packed_forward import PackedESM2
from exporter.model.precision import cast_copy
from exporter.model.reference import Reference, check_is_original
from exporter.parity.gate import Gate
from exporter.parity.prove.faults import faults_of
from exporter.parity.prove.rejection import decisive, rejected
from exporter.parity.report.schema import FaultVerdict
from exporter.parity.rules.budgets import budgets_for
from exporter.parity.rules.rows import Row
from exporter.parity.rules.verdict import EngineVerdict
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.packs import parity_packs, with_names
from exporter.planted import Fault, GraphFault, Int8WeightsFault, ManifestFault, WeightsFault
from exporter.publish import link_or_copy, writable_copy
from exporter.weights import int8 as int8_weights
from exporter.weights import shared as shared_weights
from runtime import manifest as manifests
from runtime.attention import Attention
from runtime.errors import Esm2Error
from runtime.files import file_entry
from runtime.manifest_schema import HEAD, Manifest
from runtime.weights import FILE_NAME as WEIGHTS_FILE

PACKS = ("one residue", "every token", "many masks", "nearly all masks")


class NothingChangedError(Exception):
    """These weights have the fault already, such as zeroed biases of an untrained model."""


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
        device: as ``Gate`` takes it.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, reference: Reference, workspace: Path,
        *, attention: Attention = "auto", cache: Cache | None = None, threads: int | None = None,
        device: str = "auto",
    ):  # fmt: skip
        self._folder = folder
        self._manifest = manifest
        self._reference = reference
        self._workspace = workspace
        self._faulty = workspace / f"faulty {manifest.dtype}"
        self._attention: Attention = attention
        self._cache = cache
        self._threads = threads
        self._device = device
        own = (name for format_ in FORMATS for f in faults_of(format_) for name in f.packs)
        packs = with_names(parity_packs(), dict.fromkeys([*PACKS, *own]))
        self._gate = Gate.prepare(reference, manifest, packs, cache, device)
        self._sound: set[tuple[str, str]] = set()
        self._in_float32: Planter | None = None

    def numbered(self, number: int, engine: str) -> FaultVerdict:
        """``verdict`` of a fault by its place in ``faults_of``."""
        return self.verdict(faults_of(engine)[number], engine)

    def verdict(self, fault: Fault, engine: str) -> FaultVerdict:
        """What the gate says of ``engine`` with ``fault``, in this dtype or else in float32."""
        if reason := fault.applies(self._manifest):
            return FaultVerdict(fault.name, fault.group, engine, "does not apply", note=reason)
        self._require_sound(engine, fault)
        try:
            with self.planted(fault, engine) as faulty:
                found, judged = self.show(fault, faulty, engine)
        except NothingChangedError as error:
            return FaultVerdict(fault.name, fault.group, engine, "does not apply", note=str(error))
        in_float32 = self._dtype_of(engine) == "float32" or isinstance(fault, Int8WeightsFault)
        if found.outcome == "rejected" or judged is None or in_float32:
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
        failed = decisive(judged)
        return (rejected(found, failed) if failed else found), judged

    def _shown(self, fault: Fault, faulty: Path, engine: str) -> EngineVerdict:
        gate = self._gate.only(fault.packs or PACKS)
        if not isinstance(fault, ManifestFault):
            return self._judge(gate, faulty, self._manifest, engine)
        # The whole way of a command: the manifest decides what is read and compared.
        manifest = manifests.read(faulty)
        check_is_original(self._reference, manifest, "the checkpoint", faulty)
        gate = Gate.prepare(self._reference, manifest, gate.packs, self._cache, self._device)
        return self._judge(gate, faulty, manifest, engine)

    def _judge(self, gate: Gate, folder: Path, manifest: Manifest, engine: str) -> EngineVerdict:
        return gate.judge(folder, manifest, engine, self._attention, self._threads)

    def _require_sound(self, engine: str, fault: Fault) -> None:
        """Without its fault the engine must pass here: else anything would be "rejected"."""
        packs = fault.packs or PACKS
        if missing := [name for name in packs if (engine, name) not in self._sound]:
            gate = self._gate.only(missing)
            judged = self._judge(gate, self._folder, self._manifest, engine)
            if judged.status == "not measured" or decisive(judged):
                raise ExportError(
                    f"cannot plant faults in {engine!r}: without one it does not pass "
                    f"({judged.reason})"
                )
            self._sound |= {(engine, name) for name in missing}

    def _hidden(
        self, found: FaultVerdict, judged: EngineVerdict, fault: Fault, engine: str
    ) -> FaultVerdict:
        """Hidden is what float32 rejects, and what is within the budget of this dtype's rounding.

        The fault alone, as the float32 engine shows it, must be within the relative rule's limit
        of eager fair-esm's own error in this dtype, in every output. All else is accepted.
        """
        wide_engine = FORMATS[engine].float32_twin or engine
        twin = self._float32_twin(wide_engine)
        twin._require_sound(wide_engine, fault)
        with twin.planted(fault, wide_engine) as faulty:
            wide, alone = twin.show(fault, faulty, wide_engine)
        if alone is None or wide.outcome != "rejected":
            return found
        budgets = budgets_for(self._dtype_of(engine), self._manifest.architecture.num_layers)
        limit = next(budget.limit for budget in budgets if budget.quantity == "ratio")
        is_rounding = _is_within(alone.rows, judged.rows, limit)
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
            writable_copy(self._folder, self._faulty)
        manifests.write(self._manifest, self._faulty)
        changed: AbstractContextManager[None]
        if isinstance(fault, GraphFault):
            changed = self._exported(fault, engine)
        elif isinstance(fault, WeightsFault):
            changed = self._with_weights(fault, engine)
        elif isinstance(fault, Int8WeightsFault):
            shape = self._manifest.architecture
            changed = self._with_int8_weights(lambda state: fault.change(state, shape))
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
        packed = self._packed(manifest)
        packed = cast_copy(packed, getattr(torch, manifest.dtype))
        name = manifest.engines[engine].file
        try:
            with fault.plant(packed):
                FORMATS[engine].export(packed, self._faulty)
            if (self._faulty / name).read_bytes() == (self._folder / name).read_bytes():
                raise ExportError(f"the fault {fault.name!r} changes nothing in {name}")
            self._seal(name)
            yield
        finally:
            # Int8 weights were written with the graph.
            for written in {name, int8_weights.FILE_NAME} & manifest.files.keys():
                shutil.copyfile(self._folder / written, self._faulty / written)

    def _packed(self, manifest: Manifest) -> PackedESM2:
        reference = self._reference
        return PackedESM2(
            reference.model, manifest.layers, manifest.pool, reference.contacts
        ).eval()

    @contextmanager
    def _with_weights(self, fault: WeightsFault, engine: str) -> Iterator[None]:
        state = load_file(self._folder / WEIGHTS_FILE)
        changed = fault.change(state, self._manifest.architecture)
        if all(torch.equal(x.to(state[name].dtype), state[name]) for name, x in changed.items()):
            raise NothingChangedError("the weights are so already")
        path = self._faulty / WEIGHTS_FILE
        try:
            shared_weights.overwrite(
                path, {name: x.to(state[name].dtype) for name, x in changed.items()}
            )
            quantised = self._manifest.engines[engine].quantised
            # As a build from the wrong weights would have it: they are in the int8 file too.
            requantised = partial(int8_weights.requantised, changed)
            int8 = self._with_int8_weights(requantised) if quantised else nullcontext()
            with int8:
                self._seal(path.name)
                yield
        finally:
            shared_weights.overwrite(path, {name: state[name] for name in changed})

    @contextmanager
    def _with_int8_weights(
        self, change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    ) -> Iterator[None]:
        path = self._faulty / int8_weights.FILE_NAME
        state = load_file(self._folder / path.name)
        changed = change(state)
        try:
            shared_weights.overwrite(path, changed)
            self._seal(path.name)
            yield
        finally:
            shared_weights.overwrite(path, {name: state[name] for name in changed})

    def _dtype_of(self, engine: str) -> str:
        return "int8" if self._manifest.engines[engine].quantised else self._manifest.dtype

    def _seal(self, name: str) -> None:
        """A manifest that is right about the changed file: its digest must not give it away."""
        names = {name, int8_weights.FILE_NAME} & self._manifest.files.keys()
        entries = {name: file_entry(self._faulty / name) for name in names}
        files = {**self._manifest.files, **entries}
        manifests.write(msgspec.structs.replace(self._manifest, files=files), self._faulty)

    def _float32_twin(self, engine: str) -> "Planter":
        """The same model in float32, exported once for each engine."""
        if self._in_float32 is None:
            # Apart from this planter's own faulty copy, which may be of float32 too.
            workspace = self._workspace / "in float32"
            folder = workspace / "artifact"
            folder.mkdir(parents=True)
            golden = self._manifest.golden.file
            link_or_copy(self._folder / golden, folder / golden)
            manifest = msgspec.structs.replace(
                self._manifest, dtype="float32", engines={}, files={}
            )
            self._in_float32 = Planter(
                folder, manifest, self._reference, workspace, attention=self._attention,
                cache=self._cache, threads=self._threads, device=self._device,
            )  # fmt: skip
        self._in_float32._add_engine(engine)
        return self._in_float32

    def _add_engine(self, engine: str) -> None:
        if engine in self._manifest.engines:
            return
        packed = self._packed(self._manifest)
        shared_weights.write(packed, self._folder)
        engines = {**self._manifest.engines, engine: FORMATS[engine].export(packed, self._folder)}
        files = {
            path.name: file_entry(path)
            for path in self._folder.iterdir()
            if path.name != manifests.FILE_NAME
        }
        self._manifest = msgspec.structs.replace(self._manifest, engines=engines, files=files)
        manifests.write(self._manifest, self._folder)
        shutil.rmtree(self._faulty, ignore_errors=True)


def _is_within(alone: Sequence[Row], judged: Sequence[Row], limit: float) -> bool:
    """Whether errors are at most ``limit`` times eager's own; a head's by its own rule."""
    allowed = {(row.pack, row.tensor): limit * row.eager.relative_l2 for row in judged if row.eager}
    of_head = [row.eager.worst_absolute for row in judged if row.eager and row.tensor == HEAD]

    def is_within(row: Row) -> bool:
        if row.engine is None:
            return False
        if row.tensor == HEAD:
            return row.engine.worst_absolute <= limit * max(of_head, default=0.0)
        return row.engine.relative_l2 <= allowed.get((row.pack, row.tensor), 0.0)

    return all(map(is_within, alone))


def _write_changed_manifest(fault: ManifestFault, manifest: Manifest, folder: Path) -> None:
    changed = fault.change(manifest)
    manifests.write(changed, folder)
    if not fault.sealed:
        path = folder / manifests.FILE_NAME
        manifests.write(manifest, folder)
        old, new = (f'"name": "{name}"'.encode() for name in (manifest.name, changed.name))
        path.write_bytes(path.read_bytes().replace(old, new))
