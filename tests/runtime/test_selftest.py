"""The golden proteins that an artifact carries, and what they catch where an engine runs."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import runtime
from exporter.parity.prove.state_faults import _Faulty, _SharesItsInput, _WrongNowAndThen
from exporter.publish import writable_copy
from runtime import manifest as manifests
from runtime.cli import main
from runtime.engine import Outputs
from runtime.files import file_entry
from runtime.golden import read_golden
from runtime.manifest_schema import EMBEDDING
from runtime.selftest import selftest

ENGINES = ("torchscript", "onnx")


class _WrongBeyondAThousand(_Faulty):
    """The last tokens of many proteins."""

    def run(self, batch: runtime.PackedBatch) -> Outputs:
        outputs = self._engine.run(batch)
        if batch.num_proteins > 1000:
            rows = slice(*batch.cu_seqlens[1000:1002])
            for values in outputs.tensors.values():
                if len(values) == batch.num_tokens:
                    values[rows] *= 1.001
        return outputs


class _WrongAlone(_Faulty):
    """A pack of one token."""

    def run(self, batch: runtime.PackedBatch) -> Outputs:
        outputs = self._engine.run(batch)
        factor = 1.001 if batch.num_tokens == 1 else 1
        return Outputs({name: x * factor for name, x in outputs.tensors.items()})


class TestGolden:
    def test_what_it_holds(self, artifact: Path) -> None:
        manifest = manifests.read(artifact)
        path = artifact / manifest.golden.file
        assert path.stat().st_size < 2_000_000
        golden = read_golden(artifact, manifest)
        lengths = np.diff(golden.cu_seqlens)
        assert len(golden.sequences) >= 4
        assert lengths.max() > 1024
        assert lengths.min() == 3
        text = "".join(golden.sequences)
        assert "<mask>" in text
        assert {"X", "B", "U", "Z", "O"} <= set(text.replace("<mask>", ""))
        assert golden.answers.keys() == {
            "logits", "representations.0", "representations.1", "representations.2", "pooled",
            EMBEDDING,
        }  # fmt: skip
        assert all(values.dtype == np.float64 for values in golden.answers.values())
        # BOS and EOS of every protein are among the rows.
        assert set(golden.cu_seqlens[:-1]) | set(golden.cu_seqlens[1:] - 1) <= set(golden.rows)

    def test_wide_models_keep_fewer_rows(self) -> None:
        from exporter.parity.answers import Answers
        from exporter.parity.golden import MAX_BYTES, _chosen_rows, golden_pack
        from exporter.parity.truth.packs import as_batch

        batch = as_batch(golden_pack())
        truth = Answers(batch.input_ids, batch.cu_seqlens, tensors={})
        width_of_3b = 33 + 2560
        rows = _chosen_rows(truth, width_of_3b)
        assert 2 * batch.num_proteins < len(rows) <= MAX_BYTES // (8 * width_of_3b)

    def test_without_proteins_nothing_passes(self, tiny_artifact: Path, tmp_path: Path) -> None:
        folder = tmp_path / "empty"
        writable_copy(tiny_artifact, folder)
        manifest = manifests.read(folder)
        path = folder / manifest.golden.file
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **{**arrays, "sequences": arrays["sequences"][:0]})
        with pytest.raises(runtime.ArtifactError, match="holds no proteins to compare with"):
            read_golden(folder, manifest)
        path.write_bytes(b"not an archive")
        with pytest.raises(runtime.ArtifactError, match="cannot read .*golden.npz"):
            read_golden(folder, manifest)


class TestGoodEngines:
    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("attention", ["auto", "standard"])
    def test_pass(self, artifact: Path, engine: str, attention: runtime.engine.Attention) -> None:
        manifest = manifests.read(artifact)
        with runtime.load(artifact, engine, attention=attention) as loaded:
            result = selftest(loaded, artifact, manifest)
        assert result.passed, result.worst_line()
        measured = [c for c in result.comparisons if c.measured is not None]
        # Logits, three layers, pooled by the graph and by the runtime, in five packs; and copies.
        assert len(measured) == 34
        assert 0 < max(c.measured for c in measured) <= 2e-6

    @pytest.mark.parametrize(
        ("make", "where"),
        [
            (_WrongNowAndThen, "small packs again"),
            (_SharesItsInput, "small packs again"),
            (_WrongBeyondAThousand, "copies in"),
            (_WrongAlone, "a single token"),
        ],
    )
    def test_others_fail(self, artifact: Path, make: type, where: str) -> None:
        """What no golden protein in its own pack shows."""
        with runtime.load(artifact, "onnx") as loaded:
            result = selftest(make(loaded), artifact, manifests.read(artifact))
        failed = {c.pack for c in result.comparisons if not c.passed}
        assert failed
        assert all(where in pack for pack in failed)

    def test_validate(self, artifact: Path) -> None:
        with runtime.load(artifact, "onnx", validate=True) as engine:
            assert engine.run(runtime.PackedBatch.from_sequences(["MKT"])).logits.shape == (5, 33)

    def test_with_onnxruntime_and_numpy_alone(
        self, artifact: Path, fresh_python: Callable[..., subprocess.CompletedProcess[str]]
    ) -> None:
        blocked = ("esm", "exporter", "onnx", "onnxscript", "torch", "safetensors", "transformers")
        code = "from runtime.cli import main; main(['selftest', sys.argv[1], '--json'])"
        result = fresh_python(code, artifact, blocked=blocked)
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        assert [test["engine"] for test in report["tests"]] == ["onnx"]
        assert report["tests"][0]["passed"]
        assert "torch" in report["not_run"]["torchscript"]


class TestCommand:
    def test_a_faulty_engine_exits_with_1(self, tiny_artifact: Path, tmp_path: Path) -> None:
        """Every other fault: tests/exporter/test_faults.py."""
        from safetensors.torch import load_file, save_file

        folder = tmp_path / "faulty"
        writable_copy(tiny_artifact, folder)
        path = folder / "weights.safetensors"
        state = load_file(path)
        state["layers.1.fc1.bias"][0] += 0.01
        save_file(state, path)
        manifest = manifests.read(folder, check_files=False)
        files = {**manifest.files, path.name: file_entry(path)}
        manifests.write(msgspec.structs.replace(manifest, files=files), folder)
        result = CliRunner().invoke(main, ["selftest", str(folder)])
        assert result.exit_code == 1
        assert result.stdout.count("failed its selftest") == 2
        assert "where at most 2.0e-06 is allowed" in result.stdout
        with pytest.raises(runtime.EngineError, match="Do not use this engine here"):
            runtime.load(folder, "onnx", validate=True)

    def test_passes(self, artifact: Path) -> None:
        result = CliRunner().invoke(main, ["selftest", str(artifact)])
        assert result.exit_code == 0, result.output
        assert result.stdout.count("passed its selftest") == 2

    def test_a_folder_that_is_no_artifact(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(main, ["selftest", str(tmp_path)])
        assert result.exit_code == 2
        assert "is not an artifact" in result.stderr

    def test_nothing_compared_is_no_pass(self, tiny_artifact: Path, tmp_path: Path) -> None:
        folder = tmp_path / "half"
        writable_copy(tiny_artifact, folder)
        manifest = msgspec.structs.replace(manifests.read(folder), dtype="bfloat16")
        manifests.write(manifest, folder)
        result = CliRunner().invoke(main, ["selftest", str(folder), "--engine", "onnx"])
        assert result.exit_code == 2
        assert "nothing was compared" in result.stderr
