"""The native attention op: what reaches its kernel, its choice, and where it cannot be loaded."""

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

import runtime
from exporter.formats.native import (
    ONNXRUNTIME_LIBRARY,
    TORCH_LIBRARY,
    CompilerError,
    compile_libraries,
    instruction_sets,
)
from exporter.publish import writable_copy
from runtime import PackedBatch, instructions
from runtime import manifest as manifests
from runtime.manifest_schema import EngineEntry
from runtime.ops import varlen_attention
from tests.native.check import lacking

LENGTHS = (1, 33, 600)
TOLERANCE = {torch.float32: 5e-7, torch.float16: 3e-4, torch.bfloat16: 2.5e-3}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def native() -> Callable[..., Tensor]:
    varlen_attention.use_native(compile_libraries() / TORCH_LIBRARY)
    op: Callable[..., Tensor] = torch.ops.esm2.varlen_attention_native
    return op


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """q, k and v [T, 3, 16], and the bounds of ``LENGTHS``."""
    generator = torch.Generator().manual_seed(0)
    shape = (sum(LENGTHS), 3, 16)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    bounds = torch.tensor([0, *np.cumsum(LENGTHS).tolist()], dtype=torch.int32)
    return q, k, v, bounds


def in_float64(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> Tensor:
    rows = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        a, b, c = (x[start:end].double() for x in (q, k, v))
        weights = torch.einsum("ihd,jhd->hij", a, b).mul(scale).softmax(-1)
        rows.append(torch.einsum("hij,jhd->ihd", weights, c))
    return torch.cat(rows)


@pytest.mark.parametrize("layout", ["one product", "strided rows"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes_and_strides_reach_the_kernel(
    native: Callable[..., Tensor], dtype: torch.dtype, layout: str
) -> None:
    """What the kernel makes of them, ``tests/native`` checks."""
    *qkv, bounds = inputs(dtype)
    if layout == "one product":
        views = torch.stack(qkv, dim=1).unbind(1)
    else:
        views = torch.stack(qkv, dim=3).unbind(3)
    assert not any(view.is_contiguous() for view in views)
    out = native(*views, bounds, max(LENGTHS), 0.25)
    truth = in_float64(*qkv, bounds, 0.25)
    assert out.dtype == dtype and out.is_contiguous()
    assert (out.double() - truth).norm() / truth.norm() < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("bounds", "problem"),
    [
        ([0, 5], "must end at T"),
        ([1, 10], "must start at 0"),
        ([0, 6, 6, 10], "strictly increasing"),
        ([0], "N >= 1"),
    ],
)
def test_wrong_bounds_are_refused(
    native: Callable[..., Tensor], bounds: list[int], problem: str
) -> None:
    q, k, v = (x[:10] for x in inputs()[:3])
    with pytest.raises(RuntimeError, match=problem):
        native(q, k, v, torch.tensor(bounds, dtype=torch.int32), 10, 0.25)


def test_other_dtypes_and_shapes_are_refused(native: Callable[..., Tensor]) -> None:
    q, k, v, bounds = inputs()
    with pytest.raises(RuntimeError, match="float32, float16 and bfloat16"):
        native(q.double(), k.double(), v.double(), bounds, 600, 0.25)
    with pytest.raises(RuntimeError, match="one shape"):
        native(q, k[:, :2], v, bounds, 600, 0.25)
    with pytest.raises(RuntimeError, match="one dtype"):
        native(q, k.half(), v, bounds, 600, 0.25)


def test_the_op_is_native_where_it_was_loaded(native: Callable[..., Tensor]) -> None:
    choice = varlen_attention.choose(torch.device("cpu"), torch.float32, 16)
    assert choice.name.startswith("native (")
    assert not choice.passed_over
    arguments = (*inputs(), max(LENGTHS), 0.25)
    through_op = torch.ops.esm2.varlen_attention(*arguments)
    assert torch.equal(through_op, native(*arguments))


@pytest.mark.parametrize("wanted", ["", *(s.name for s in instruction_sets())])
def test_the_variable_chooses_an_instruction_set_that_is_here(
    wanted: str, fresh_python: Run
) -> None:
    here = [s.name for s in instruction_sets() if not lacking(s)]
    code = "from pathlib import Path; from runtime.instructions import of_library\n"
    result = fresh_python(
        code + "print(of_library(Path(sys.argv[1])))", compile_libraries() / ONNXRUNTIME_LIBRARY,
        env={**os.environ, "ESM2_OPS_INSTRUCTIONS": wanted},
    )  # fmt: skip
    assert result.stdout == f"{wanted if wanted in here else here[-1]}\n", result.stderr


class TestOnnxRuntime:
    def test_the_kernel_takes_precedence_over_the_function(
        self, tiny_artifact: Path, batch: PackedBatch, tmp_path: Path
    ) -> None:
        """A function that returns its input: only what does not run it is right."""
        with runtime.load(tiny_artifact, "onnx") as engine:
            right = engine.run(batch).logits
        folder = tmp_path / "artifact"
        writable_copy(tiny_artifact, folder)
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        (function,) = (f for f in model.functions if f.name == "VarlenRotaryAttention")
        del function.node[:]
        function.node.append(onnx.helper.make_node("Identity", ["q"], ["out"]))
        onnx.save(model, folder / "model.onnx")
        with runtime.load(folder, "onnx", check_files=False) as engine:
            assert engine.spec.attention.startswith("native (")
            np.testing.assert_array_equal(engine.run(batch).logits, right)
        with runtime.load(folder, "onnx", attention="standard", check_files=False) as engine:
            assert engine.spec.attention == "standard (model-local function)"
            assert not np.allclose(engine.run(batch).logits, right, atol=1e-3)


# The CUDA kernel of C++ hosts by its dispatch key; in the flash kernel's place, what that is given.
ON_CUDA = """
import sys, torch
torch.ops.load_library(sys.argv[1])
given = []

def flash(*arguments, **options):
    given.append((arguments, options))
    q = arguments[0]
    return q + 1, *(torch.empty(0) for _ in range(4))

aten = torch.library.Library("aten", "IMPL", "CPU")
aten.impl("_flash_attention_forward", flash)
q, k, v = (torch.full((5, 2, 16), float(n), dtype=torch.float16) for n in range(3))
bounds = torch.tensor([0, 2, 5], dtype=torch.int32)
keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
op = torch.ops.esm2.varlen_attention_native.default
for scale in (0.25, 0.5):
    out = op.redispatch(keys, q, k, v, bounds, 3, scale)
    assert torch.equal(out, q + 1)
    arguments, options = given.pop()
    for tensor, expected in zip(arguments, (q, k, v, bounds, bounds), strict=False):
        assert torch.equal(tensor, expected) and tensor.dtype == expected.dtype
    assert arguments[5:] == (3, 3, 0.0, False, False), arguments[5:]
    assert options.pop("scale") == scale
    assert all(value is None for value in options.values()), options
"""


def test_the_flash_kernel_of_cpp_hosts_is_given_every_argument(fresh_python: Run) -> None:
    result = fresh_python(ON_CUDA, compile_libraries() / TORCH_LIBRARY)
    assert result.returncode == 0, result.stderr


def test_a_torch_whose_flash_kernel_takes_more_than_the_library_gives_is_named(
    fresh_python: Run,
) -> None:
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from runtime.ops import varlen_attention\n"
        "schema = torch.ops.aten._flash_attention_forward.default._schema\n"
        "torch.ops.aten._flash_attention_forward.default._schema = torch._C.parse_schema(\n"
        "    'f(' + ', '.join(f'int x{n}' for n in range(65)) + ') -> int')\n"
        "varlen_attention.use_native(Path(sys.argv[1]))\n"
    )
    result = fresh_python(code, compile_libraries() / TORCH_LIBRARY)
    *_, line = result.stderr.splitlines()
    assert line.startswith("runtime.errors.UnsupportedError: cannot load ")
    assert "takes 65 arguments, expected at most 64" in line
    assert line.endswith("Export the artifact again with a newer version of this project")


@pytest.mark.parametrize(
    ("engine", "library"), [("onnx", ONNXRUNTIME_LIBRARY), ("torchscript", TORCH_LIBRARY)]
)
class TestLibrariesThatCannotBeLoaded:
    def embed(self, folder: Path, engine: str) -> subprocess.CompletedProcess[str]:
        code = (
            "import sys, runtime\n"
            "e = runtime.load(sys.argv[1], sys.argv[2], check_files=False)\n"
            "o = e.run(runtime.PackedBatch.from_sequences(['MKTAYIAK', 'GG']))\n"
            "print(e.spec.attention, o.logits.shape)"
        )
        command = [sys.executable, "-c", code, str(folder), engine]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    @pytest.mark.parametrize("damage", ["missing", "foreign"])
    def test_are_named_in_one_line_and_the_engine_runs(
        self, tiny_artifact: Path, tmp_path: Path, engine: str, library: str, damage: str
    ) -> None:
        folder = tmp_path / "artifact"
        writable_copy(tiny_artifact, folder)
        path = folder / "lib" / library
        if damage == "missing":
            path.unlink()
        else:
            # An ELF file's machine stands at byte 18; 183 is aarch64.
            content = bytearray(path.read_bytes())
            content[18:20] = (183).to_bytes(2, "little")
            path.write_bytes(content)
        result = self.embed(folder, engine)
        assert result.returncode == 0, result.stderr
        assert not result.stdout.startswith("native")
        assert result.stderr.count("\n") == 1, result.stderr
        assert library in result.stderr and "takes longer" in result.stderr

    def test_are_refused_when_files_are_checked(
        self, tiny_artifact: Path, tmp_path: Path, engine: str, library: str
    ) -> None:
        folder = tmp_path / "artifact"
        writable_copy(tiny_artifact, folder)
        (folder / "lib" / library).write_text("not a library")
        with pytest.raises(runtime.ArtifactError, match=rf"lib/{library} has 13 bytes"):
            runtime.load(folder, engine)


def test_an_engine_without_its_library_says_nothing(
    tiny_artifact: Path, tmp_path: Path, batch: PackedBatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Built where there was no compiler."""
    folder = tmp_path / "artifact"
    writable_copy(tiny_artifact, folder)
    manifest = manifests.read(folder)
    entry = EngineEntry(**{
        **{name: getattr(manifest.engines["onnx"], name) for name in ("file", "lowering")},
        "built_with": {},
    })  # fmt: skip
    manifest.engines["onnx"] = entry
    manifests.write(manifest, folder)
    with caplog.at_level(logging.WARNING), runtime.load(folder, "onnx") as engine:
        assert engine.spec.attention == "standard (model-local function)"
        engine.run(batch)
    assert not caplog.records


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompilerError, match="no C\\+\\+ compiler 'no-such-compiler' here"):
        compile_libraries()


def test_a_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(CompilerError, match="false could not compile"):
        compile_libraries()


class TestInstructions:
    def test_this_machine_runs_what_is_built_here(self) -> None:
        built_for = instructions.PORTABLE.get(platform.machine())
        assert instructions.problem_with(built_for) is None
        assert instructions.problem_with(None) is None

    def test_a_processor_without_them_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(instructions, "processor_flags", lambda: {"sse2", "avx", "fma"})
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        problem = instructions.problem_with("x86-64-v3")
        assert problem is not None and problem.startswith("built for x86-64-v3")
        assert "lacks abm, avx2, bmi1" in problem

    def test_another_kind_of_processor_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
        problem = instructions.problem_with("x86-64-v3")
        assert problem == "built for x86-64-v3, this processor is aarch64"

    def test_flags_are_read(self, tmp_path: Path) -> None:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx avx2\nbugs\t: none\n")
        assert instructions.processor_flags(cpuinfo) == {"fpu", "avx", "avx2"}
        assert instructions.processor_flags(tmp_path / "none") is None
