"""Runs the benchmarks: prints their tables, writes JSON, docs/performance.md and its plots."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.checkpoints import checkpoints_of
from benchmarks.contenders import PEER_LABELS, engines_of, peers_of
from benchmarks.correctness import Truth
from benchmarks.growth import measure_growth
from benchmarks.machines import add, instruction_sets
from benchmarks.measure import Measurement
from benchmarks.plans import PLANS, ModelPlan
from benchmarks.processes import WorkerDiedError
from benchmarks.report.document import write_document
from benchmarks.report.terminal import table
from benchmarks.results import ModelResult, Run, write
from benchmarks.summary import WRONG, headline_of, rows_of
from exporter.environment import cpu_name
from exporter.model.reference import load_original
from runtime import manifest as manifests
from runtime.threads import usable_cores

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"


@click.command()
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--plan", "plan_name", type=click.Choice(list(PLANS)), default="bench")
@click.option("--peer", "peers", multiple=True, type=click.Choice(list(PEER_LABELS)),
              help="Only this one, of all; may be given again.")  # fmt: skip
@click.option("--pip-args", default="", help="For installing the peers, such as an index.")
@click.option("--docs/--no-docs", default=False, help="Also write docs/performance.md.")
@click.option("--machine-row", is_flag=True, help="Also write docs/performance/machines.")
@click.option("--setup-only", is_flag=True, help="Install and convert, measure nothing.")
def main(
    artifacts: tuple[Path, ...], plan_name: str, peers: tuple[str, ...], pip_args: str, docs: bool,
    machine_row: bool, setup_only: bool,
) -> None:  # fmt: skip
    """Measure ARTIFACTS against their peers and the machine's limit, one plan row for each."""
    plan = PLANS[plan_name]
    if len(artifacts) > len(plan.models):
        raise click.UsageError(f"plan {plan_name!r} is for {len(plan.models)} artifacts at most")
    cores = usable_cores()
    run = Run(
        plan=plan_name,
        date=time.strftime("%Y-%m-%d %H:%M"),
        machine=f"{cores} x {cpu_name()} ({platform.machine()})",
        cores=cores,
        python=platform.python_version(),
        instructions=instruction_sets(),
        load=os.getloadavg()[0],
    )
    born = time.perf_counter()

    def say(line: str) -> None:
        click.echo(f"[{(time.perf_counter() - born) / 60:5.1f} min] {line}", err=True)

    measurements = []
    for artifact, model_plan in zip(artifacts, plan.models, strict=False):
        say(f"setting up the peers of {artifact.name}")
        measurements.append(
            set_up(artifact, model_plan, cores, peers or tuple(PEER_LABELS), pip_args, say)
        )
    if setup_only:
        return
    started = time.perf_counter()
    run.setup_s = started - born
    for artifact, measurement, model_plan in zip(
        artifacts, measurements, plan.models, strict=False
    ):
        say(f"measuring {artifact.name}")
        left = started + 60 * plan.minutes - time.perf_counter()
        deadline = time.perf_counter() + model_plan.time_share * left
        measure(artifact, measurement, model_plan, deadline, say)
        run.models.append(measurement.result)
        run.measured_s = time.perf_counter() - started
        write(run, RESULTS / f"{plan_name}.json")
    click.echo(table(run))
    if docs:
        write_document(run, DOCS)
    if machine_row:
        click.echo(add(run))
    if wrong := wrong_engines(run):
        raise click.ClickException(f"wrong after a timing: {', '.join(wrong)}")


def set_up(
    artifact: Path, plan: ModelPlan, cores: int, peers: tuple[str, ...], pip_args: str,
    say: Callable[[str], None],
) -> Measurement:  # fmt: skip
    """Environments, converted weights, the truth: what is not timed."""
    manifest = manifests.read(artifact)
    reference = load_original(artifact, manifest, None)
    result = ModelResult(
        artifact=manifest.name,
        architecture=manifest.architecture.name,
        synthetic=manifest.weights.kind == "synthetic",
    )
    entrants = [
        *peers_of(checkpoints_of(reference), cores, pip_args, peers),
        *engines_of(artifact, manifest, cores),
    ]
    truth = Truth(reference)
    architecture = manifest.architecture
    return Measurement(result, plan, entrants, truth, architecture, cores=cores, say=say)


def measure(
    artifact: Path, measurement: Measurement, plan: ModelPlan, deadline: float,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Rounds come last and take the time that the rest has left."""
    result = measurement.result
    with measurement.workers():
        measurement.search()
        measurement.latency()
        if plan.scaling:
            measurement.scaling()
        growing_s = estimated_growth_s(result, plan)
        measurement.rounds(deadline - growing_s)
    headline = headline_of(result, result.workloads["mixed"])
    if plan.growth and headline is not None:
        setting = result.workloads["mixed"].timings[headline.engine].setting
        say(f"streams of {', '.join(f'{tokens:,}' for tokens in plan.growth)} tokens")
        try:
            result.growth = measure_growth(artifact, headline.engine, setting, plan.growth)
        except WorkerDiedError as error:
            say(f"streams failed: {error}")


def wrong_engines(run: Run) -> list[str]:
    """Engines of ours that were wrong, with workload and artifact."""
    return [
        f"{row.label} ({name}, {model.artifact})"
        for model in run.models
        for name, workload in model.workloads.items()
        for row in rows_of(model, workload)
        if row.kind == "engine" and row.verdict == WRONG
    ]


def estimated_growth_s(result: ModelResult, plan: ModelPlan) -> float:
    """From what the search saw; half as much again to be safe."""
    rates = [
        max(trial.tokens_s[0] for trial in timing.search)
        for name, timing in result.workloads["mixed"].timings.items()
        if timing.search and result.contenders[name].kind == "engine"
    ]
    return 1.5 * sum(plan.growth) / max(rates) if rates else 0.0


if __name__ == "__main__":
    main()
