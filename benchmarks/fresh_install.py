"""The runtime as a container has it: installed afresh with one extra, then timed and checked.

python -m benchmarks.fresh_install ARTIFACT
"""

import shutil
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from exporter.model.reference import load_original
from exporter.parity.rules.metrics import compare
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import Protein
from runtime import manifest as manifests
from runtime.manifest_schema import EMBEDDING

ROOT = Path(__file__).parents[1]
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV"
FLOAT32_BUDGET = 2e-6


@dataclass(frozen=True)
class FreshEnvironment:
    """What ``pip install '.[onnx]'`` in an empty environment gives.

    Attributes:
        installed_mb: all packages, without pip.
        packages: how many.
        import_ms: ``import runtime``, starting Python not counted.
        first_embedding_ms: the whole ``esm2-run embed`` of one protein.
        relative_l2: of that embedding against eager fair-esm in float64.
    """

    installed_mb: float
    packages: int
    import_ms: float
    first_embedding_ms: float
    relative_l2: float


def measure(artifact: Path) -> FreshEnvironment:
    """Installs, times, and compares.

    Raises:
        subprocess.CalledProcessError: the installation or the command failed.
        AssertionError: torch came along, or the embedding is outside the float32 budget.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "env"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        source = Path(folder) / "source"
        source.mkdir()
        for name in ("exporter", "runtime"):
            shutil.copytree(ROOT / name, source / name)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
        _run([*install, f"{source}[onnx]"], folder)
        site = Path(_run([python, "-c", "import numpy; print(numpy.__path__[0])"], folder)).parent
        assert not (site / "torch").exists(), "the onnx extra must not bring torch"
        fasta, output = Path(folder) / "x.fasta", Path(folder) / "x.npz"
        fasta.write_text(f">x\n{SEQUENCE}\n")
        embed = [environment / "bin" / "esm2-run", "embed", artifact.resolve(), fasta, "-o", output]
        first_embedding_ms = _best_ms(embed, folder)
        empty_ms = _best_ms([python, "-c", "pass"], folder)
        return FreshEnvironment(
            installed_mb=_size_mb(site),
            packages=len(list(site.glob("*.dist-info"))) - 2,
            import_ms=_best_ms([python, "-c", "import runtime"], folder) - empty_ms,
            first_embedding_ms=first_embedding_ms,
            relative_l2=_relative_l2(artifact, output),
        )


def _relative_l2(artifact: Path, output: Path) -> float:
    manifest = manifests.read(artifact)
    reference = load_original(artifact, manifest, None)
    pack = {"x": [Protein(SEQUENCE)]}
    layer = manifest.layers[-1]
    truth = run_eager(reference, pack, (layer,), "mean", torch.float64)["x"].tensors[EMBEDDING]
    assert truth is not None
    with np.load(output) as file:
        error = compare(file["embeddings"], truth, np.array([0, 1])).relative_l2
    assert error <= FLOAT32_BUDGET, f"relative L2 {error:.1e} is above {FLOAT32_BUDGET:.0e}"
    return error


def _size_mb(site: Path) -> float:
    skipped = ("pip", "setuptools", "_distutils_hack")
    files = (
        path
        for entry in site.iterdir()
        if not entry.name.startswith(skipped)
        for path in (entry.rglob("*") if entry.is_dir() else [entry])
    )
    return sum(path.stat().st_size for path in files if path.is_file()) / 1e6


def _best_ms(command: list[object], folder: str) -> float:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        _run(command, folder)
        seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds)


def _run(command: list[object], folder: str) -> str:
    arguments = [str(argument) for argument in command]
    result = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.stderr.write(result.stderr)
    result.check_returncode()
    return result.stdout.strip()


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
def main(artifact: Path) -> None:
    """Install the runtime with ONNX Runtime into an empty environment, and embed a protein."""
    fresh = measure(artifact)
    click.echo(
        f"installed          {fresh.installed_mb:,.0f} MB, {fresh.packages} packages\n"
        f"import runtime     {fresh.import_ms:,.0f} ms\n"
        f"first embedding    {fresh.first_embedding_ms:,.0f} ms, process start included\n"
        f"its relative L2    {fresh.relative_l2:.1e} against eager fair-esm in float64"
    )


if __name__ == "__main__":
    main()
