"""Builds an artifact: load -> trace -> lower -> write aside -> verify -> publish."""

import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import msgspec
import torch

from exporter.build_options import BuildOptions
from exporter.environment import version_of
from exporter.errors import ExportError
from exporter.formats import native
from exporter.formats.format import Format
from exporter.formats.table import chosen
from exporter.keep_passed import can_publish_some, without_failed
from exporter.model.architectures import DTYPES
from exporter.model.packed_forward import PackedESM2, check_repr_layers
from exporter.model.precision import cast_copy
from exporter.model.reference import Reference, fair_esm_version, load_reference
from exporter.parity.golden import golden_packs, write_golden
from exporter.parity.report.files import write_report
from exporter.parity.report.schema import ParityError, Report
from exporter.parity.rules.budgets import budgets_for
from exporter.parity.truth.ahead import answered_ahead, is_worth_it
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.device import memory_of, reference_device
from exporter.parity.truth.oracle import layer_norm_of, needs_whole_scores
from exporter.parity.truth.packs import LONGEST, longest_pack, parity_packs
from exporter.parity.verify import Proof, verify
from exporter.provenance import sbom
from exporter.provenance import statement as provenance
from exporter.publish import staged, writable_copy
from exporter.weights import shared as shared_weights
from runtime import manifest as manifests
from runtime.files import FileEntry, file_entry
from runtime.manifest_schema import (
    EngineEntry,
    GoldenEntry,
    Manifest,
    Quantisation,
    Signature,
    TensorSpec,
)
from runtime.manifest_upgrades import SCHEMA_VERSION
from runtime.ops.varlen_attention import NAME as OP_NAME
from runtime.ops.varlen_attention import SCHEMA as OP_SCHEMA
from runtime.pairs import CONTACTS
from runtime.provenance import FILE_NAME as PROVENANCE


def build(
    options: BuildOptions, say: Callable[[str], None], cache: Cache | None = None
) -> tuple[Path, Report]:
    """Builds, verifies and publishes an artifact.

    Args:
        options: what to build.
        say: receives one line for each step.
        cache: of eager fair-esm's answers; None computes them.

    Returns:
        The artifact's folder and its parity report, which has not passed where an engine was left
        out (see ``BuildOptions.keep_passed``).

    Raises:
        CheckpointError: the weights cannot be loaded.
        ParityError: an engine failed, or with ``keep_passed`` all of them; nothing is published.
        ExportError: an option or the destination is wrong.
    """
    started = provenance.now()
    formats = chosen(options.targets)
    if options.dtype not in DTYPES:
        raise ExportError(f"dtype must be one of {', '.join(DTYPES)}, got {options.dtype!r}")
    for wanted in formats:
        if options.source.contacts and wanted.without_contacts:
            raise ExportError(
                f"target {wanted.name} gives no contacts: {wanted.without_contacts}. Take "
                "torchscript, onnx or aoti, or leave --contacts out"
            )
        if wanted.check is not None:
            wanted.check(options.longest, **options.of_format.get(wanted.name, {}))
    on = reference_device(options.device)
    say(f"loading {options.source.kind} {options.source.value}")
    reference = load_reference(options.source)
    for note in reference.notes:
        say(note)
    if options.longest > LONGEST:  # before minutes are spent on engines
        whole = needs_whole_scores(reference)
        longest_pack(options.longest, reference.architecture, memory_of(on), whole)
    packed = _packed(reference, options)
    artifact = (
        options.out.resolve().name if options.out else _artifact_name(reference, options.dtype)
    )
    destination = options.out or Path("artifacts") / artifact
    with staged(destination) as folder:
        shared_weights.write(packed, folder)
        layers = packed.repr_layers
        with _answered_ahead(reference, options, layers, cache, on):
            engines = _exported(formats, packed, folder, options, say)
            say("running eager fair-esm in float64")
        int8 = [name for name, entry in engines.items() if entry.quantised]
        golden = write_golden(
            folder,
            reference,
            layers=layers,
            pool=options.pool,
            dtype=options.dtype,
            cache=cache,
            int8_engines=int8,
            device=on,
        )
        manifest = _manifest(artifact, reference, packed, engines, golden, folder)
        manifests.write(manifest, folder)
        say("verifying the engines")
        load = partial(load_reference, options.source)
        proof = Proof(load, options.prove) if options.prove else None
        report = verify(
            folder,
            manifest,
            reference,
            cache=cache,
            prove=proof,
            device=options.device,
            longest=options.longest,
        )
        if not report.passed:
            if not (options.keep_passed and can_publish_some(report)):
                raise ParityError(_first_failure(report), report)
            manifest = without_failed(folder, manifest, report)
        write_report(report, folder)
        sbom.write(folder, artifact, sbom.roots_of(options.targets, reference.origin))
        passed = [verdict for verdict in report.engines if verdict.status == "passed"]
        parity = {verdict.engine: verdict.summary(report.packs) for verdict in passed}
        files = _files(folder)
        files[PROVENANCE] = provenance.write(folder, options, reference.origin, files, started)
        manifest = msgspec.structs.replace(manifest, parity=parity, files=files)
        manifests.write(manifest, folder)
        if options.signer:
            options.signer.sign(folder)
    return destination, report


def _with_budget(quantised: Quantisation | None, num_layers: int) -> Quantisation | None:
    """Says in the manifest what the gate allows an engine whose weights are no float any more."""
    if quantised is None:
        return None
    budget = {budget.name: budget.limit for budget in budgets_for("int8", num_layers)}
    return msgspec.structs.replace(quantised, budget=budget)


def _packed(reference: Reference, options: BuildOptions) -> PackedESM2:
    num_layers = reference.architecture.num_layers
    layers = [num_layers] if options.layers is None else options.layers
    try:
        layers = check_repr_layers(layers, num_layers)
    except ValueError as error:
        raise ExportError(str(error)) from None
    packed = PackedESM2(reference.model, layers, options.pool, reference.contacts).eval()
    if options.dtype == "float32":
        return packed  # it shares the reference's parameters, and goes on sharing them
    return cast_copy(packed, getattr(torch, options.dtype))


def _answered_ahead(
    reference: Reference, options: BuildOptions, layers: tuple[int, ...], cache: Cache | None,
    device: str,
) -> AbstractContextManager[None]:  # fmt: skip
    """Inside, eager fair-esm answers the gate's questions while this process exports."""
    if cache is None or device != "cpu":
        return nullcontext()
    packs = {**golden_packs(), **parity_packs()}
    if not is_worth_it(reference, packs, layers, cache):
        return nullcontext()
    dtypes = torch.float64, getattr(torch, options.dtype)
    load = partial(load_reference, options.source)
    return answered_ahead(reference, load, packs, layers, options.pool or "mean", dtypes, cache)


def _exported(
    formats: Sequence[Format], packed: PackedESM2, folder: Path, options: BuildOptions,
    say: Callable[[str], None],
) -> dict[str, EngineEntry]:  # fmt: skip
    """Writes every engine, and the native op into ``lib/``: no engine needs it to be exported."""
    engines = {}
    with ThreadPoolExecutor(1) as beside, _few_collections():
        say("compiling the native attention op")
        compiled = beside.submit(native.compile_libraries)
        for wanted in formats:
            say(f"exporting {wanted.name}")
            engines[wanted.name] = wanted.export(
                packed, folder, **options.of_format.get(wanted.name, {})
            )
        op_libraries = _op_libraries(compiled, folder, say)
    return {
        wanted.name: msgspec.structs.replace(
            engines[wanted.name],
            op_library=op_libraries.get(wanted.op_library or ""),
            quantised=_with_budget(engines[wanted.name].quantised, packed.num_layers),
        )
        for wanted in formats
    }


@contextmanager
def _few_collections() -> Iterator[None]:
    """Inside, Python rarely looks for circles among objects: else 1,800 times, 2 seconds of 8M."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _op_libraries(
    compiled: Future[Path], folder: Path, say: Callable[[str], None]
) -> dict[str, str]:
    """Copies the native op into ``lib/``: names of libraries to their paths in the artifact."""
    try:
        libraries = compiled.result()
    except native.CompilerError as error:
        say(f"warning: {error}. Without it attention on CPUs takes about twice the time")
        return {}
    writable_copy(libraries, folder / "lib")
    return {path.name: f"lib/{path.name}" for path in libraries.iterdir()}


def _artifact_name(reference: Reference, dtype: str) -> str:
    origin = reference.origin
    # Of the Hub's ORGANISATION/NAME the name.
    source = origin.source.rpartition("/")[2]
    name = f"{source}-synthetic" if origin.kind == "synthetic" else source
    name += "-outliers" if origin.outliers else ""
    return name if dtype == "float32" else f"{name}-{dtype}"


def _manifest(
    artifact: str, reference: Reference, packed: PackedESM2, engines: dict[str, EngineEntry],
    golden: GoldenEntry, folder: Path,
) -> Manifest:  # fmt: skip
    architecture = reference.architecture
    dtype = str(packed.embed_tokens.weight.dtype).removeprefix("torch.")
    outputs = [
        TensorSpec(name, "float32" if name == CONTACTS else dtype, [rows, width])
        for name, (rows, width) in packed.outputs.items()
    ]
    inputs = [
        TensorSpec("input_ids", "int64", ["T"]),
        TensorSpec("cu_seqlens", "int32", ["N + 1"]),
        TensorSpec("max_seqlen", "int64", []),
    ]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=artifact,
        built_by={
            # Run from its folder, the project is not installed and has no version of its own.
            "esm2-engines": version_of("esm2-engines") or "not installed",
            "fair-esm": fair_esm_version(),
            "torch": str(torch.__version__),
        },
        architecture=architecture,
        dtype=dtype,
        layers=list(packed.repr_layers),
        pool=packed.pool,
        signature=Signature(inputs=inputs, outputs=outputs),
        op=OP_NAME + OP_SCHEMA,
        weights=reference.origin,
        reference_layer_norm=layer_norm_of(reference),
        engines=engines,
        parity={},
        golden=golden,
        files=_files(folder),
        head=reference.head.entry if reference.head else None,
    )


def _files(folder: Path) -> dict[str, FileEntry]:
    return {
        path.relative_to(folder).as_posix(): file_entry(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != manifests.FILE_NAME
    }


def _first_failure(report: Report) -> str:
    failed = [verdict for verdict in report.engines if verdict.status == "failed"]
    accepted = [fault for fault in report.faults if fault.outcome == "accepted"]
    if accepted:
        return (
            f"the gate accepted {len(accepted)} planted faults, first: {accepted[0].fault} in "
            f"{accepted[0].engine!r}. Nothing was published"
        )
    if not failed:
        reasons = "; ".join(verdict.reason for verdict in report.engines)
        return f"no engine could be measured here ({reasons}). Nothing was published"
    passed = [verdict.engine for verdict in report.engines if verdict.status == "passed"]
    advice = f"; --keep-passed publishes {', '.join(passed)} without it" if passed else ""
    return (
        f"engine {failed[0].engine!r} differs from eager fair-esm: {failed[0].reason}. "
        f"Nothing was published{advice}"
    )
