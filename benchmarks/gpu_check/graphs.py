"""Do CUDA graphs give the answers of the same engine without them? For packs that share a graph."""

from pathlib import Path

import numpy as np

from benchmarks.gpu_check.results import Status
from runtime import load
from runtime import manifest as manifests
from runtime.packing import PackedBatch

# Two packs of one bucket (16 proteins, 512 tokens, 192 of the longest): the first call captures,
# the others replay; what was left of one would be in the answer of the next.
LENGTHS = ((150, 9, 60, 100, 120), (60, 180, 33, 150, 7, 20))
ORDER = (0, 1, 0)
# The kernels see other shapes, for graphs fill packs up; what is stale or lost is off by about 1.
MAX_RELATIVE_L2 = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def check_graphs(folder: Path, engine: str, device: str) -> tuple[Status, str]:
    """Runs packs with and without graphs.

    Args:
        folder: the artifact.
        engine: its format, one that PyTorch runs.
        device: ``cuda`` or ``cpu``; there the same code runs without graphs.

    Returns:
        A status and, unless it passed, the reason.
    """
    random = np.random.default_rng(0)
    packs = [
        PackedBatch.from_tokens([random.integers(4, 24, length) for length in lengths])
        for lengths in LENGTHS
    ]
    with load(folder, engine, device, check_files=False) as plain:
        expected = [plain.run(pack).tensors for pack in packs]
    limit = MAX_RELATIVE_L2[manifests.read(folder, check_files=False).dtype]
    on_card = device == "cuda"
    with load(folder, engine, device, cuda_graphs=on_card, check_files=False) as graphed:
        for turn, number in enumerate(ORDER, start=1):
            for name, found in graphed.run(packs[number]).tensors.items():
                truth = expected[number][name].astype(np.float64)
                error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
                if not error <= limit:
                    return "failed", (
                        f"{name} of pack {turn} with graphs is {error:.1e} (relative L2) from that "
                        f"without, expected at most {limit:g}"
                    )
    return ("passed", "") if on_card else ("not run", "graphs need a card; the packs ran")
