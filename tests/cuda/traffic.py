"""What the kernels of one layer read and write, in values of a token's vector.

``python -m tests.cuda.traffic ARTIFACT ENGINE``. Counted are tensors of at least ``[T, E]`` values,
each as often as a kernel has it among its inputs or outputs: weights, rotary tables (4/H values a
reading, H heads) and indices are not. Caches may hold what a kernel reads again.
"""

import json
import math
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np

import runtime
from tests.cuda.forward import pack

TOKENS = 4096
# Of a kernel, or of what runs as one: its name, and the bytes of each large tensor that it takes
# or gives.
Step = tuple[str, list[int]]


def of_a_layer(steps: Iterable[Step], embed_dim: int, itemsize: int) -> float:
    """From one attention to the next."""
    listed = list(steps)
    places = [place for place, (name, _) in enumerate(listed) if "attention" in name.lower()]
    begin, end = places[0] + 1, places[1] + 1
    return sum(sum(sizes) for _, sizes in listed[begin:end]) / (TOKENS * embed_dim * itemsize)


def steps_of_torchscript(folder: Path) -> list[Step]:
    """Of PyTorch's ops as its dispatcher sees them."""
    import torch
    from torch.utils import _pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    from runtime.ops import rotary

    engine = runtime.load(folder, "torchscript", "cuda", check_files=False)
    wide = TOKENS * engine.spec.embed_dim
    steps: list[Step] = []

    class Listed(TorchDispatchMode):
        def __torch_dispatch__(
            self, op: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if op.name() == rotary.NAME and rotary._on_card()[0] is rotary.in_torch:
                with self:
                    return rotary.in_torch(*args)
            out = op(*args, **(kwargs or {}))
            tensors = [x for x in _pytree.tree_leaves((args, kwargs, out)) if torch.is_tensor(x)]
            storages = {x.untyped_storage().data_ptr() for x in _pytree.tree_leaves((args, kwargs))
                        if torch.is_tensor(x)}  # fmt: skip
            is_view = torch.is_tensor(out) and out.untyped_storage().data_ptr() in storages
            is_view = is_view or isinstance(out, list | tuple)
            sizes = [x.numel() * x.itemsize for x in tensors if x.numel() >= wide]
            steps.append((op.name(), [] if is_view else sizes))
            return out

    with Listed():
        engine.embed(pack(TOKENS), engine.spec.layers[-1], "mean")
    return steps


def steps_of_onnx(graph: Path, embed_dim: int) -> list[Step]:
    """Of ONNX Runtime's nodes, by its profile of a run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        providers = [("CUDAExecutionProvider", {"sdpa_kernel": "1"})]
        session = onnxruntime.InferenceSession(graph, options, providers=providers)
        batch = pack(TOKENS)
        session.run(None, {"input_ids": batch.input_ids, "cu_seqlens": batch.cu_seqlens,
                           "max_seqlen": np.array(batch.max_seqlen, np.int64)})  # fmt: skip
        events = json.loads(Path(session.end_profiling()).read_text())
    steps = []
    for event in events:
        args = event.get("args", {})
        if not event["name"].endswith("_kernel_time") or args["op_name"] in VIEWS:
            continue
        taken, given = args["input_type_shape"], args["output_type_shape"]
        # The bias of a product is written into its result first, which the product then reads.
        with_bias = args["op_name"] == "Gemm" and len(taken) == 3
        tensors = [*taken, *given, *(2 * given if with_bias else [])]
        counted = [(kind, math.prod(shape)) for x in tensors for kind, shape in x.items()]
        sizes = [ITEMSIZES[kind] * n for kind, n in counted if n >= TOKENS * embed_dim]
        steps.append((args["op_name"], sizes))
    return steps


VIEWS = {"Reshape", "Squeeze", "Unsqueeze"}
ITEMSIZES = {"float": 4, "float16": 2, "int64": 8, "int32": 4, "bool": 1, "double": 8}


def main() -> None:
    """Prints the figure."""
    from runtime.manifest import read

    folder, name = Path(sys.argv[1]), sys.argv[2]
    manifest = read(folder, check_files=False)
    embed_dim = manifest.architecture.embed_dim
    if name == "onnx-cuda":
        steps = steps_of_onnx(folder / manifest.engines[name].file, embed_dim)
    else:
        steps = steps_of_torchscript(folder)
    itemsize = {"float16": 2, "bfloat16": 2, "float32": 4}[manifest.dtype]
    click.echo(f"{of_a_layer(steps, embed_dim, itemsize):.1f}")


if __name__ == "__main__":
    main()
