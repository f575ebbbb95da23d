"""``esm2-export``: build artifacts and verify them."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.errors import ExportError, ParityError
from runtime.cli import one_line_errors
from runtime.errors import Esm2Error

if TYPE_CHECKING:
    from exporter.parity.verdict import EngineVerdict, Report
    from exporter.weights import WeightsSource

FAILED_PARITY = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="esm2-engines")
def main() -> None:
    """Turn ESM-2 into frozen, packed engines, and prove them against eager fair-esm."""


@main.command()
@click.option("--model", help="fair-esm's name of a model, such as esm2_t33_650M_UR50D.")
@click.option(
    "--checkpoint",
    type=click.Path(),
    help="A fair-esm .pt file, or a folder as Hugging Face stores ESM-2.",
)
@click.option("--synthetic", help="Random weights of a true architecture, for trying the project.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Of synthetic weights.",
)
@click.option(
    "--target", default="torchscript,onnx", show_default=True, help="Formats, separated by commas."
)
@click.option("--layers", help="Layers to export, separated by commas.  [default: the last]")
@click.option(
    "--pool",
    type=click.Choice(["mean", "mean-with-eos", "cls"]),
    help="Add an output with one vector per protein.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The artifact's folder.  [default: artifacts/NAME]",
)
@one_line_errors(ExportError, Esm2Error, OSError)
def build(
    model: str | None, checkpoint: str | None, synthetic: str | None, seed: int, target: str,
    layers: str | None, pool: str | None, out: Path | None,
) -> None:  # fmt: skip
    """Build an artifact: engines that passed parity, their weights, and a manifest."""
    source = _source(model, checkpoint, synthetic, seed)
    wanted_layers = None if layers is None else _integers(layers)

    from exporter.build import BuildOptions
    from exporter.build import build as run_build

    if source.kind == "synthetic":
        _warn(
            f"SYNTHETIC WEIGHTS: {source.value} with random numbers, for trying the project. Its "
            "embeddings mean nothing. For real ones: --model, or --checkpoint"
        )
    started = time.perf_counter()
    targets = [part.strip() for part in target.split(",") if part.strip()]
    options = BuildOptions(source, targets, wanted_layers, pool, out)
    try:
        folder, report = run_build(options, lambda line: click.echo(line, err=True))
    except ParityError as error:
        click.secho(f"error: {error}", err=True, fg="red")
        sys.exit(FAILED_PARITY)
    for verdict in report.engines:
        click.echo(_describe(verdict))
    size = sum(path.stat().st_size for path in folder.iterdir())
    click.echo(f"{folder}: {size / 1e6:.1f} MB, built in {time.perf_counter() - started:.0f} s")


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--engine", help="Only this one.  [default: every engine of the artifact]")
@click.option(
    "--checkpoint",
    type=click.Path(),
    help="What the artifact was built from, to compare with the original weights.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Of the random packs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
@one_line_errors(ExportError, Esm2Error, OSError)
def verify(
    artifact: Path, engine: str | None, checkpoint: str | None, seed: int, as_json: bool
) -> None:
    """Compare ARTIFACT's engines with eager fair-esm in float64.

    Exits with 0 if every engine passed, 1 if one failed, 2 if the artifact cannot be read.
    """
    from runtime import manifest as manifests

    manifest = manifests.read(artifact)
    if engine is not None and engine not in manifest.engines:
        raise ExportError(
            f"artifact {artifact} holds no engine {engine!r}, it holds "
            f"{', '.join(manifest.engines)}"
        )
    from exporter.verify import verify as run_verify
    from exporter.weights import load_original

    reference = load_original(artifact, manifest, checkpoint)
    report = run_verify(artifact, manifest, reference, [engine] if engine else None, seed)
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        click.echo("\n".join(_table(report)))
    sys.exit(0 if report.passed else FAILED_PARITY)


def _source(
    model: str | None, checkpoint: str | None, synthetic: str | None, seed: int
) -> "WeightsSource":
    given = [
        (kind, value)
        for kind, value in (("model", model), ("checkpoint", checkpoint), ("synthetic", synthetic))
        if value is not None
    ]
    if len(given) != 1:
        raise ExportError(
            f"give one of --model, --checkpoint, --synthetic; got {len(given)}. To try the "
            "project: --synthetic esm2_t6_8M_UR50D"
        )
    from exporter.weights import WeightsSource

    kind, value = given[0]
    return WeightsSource(kind, value, seed)


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ExportError(f"--layers takes numbers separated by commas, got {text!r}") from None


def _describe(verdict: "EngineVerdict") -> str:
    return (
        f"{verdict.engine} ({verdict.library}): {'passed' if verdict.passed else 'FAILED'}, worst "
        f"relative L2 {verdict.worst_relative_l2:.1e}, {verdict.worst_ratio_to_eager:.2f} x eager "
        f"fair-esm's own, {verdict.summary().packs} packs"
    )


def _table(report: "Report") -> list[str]:
    lines = [f"{report.artifact}, {report.dtype}, against eager fair-esm in float64", ""]
    columns = ("relative L2", 12), ("x eager", 9), ("worst abs", 11), ("cosine", 13)
    head = f"  {'pack':22}{'tensor':20}" + "".join(f"{name:>{width}}" for name, width in columns)
    for verdict in report.engines:
        lines += [_describe(verdict), head]
        for row in verdict.rows:
            measured = (
                "no answer"
                if row.engine is None
                else (
                    f"{row.engine.relative_l2:12.2e}{row.ratio:9.2f}{row.engine.worst_absolute:11.1e}"
                    f"{row.engine.cosine_p01:13.9f}"
                )
            )
            lines.append(f"  {row.pack:22}{row.tensor:20}{measured}")
            lines += [f"    FAILED {failure}" for failure in row.failures]
        lines.append("")
    return [*lines, "PASSED" if report.passed else "FAILED"]


def _warn(message: str) -> None:
    click.secho(message, err=True, fg="yellow", bold=True)


if __name__ == "__main__":
    main()
