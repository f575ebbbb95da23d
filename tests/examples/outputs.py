"""What a program of ``examples/`` wrote, against Python and the artifact's golden answers."""

from pathlib import Path

import numpy as np

import runtime
from runtime import manifest as manifests
from runtime.golden import read_golden
from runtime.manifest_schema import EMBEDDING
from runtime.packing import PackedBatch
from runtime.selftest import all_outputs

EXAMPLES = Path(__file__).parents[2] / "examples"


# Text, and what the program says of it in one line.
BAD_FASTA = [
    (">a\nMKJ\n", "record 'a': position 3 is not a residue of ESM-2's alphabet"),
    (">a b\nMK\nL<pad>\n", "record 'a': position 4 is not a residue"),
    (">a\nMk\n", "record 'a': position 2"),
    (">a\n", "record 'a' holds no residues"),
    (">a\n>b\nMK\n", "record 'a' holds no residues"),
    ("MK\n", "is not FASTA"),
    ("\n", "holds no proteins"),
]


def write_fasta(path: Path, sequences: tuple[str, ...]) -> Path:
    """Descriptions and wrapped lines are there to be read."""
    records = []
    for i, sequence in enumerate(sequences):
        # An inline token stays whole: the end of "<mask>" alone would begin a record.
        head, mask, tail = sequence.partition("<")
        records.append(f">protein{i} described\n{head}\n\n{mask}{tail}\r\n")
    path.write_text("".join(records), newline="")
    return path


def golden_sequences(artifact: Path) -> tuple[str, ...]:
    return read_golden(artifact, manifests.read(artifact)).sequences


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected))


def compare(folder: Path, artifact: Path, engine: str) -> dict[str, float]:
    """The relative L2 distance of every output in ``folder`` to Python's ``engine``.

    Also holds every output to the artifact's golden float64 answers and their limits.
    """
    manifest = manifests.read(artifact)
    golden = read_golden(artifact, manifest)
    batch = PackedBatch.from_sequences(golden.sequences)
    with runtime.load(artifact, engine) as loaded:
        python = all_outputs(loaded, loaded.run(batch), batch, manifest)
    assert python.keys() == manifest.golden.limits.keys()
    distances = {}
    for name, expected in python.items():
        is_pooled = manifest.rows_of(name) == "proteins"
        actual = np.load(folder / ("embeddings.npy" if name == EMBEDDING else f"{name}.npy"))
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), name
        answer = golden.answers[name]
        error = relative_l2(actual if is_pooled else actual[golden.rows], answer)
        assert error <= manifest.golden.limits[name], f"{name}: relative L2 {error:.1e}"
        distances[name] = relative_l2(actual, expected)
    return distances
