"""``make cuda-check``: what engines for CUDA would ask of a card, by the real libraries.

A stand-in for CUDA runs the host code of onnxruntime-gpu and of PyTorch's build for CUDA on any
machine: where nodes are placed, launches, copies and waits are real, the kernels do nothing. It
says nothing about numbers or speed.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from unittest import mock

import click

from exporter.build import build
from exporter.build_options import BuildOptions
from exporter.formats.format import TORCH_LIBRARY
from exporter.formats.onnx import cuda as onnx_cuda
from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import WeightsSource, load_reference
from exporter.publish import writable_copy
from runtime.engines.onnx.cpu import OLDEST_ON_CUDA
from tests.conftest import save_checkpoint
from tests.cuda import arena, cards, wheels
from tests.cuda.forward import BEGIN, END

OLDEST = ".".join(map(str, OLDEST_ON_CUDA)) + ".0"
NEWEST = "1.31.1"
TORCH = "2.13.0"
# Layers, columns, heads: head dims 64, with every kernel that we ask for, and 16, without rotary's.
MODELS = {"head dim 64": (2, 192, 3), "head dim 16": (2, 64, 4)}
DTYPES = ("float16", "float32")
# One more than the grid of a kernel can have in its second dimension.
TOKENS = (4096, 65_536)
# What ONNX Runtime keeps on the CPU: sizes.
SIZES = {"Concat", "Mul", "Squeeze"}
ATTENTION = re.compile(r"flash_fwd_kernel|attention_kernel_batched")
TO_CARD, TO_HOST = re.compile(r"cudaMemcpy.* H2D"), re.compile(r"cudaMemcpy.* D2H (\d+)")


@dataclass(frozen=True)
class Forward:
    """What one forward asked for.

    Attributes:
        on_the_cpu: ops that were placed there.
        calls: of CUDA, in their order: what, and its arguments.
        vectors: bytes of what was asked for.
    """

    on_the_cpu: list[str]
    calls: list[str]
    vectors: int

    def problems(self, graphs: int) -> list[str]:
        """What a card would lose time with, or refuse; between two graphs the host waits once."""
        found = [f"{op} on the CPU" for op in self.on_the_cpu if op not in SIZES]
        fetched = [int(copy[1]) for copy in map(TO_HOST.search, self.calls) if copy]
        if fetched != [self.vectors]:
            found.append(f"copies to the host of {fetched} bytes, expected {self.vectors}, once")
        found += [call for call in self.calls if "BAD LAUNCH" in call]
        work = [place for place, call in enumerate(self.calls) if _is_work(call)]
        inside = self.calls[work[0] : work[-1]]
        steps = [_is_work(call) for call in inside if _is_work(call) or "Synchronize" in call]
        waits = sum(before and not after for before, after in pairwise(steps))
        if waits != graphs - 1:
            found.append(f"the host waits {waits} times inside, expected {graphs - 1}")
        layers = [place for place, call in enumerate(self.calls) if ATTENTION.search(call)]
        if len(layers) < 2:
            return [*found, f"{len(layers)} times flash or memory-efficient attention, expected 2"]
        between = self.calls[layers[0] : layers[1]]
        return found + [f"{call} in a layer" for call in between if TO_CARD.search(call)]

    @property
    def copies_to_the_card(self) -> int:
        """Token ids, boundaries, and what old versions upload of an op's arguments."""
        return sum(bool(TO_CARD.search(call)) for call in self.calls)

    @property
    def launches(self) -> int:
        """Of kernels and products."""
        return sum(map(_is_work, self.calls))

    @property
    def launches_of_a_layer(self) -> int:
        """From one attention to the next."""
        work = [call for call in self.calls if _is_work(call)]
        places = [place for place, call in enumerate(work) if ATTENTION.search(call)]
        return places[1] - places[0] if len(places) > 1 else 0


def _is_work(call: str) -> bool:
    return call.startswith(("launch", "cublas"))


def forward(place: Path, artifact: Path, engine: str, num_tokens: int, **variables: str) -> Forward:
    """One by the runtime, in a process of its own."""
    ran = _run(place, "forward", artifact, engine, num_tokens, **variables)
    vectors, ops = ran.stdout.splitlines()[-2:]
    return Forward([op for op in ops.split(",") if op], _calls(ran), int(vectors))


def _calls(ran: subprocess.CompletedProcess[str]) -> list[str]:
    log = ran.stderr.partition(BEGIN)[2].partition(END)[0]
    return [line.removeprefix("CUDA ") for line in log.splitlines() if line.startswith("CUDA ")]


def _run(
    place: Path, module: str, *given: object, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A module of this package with the packages of ``place``.

    Raises:
        RuntimeError: it failed; its last lines.
    """
    command = [sys.executable, "-m", f"tests.cuda.{module}", *map(str, given)]
    environment = {**os.environ, **wheels.environment(place), **variables}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ran.returncode:
        said = ran.stderr.splitlines()[-3:]
        raise RuntimeError("\n".join([f"{module}: exit status {ran.returncode}", *said]))
    return ran


@dataclass
class Check:
    """Forwards that were looked at.

    Attributes:
        failed: whether a card would wait, copy or refuse in one.
        layers: a line for each engine and graph: launches, and values read and written.
    """

    failed: bool = False
    layers: list[str] = field(default_factory=list)

    def look(
        self, what: str, place: Path, artifact: Path, engine: str, num_tokens: int,
        graphs: int = 1, **variables: str,
    ) -> int:  # fmt: skip
        """One forward; says what it asked for, and gives the launches of a layer."""
        seen = forward(place, artifact, engine, num_tokens, **variables)
        self._tell(
            f"{what}, {num_tokens} tokens: {seen.launches} launches, "
            f"{seen.launches_of_a_layer} of a layer, {seen.copies_to_the_card} copies to the card",
            seen.problems(graphs),
        )
        return seen.launches_of_a_layer

    def card(self, what: str, place: Path, artifact: Path, engine: str, **variables: str) -> None:
        """Looks whether an engine keeps to its card, and says in a line that there is none."""
        two = {"CUDA_STAND_IN_CARDS": "2", "CUDA_STAND_IN_LOG": "1", **variables}
        problems = cards.problems(_run(place, "cards", artifact, engine, **two).stderr)
        said = _run(place, "cards", artifact, engine, **variables).stdout.splitlines()
        if len(said) != 1:
            problems.append(f"{len(said)} lines where there is no {cards.DEVICE}")
        self._tell(f"{what} on {cards.DEVICE} of two cards", problems)

    def hold(self, what: str, place: Path, artifact: Path) -> None:
        """Packs of many sizes; says what the arena asked for."""
        asked, problems = arena.problems(_run(place, "arena", artifact).stderr)
        self._tell(f"{what}, packs of {len(arena.SIZES)} sizes: {asked}", problems)

    def layer(
        self, what: str, place: Path, artifact: Path, engine: str, values: str = "",
        **variables: str,
    ) -> None:  # fmt: skip
        """Looks, and adds a line to the table."""
        for num_tokens in TOKENS:
            launches = self.look(what, place, artifact, engine, num_tokens, **variables)
        if not values:
            values = _run(place, "traffic", artifact, engine, **variables).stdout.split()[-1]
        self.layers.append(f"{what:45}{launches:10}{values:>12}")

    def at_most(self, limit: float, what: str, place: Path, module: str, artifact: Path,
                engine: str, **variables: str) -> None:  # fmt: skip
        """A module of this package that prints a ratio."""
        ratio = float(_run(place, module, artifact, engine, **variables).stdout.split()[-1])
        problems = [] if ratio <= limit else ["failed"]
        self._tell(f"{engine}, {what}: {ratio:.2f}, at most {limit:g}", problems)

    def fetched(self, place: Path, artifact: Path, engine: str, **variables: str) -> None:
        """Of all that an engine gives, what is wanted alone comes to the host."""
        ran = _run(place, "fetched", artifact, engine, **variables)
        copies = [int(copy[1]) for copy in map(TO_HOST.search, _calls(ran)) if copy]
        wanted = int(ran.stdout.split()[-1])
        problems = [] if sum(copies) == wanted else [f"{sum(copies)} bytes, expected {wanted}"]
        self._tell(f"{engine}, two vectors of a protein, then logits", problems)

    def native(self, place: Path, library: Path) -> None:
        """The op of hosts in C++ runs PyTorch's flash kernel, and nothing beside it."""
        ran = _run(place, "native", library)
        work = [call for call in _calls(ran) if not call.startswith("cudaMalloc")]
        passed = len(work) == 1 and "flash_fwd" in work[0]
        problems = [] if passed else [f"expected one launch of flash_fwd, got {work}"]
        self._tell(f"esm2::varlen_attention outside Python, {ran.stdout.strip()}", problems)

    def _tell(self, what: str, problems: Sequence[str]) -> None:
        self.failed = self.failed or bool(problems)
        click.echo(f"{what}: {'; '.join(problems) or 'passed'}")


def proven(
    folder: Path, name: str, shape: tuple[int, int, int], dtype: str, pool: str | None = "mean"
) -> Path:
    """An artifact with ``torchscript`` and ``onnx-cuda``, of random weights, in ``folder``."""
    checkpoint = save_checkpoint(folder / f"{name}.pt", shape)
    artifact = folder / f"{name}, {dtype}, {pool}"
    source = WeightsSource("checkpoint", str(checkpoint))
    targets = ("torchscript", "onnx-cuda")
    build(BuildOptions(source, targets, pool=pool, dtype=dtype, out=artifact), lambda line: None)
    return artifact


def in_standard_ops(artifact: Path, checkpoint: Path, out: Path) -> Path:
    """A copy whose ``onnx-cuda`` has no fused kernels but attention, as before them."""
    writable_copy(artifact, out)
    packed = PackedESM2(
        load_reference(WeightsSource("checkpoint", str(checkpoint))).model, (2,), "mean"
    )
    with mock.patch.object(onnx_cuda, "fuse", lambda model, *_: model):
        onnx_cuda.export(packed.half(), out)
    return out


@click.command()
@click.option("--versions", default=f"{OLDEST},{NEWEST}", show_default=True, help="Of the wheel.")
@click.option("--torch", default=TORCH, show_default=True, help="Its version; empty skips it.")
@click.option(
    "--cache",
    default=Path("build/cuda"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the unpacked wheels, about 500 MB and, PyTorch, 1.1 GB.",
)
def main(versions: str, torch: str, cache: Path) -> None:
    """Run the engines for CUDA on a stand-in for it and count what they ask for.

    Exits with 1 where a card would wait, copy or refuse.
    """
    places = {version: wheels.onnxruntime_gpu(version, cache) for version in versions.split(",")}
    newest = places[versions.split(",")[-1]]
    check = Check()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        artifacts = {
            (model, dtype): proven(folder, model, shape, dtype)
            for model, shape in MODELS.items()
            for dtype in DTYPES
        }
        for (model, dtype), artifact in artifacts.items():
            for version, place in places.items():
                for num_tokens in TOKENS:
                    what = f"onnxruntime-gpu {version}, {model}, {dtype}"
                    check.look(what, place, artifact, "onnx-cuda", num_tokens)
        of_650m, of_8m = (artifacts[model, "float16"] for model in MODELS)
        # Built without --pool: another graph pools, on the card.
        unpooled = proven(folder, "unpooled", MODELS["head dim 64"], "float16", None)
        for version, place in places.items():
            what = f"onnxruntime-gpu {version}, pooled by a graph of its own"
            check.look(what, place, unpooled, "onnx-cuda", TOKENS[0], graphs=2)
            for built, artifact in {"--pool mean": of_650m, "no --pool": unpooled}.items():
                check.hold(f"onnxruntime-gpu {version}, {built}", place, artifact)
        checkpoint = folder / f"{next(iter(MODELS))}.pt"
        before = in_standard_ops(of_650m, checkpoint, folder / "standard")
        check.layer("onnx-cuda in standard ops", newest, before, "onnx-cuda")
        check.layer("onnx-cuda, head dim 16", newest, of_8m, "onnx-cuda")
        check.layer("onnx-cuda, head dim 64", newest, of_650m, "onnx-cuda")
        check.card("onnx-cuda", newest, of_650m, "onnx-cuda")
        check.fetched(newest, of_650m, "onnx-cuda")
        if torch:
            place = wheels.torch_cuda(torch, cache)
            check.native(place, of_650m / "lib" / TORCH_LIBRARY)
            # What Triton compiles here is for no card.
            kernels = {"TRITON_CACHE_DIR": str(folder / "triton")}
            none = {"CC": "false", "TRITON_CACHE_DIR": str(folder / "no compiler")}
            check.layer("torchscript without Triton", place, of_650m, "torchscript", **none)
            check.layer("torchscript", place, of_650m, "torchscript", **kernels)
            check.card("torchscript", place, of_650m, "torchscript", **kernels)
            compiled = folder / "aoti"
            writable_copy(of_650m, compiled)
            values = _run(place, "compile", compiled, checkpoint, **kernels).stdout.split()[-1]
            check.layer("aoti-cuda", place, compiled, "aoti-cuda", values, **kernels)
            check.card("aoti-cuda", place, compiled, "aoti-cuda", **kernels)
            for engine, artifact in (("torchscript", of_650m), ("aoti-cuda", compiled)):
                memory = "memory of 12 CUDA graphs over that of the largest"
                check.at_most(1.5, memory, place, "graphs", artifact, engine, **kernels)
                check.fetched(place, artifact, engine, **kernels)
                time = "time of packs over that of waiting for the card"
                check.at_most(0.8, time, place, "overlap", artifact, engine, **kernels)
    click.echo(f"\nOne layer in float16:{'':24}{'launches':>10}{'E values':>12}")
    click.echo("\n".join(check.layers))
    sys.exit(int(check.failed))


if __name__ == "__main__":
    main()
