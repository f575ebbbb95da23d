"""What an exported engine does inside: the positions it rotates by, what its attention receives.

Outputs cannot show these: attention with rotary depends on differences of positions alone, and
CPU kernels ignore ``max_seqlen``. So they are read from the running graph.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from exporter.parity.oracle import Answers
from exporter.parity.rotation import positions_in
from exporter.targets.onnx_attention import OP_TYPE
from exporter.targets.onnx_fusion import ROTARY_OP_TYPE
from exporter.targets.onnx_packed_attention import PACKED_OP_TYPE
from exporter.targets.tensorrt_names import LENGTHS, tensor_name
from runtime.manifest import Manifest
from runtime.packing import PackedBatch


@dataclass
class Internals:
    """What was seen while one pack ran.

    Attributes:
        positions: each ``[T]`` that was multiplied with the rotary frequencies.
        calls: ``(cu_seqlens, max_seqlen)`` of each call of the attention op.
        token_offsets: ``[N, max_seqlen]`` that packed attention of ONNX Runtime gets, each once.
        grids: ``sources`` ``[N, max_seqlen]`` and ``cells`` ``[T]`` by which TensorRT's graph pads
            and comes back (``exporter.targets.tensorrt_graph``), each once.
    """

    positions: list[NDArray[Any]] = field(default_factory=list)
    calls: list[tuple[list[int], int]] = field(default_factory=list)
    token_offsets: list[NDArray[Any]] = field(default_factory=list)
    grids: list[tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=list)


Observe = Callable[[Path, Manifest, PackedBatch], AbstractContextManager[Internals]]


def problems(seen: Internals, answers: Answers, num_layers: int) -> list[str]:
    """What is wrong with it, in sentences; empty if positions restart and every call is right."""
    bounds = answers.cu_seqlens.tolist()
    expected = np.concatenate([np.arange(n) for n in np.diff(bounds)])
    found = []
    if len(seen.positions) != 1:
        found.append(f"position_ids are used {len(seen.positions)} times, expected once")
    elif not np.array_equal(seen.positions[0].reshape(-1), expected):
        found.append(f"position_ids {_differing(seen.positions[0].reshape(-1), expected)}")
    if len(seen.calls) != num_layers:
        found.append(f"attention runs {len(seen.calls)} times, expected {num_layers}")
    for layer, (cu_seqlens, max_seqlen) in enumerate(seen.calls, start=1):
        if cu_seqlens != bounds:
            found.append(f"attention of layer {layer} got other cu_seqlens than the pack's")
            break
        if max_seqlen != answers.max_seqlen:
            found.append(
                f"attention of layer {layer} got max_seqlen {max_seqlen}, "
                f"expected {answers.max_seqlen}"
            )
            break
    for offsets in seen.token_offsets:
        places = token_offset_of(answers.cu_seqlens)
        if not np.array_equal(offsets, places):
            found.append(f"token_offset {_differing(offsets.reshape(-1), places.reshape(-1))}")
    for grid in seen.grids:
        for name, actual, right in zip(
            ("sources", "cells"), grid, grid_of(answers.cu_seqlens), strict=True
        ):
            if not np.array_equal(actual, right):
                found.append(f"{name} {_differing(actual.reshape(-1), right.reshape(-1))}")
    return found


def grid_of(cu_seqlens: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """By their definition: the token in each cell of a padded batch, padding taking those that
    follow, ``[N, L]``; and the cell of each token, ``[T]``.
    """
    lengths = np.diff(cu_seqlens)
    columns = np.arange(lengths.max())
    sources = np.minimum(cu_seqlens[:-1, None] + columns, cu_seqlens[-1] - 1)
    return sources, np.flatnonzero(columns < lengths[:, None])


def token_offset_of(cu_seqlens: NDArray[np.int32]) -> NDArray[np.int64]:
    """By its definition: the cells of a padded batch, those with tokens first. ``[N, L]``."""
    lengths = np.diff(cu_seqlens)
    cells = np.arange(len(lengths) * lengths.max()).reshape(len(lengths), -1)
    is_token = np.arange(lengths.max()) < lengths[:, None]
    return np.concatenate([cells[is_token], cells[~is_token]]).reshape(cells.shape)


def _differing(actual: NDArray[Any], expected: NDArray[Any]) -> str:
    if actual.shape != expected.shape:
        return f"have shape {list(actual.shape)}, expected {list(expected.shape)}"
    place = int(np.argmax(actual != expected))
    return f"[{place}] is {actual[place]:g}, expected {expected[place]}"


# --- TorchScript ------------------------------------------------------------------------------


class _Spy(TorchDispatchMode):
    """Looks at every op that a module runs."""

    def __init__(self, num_frequencies: int):
        super().__init__()
        self.seen = Internals()
        self.first_queries: torch.Tensor | None = None
        self._num_frequencies = num_frequencies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.esm2.varlen_attention.default:
            self.seen.calls.append((args[3].tolist(), int(args[4])))
            if self.first_queries is None:
                self.first_queries = args[0].clone()
        elif func is torch.ops.aten.mul.Tensor and isinstance(args[1], torch.Tensor):
            positions, frequencies = args
            if frequencies.shape == (self._num_frequencies,) and positions.shape[1:] == (1,):
                self.seen.positions.append(positions.cpu().numpy())
        return func(*args, **(kwargs or {}))


@contextmanager
def observe_torchscript(
    folder: Path, manifest: Manifest, batch: PackedBatch
) -> Iterator[Internals]:
    """Watches PyTorch's dispatcher while the block runs ``batch``."""
    with _Spy(manifest.architecture.head_dim // 2) as spy:
        yield spy.seen


# --- AOTInductor ------------------------------------------------------------------------------


@contextmanager
def observe_aoti(folder: Path, manifest: Manifest, batch: PackedBatch) -> Iterator[Internals]:
    """Watches the attention op, which compiled code calls through PyTorch's dispatcher.

    Positions are read from the first layer's queries.
    """
    with _Spy(manifest.architecture.head_dim // 2) as spy:
        yield spy.seen
    if spy.first_queries is not None:
        spy.seen.positions.append(positions_in(spy.first_queries, folder, manifest, batch))


# --- ONNX -------------------------------------------------------------------------------------


@contextmanager
def observe_onnx(
    folder: Path, manifest: Manifest, batch: PackedBatch, engine: str = "onnx"
) -> Iterator[Internals]:
    """Cuts the nodes that compute these values out of the engine's file and runs them.

    They depend on the inputs alone, so nothing of the weights is needed.
    """
    path = folder / manifest.engines[engine].file
    model = onnx.load(path, load_external_data=False)
    nodes = model.graph.node
    positions = [
        node.input[1 - list(node.input).index("inv_freq")]
        for node in nodes
        if node.op_type == "Mul" and "inv_freq" in node.input
    ]
    calls = [n.input[3:5] for n in nodes if n.op_type in (OP_TYPE, ROTARY_OP_TYPE)]
    packed = [(n.input[5], n.input[4]) for n in nodes if n.op_type == PACKED_OP_TYPE]
    padded = _padded_attentions(model)
    names = [*positions, *(name for c in [*calls, *packed, *padded] for name in c)]
    wanted = list(dict.fromkeys(names))
    values = dict(zip(wanted, _evaluate(model, wanted, batch), strict=True))
    yield Internals(
        positions=[values[name] for name in positions],
        calls=[
            *((values[bounds].tolist(), int(values[longest])) for bounds, longest in calls),
            *((values[bounds].tolist(), values[offset].shape[1]) for bounds, offset in packed),
            *(
                ([0, *values[lengths].cumsum().tolist()], values[sources].shape[1])
                for sources, _, lengths in padded
            ),
        ],
        token_offsets=[values[name] for name in dict.fromkeys(offset for _, offset in packed)],
        grids=[
            (values[sources], values[cells])
            for sources, cells in dict.fromkeys(names[:2] for names in padded)
        ],
    )


def _padded_attentions(model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    """Of each attention on padded proteins: the names of its sources, cells and lengths."""
    gathers = [node for node in model.graph.node if node.op_type == "Gather"]
    by_rows = {node.input[0]: node.input[1] for node in gathers}
    by_output = {node.output[0]: node.input[1] for node in gathers}
    found = []
    while (q := tensor_name(len(found), "q")) in by_rows:
        found.append((by_rows[q], by_output[tensor_name(len(found), "out")], LENGTHS))
    return found


def _evaluate(model: onnx.ModelProto, names: list[str], batch: PackedBatch) -> list[Any]:
    graph = model.graph
    needed, nodes = set(names), []
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
    outputs: list[Any] = session.run(None, feeds)
    return outputs


OBSERVERS: dict[str, Observe] = {
    "torchscript": observe_torchscript,
    "onnx": observe_onnx,
    "aoti": observe_aoti,
    "aoti-cuda": observe_aoti,
    "onnx-int8": partial(observe_onnx, engine="onnx-int8"),
    "onnx-cuda": partial(observe_onnx, engine="onnx-cuda"),
    "tensorrt": partial(observe_onnx, engine="tensorrt"),
}
