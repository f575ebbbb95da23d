"""``make cuda-check``: what ``onnx-cuda`` would ask of a card, by the real onnxruntime-gpu.

A stand-in for CUDA runs its host code on any machine: where nodes are placed, launches, copies and
waits are real, the kernels do nothing. It says nothing about numbers or speed.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import click

from exporter.build import BuildOptions, build
from exporter.model.reference import WeightsSource
from runtime.engines.onnx.cpu import OLDEST_ON_CUDA
from tests.conftest import save_checkpoint
from tests.cuda import build as stand_in
from tests.cuda.forward import BEGIN, END

OLDEST = ".".join(map(str, OLDEST_ON_CUDA)) + ".0"
NEWEST = "1.31.1"
HEADERS = ("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-crt==13.0.88")
# Layers, columns, heads: head dims 64, with every kernel that we ask for, and 16, without rotary's.
MODELS = {"head dim 64": (2, 128, 2), "head dim 16": (2, 64, 4)}
DTYPES = ("float16", "float32")
# One more than the grid of a kernel can have in its second dimension.
TOKENS = (4096, 65_536)
# What ONNX Runtime keeps on the CPU: sizes.
SIZES = {"Concat", "Mul", "Squeeze"}
ATTENTION = re.compile(r"flash_fwd_kernel|attention_kernel_batched")
TO_CARD, TO_HOST = re.compile(r"cudaMemcpy.* H2D"), re.compile(r"cudaMemcpy.* D2H")


@dataclass(frozen=True)
class Forward:
    """What one forward asked for.

    Attributes:
        on_the_cpu: ops that were placed there.
        calls: of CUDA, in their order: what, and its arguments.
    """

    on_the_cpu: list[str]
    calls: list[str]

    def problems(self) -> list[str]:
        """What a card would lose time with, or refuse."""
        found = [f"{op} on the CPU" for op in self.on_the_cpu if op not in SIZES]
        fetched = sum(bool(TO_HOST.search(call)) for call in self.calls)
        if fetched != 1:
            found.append(f"{fetched} copies to the host, expected 1, of pooled vectors")
        found += [call for call in self.calls if "BAD LAUNCH" in call]
        work = [place for place, call in enumerate(self.calls) if _is_work(call)]
        inside = self.calls[work[0] : work[-1]]
        found += [f"{call} inside the forward" for call in inside if "Synchronize" in call]
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


def library(version: str, cache: Path) -> Path:
    """A folder with onnxruntime-gpu and the stand-in for it, made once."""
    place = cache / f"onnxruntime-gpu-{version}"
    if place.exists():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        aside = Path(temporary) / "made"
        wheels = aside / "wheels"
        subprocess.check_call([
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels,
            f"onnxruntime-gpu=={version}", *HEADERS,
        ])  # fmt: skip
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(aside / "packages")
            wheel.unlink()
        (include,) = aside.glob("packages/nvidia/*/include")
        provider = aside / "packages/onnxruntime/capi/libonnxruntime_providers_cuda.so"
        (aside / "lib").mkdir()
        stand_in.build(provider, include, aside / "lib")
        aside.rename(place)
    return place


def forward(place: Path, artifact: Path, num_tokens: int) -> Forward:
    """One by the runtime, in a process of its own.

    Raises:
        RuntimeError: it failed; its last lines.
    """
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(place / "lib"),
        "PYTHONPATH": os.pathsep.join([str(place / "packages"), str(Path.cwd())]),
    }
    command = [sys.executable, "-m", "tests.cuda.forward", str(artifact), str(num_tokens)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError("\n".join(ran.stderr.splitlines()[-3:]))
    log = ran.stderr.partition(BEGIN)[2].partition(END)[0]
    calls = [line.removeprefix("CUDA ") for line in log.splitlines() if line.startswith("CUDA ")]
    return Forward(ran.stdout.split()[-1].split(","), calls)


@click.command()
@click.option("--versions", default=f"{OLDEST},{NEWEST}", show_default=True, help="Of the wheel.")
@click.option(
    "--cache",
    default=Path("build/cuda"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the unpacked wheels, about 500 MB each.",
)
def main(versions: str, cache: Path) -> None:
    """Run onnx-cuda on a stand-in for CUDA and count what it asks for.

    Exits with 1 where a card would wait, copy or refuse.
    """
    places = {version: library(version, cache) for version in versions.split(",")}
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        for model, shape in MODELS.items():
            checkpoint = save_checkpoint(Path(temporary) / f"{shape[1]}.pt", shape)
            for dtype in DTYPES:
                artifact = Path(temporary) / f"{shape[1]}-{dtype}"
                source = WeightsSource("checkpoint", str(checkpoint))
                build(
                    BuildOptions(
                        source, ("torchscript", "onnx-cuda"), pool="mean", dtype=dtype, out=artifact
                    ),
                    lambda line: None,
                )
                for version, place in places.items():
                    for num_tokens in TOKENS:
                        seen = forward(place, artifact, num_tokens)
                        problems = seen.problems()
                        failed = failed or bool(problems)
                        click.echo(
                            f"onnxruntime-gpu {version}, {model}, {dtype}, {num_tokens} tokens: "
                            f"{seen.launches} launches, {seen.launches_of_a_layer} of a layer, "
                            f"{seen.copies_to_the_card} copies to the card: "
                            + ("; ".join(problems) or "passed")
                        )
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
