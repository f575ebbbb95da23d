"""``esm2-export``: build artifacts and verify them."""

import os
import shlex
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.errors import ExportError
from exporter.formats.table import FORMATS
from exporter.int8_options import int8_options, settings_of
from exporter.model.architectures import DTYPES
from exporter.parity.truth.packs import LONGEST
from exporter.proof_options import device_option, longest_option, seed_option
from exporter.rebuild.command import rebuild_check
from exporter.sign_command import sign
from exporter.source_options import head_options, source_of, source_options, with_head
from runtime.errors import Esm2Error
from runtime.one_line_errors import one_line_errors
from runtime.readers.record_options import record_options
from runtime.terminal import say
from runtime.threads import THREADS_VARIABLE, usable_cores
from runtime.trust.whom import VARIABLE as TRUST_VARIABLE

if TYPE_CHECKING:
    from runtime.pooling import Pool
    from runtime.tokenizer import Unknown

FAILED_PARITY = 1
PROVE_IN_HELP = "Formats to plant faults in, separated by commas.  [default: all]"
JOBS_HELP = "Processes that plant faults, each with a copy of the model."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="esm2-engines")
def main() -> None:
    """Turn ESM-2 into frozen, packed engines, and prove them against eager fair-esm."""
    # PyTorch and the libraries below it count the machine's cores, and know no quota.
    os.environ.setdefault(THREADS_VARIABLE, str(usable_cores()))


main.add_command(sign)
main.add_command(rebuild_check)


@main.command(epilog="Example: esm2-export build --model esm2_t6_8M_UR50D")
@source_options
@head_options
@click.option(
    "--target",
    default="torchscript,onnx",
    show_default=True,
    help=f"Formats, separated by commas, of {', '.join(FORMATS)}.",
)
@click.option("--layers", help="Layers to export, separated by commas.  [default: the last]")
@click.option(
    "--pool",
    type=click.Choice(["mean", "mean-with-eos", "cls"]),
    help="Add an output with one vector per protein.",
)
@click.option(
    "--contacts",
    is_flag=True,
    help="Add probabilities of contacts between residues. Every run of the engines computes them.",
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(DTYPES),
    help="Of weights and outputs; softmax, LayerNorm and rotary angles stay float32.",
)
@int8_options
@click.option("--prove", is_flag=True, help="Also plant faults and demand that each is rejected.")
@click.option("--prove-in", help=PROVE_IN_HELP)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help=JOBS_HELP)
@device_option
@click.option(
    "--compute-capability",
    help="Cards to build TensorRT plans for, such as 8.0,8.9,12.0.  [default: this machine's]",
)
@click.option(
    "--max-tokens",
    default=16_384,
    show_default=True,
    type=click.IntRange(min=1),
    help="Of a pack that a TensorRT plan takes whole.",
)
@click.option(
    "--max-seqlen",
    default=LONGEST,
    show_default=True,
    type=click.IntRange(min=1),
    help="Tokens of the longest protein that a TensorRT plan takes.",
)
@longest_option
@click.option(
    "--keep-passed",
    is_flag=True,
    help="Publish the engines that passed where another failed. The exit status is still 1.",
)
@click.option(
    "--sign-key",
    type=click.Path(path_type=Path),
    help="Sign the artifact with this private key, as esm2-export sign does.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The artifact's folder.  [default: artifacts/NAME]",
)
@one_line_errors(ExportError, Esm2Error, OSError)
def build(
    model: str | None, checkpoint: str | None, synthetic: str | None, outliers: bool, seed: int,
    no_head: bool,
    probe: str | None, probe_on: str, target: str, layers: str | None, pool: "Pool | None",
    contacts: bool, dtype: str, calibration: str | None, int8_budget: float | None,
    int8_bits: str | None, prove: bool, prove_in: str | None, jobs: int, device: str,
    compute_capability: str | None, max_tokens: int, max_seqlen: int, longest: int,
    keep_passed: bool, sign_key: Path | None, out: Path | None,
) -> None:  # fmt: skip
    """Build an artifact: engines that passed parity, their weights, and a manifest.

    Exits with 0 if all that was asked for was published, 1 if an engine failed, 2 if the weights or
    an option are wrong.
    """
    source = source_of(model, checkpoint, synthetic, seed, contacts, outliers)
    source = with_head(source, no_head, probe, probe_on)
    wanted_layers = None if layers is None else _integers(layers)

    from exporter.build import build as run_build
    from exporter.build_options import BuildOptions
    from exporter.formats.tensorrt.options import PlanOptions
    from exporter.keep_passed import left_out
    from exporter.parity.report.schema import ParityError
    from exporter.parity.report.terminal import summary
    from exporter.parity.truth.cache import Cache
    from exporter.parity.verify import ProofOptions
    from exporter.signing import Signer
    from runtime.user_cache import default_folder

    os.environ.pop(TRUST_VARIABLE, None)  # what is not finished is not signed
    if source.kind == "synthetic":
        _warn(
            f"SYNTHETIC WEIGHTS: {source.value} with random numbers, for trying the project. Its "
            "embeddings mean nothing. For real ones: --model, or --checkpoint"
        )
    started = time.perf_counter()
    targets = _formats(target) or []
    proof = ProofOptions(jobs, _formats(prove_in)) if prove else None
    cards = tuple(_formats(compute_capability) or ())
    plans = PlanOptions(cards, max_tokens, max_seqlen, default_folder() / "tensorrt")
    of_format: dict[str, dict[str, Any]] = {"tensorrt": {"options": plans}}
    of_format["onnx-int8"] = settings_of(targets, calibration, int8_budget, int8_bits)
    options = BuildOptions(
        source=source, targets=targets, layers=wanted_layers, pool=pool, dtype=dtype, prove=proof,
        out=out, device=device, of_format=of_format,
        keep_passed=keep_passed, longest=longest, signer=Signer(sign_key) if sign_key else None,
    )  # fmt: skip
    try:
        folder, report = run_build(
            options, lambda line: say(line, err=True), Cache(default_folder())
        )
    except ParityError as error:
        say(f"error: {error}", err=True, fg="red")
        sys.exit(FAILED_PARITY)
    _show(summary(report))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    say(f"{folder}: {size / 1e6:.1f} MB, built in {time.perf_counter() - started:.0f} s")
    if failed := left_out(report):
        kept = ", ".join(v.engine for v in report.engines if v.engine not in failed)
        say(
            f"error: left out, for parity failed: {', '.join(failed)}; published: {kept}. "
            f"The reasons are above and in {folder / 'parity.html'}",
            err=True,
            fg="red",
        )
        sys.exit(FAILED_PARITY)


@main.command(epilog="Example: esm2-export verify artifacts/NAME")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--engine", help="Only this one.  [default: every engine of the artifact]")
@click.option(
    "--checkpoint",
    type=click.Path(),
    help="What the artifact was built from, to compare with the original weights.",
)
@click.option("--probe", metavar="FILE", help="Likewise, of an artifact with a linear probe.")
@seed_option
@longest_option
@click.option("--fasta", type=click.Path(), help="Your own proteins, compared beside the packs.")
@record_options
@click.option("--prove", is_flag=True, help="Also plant faults and demand that each is rejected.")
@click.option("--prove-in", help=PROVE_IN_HELP)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help=JOBS_HELP)
@device_option
@click.option(
    "--v1-attention", is_flag=True, help="Run the engines with the reference's attention."
)
@click.option(
    "--report",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write parity.json and parity.html into this folder.",
)
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit XML.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="An older parity.json: fail if an error grew by more than 1.5 x.",
)
@click.option("--no-cache", is_flag=True, help="Do not keep or use eager fair-esm's answers.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
@one_line_errors(ExportError, Esm2Error, OSError)
def verify(
    artifact: Path, engine: str | None, checkpoint: str | None, probe: str | None, seed: int,
    longest: int,
    fasta: str | None, on_error: str, unknown: Any, upper: bool, strip_stop: bool, prove: bool,
    prove_in: str | None, jobs: int, device: str, v1_attention: bool,
    report: Path | None, junit: Path | None, against: Path | None, no_cache: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare ARTIFACT's engines with eager fair-esm in float64.

    Exits with 0 if every engine passed, 1 if one failed, 2 if the artifact cannot be read.
    """
    from runtime import manifest as manifests

    manifest = manifests.read(artifact)
    os.environ.pop(TRUST_VARIABLE, None)  # the gate's own copies, with faults, are not signed
    if engine is not None and engine not in manifest.engines:
        raise ExportError(
            f"artifact {artifact} holds no engine {engine!r}, it holds "
            f"{', '.join(manifest.engines)}"
        )
    from exporter.model.reference import load_original
    from exporter.parity.report.junit import as_junit
    from exporter.parity.report.schema import encode, grown_errors, read
    from exporter.parity.report.terminal import summary
    from exporter.parity.truth.cache import Cache
    from exporter.parity.truth.packs import packs_of
    from exporter.parity.verify import Proof, ProofOptions
    from exporter.parity.verify import verify as run_verify
    from runtime.attention import default_attention
    from runtime.user_cache import default_folder

    older = read(against) if against else None
    own_packs = None
    if fasta is not None:
        own = _sequences(fasta, on_error, unknown, upper, strip_stop)
        own_packs = packs_of(own, Path(fasta).name)
    load = partial(load_original, artifact, manifest, checkpoint, probe)
    result = run_verify(
        artifact,
        manifest,
        load(),
        engines=[engine] if engine else None,
        seed=seed,
        own_packs=own_packs,
        attention="standard" if v1_attention else default_attention(),
        cache=None if no_cache else Cache(default_folder()),
        prove=Proof(load, ProofOptions(jobs, _formats(prove_in))) if prove else None,
        device=device,
        longest=longest,
    )
    grown = grown_errors(result, older) if older else []
    if report:
        from exporter.parity.report.files import write_report

        write_report(result, report)
    if junit:
        junit.parent.mkdir(parents=True, exist_ok=True)
        junit.write_text(as_junit(result, grown), encoding="utf-8")
    if as_json:
        click.echo(encode(result))
    else:
        _show(summary(result, grown))
    if report and not as_json:
        say(f"report: {report / 'parity.html'}")
    sys.exit(0 if result.passed and not grown else FAILED_PARITY)


@main.command(epilog="Example: esm2-export divergence --synthetic esm2_t6_8M_UR50D")
@source_options
@click.option("--fasta", type=click.Path(), help="Your own proteins.  [default: random ones]")
@record_options
@click.option(
    "--proteins",
    default=200,
    show_default=True,
    type=click.IntRange(min=2),
    help="How many random ones.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="[default: standard output]"
)
@one_line_errors(ExportError, Esm2Error, OSError)
def divergence(
    model: str | None, checkpoint: str | None, synthetic: str | None, outliers: bool, seed: int,
    fasta: str | None, on_error: str, unknown: Any, upper: bool, strip_stop: bool, proteins: int,
    out: Path | None,
) -> None:  # fmt: skip
    """Measure whether flash-type, standard and eager attention agree, in every dtype."""
    source = source_of(model, checkpoint, synthetic, seed, outliers=outliers)
    sequences = _sequences(fasta, on_error, unknown, upper, strip_stop) if fasta else None

    from exporter.model.reference import load_reference
    from exporter.parity.divergence import random_sequences, render, study
    from exporter.parity.truth.cache import Cache
    from runtime.user_cache import default_folder

    reference = load_reference(replace(source, with_head=False))
    result = study(
        reference, sequences or random_sequences(proteins, seed), Cache(default_folder())
    )
    text = render(result, f"esm2-export divergence {shlex.join(sys.argv[2:])}")
    if out:
        out.write_text(text, encoding="utf-8")
    else:
        click.echo(text, nl=False)


@main.command(epilog="Example: esm2-export triton artifacts/NAME --out models")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The repository: a folder that is empty or does not exist.",
)
@click.option("--engine", help="Only this one.  [default: every engine that Triton can serve]")
@click.option(
    "--max-batch-size",
    default=16,
    show_default=True,
    type=click.IntRange(min=1),
    help="Proteins that may share a pack.",
)
@one_line_errors(ExportError, Esm2Error, OSError)
def triton(artifact: Path, out: Path, engine: str | None, max_batch_size: int) -> None:
    """Write a model repository for Triton Inference Server from ARTIFACT."""
    from exporter.triton.repository import launch_line, write_repository

    models = write_repository(
        artifact, out, engine, max_batch_size, lambda line: say(line, err=True)
    )
    for model in models:
        size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
        say(f"{model}: {size / 1e6:.1f} MB")
    # Not wrapped: it is there to be copied.
    click.echo(f"serve with: {launch_line(out.resolve(), [m.resolve() for m in models])}")


def _sequences(
    fasta: str, on_error: str, unknown: "Unknown", upper: bool, strip_stop: bool
) -> list[str]:
    from exporter.own_proteins import read_sequences
    from runtime.readers.records import RecordOptions

    options = RecordOptions(unknown, upper, strip_stop)
    return read_sequences(fasta, options, on_error == "skip", _warn)


def _formats(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ExportError(f"--layers takes numbers separated by commas, got {text!r}") from None


def _show(lines: list[str]) -> None:
    *lines, verdict = lines
    for line in lines:
        say(line, fg="red" if "FAILED" in line or "ACCEPTED" in line else None)
    say(verdict, fg="green" if verdict == "PASSED" else "red", bold=True)


def _warn(message: str) -> None:
    say(message, err=True, fg="yellow", bold=True)


if __name__ == "__main__":
    main()
