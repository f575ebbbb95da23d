"""An artifact of the engines that passed, where another failed the gate."""

from pathlib import Path

import msgspec

from exporter.parity.report.schema import Report
from runtime.manifest_schema import EngineEntry, Manifest


def can_publish_some(report: Report) -> bool:
    """Whether an engine passed, and the gate itself is sound: it accepted no planted fault."""
    return any(verdict.status == "passed" for verdict in report.engines) and not any(
        fault.outcome == "accepted" for fault in report.faults
    )


def left_out(report: Report) -> list[str]:
    """The engines that failed."""
    return [verdict.engine for verdict in report.engines if verdict.status == "failed"]


def without_failed(folder: Path, manifest: Manifest, report: Report) -> Manifest:
    """Removes the failed engines, with the files that no other engine reads.

    Args:
        folder: the artifact, not yet published.
        manifest: of it, whose ``files`` are listed anew afterwards.
        report: whose failed verdicts say which.
    """
    failed = left_out(report)
    kept = {name: entry for name, entry in manifest.engines.items() if name not in failed}
    needed = {file for entry in kept.values() for file in _files_of(entry)}
    for name in failed:
        for file in _files_of(manifest.engines[name]) - needed:
            (folder / file).unlink(missing_ok=True)
            if not any((folder / file).parent.iterdir()):
                (folder / file).parent.rmdir()
    golden = manifest.golden
    own_limits = {name: limits for name, limits in golden.own_limits.items() if name in kept}
    return msgspec.structs.replace(
        manifest, engines=kept, golden=msgspec.structs.replace(golden, own_limits=own_limits)
    )


def _files_of(entry: EngineEntry) -> set[str]:
    """Its own; the native ops in ``lib/`` are every engine's."""
    others = [entry.quantised.file if entry.quantised else None, entry.pooling]
    return {entry.file, *filter(None, others), *(plan.file for plan in entry.plans)}
