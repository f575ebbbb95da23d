"""One forward of an engine by the runtime, its calls of CUDA between two lines of stderr.

``python -m tests.cuda.forward ARTIFACT ENGINE TOKENS``, with the stand-in's libraries for the
dynamic linker to find.
"""

import ctypes
import sys
from pathlib import Path

import click
import numpy as np

import runtime
from runtime.packing import PackedBatch

BEGIN, END = "--- forward", "--- end"
LENGTH = 300


def pack(num_tokens: int) -> PackedBatch:
    """Proteins of ``LENGTH`` tokens, the last one shorter."""
    starts = range(0, num_tokens, LENGTH)
    return PackedBatch.from_tokens(
        [np.full(min(LENGTH, num_tokens - start), 5, dtype=np.int64) for start in starts]
    )


def on_the_cpu(graph: Path) -> list[str]:
    """Ops that ONNX Runtime would not run on the card."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(graph, options, providers=["CUDAExecutionProvider"])
    return [
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != "CUDAExecutionProvider"
        for node in part.get_nodes()
    ]


def main() -> None:
    """Prints the bytes of the vectors and the ops on the CPU; the log of the second forward goes to
    stderr.
    """
    folder, name, num_tokens = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    # Engines are put into artifacts that were proven without them.
    engine = runtime.load(folder, name, "cuda", check_files=False)
    batch = pack(num_tokens)
    last = engine.spec.layers[-1]
    engine.embed(batch, last, "mean")
    ctypes.CDLL(None).setenv(b"CUDA_STAND_IN_LOG", b"1", 1)
    click.echo(BEGIN, err=True)
    vectors = engine.embed(batch, last, "mean")
    click.echo(END, err=True)
    ctypes.CDLL(None).setenv(b"CUDA_STAND_IN_LOG", b"0", 1)
    graphs = sorted(folder.glob("*.ort-cuda.onnx")) if name == "onnx-cuda" else []
    click.echo(vectors.nbytes)
    click.echo(",".join(op for graph in graphs for op in on_the_cpu(graph)))


if __name__ == "__main__":
    main()
