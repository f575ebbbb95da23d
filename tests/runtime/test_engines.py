import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import runtime
from exporter.model.reference import Reference
from exporter.publish import writable_copy
from runtime.attention import V1_ATTENTION_VARIABLES
from runtime.engines.torch.engine import TorchEngine
from runtime.engines.torch.fetching import Fetched
from runtime.pooling import Pool

ENGINES = ("onnx", "torchscript")


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, artifact: Path) -> runtime.Engine:
    with runtime.load(artifact, request.param, device="cpu") as engine:
        yield engine


def test_outputs(engine: runtime.Engine, batch: runtime.PackedBatch) -> None:
    outputs = engine.run(batch)
    assert outputs.logits.shape == (batch.num_tokens, 33)
    assert {k: v.shape for k, v in outputs.representations.items()} == dict.fromkeys(
        (0, 1, 2), (batch.num_tokens, 48)
    )
    assert outputs.pooled is not None
    assert outputs.pooled.shape == (batch.num_proteins, 48)


def test_a_later_run_leaves_the_earlier_outputs(
    engine: runtime.Engine, batch: runtime.PackedBatch
) -> None:
    first = engine.run(batch)
    kept = first.logits.copy()
    engine.run(runtime.PackedBatch.from_tokens([batch.input_ids[::-1].copy()]))
    np.testing.assert_array_equal(first.logits, kept)


def test_a_wrong_pooling_is_no_guess(engine: runtime.Engine, batch: runtime.PackedBatch) -> None:
    with pytest.raises(runtime.InputError, match="pool must be one of mean, .*, got 'max'"):
        engine.embed(batch, 2, "max")


def test_a_pack_of_one_token(engine: runtime.Engine) -> None:
    outputs = engine.run(runtime.PackedBatch.from_tokens([np.array([5])]))
    assert outputs.logits.shape == (1, 33)
    np.testing.assert_array_equal(outputs.pooled, outputs.representations[2])


def test_proteins_do_not_see_each_other(
    engine: runtime.Engine, sequences: list[str], batch: runtime.PackedBatch
) -> None:
    together = engine.run(batch).logits
    for i, sequence in enumerate(sequences):
        alone = engine.run(runtime.PackedBatch.from_sequences([sequence])).logits
        rows = slice(batch.cu_seqlens[i], batch.cu_seqlens[i + 1])
        np.testing.assert_allclose(together[rows], alone, atol=5e-4, rtol=1e-5)


def test_spec(engine: runtime.Engine) -> None:
    assert engine.spec.device == "cpu"
    assert engine.spec.dtype == "float32"
    assert engine.spec.layers == (0, 1, 2)
    assert engine.spec.pool == "mean"
    assert engine.spec.synthetic
    assert engine.unsupported_reasons(runtime.PackedBatch.from_sequences(["M"])) == []


@pytest.mark.parametrize("name", ENGINES)
def test_a_closed_engine_says_so(artifact: Path, batch: runtime.PackedBatch, name: str) -> None:
    with runtime.load(artifact, name) as engine:
        pass
    with pytest.raises(runtime.EngineError, match="engine is closed"):
        engine.run(batch)


@pytest.mark.parametrize("name", ENGINES)
def test_standard_attention_is_the_references(
    artifact: Path, reference: Reference, batch: runtime.PackedBatch, name: str
) -> None:
    with runtime.load(artifact, name, attention="standard") as engine:
        assert engine.spec.attention.startswith("standard")
        outputs = engine.run(batch)
    bounds = batch.cu_seqlens
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        tokens = torch.from_numpy(batch.input_ids[start:end])[None]
        with torch.no_grad():
            expected = reference.model(tokens)["logits"][0]
        np.testing.assert_allclose(outputs.logits[start:end], expected, atol=5e-4, rtol=1e-5)


@pytest.mark.parametrize("variable", V1_ATTENTION_VARIABLES)
def test_the_environment_asks_for_standard_attention(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with runtime.load(artifact, "torchscript", device="cpu") as engine:
        assert engine.spec.attention.startswith("native (")
    monkeypatch.setenv(variable, "true")
    with runtime.load(artifact, "torchscript", device="cpu") as engine:
        assert engine.spec.attention == "standard"


@pytest.mark.parametrize("name", ENGINES)
def test_the_choice_of_attention_is_logged_and_stands_in_the_spec(
    artifact: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO, "runtime"),
        runtime.load(artifact, name, "cpu", attention="standard") as engine,
    ):
        assert engine.spec.attention.startswith("standard")
        assert engine.spec.attention_reason == "attention 'standard' was asked for"
        assert caplog.messages == [
            f"{name} on cpu: attention {engine.spec.attention} ({engine.spec.attention_reason})"
        ]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("how", ["mean", "mean-with-eos", "cls", "none"])
def test_embed_is_run_and_pool(
    artifact: Path, name: str, how: Pool, batch: runtime.PackedBatch
) -> None:
    with runtime.load(artifact, name, "cpu") as engine:
        rows = engine.run(batch).representations[1]
        expected = rows if how == "none" else runtime.pool(rows, batch.cu_seqlens, how)
        np.testing.assert_array_equal(engine.embed(batch, 1, how), expected)


def test_the_forward_of_a_torch_engine_is_what_run_gives(
    artifact: Path, batch: runtime.PackedBatch
) -> None:
    with runtime.load(artifact, "torchscript", "cpu") as engine:
        assert isinstance(engine, TorchEngine)
        expected = engine.run(batch).tensors
        inputs = engine.inputs(batch)
        for name, tensor in zip(engine.output_names, engine.forward(inputs), strict=True):
            np.testing.assert_array_equal(tensor.numpy(), expected[name])
    with pytest.raises(runtime.EngineError, match="closed"):
        engine.forward(inputs)


def test_auto_takes_onnx(artifact: Path) -> None:
    with runtime.load(artifact) as engine:
        assert engine.spec.format == "onnx"


def test_auto_takes_what_is_installed(artifact: Path, fresh_python) -> None:  # type: ignore[no-untyped-def]
    code = "import runtime; print(runtime.load(sys.argv[1]).spec.format)"
    result = fresh_python(code, artifact, blocked=("onnxruntime",))
    assert result.stdout == "torchscript\n", result.stderr


class TestErrors:
    def test_nothing_installed_names_both_extras(
        self, artifact: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(runtime.EngineError) as error:
            runtime.load(artifact)
        assert "esm2-engines[onnx]" in str(error.value)
        assert "esm2-engines[torch]" in str(error.value)

    def test_an_engine_that_is_not_in_the_artifact(self, artifact: Path, tmp_path: Path) -> None:
        with pytest.raises(runtime.EngineError, match=r"holds no engine 'tensorrt'.*--target"):
            runtime.load(artifact, "tensorrt")

    @pytest.mark.parametrize("name", ENGINES)
    @pytest.mark.skipif(torch.cuda.is_available(), reason="describes a machine without GPU")
    def test_cuda_without_a_gpu(self, artifact: Path, name: str) -> None:
        with pytest.raises(runtime.EngineError, match=f"cannot load engine '{name}'.* on cuda: "):
            runtime.load(artifact, name, device="cuda")

    @pytest.mark.parametrize("name", ENGINES)
    @pytest.mark.parametrize(
        "attention", ["flash-attn-3", "flash-attn", "flash", "memory-efficient"]
    )
    def test_attention_for_cuda_on_a_cpu(
        self, artifact: Path, name: str, attention: runtime.engine.Attention
    ) -> None:
        with pytest.raises(runtime.UnsupportedError, match=f"attention '{attention}'"):
            runtime.load(artifact, name, device="cpu", attention=attention)

    @pytest.mark.parametrize(
        ("name", "file"), [("onnx", "model.onnx"), ("torchscript", "model.ts")]
    )
    def test_a_file_that_the_library_refuses(
        self, artifact: Path, tmp_path: Path, name: str, file: str
    ) -> None:
        folder = writable_copy(artifact, tmp_path / "copy")
        (folder / file).write_bytes(b"not an engine")
        with pytest.raises(runtime.EngineError) as error:
            runtime.load(folder, name, check_files=False)
        assert str(error.value).startswith(f"cannot load {folder / file}: ")
        assert "\n" not in str(error.value)


def test_what_is_asked_for_alone(engine: runtime.Engine, batch: runtime.PackedBatch) -> None:
    every = engine.run(batch).tensors
    for names in (["logits"], ["pooled", "representations.1"]):
        found = engine.run(batch, names).tensors
        assert list(found) == names
        for name, array in found.items():
            np.testing.assert_array_equal(array, every[name])


def test_several_vectors_of_one_run(engine: runtime.Engine, batch: runtime.PackedBatch) -> None:
    wanted: list[tuple[int, Pool]] = [(2, "mean"), (0, "cls"), (2, "none"), (1, "mean-with-eos")]
    found = engine.embed_several(batch, wanted)
    for (layer, how), array in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(array, engine.embed(batch, layer, how))
    with pytest.raises(runtime.InputError, match="pool must be one of"):
        engine.embed_several(batch, [(1, "mean"), (1, "max")])  # type: ignore[list-item]


def test_the_next_pack_is_queued_while_one_is_on_its_way(
    tiny_artifact: Path, batch: runtime.PackedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``make cuda-check`` shows that two overlap."""
    arrays, held = Fetched.arrays, []

    def noted(self: Fetched) -> list[NDArray[np.floating]]:
        held.append(engine._one_at_a_time.locked())
        return arrays(self)

    monkeypatch.setattr(Fetched, "arrays", noted)
    with runtime.load(tiny_artifact, "torchscript", "cpu") as engine:
        assert isinstance(engine, TorchEngine)
        engine.run(batch)
        engine.embed(batch, engine.spec.layers[-1], "mean")
    assert held == [False, False]


def test_importing_runtime_needs_numpy_alone(fresh_python) -> None:  # type: ignore[no-untyped-def]
    heavy = (
        "torch", "onnxruntime", "esm", "exporter", "onnx", "safetensors", "tensorrt",
        "click", "msgspec", "isal", "backports", "tqdm", "h5py", "pyarrow",
    )  # fmt: skip
    result = fresh_python("import runtime; print('imported')", blocked=heavy)
    assert result.stdout == "imported\n", result.stderr


@pytest.mark.parametrize("module", ["runtime.cli", "exporter.cli"])
def test_help_needs_no_engine_library(fresh_python, module: str) -> None:  # type: ignore[no-untyped-def]
    code = f"import {module} as m; m.main(['--help'])"
    blocked = ("torch", "onnxruntime", "esm", "onnx", "safetensors", "isal")
    result = fresh_python(code, blocked=blocked)
    assert result.stdout.startswith("Usage: "), result.stderr
    assert sys.version_info >= (3, 10)
