"""The Triton model repository: its configs against NVIDIA's schema, and its models run by them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray

import runtime
from exporter.cli import main
from exporter.formats.onnx import triton as onnx_model
from exporter.formats.onnx.attention import ONNX_DTYPES
from exporter.formats.onnx.packed_attention import without_vendor_ops
from exporter.formats.table import FORMATS
from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import WeightsSource, load_reference
from exporter.parity.truth.cache import Cache
from exporter.publish import writable_copy
from exporter.triton.repository import PYTORCH_BACKEND_FOLDER, launch_line, write_repository
from exporter.weights import shared as shared_weights
from runtime import manifest as manifests
from runtime.manifest_schema import TensorSpec
from runtime.packing import PackedBatch
from runtime.tokenizer import tokenize
from tests.conftest import MadeOnce, built, random_sequence
from tests.exporter.triton_config import SCHEMA, read_config
from tests.runtime.test_predict import probing

pytestmark = pytest.mark.slow

LIMIT = 2e-6  # relative L2, the float32 budget of the gate
ENGINES = ("onnx", "torchscript")


@pytest.fixture(scope="module")
def repository(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "models"
    write_repository(tiny_artifact, out)
    return out


@pytest.fixture(scope="module")
def proteins() -> list[NDArray[np.int64]]:
    random = np.random.default_rng(5)
    drawn = [random_sequence(random, length) for length in (33, 1, 40, 40, 150, 61)]
    return [tokenize(sequence) for sequence in [*drawn, "MK<mask>AYIA<mask>QR"]]


def batched(proteins: list[NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
    """What Triton's batcher makes of one request a protein, by the kinds that the config names."""
    lengths = np.array([len(protein) for protein in proteins], np.int32)
    return {"input_ids": np.concatenate(proteins), "seqlens": lengths}


def run_model(model: Path, engine: str, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """The model's file as its backend loads it, without our runtime."""
    config = read_config(model)
    names = [output.name for output in config.output]
    if engine == "torchscript":
        module = torch.jit.load(model / "1/model.pt")
        inputs = [torch.from_numpy(tensors[a.name]) for a in module.forward.schema.arguments[1:]]
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            return dict(zip(names, (x.numpy() for x in module(*inputs)), strict=True))
    options = onnxruntime.SessionOptions()
    for library in config.model_operations.op_library_filename:
        options.register_custom_ops_library(str(model / "1" / library))
    session = onnxruntime.InferenceSession(model / "1/model.onnx", options)
    return dict(zip(names, session.run(names, tensors), strict=True))


def compare(
    got: dict[str, Any], artifact: Path, engine: str, proteins: list[NDArray[np.int64]]
) -> None:
    with runtime.load(artifact, engine, device="cpu") as loaded:
        wanted = loaded.run(PackedBatch.from_tokens(proteins)).tensors
    assert list(got) == list(wanted)
    for name, values in wanted.items():
        assert got[name].dtype == values.dtype, name
        assert np.linalg.norm(got[name] - values) / np.linalg.norm(values) < LIMIT, name


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(repository: Path, engine: str) -> Path:
    return repository / f"artifact-{engine}"


class TestConfig:
    def test_a_request_is_one_protein_and_requests_share_a_pack(self, model: Path) -> None:
        config = read_config(model)
        (ids,) = config.input
        assert (ids.name, ids.data_type, list(ids.dims)) == ("input_ids", SCHEMA.TYPE_INT64, [-1])
        assert ids.allow_ragged_batch
        (lengths,) = config.batch_input
        assert (list(lengths.target_name), list(lengths.source_input)) == (["seqlens"], [ids.name])
        assert lengths.data_type == SCHEMA.TYPE_INT32
        # A count of elements would be one for each request, which may hold several proteins.
        assert lengths.kind == SCHEMA.BatchInput.BATCH_ITEM_SHAPE_FLATTEN

    def test_outputs_are_the_artifacts(self, model: Path, tiny_artifact: Path) -> None:
        config = read_config(model)
        declared = manifests.read(tiny_artifact).signature.outputs
        assert [output.name for output in config.output] == [output.name for output in declared]
        scattered = {name for batch in config.batch_output for name in batch.target_name}
        assert scattered == {output.name for output in declared if output.rows == "tokens"}
        for output, wanted in zip(config.output, declared, strict=True):
            assert output.data_type == SCHEMA.TYPE_FP32
            rows = [-1] if wanted.rows == "tokens" else []
            assert list(output.dims) == [*rows, wanted.shape[1]]

    def test_the_models_file_has_them(self, repository: Path) -> None:
        model = repository / "artifact-onnx"
        graph = onnx.load(model / "1/model.onnx", load_external_data=False).graph
        assert {x.name for x in graph.input} == {"input_ids", "seqlens"}
        assert [x.name for x in graph.output] == [x.name for x in read_config(model).output]


def test_a_batch_is_answered_as_the_engine_answers(
    model: Path, engine: str, tiny_artifact: Path, proteins: list[NDArray[np.int64]]
) -> None:
    for batch in (proteins, proteins[:1]):
        compare(run_model(model, engine, batched(batch)), tiny_artifact, engine, batch)


@pytest.mark.parametrize(("on", "rows"), [("mean", []), ("residues", [-1])])
def test_heads_are_served(
    on: str, rows: list[int], tiny_checkpoint: Path, made_once: MadeOnce, cache: Cache,
    proteins: list[NDArray[np.int64]], tmp_path: Path,
) -> None:  # fmt: skip
    name = {"mean": "probe-proteins", "residues": "probe-residues"}[on]
    artifact = made_once(name, probing(tiny_checkpoint, on, cache))
    (model,) = write_repository(artifact, tmp_path / "models")
    config = read_config(model)
    (head,) = (output for output in config.output if output.name == "head")
    assert list(head.dims) == [*rows, 3]
    scattered = {name for batch in config.batch_output for name in batch.target_name}
    assert ("head" in scattered) == bool(rows)
    compare(run_model(model, "onnx", batched(proteins)), artifact, "onnx", proteins)


# Loads both models as Triton's backends do, by what the config and the environment say.
HOST = """
import json, sys
sys.modules.update(dict.fromkeys(("runtime", "exporter", "esm")))
import numpy as np, onnxruntime, torch
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[3])
tensors = {"input_ids": np.load(sys.argv[4]), "seqlens": np.load(sys.argv[5])}
session = onnxruntime.InferenceSession(sys.argv[1], options)
module = torch.jit.load(sys.argv[2])
with torch.inference_mode():
    outputs = module(*(torch.from_numpy(tensors[name]) for name in ("input_ids", "seqlens")))
np.savez(sys.argv[6], onnx=session.run(["logits"], tensors)[0], torchscript=outputs[0].numpy())
"""


class TestLaunchLine:
    @pytest.fixture
    def models(self, repository: Path) -> list[Path]:
        return [repository / f"artifact-{name}" for name in ENGINES]

    def test_gives_a_process_without_our_code_all_it_needs(
        self, repository: Path, models: list[Path], tmp_path: Path, tiny_artifact: Path
    ) -> None:
        (library,) = read_config(models[0]).model_operations.op_library_filename
        tokens = [tokenize("MKTAYIAKQR"), tokenize("GGAVL")]
        np.save(tmp_path / "ids.npy", np.concatenate(tokens))
        np.save(tmp_path / "seqlens.npy", np.array([len(t) for t in tokens], np.int32))
        command, _ = launch_line(repository, models).split("tritonserver ")
        command = command.replace(PYTORCH_BACKEND_FOLDER, f"{Path(torch.__file__).parent}/lib")
        arguments = [models[0] / "1/model.onnx", models[1] / "1/model.pt", library]
        arguments += ["ids.npy", "seqlens.npy", "out.npz"]
        (tmp_path / "host.py").write_text(HOST)
        result = subprocess.run(
            ["sh", "-c", f'{command} exec "$@"', "sh", sys.executable, "host.py", *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        outputs = np.load(tmp_path / "out.npz")
        for name in ENGINES:
            with runtime.load(tiny_artifact, name, device="cpu") as loaded:
                logits = loaded.run(PackedBatch.from_tokens(tokens)).logits
            assert np.linalg.norm(outputs[name] - logits) / np.linalg.norm(logits) < LIMIT

    def test_without_its_variables_neither_op_is_found(self, models: list[Path]) -> None:
        (library,) = read_config(models[0]).model_operations.op_library_filename
        with pytest.raises(Exception, match="cannot open shared object file"):
            onnxruntime.SessionOptions().register_custom_ops_library(library)
        load = f"import torch; torch.jit.load({str(models[1] / '1/model.pt')!r})"
        result = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True)
        assert result.returncode and "esm2::" in result.stderr

    def test_one_engine_asks_for_its_own_variables_alone(self, tiny_artifact: Path) -> None:
        # Nothing is read but which libraries lie there.
        assert launch_line(tiny_artifact, []) == f"tritonserver --model-repository={tiny_artifact}"


class TestFiles:
    def test_weights_are_stored_once(self, tiny_artifact: Path, repository: Path) -> None:
        for file, stored in {
            "weights.safetensors": "artifact-onnx/1/weights.safetensors",
            "lib/libesm2_ort.so": "artifact-onnx/1/libesm2_ort.so",
            "lib/libesm2_ops.so": "artifact-torchscript/1/libesm2_ops.so",
        }.items():
            assert (tiny_artifact / file).samefile(repository / stored)

    def test_every_file_of_the_repository(self, repository: Path) -> None:
        files = {str(p.relative_to(repository)) for p in repository.rglob("*") if p.is_file()}
        assert files == {
            "artifact-onnx/config.pbtxt",
            "artifact-onnx/1/model.onnx",
            "artifact-onnx/1/weights.safetensors",
            "artifact-onnx/1/libesm2_ort.so",
            "artifact-torchscript/config.pbtxt",
            "artifact-torchscript/1/model.pt",
            "artifact-torchscript/1/libesm2_ops.so",
        }

    def test_no_path_of_this_machine(self, repository: Path) -> None:
        here = os.fsencode(Path(onnx_model.__file__).parents[2])
        for path in repository.rglob("*"):
            assert not path.is_file() or here not in path.read_bytes(), path

    def test_model_pt_runs_unoptimised(self, repository: Path) -> None:
        parameters = read_config(repository / "artifact-torchscript").parameters
        assert parameters["DISABLE_OPTIMIZED_EXECUTION"].string_value == "true"

    def test_one_session_for_each_model(self, model: Path) -> None:
        (group,) = read_config(model).instance_group
        assert (group.count, group.kind) == (1, SCHEMA.ModelInstanceGroup.KIND_CPU)
        assert read_config(model).HasField("dynamic_batching")


@pytest.fixture(scope="module")
def cuda_artifact(tiny_checkpoint: Path, made_once: MadeOnce, cache: Cache) -> Path:
    source = WeightsSource("checkpoint", str(tiny_checkpoint))
    return made_once("cuda", built(source, ("torchscript", "onnx-cuda"), (0, 1, 2), cache))


class TestOtherEngines:
    def test_int8_keeps_its_two_files_of_weights(
        self, tiny_checkpoint: Path, tmp_path: Path, proteins: list[NDArray[np.int64]]
    ) -> None:
        reference = load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))
        packed = PackedESM2(reference.model, (2,)).eval()
        shared_weights.write(packed, tmp_path)
        file = FORMATS["onnx-int8"].export(packed, tmp_path).file
        (tmp_path / "1").mkdir()
        onnx_model.write(tmp_path / file, tmp_path / "1")
        assert {p.name for p in (tmp_path / "1").iterdir()} == {
            "model.onnx", "weights.safetensors", "weights.int8.safetensors",
        }  # fmt: skip
        batch = PackedBatch.from_tokens(proteins)
        lengths = np.diff(batch.cu_seqlens)
        (got,) = onnxruntime.InferenceSession(tmp_path / "1/model.onnx").run(
            ["logits"], batched(proteins)
        )
        (wanted,) = onnxruntime.InferenceSession(tmp_path / file).run(
            ["logits"],
            {
                "input_ids": batch.input_ids,
                "cu_seqlens": batch.cu_seqlens,
                "max_seqlen": np.array(lengths.max(), np.int64),
            },
        )
        assert np.array_equal(got, wanted)

    def test_for_a_card_but_its_attention_kernel(
        self, cuda_artifact: Path, tiny_artifact: Path, tmp_path: Path,
        proteins: list[NDArray[np.int64]],
    ) -> None:  # fmt: skip
        write_repository(cuda_artifact, tmp_path / "models", "onnx-cuda")
        model = tmp_path / "models" / "cuda-onnx-cuda"
        config = read_config(model)
        (group,) = config.instance_group
        assert group.kind == SCHEMA.ModelInstanceGroup.KIND_GPU
        (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert cuda.name == "cuda"
        assert dict(cuda.parameters) == {
            "use_tf32": "0",
            "sdpa_kernel": "19",
            "enable_skip_layer_norm_strict_mode": "1",
        }
        assert config.parameters["enable_mem_pattern"].string_value == "0"
        manifest = manifests.read(cuda_artifact)
        heads = manifest.architecture.num_heads, manifest.architecture.head_dim
        graph = onnx.load(model / "1/model.onnx", load_external_data=False)
        onnx.save(without_vendor_ops(graph, ONNX_DTYPES["float32"], *heads),
                  model / "1/model.onnx")  # fmt: skip
        compare(run_model(model, "onnx-cuda", batched(proteins)), tiny_artifact, "onnx", proteins)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["triton", *map(str, arguments)])


def changed(artifact: Path, folder: Path, **fields: Any) -> Path:
    """A copy of ``artifact`` whose manifest has other fields."""
    manifest = msgspec.structs.replace(manifests.read(artifact), **fields)
    manifests.write(manifest, writable_copy(artifact, folder))
    return folder


class TestCommand:
    def test_says_what_it_wrote_and_how_to_serve_it(
        self, tiny_artifact: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "models"
        result = run(tiny_artifact, "--out", out, "--engine", "onnx", "--max-batch-size", 3)
        assert result.exit_code == 0, result.output
        assert [path.name for path in out.iterdir()] == ["artifact-onnx"]
        assert read_config(out / "artifact-onnx").max_batch_size == 3
        written, serving = result.stdout.splitlines()
        assert written.startswith(f"{out}/artifact-onnx: ")
        assert serving == (
            f"serve with: LD_LIBRARY_PATH={out}/artifact-onnx/1:$LD_LIBRARY_PATH "
            f"tritonserver --model-repository={out}"
        )

    def test_names_what_it_leaves_out(self, tiny_artifact: Path, tmp_path: Path) -> None:
        engines = dict(manifests.read(tiny_artifact).engines)
        engines["torchscript"] = msgspec.structs.replace(engines["torchscript"], op_library=None)
        artifact = changed(tiny_artifact, tmp_path / "artifact", engines=engines)
        result = run(artifact, "--out", tmp_path / "models")
        assert result.exit_code == 0, result.output
        assert "left out torchscript: the artifact was built without a C++" in result.stderr
        assert [path.name for path in (tmp_path / "models").iterdir()] == ["artifact-onnx"]

    def test_an_engine_that_is_not_there(self, tiny_artifact: Path, tmp_path: Path) -> None:
        refused(
            run(tiny_artifact, "--out", tmp_path / "models", "--engine", "aoti"),
            "aoti: the artifact does not hold it, it holds onnx, torchscript",
        )
        assert not list(tmp_path.iterdir())

    def test_an_artifact_that_triton_cannot_serve(
        self, tiny_artifact: Path, tmp_path: Path
    ) -> None:
        entry = manifests.read(tiny_artifact).engines["torchscript"]
        artifact = changed(tiny_artifact, tmp_path / "artifact", engines={"aoti": entry})
        refused(
            run(artifact, "--out", tmp_path / "models"),
            "aoti: only torchscript, onnx, onnx-int8, onnx-cuda can be served",
        )
        assert not (tmp_path / "models").exists()

    def test_contacts(self, tiny_artifact: Path, tmp_path: Path) -> None:
        manifest = manifests.read(tiny_artifact)
        outputs = [*manifest.signature.outputs, TensorSpec("contacts", "float32", ["P", 1])]
        signature = msgspec.structs.replace(manifest.signature, outputs=outputs)
        limits = {**manifest.golden.limits, "contacts": 1.0}
        golden = msgspec.structs.replace(manifest.golden, limits=limits)
        folder = tmp_path / "artifact"
        artifact = changed(tiny_artifact, folder, signature=signature, golden=golden)
        refused(run(artifact, "--out", tmp_path / "models"), "Triton cannot tell whose contacts")

    def test_bfloat16(self, tiny_artifact: Path, tmp_path: Path) -> None:
        artifact = changed(tiny_artifact, tmp_path / "artifact", dtype="bfloat16")
        refused(
            run(artifact, "--out", tmp_path / "models"),
            "knows no bfloat16. Build with --dtype float32 or float16",
        )

    def test_not_an_artifact(self, tmp_path: Path) -> None:
        refused(run(tmp_path, "--out", tmp_path / "models"), "is not an artifact")

    @pytest.mark.parametrize("taken", ["a folder with a file", "a file", "an artifact"])
    def test_an_output_that_exists(self, tiny_artifact: Path, tmp_path: Path, taken: str) -> None:
        out = tmp_path / "models"
        if taken == "a file":
            out.write_text("mine")
        elif taken == "an artifact":
            changed(tiny_artifact, out)
        else:
            out.mkdir()
            (out / "mine").write_text("mine")
        before = sorted(out.parent.rglob("*"))
        refused(run(tiny_artifact, "--out", out), "it exists and is not an empty folder")
        assert sorted(out.parent.rglob("*")) == before

    def test_a_failure_leaves_nothing(
        self, tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(source: Path, target: Path) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr("exporter.triton.repository.link_or_copy", full)
        refused(run(tiny_artifact, "--out", tmp_path / "models"), "No space left on device")
        assert not list(tmp_path.iterdir())


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert message in line
