"""Does the host wait for the card inside a forward? Inputs are on the card, outputs stay there.

PyTorch raises on every operation that waits, if asked to. ONNX Runtime does not; but what it has to
fetch to the host in the middle of a graph is a Memcpy node of the graph that it runs.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.gpu_check.engines import ENGINES
from benchmarks.gpu_check.results import Status
from benchmarks.workload import WORKLOADS
from runtime import load
from runtime import manifest as manifests
from runtime.engines.torch.engine import TorchEngine
from runtime.packing import PackedBatch

TOKENS = 2_048
# Half a second of an H100, in which a host launches a forward many times over; few products, for a
# host waits in any case when about a thousand kernels are queued.
WIDTH, PRODUCTS = 16_384, 40
MAX_QUEUED = 900


def look_for_waits(folder: Path, engine: str, device: str) -> tuple[Status, str]:
    """Runs one forward of mixed lengths, or looks at its graph.

    Args:
        folder: the artifact.
        engine: its format.
        device: ``cuda`` or ``cpu``; there the same code runs and proves nothing.

    Returns:
        A status and, unless it passed, the reason.
    """
    way = ENGINES[engine].waits
    if way == "no way":
        return "not run", "PyTorch, which would report waits, does not run this engine"
    if way == "in the graph":
        return _in_graph(folder, engine, device)
    with load(folder, engine, device, check_files=False) as loaded:
        assert isinstance(loaded, TorchEngine)
        return _in_forward(loaded, device)


def _in_forward(engine: TorchEngine, device: str) -> tuple[Status, str]:
    import torch

    inputs = engine.inputs(_batch())
    engine.forward(inputs)  # libraries start, which waits
    if device == "cpu":
        return "not run", "PyTorch reports waits for a card alone; the forward itself ran"
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.forward(inputs)
    except RuntimeError as error:
        return "failed", f"the host waits: {str(error).strip().splitlines()[0]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return _behind_work(lambda: engine.forward(inputs))


def _behind_work(forward: Callable[[], object]) -> tuple[Status, str]:
    """Forwards are queued while the card is busy with something else: two, if the queue holds them.

    PyTorch does not see waits of code that it did not generate, as AOTInductor's runner.
    """
    import torch

    from benchmarks.gpu_check.profiling import kernels_of

    launches = sum(kernel.calls for kernel in kernels_of(forward))
    forwards = 2 if 2 * launches + PRODUCTS <= MAX_QUEUED else 1
    a = torch.randn(WIDTH, WIDTH, device="cuda", dtype=torch.float16)
    out = torch.empty_like(a)
    torch.mm(a, a, out=out)
    torch.cuda.synchronize()
    for _ in range(PRODUCTS):
        torch.mm(a, a, out=out)
    busy = torch.cuda.Event()
    busy.record()
    started = time.perf_counter()
    for number in range(1, forwards + 1):
        forward()
        if busy.query():
            took = 1000 * (time.perf_counter() - started)
            torch.cuda.synchronize()
            return "failed", (
                f"forward {number}, of {launches} kernels, behind {PRODUCTS} products of {WIDTH:,} "
                f"wide matrices, came back after {took:.0f} ms, when those were done: it waited"
            )
    torch.cuda.synchronize()
    return "passed", ""


def _in_graph(folder: Path, engine: str, device: str) -> tuple[Status, str]:
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    path = folder / manifests.read(folder, check_files=False).engines[engine].file
    nodes = optimised_nodes(path, provider)
    if device == "cpu":
        return "not run", "the graph for CPUs has nothing to copy from a card; it was read"
    # Copies from the host do not wait for the card.
    if copies := nodes["MemcpyToHost"]:
        return "failed", f"onnxruntime copies {copies} tensors from the card in the graph"
    return "passed", ""


def optimised_nodes(path: Path, provider: str) -> Counter[str]:
    """How often each operator is in the graph that onnxruntime makes of ``path`` for a provider.

    Those inside loops and branches count too: they are nodes of the subgraphs.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        # Outside, for a protobuf holds 2 GB at most.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights.bin"
        )
        onnxruntime.InferenceSession(str(path), options, providers=[provider])
        model = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return _operators(model.graph)


def _operators(graph: "onnx.GraphProto") -> Counter[str]:  # noqa: F821
    found = Counter(node.op_type for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                found += _operators(inner)
    return found


def _batch() -> PackedBatch:
    random = np.random.default_rng(0)
    lengths = WORKLOADS["mixed"].draw(TOKENS)
    return PackedBatch.from_tokens([random.integers(4, 24, length) for length in lengths])
