import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from exporter.formats.tracing import tracing_pack
from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import Reference
from runtime.weights import read_places
from tests.conftest import LAYERS

pytestmark = pytest.mark.slow

Pack = tuple[Tensor, Tensor, Tensor]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def graph(artifact: Path) -> onnx.GraphProto:
    return onnx.load(artifact / "model.onnx", load_external_data=False).graph


class TestTorchScript:
    def test_a_longer_packs_max_seqlen_reaches_the_op(self, artifact: Path, tensors: Pack) -> None:
        """The output of a CPU kernel does not show a baked max_seqlen; its argument does."""
        module = load_module(artifact)
        with Calls() as calls:
            module(*tensors)
        _, cu_seqlens, max_seqlen = tensors
        assert int(max_seqlen) > int(tracing_pack()[2])
        assert calls.received == [(cu_seqlens.tolist(), int(max_seqlen))] * 6

    def test_a_file_without_weights_refuses_to_run(self, artifact: Path, tensors: Pack) -> None:
        module = torch.jit.load(artifact / "model.ts")
        with pytest.raises(torch.jit.Error, match="holds no weights: load it with runtime.load"):
            module(*tensors)
        assert (artifact / "model.ts").stat().st_size < 200_000

    def test_no_path_of_the_building_machine_is_in_it(self, artifact: Path) -> None:
        with zipfile.ZipFile(artifact / "model.ts") as archive:
            everything = b"".join(archive.read(name) for name in archive.namelist())
        assert b"/exporter/" not in everything
        assert str(Path.cwd()).encode() not in everything

    def test_runs_where_only_the_runtime_is_importable(
        self, artifact: Path, fresh_python: Run
    ) -> None:
        code = (
            "import runtime; e = runtime.load(sys.argv[1], 'torchscript');"
            "o = e.run(runtime.PackedBatch.from_sequences(['MKT', 'GGAVLK']));"
            "print(o.representations[6].shape, e.spec.format)"
        )
        blocked = ("esm", "exporter", "onnx", "onnxruntime", "onnxscript")
        result = fresh_python(code, artifact, blocked=blocked)
        assert result.stdout == "(13, 320) torchscript\n", result.stderr


class Calls(TorchDispatchMode):
    """Records what ``esm2::varlen_attention`` is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[tuple[list[int], int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.esm2.varlen_attention.default:
            self.received.append((args[3].tolist(), args[4]))
        return func(*args, **(kwargs or {}))


def load_module(artifact: Path) -> torch.jit.ScriptModule:
    from safetensors.torch import load_file

    module = torch.jit.load(artifact / "model.ts")
    module.load_state_dict(load_file(artifact / "weights.safetensors"), assign=True)
    return module


class TestOnnx:
    def test_the_op_is_the_only_attention(self, graph: onnx.GraphProto) -> None:
        kinds = [node.op_type for node in graph.node]
        assert kinds.count("VarlenRotaryAttention") == 6
        assert not {"VarlenAttention", "Softmax", "MatMul", "Attention", "Loop"} & set(kinds)
        assert "Split" not in kinds  # of rotary outside the op

    def test_max_seqlen_feeds_every_op(self, graph: onnx.GraphProto) -> None:
        producers = {output: node for node in graph.node for output in node.output}
        for node in graph.node:
            if node.op_type != "VarlenRotaryAttention":
                continue
            name = node.input[4]
            while name in producers:
                name = producers[name].input[0]
            assert name == "max_seqlen"

    def test_every_weight_is_shared(self, artifact: Path, graph: onnx.GraphProto) -> None:
        places = read_places(artifact / "weights.safetensors")
        external = {i.name: {e.key: e.value for e in i.external_data} for i in graph.initializer}
        for name, place in places.items():
            assert external[name]["location"] == "weights.safetensors", name
            assert int(external[name]["offset"]) == place.offset
            assert int(external[name]["length"]) == place.length
        inline = [i for i in graph.initializer if not i.external_data]
        assert sum(len(i.raw_data) for i in inline) < 1000

    def test_dimensions_are_named(self, graph: onnx.GraphProto) -> None:
        shapes = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in [*graph.input, *graph.output]
        }
        assert shapes == {
            "input_ids": ["T"],
            "cu_seqlens": ["N + 1"],
            "max_seqlen": [],
            "logits": ["T", 33],
            **{f"representations.{layer}": ["T", 320] for layer in LAYERS},
            "pooled": ["N", 320],
        }

    def test_no_path_of_the_building_machine_is_in_it(self, artifact: Path) -> None:
        assert str(Path.cwd()).encode() not in (artifact / "model.onnx").read_bytes()

    def test_runs_without_torch(self, artifact: Path, fresh_python: Run) -> None:
        code = (
            "import runtime; e = runtime.load(sys.argv[1]);"
            "o = e.run(runtime.PackedBatch.from_sequences(['MKT', 'GGAVLK']));"
            "print(o.pooled.shape, e.spec.format)"
        )
        blocked = ("torch", "esm", "exporter", "onnx", "onnxscript", "safetensors")
        result = fresh_python(code, artifact, blocked=blocked)
        assert result.stdout == "(2, 320) onnx\n", result.stderr

    def test_position_ids_restart_inside_the_graph(self, artifact: Path, tensors: Pack) -> None:
        """No output shows whether positions restart, so the graph is opened up."""
        model = onnx.load(artifact / "model.onnx")
        cos = next(node for node in model.graph.node if node.op_type == "Cos")
        producers = {output: node for node in model.graph.node for output in node.output}
        name = cos.input[0]
        while producers[name].op_type != "Cast":
            name = producers[name].input[0]
        position_ids = producers[name].input[0]
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(position_ids, onnx.TensorProto.INT64, ["T"])
        )
        session = onnxruntime.InferenceSession(model.SerializeToString())
        input_ids, cu_seqlens, max_seqlen = (tensor.numpy() for tensor in tensors)
        feeds = {"input_ids": input_ids, "cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        (positions,) = session.run([position_ids], feeds)
        expected = np.concatenate([np.arange(n) for n in np.diff(cu_seqlens)])
        np.testing.assert_array_equal(positions, expected)


@pytest.mark.parametrize("num_proteins", [1, 2, 5])
def test_every_number_of_proteins(reference: Reference, num_proteins: int) -> None:
    """torch.export can exclude N = 1 without a word; so does a baked N."""
    packed = PackedESM2(reference.model, (6,), "mean").eval()
    lengths = list(range(4, 4 + num_proteins))
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    outputs = packed(torch.full((sum(lengths),), 5), cu_seqlens, torch.tensor(max(lengths)))
    assert outputs[-1].shape == (num_proteins, 320)


# The command itself, but verified on two packs only: this is about the bytes.
BUILD_QUICKLY = """
from exporter.parity import verify
packs = verify.parity_packs
verify.parity_packs = lambda seed: {k: packs(seed)[k] for k in ("one residue", "many masks")}
from exporter.cli import main
main(["build", "--checkpoint", sys.argv[1], "--layers", "1,2", "--out", sys.argv[2]])
"""


def test_the_same_inputs_give_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path, fresh_python: Run
) -> None:
    contents = []
    # PyTorch numbers what it traces in one process, so there are two; one from deeper in the code.
    for i, code in enumerate((BUILD_QUICKLY, f"\n\nexec({BUILD_QUICKLY!r})")):
        folder = tmp_path / str(i) / "same"
        # Another hash seed, so that no order of a set is in the files.
        environment = {**os.environ, "PYTHONHASHSEED": str(i), "SOURCE_DATE_EPOCH": "1"}
        environment["TMPDIR"] = str(folder.parent)
        folder.parent.mkdir()
        result = fresh_python(code, tiny_checkpoint, folder, env=environment)
        assert result.returncode == 0, result.stderr
        files = (path for path in folder.rglob("*") if path.is_file())
        contents.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
    assert contents[0].keys() == contents[1].keys() > {"model.ts", "model.onnx", "provenance.json"}
    assert [k for k in contents[0] if contents[0][k] != contents[1][k]] == []
