"""``examples/cpp`` on this machine: built by CMake, and its answers against eager fair-esm's."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_check.results import Status
from exporter.formats.native import CompilerError, compiler_command, telling_line
from runtime import manifest as manifests
from runtime.golden import read_golden
from runtime.manifest_schema import EMBEDDING

SOURCE = Path(__file__).parents[2] / "examples" / "cpp"


class NoProgramError(Exception):
    """What the program is built with is missing, or failed; the message is one sentence."""


def build(folder: Path, options: Sequence[str] = ()) -> Path:
    """The program ``embed``, about 40 s of one core.

    Raises:
        NoProgramError: there is no CMake, compiler or nlohmann/json, or it does not compile.
    """
    beside = Path(sys.executable).with_name("cmake")
    cmake = shutil.which("cmake") or (str(beside) if beside.exists() else None)
    if cmake is None:
        raise NoProgramError("cmake is not installed")
    try:
        compiler_command()
    except CompilerError as error:
        raise NoProgramError(str(error)) from None
    json = importlib.util.find_spec("nlohmann_json")
    places = [str(Path(torch.__file__).parent), *(json and json.submodule_search_locations or ())]
    prefix = f"-DCMAKE_PREFIX_PATH={';'.join(places)}"
    for arguments in (
        ["-S", str(SOURCE), "-B", str(folder), prefix, "-DCMAKE_BUILD_TYPE=None", *options],
        ["--build", str(folder)],
    ):
        ran = subprocess.run([cmake, *arguments], capture_output=True, text=True)
        if ran.returncode:
            raise NoProgramError(f"examples/cpp was not built: {telling_line(ran.stderr)}")
    return folder / "embed"


def check_answers(program: Path, folder: Path, engine: str, device: str) -> tuple[Status, str]:
    """Runs an artifact's golden proteins; each output must keep its limit, as in ``selftest``.

    Args:
        program: what ``build`` gave.
        folder: the artifact.
        engine: one that PyTorch runs.
        device: ``cuda`` or ``cpu``.

    Returns:
        A status and, unless it passed, the reason.
    """
    manifest = manifests.read(folder, check_files=False)
    golden = read_golden(folder, manifest)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        fasta = out / "golden.fasta"
        fasta.write_text("".join(f">protein\n{sequence}\n" for sequence in golden.sequences))
        command = [str(program), str(folder), str(fasta), str(out), engine, device]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            return "failed", telling_line(ran.stderr or f"exit status {ran.returncode}")
        for name, limit in manifest.golden.limits.items():
            found = np.load(out / ("embeddings.npy" if name == EMBEDDING else f"{name}.npy"))
            rows = found if manifest.rows_of(name) == "proteins" else found[golden.rows]
            truth = golden.answers[name]
            error = np.linalg.norm(rows.astype(np.float64) - truth) / np.linalg.norm(truth)
            if not error <= limit:
                return "failed", f"{name}: relative L2 {error:.1e}, expected at most {limit:.1e}"
    return "passed", ""
