"""AOTInductor: ``model.pt2``, whose constants come from ``weights.safetensors``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import instructions
from runtime.engine import Attention, EngineSpec, Outputs, Threads
from runtime.engines import torch_arrays
from runtime.errors import EngineError, UnsupportedError
from runtime.manifest import EngineEntry, Manifest
from runtime.packing import PackedBatch

if TYPE_CHECKING:
    import torch


def reason_against(entry: EngineEntry, device: str) -> str | None:
    """Why "auto" should take another engine, in a sentence, or None."""
    if reason := torch_arrays.missing_library():
        return reason
    if reason := instructions.problem_with(entry.instructions):
        return reason
    import torch

    wants_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return "it was compiled for a CPU, and there is a GPU" if wants_gpu else None


def load(
    folder: Path, manifest: Manifest, device: str, attention: Attention, threads: Threads
) -> "AotiEngine":
    """See ``runtime.load``."""
    cannot = f"cannot load engine 'aoti' of {manifest.name!r}"
    entry = manifest.engines["aoti"]
    if reason := torch_arrays.missing_library():
        raise UnsupportedError(f"{cannot}: {reason}")
    if reason := instructions.problem_with(entry.instructions):
        raise UnsupportedError(f"{cannot}: {reason}. Take engine 'onnx', or export again here")
    if device == "cuda":
        raise UnsupportedError(
            f"{cannot} on cuda: it was compiled for a CPU. "
            "Take engine 'torchscript', or device 'cpu'"
        )
    import torch

    from runtime.ops import varlen_attention

    varlen_attention.use_native_of(folder, entry)
    if threads.total is not None:
        torch.set_num_threads(threads.total)
    path = folder / entry.file
    try:
        weights = torch_arrays.read_weights(folder, "cpu")
        # AOTInductor's own class: the public function around it imports the whole compiler.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        names = set(loader.get_constant_fqns())
        if missing := names - weights.keys():
            raise EngineError(f"cannot load {path}: weights.safetensors lacks {sorted(missing)[0]}")
        constants = {name: weights[name] for name in names}
        loader.load_constants(constants, False, True, True)
    except (RuntimeError, OSError) as error:
        raise EngineError(
            f"cannot load {path}: {torch_arrays.cause(error)} (built with "
            f"{entry.built_with}, here torch {torch.__version__})"
        ) from error
    spec = EngineSpec(
        format="aoti",
        artifact=manifest.name,
        device="cpu",
        dtype=manifest.dtype,
        layers=tuple(manifest.layers),
        pool=manifest.pool,
        attention=varlen_attention.kernel_name(
            torch.device("cpu"),
            getattr(torch, manifest.dtype),
            manifest.architecture.head_dim,
            attention,
        ),
        library=f"torch {torch.__version__}",
        synthetic=manifest.weights.kind == "synthetic",
    )
    outputs = [output.name for output in manifest.signature.outputs]
    return AotiEngine(loader, constants, spec, outputs, attention)


class AotiEngine:
    """A compiled model; one pack at a time, for PyTorch holds Python's lock while it runs."""

    concurrency = 1

    def __init__(
        self, loader: Any, constants: "dict[str, torch.Tensor]", spec: EngineSpec,
        output_names: list[str], attention: Attention,
    ):  # fmt: skip
        self.spec = spec
        self._loader = loader
        self._constants = constants  # the compiled code holds their addresses alone
        self._output_names = output_names
        self._attention = attention

    def unsupported_reasons(self, batch: PackedBatch) -> list[str]:
        """See ``Engine``: every valid pack runs."""
        return []

    def run(self, batch: PackedBatch) -> Outputs:
        """See ``Engine.run``."""
        import torch

        from runtime.ops import varlen_attention

        if self._loader is None:
            raise EngineError("this engine is closed: load it again")
        with torch.inference_mode(), varlen_attention.attention(self._attention):
            try:
                tensors = self._loader.run(torch_arrays.inputs_of(batch, "cpu"))
                arrays = torch_arrays.to_arrays(tensors)
            except RuntimeError as error:
                raise torch_arrays.failure(batch, error) from error
        return Outputs.from_arrays(self._output_names, arrays)

    def close(self) -> None:
        """See ``Engine.close``."""
        self._loader = None
        self._constants = {}

    def __enter__(self) -> "AotiEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
