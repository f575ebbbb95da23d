"""A report for a terminal: the gate as a table, benchmarks, aims, and what did not run."""

from collections.abc import Iterable

from benchmarks.gpu_check.results import Report, Step
from benchmarks.gpu_check.summary import aims_of, counts, is_passed
from benchmarks.report.terminal import model_lines


def table(report: Report) -> str:
    """Some forty lines."""
    machine = report.machine
    lines = [
        f"{machine.name}, compute capability {machine.compute_capability}, driver "
        f"{machine.driver}, torch {machine.versions.get('torch', 'none')}, {report.date}",
        *_rates(report.steps),
        "",
        *_kernels(report.steps),
        "",
        *_gates(report.steps),
    ]
    for step in report.steps:
        if step.kind == "benchmark":
            lines += ["", *_benchmark(step)]
    aims = [
        f"  {aim.model}: {aim.what} {_number(aim.reached, '.2f')}, aim {aim.wanted:g}: "
        f"{aim.verdict}"
        for aim in aims_of(report)
    ]
    if aims:
        lines += ["", "aims, half precision", *aims]
    reasons = [
        f"  {step.kind} {step.name}: {step.status}: {step.reason}"
        for step in report.steps
        if step.status != "passed"
    ]
    if reasons:
        lines += ["", "not passed", *reasons]
    counted = ", ".join(f"{number} {status}" for status, number in counts(report).items())
    verdict = "PASSED" if is_passed(report) else "FAILED"
    return "\n".join([*lines, "", f"{verdict}: {counted}, {report.took_minutes:.1f} min"])


def _rates(steps: Iterable[Step]) -> list[str]:
    return [
        f"matrix rate, {rates.product}: {rates.cold / 1e12:,.2f} TFLOP/s cold, "
        f"{rates.warm / 1e12:,.2f} after {rates.burn_s:g} s of work"
        for step in steps
        if (rates := step.rates)
    ]


def _kernels(steps: Iterable[Step]) -> list[str]:
    row = "{:<26} {:<9} {:>12} {:>10}  {}"
    lines = [row.format("attention", "", "relative L2", "x standard", "kernel")]
    for step in steps:
        if step.kind == "attention":
            measured = step.kernel
            lines.append(
                row.format(
                    f"{step.engine} {step.dtype}",
                    step.status,
                    f"{measured.worst_relative_l2:.1e}" if measured else "",
                    f"{measured.worst_ratio_to_standard:.2f}" if measured else "",
                    measured.name if measured else "",
                ).rstrip()
            )
    return lines


def _gates(steps: Iterable[Step]) -> list[str]:
    steps = list(steps)
    others = {(s.kind, s.name): s.status for s in steps}
    row = "{:<26} {:<9} {:>12} {:>9}  {:<32} {:<13} {:<8} {}"
    heads = "relative L2", "x eager", "attention", "no host wait", "graphs", "C++"
    lines = [row.format("gate", "", *heads)]
    for step in steps:
        if step.kind != "gate":
            continue
        parity = step.parity
        lines.append(
            row.format(
                step.name,
                step.status,
                f"{parity.worst_relative_l2:.1e}" if parity else "",
                f"{parity.worst_ratio_to_eager:.2f}" if parity else "",
                parity.attention if parity else "",
                others.get(("synchronisation", step.name), ""),
                others.get(("graphs", step.name), ""),
                others.get(("c++", step.name), ""),
            ).rstrip()
        )
    return lines


def _benchmark(step: Step) -> list[str]:
    if step.benchmark is None:
        return [f"{step.name}: {step.status}: {step.reason}"]
    return [f"=== {step.name} ===", *model_lines(step.benchmark)]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
