"""What a graph gives its attention: the nodes that compute it are cut out and run.

They depend on the inputs alone, so nothing of the weights is needed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime

from exporter.formats.format import Observed
from exporter.formats.onnx.attention import OP_TYPE, PACKED_OP_TYPE, ROTARY_OP_TYPE
from runtime.engines.onnx.cpu import open_session, session_options
from runtime.engines.onnx.on_card import places_of
from runtime.manifest_schema import Manifest
from runtime.packing import PackedBatch
from runtime.pooling import Pool

# Of the rows that a graph for pooling is shown: no column knows of another.
COLUMNS = 16


@contextmanager
def observe(
    folder: Path, manifest: Manifest, batch: PackedBatch, engine: str
) -> Iterator[Observed]:
    """See ``Format.observe``: of ``esm2::VarlenAttention`` or ONNX Runtime's packed attention."""
    model = onnx.load(folder / manifest.engines[engine].file, load_external_data=False)
    positions = positions_of(model)
    calls = [n.input[3:5] for n in model.graph.node if n.op_type in (OP_TYPE, ROTARY_OP_TYPE)]
    packed = [(n.input[5], n.input[4]) for n in model.graph.node if n.op_type == PACKED_OP_TYPE]
    values = evaluate(model, [*positions, *(name for c in [*calls, *packed] for name in c)], batch)
    yield Observed(
        positions=[values[name] for name in positions],
        calls=[
            *((values[bounds].tolist(), int(values[longest])) for bounds, longest in calls),
            *((values[bounds].tolist(), values[offset].shape[1]) for bounds, offset in packed),
        ],
        token_offsets=[values[name] for name in dict.fromkeys(offset for _, offset in packed)],
        pooled=_pooled(folder, manifest, batch, engine),
    )


def _pooled(
    folder: Path, manifest: Manifest, batch: PackedBatch, engine: str
) -> list[tuple[Pool, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """What an engine's graph for pooling makes of random rows, on the CPU; NaN in one of them."""
    file = manifest.engines[engine].pooling
    if file is None:
        return []
    rng = np.random.default_rng(batch.num_tokens)
    rows = rng.standard_normal((batch.num_tokens, COLUMNS)).astype(manifest.dtype)
    rows[rng.integers(batch.num_tokens)] = np.nan
    session = open_session(folder / file, session_options(1, "cpu"), None)
    return [
        (how, rows, session.run(None, {"rows": rows, **places_of(batch.cu_seqlens, how)})[0])
        for how in get_args(Pool)
        if how != "none"
    ]


def positions_of(model: onnx.ModelProto) -> list[str]:
    """The names of what is multiplied with the rotary frequencies."""
    return [
        node.input[1 - list(node.input).index("inv_freq")]
        for node in model.graph.node
        if node.op_type == "Mul" and "inv_freq" in node.input
    ]


def evaluate(
    model: onnx.ModelProto, names: Sequence[str], batch: PackedBatch
) -> dict[str, np.ndarray[Any, Any]]:
    """Values of a graph by their names, for one pack."""
    names = list(dict.fromkeys(names))
    graph = model.graph
    needed = set(names)
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.insert(0, node)
            needed.update(node.input)
    probes = [onnx.helper.make_node("Identity", [name], [f"probe_{name}"]) for name in names]
    cut = onnx.helper.make_graph(
        [*nodes, *probes],
        "internals",
        graph.input,
        [onnx.ValueInfoProto(name=probe.output[0]) for probe in probes],
        [tensor for tensor in graph.initializer if tensor.name in needed],
    )
    program = onnx.helper.make_model(
        cut, opset_imports=model.opset_import, ir_version=model.ir_version,
        functions=[f for f in model.functions if f.name in {node.op_type for node in nodes}],
    )  # fmt: skip
    session = onnxruntime.InferenceSession(
        program.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {
        "input_ids": batch.input_ids,
        "cu_seqlens": batch.cu_seqlens,
        "max_seqlen": np.array(batch.max_seqlen, dtype=np.int64),
    }
    return dict(zip(names, session.run(None, feeds), strict=True))
