"""Builds an artifact: load -> trace -> lower -> write aside -> verify -> publish."""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from exporter import shared_weights
from exporter.errors import ExportError, ParityError
from exporter.packed_forward import PackedESM2, check_repr_layers
from exporter.parity.verdict import Report
from exporter.publish import staged
from exporter.targets import TARGETS, exporter_of
from exporter.verify import FILE_NAME as PARITY_FILE
from exporter.verify import layer_norm_of, verify, write_report
from exporter.weights import Reference, WeightsSource, load_reference
from runtime import manifest as manifests
from runtime.manifest import EngineEntry, FileEntry, Manifest, Signature, TensorSpec
from runtime.ops.varlen_attention import NAME as OP_NAME
from runtime.ops.varlen_attention import SCHEMA as OP_SCHEMA


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        source: of the weights.
        targets: formats, keys of ``exporter.targets.TARGETS``.
        layers: to export; None takes the last.
        pool: adds a ``pooled`` output of the last exported layer.
        out: the artifact's folder; None takes ``artifacts/<name>``.
    """

    source: WeightsSource
    targets: Sequence[str]
    layers: Sequence[int] | None = None
    pool: str | None = None
    out: Path | None = None


def build(options: BuildOptions, say: Callable[[str], None]) -> tuple[Path, Report]:
    """Builds, verifies and publishes an artifact.

    Args:
        options: what to build.
        say: receives one line for each step.

    Returns:
        The artifact's folder and its parity report.

    Raises:
        CheckpointError: the weights cannot be loaded.
        ParityError: an engine failed; nothing is published.
        ExportError: an option or the destination is wrong.
    """
    unknown = [target for target in options.targets if target not in TARGETS]
    if unknown or not options.targets:
        raise ExportError(f"targets must be of {', '.join(TARGETS)}, got {unknown or 'none'}")
    say(f"loading {options.source.kind} {options.source.value}")
    reference = load_reference(options.source)
    packed = _packed(reference, options)
    name = options.out.resolve().name if options.out else _artifact_name(reference)
    destination = options.out or Path("artifacts") / name
    with staged(destination) as folder:
        shared_weights.write(packed, folder)
        engines = {}
        for target in options.targets:
            say(f"exporting {target}")
            engines[target] = exporter_of(target)(packed, folder)
        manifest = _manifest(name, reference, packed, engines, folder)
        manifests.write(manifest, folder)
        say("verifying against eager fair-esm in float64")
        report = verify(folder, manifest, reference)
        if not report.passed:
            raise ParityError(_first_failure(report))
        write_report(report, folder)
        parity = {verdict.engine: verdict.summary() for verdict in report.engines}
        files = {**manifest.files, PARITY_FILE: _file_entry(folder / PARITY_FILE)}
        manifests.write(msgspec.structs.replace(manifest, parity=parity, files=files), folder)
    return destination, report


def _packed(reference: Reference, options: BuildOptions) -> PackedESM2:
    num_layers = reference.architecture.num_layers
    layers = [num_layers] if options.layers is None else options.layers
    try:
        layers = check_repr_layers(layers, num_layers)
    except ValueError as error:
        raise ExportError(str(error)) from None
    return PackedESM2(reference.model, layers, options.pool).eval()


def _artifact_name(reference: Reference) -> str:
    origin = reference.origin
    return f"{origin.source}-synthetic" if origin.kind == "synthetic" else origin.source


def _manifest(
    name: str, reference: Reference, packed: PackedESM2, engines: dict[str, EngineEntry],
    folder: Path,
) -> Manifest:  # fmt: skip
    architecture = reference.architecture
    dtype = str(packed.embed_tokens.weight.dtype).removeprefix("torch.")
    widths = {"logits": architecture.vocab_size}
    outputs = [
        TensorSpec(
            output, dtype, ["N" if output == "pooled" else "T",
                            widths.get(output, architecture.embed_dim)]
        )
        for output in packed.output_names
    ]  # fmt: skip
    inputs = [
        TensorSpec("input_ids", "int64", ["T"]),
        TensorSpec("cu_seqlens", "int32", ["N + 1"]),
        TensorSpec("max_seqlen", "int64", []),
    ]
    return Manifest(
        schema_version=manifests.SCHEMA_VERSION,
        name=name,
        built_by={
            "esm2-engines": importlib.metadata.version("esm2-engines"),
            "fair-esm": importlib.metadata.version("fair-esm"),
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
        files={path.name: _file_entry(path) for path in sorted(folder.iterdir())},
    )


def _file_entry(path: Path) -> FileEntry:
    return FileEntry(bytes=path.stat().st_size, sha256=manifests.sha256_of_file(path))


def _first_failure(report: Report) -> str:
    failed = [(v, row) for v in report.engines for row in v.rows if row.failures]
    verdict, row = failed[0]
    return (
        f"engine {verdict.engine!r} differs from eager fair-esm in {len(failed)} outputs; first: "
        f"{row.tensor} of pack {row.pack!r}: {'; '.join(row.failures)}. Nothing was published"
    )
