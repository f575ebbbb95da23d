"""``make native-check``: builds the checks with each kernel and sanitizer, and runs them."""

import os
import platform
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import click

from exporter.formats.native import (
    BASELINE,
    FLAGS,
    X86_64,
    InstructionSet,
    compiler_command,
    instruction_sets,
)
from runtime.instructions import processor_flags
from runtime.threads import usable_cores

CHECKS = ("property", "contacts_property")
NATIVE = Path(__file__).parents[2] / "runtime/ops/native"
TESTED = ("kernel.cpp", "varlen_attention.cpp", "contacts_kernel.cpp", "contacts.cpp")

SANITIZERS = ("address", "undefined", "thread")
# New memory holds NaN; the first fault ends the program.
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "max_malloc_fill_size=1000000000:malloc_fill_byte=255",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


@dataclass(frozen=True)
class Build:
    """One program: its kernel, how it is compiled and started, and how much it does.

    ``problem`` says why it cannot run here.
    """

    name: str
    kernel: InstructionSet
    flags: tuple[str, ...] = ()
    packs: int = 60
    long_packs: int = 0
    compiler: tuple[str, ...] = ()
    emulator: tuple[str, ...] = ()
    problem: str = ""


def lacking(kernel: InstructionSet) -> str:
    """Why this processor cannot run a kernel, or nothing."""
    needed = {f.removeprefix("-m") for f in kernel.flags if f.startswith("-m") and "=" not in f}
    missing = sorted(needed - (processor_flags() or set()))
    return f"this processor lacks {', '.join(missing)}" if missing else ""


def builds() -> list[Build]:
    """All programs, also those that cannot run here."""
    found = []
    for kernel in kernels():
        found.append(build_of(kernel, packs=300, long_packs=2))
        found += [build_of(kernel, sanitizer) for sanitizer in SANITIZERS]
    if platform.machine() != "aarch64":
        tools = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}
        compiler, emulator = tools
        install = " ".join(package for tool, package in tools.items() if not shutil.which(tool))
        problem = install and f"apt-get install -y --no-install-recommends {install}"
        found.append(
            Build("AArch64", BASELINE, ("-static",), 60, 0, (compiler,), (emulator,), problem)
        )
    return found


def kernels() -> list[InstructionSet]:
    """Those of this kind of machine, and the widest once more, for processors that lack it."""
    narrow, wide = X86_64[-2:]
    # With -O3 it takes the compiler 46 s: each vector becomes two.
    as_narrow = replace(wide, name=f"{wide.name} as {narrow.name}", flags=(*narrow.flags, "-O2"))
    return [*instruction_sets(), *([as_narrow] if wide in instruction_sets() else [])]


def build_of(
    kernel: InstructionSet, sanitizer: str = "", *flags: str, packs: int = 60, long_packs: int = 0
) -> Build:
    """Slower programs should have fewer packs."""
    name = f"{kernel.name}, {sanitizer}" if sanitizer else kernel.name
    if sanitizer:
        flags = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-O1", "-g1", *flags)
    return Build(name, kernel, flags, packs, long_packs, problem=lacking(kernel))


def compile_programs(
    builds: list[Build], folder: Path, pool: ThreadPoolExecutor
) -> list[Future[Path]]:
    """One for each build. The checks are compiled once, and no sanitizer slows them down."""
    checks: dict[tuple[str, ...], list[Path]] = {}
    for number, compiler in enumerate({build.compiler for build in builds}):
        checks[compiler] = [folder / f"{check}-{number}.o" for check in CHECKS]
        for check, compiled in zip(CHECKS, checks[compiler], strict=True):
            source = Path(__file__).with_name(f"{check}.cpp")
            _compile(compiler, "-std=c++17", "-O2", f"-I{NATIVE}", "-c", source, "-o", compiled)
    return [pool.submit(_compile_program, b, checks[b.compiler], folder / b.name) for b in builds]


def _compile_program(build: Build, checks: list[Path], program: Path) -> Path:
    sources = [NATIVE / name for name in TESTED]
    arguments = replace(build.kernel, name="tested").arguments
    _compile(build.compiler, *FLAGS, "-Wno-psabi", *arguments, *build.flags, *sources, *checks,
             "-pthread", "-o", program)  # fmt: skip
    return program


def _compile(compiler: tuple[str, ...], *arguments: str | Path) -> None:
    subprocess.run([*(compiler or compiler_command()), *arguments], check=True)


def run(build: Build, program: Path, seed: int) -> str:
    """What a program says; it ends with ``passed`` or with what failed, and where."""
    sizes = [str(build.packs), str(build.long_packs), str(seed)]
    result = subprocess.run(
        [*build.emulator, program, *sizes], capture_output=True, text=True, check=False,
        env={**os.environ, **SANITIZER_OPTIONS},
    )  # fmt: skip
    if result.returncode == 0:
        return f"{result.stdout}passed\n"
    last_pack = result.stderr.rfind("\npack: ") + 1
    return f"{result.stdout}{result.stderr[last_pack:]}failed: exit status {result.returncode}\n"


@click.command()
@click.option("--seed", type=int, help="Of the packs; the time, if it is not given.")
def main(seed: int | None) -> None:
    """Check the native kernels against float64; exit status 1: one failed."""
    seed = int(time.time()) if seed is None else seed
    to_run = [build for build in builds() if not build.problem]
    failed = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(usable_cores()) as pool:
        programs = compile_programs(to_run, Path(folder), pool)
        for build, program in zip(to_run, programs, strict=True):
            path, started = program.result(), time.monotonic()
            said = run(build, path, seed)
            click.echo(f"{build.name} ({time.monotonic() - started:.0f} s):\n{said}")
            if not said.endswith("passed\n"):
                failed.append(build.name)
    for build in builds():
        if build.problem:
            click.echo(f"not run: {build.name}: {build.problem}")
    click.echo(f"{len(to_run) - len(failed)} passed; failed: {'; '.join(failed) or 'none'}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
