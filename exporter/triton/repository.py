"""The model repository: one model for each engine of an artifact that a Triton backend serves."""

from collections.abc import Callable
from pathlib import Path

from exporter.errors import ExportError
from exporter.formats.format import ONNXRUNTIME_LIBRARY, TORCH_LIBRARY
from exporter.formats.table import FORMATS
from exporter.publish import link_or_copy, staged
from exporter.templates import render
from exporter.weights.int8 import LEVELS_BEFORE, read_recipe
from runtime import manifest as manifests
from runtime.manifest_schema import Manifest
from runtime.pairs import CONTACTS

CONFIG_FILE = "config.pbtxt"
VERSION = "1"
# In NVIDIA's containers.
PYTORCH_BACKEND_FOLDER = "/opt/tritonserver/backends/pytorch"

# The backends convert no bfloat16 (onnxruntime_utils.cc, libtorch_utils.cc).
DATA_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16"}

# The backend sets no option of a session by which ONNX Runtime would sum without cutting off.
NEEDS_DOT_PRODUCT = (
    "its numbers are wrong on x86 processors without VNNI (before Intel's Cascade Lake and AMD's "
    "Zen 4): serve it on others, or build it with --int8-bits 7"
)


def write_repository(
    artifact: Path,
    out: Path,
    engine: str | None = None,
    max_batch_size: int = 16,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Writes a model repository, whole or not at all.

    Args:
        artifact: the folder that ``esm2-export build`` wrote; every file is checked.
        out: the repository, a folder that is empty or does not exist.
        engine: the only one; None takes every engine of the artifact that Triton can serve.
        max_batch_size: proteins that may share a pack.
        say: receives one line for each engine that is left out, or not for every processor.

    Returns:
        The folder of each model, ``<artifact's name>-<engine>``.

    Raises:
        ArtifactError: the artifact is missing or damaged.
        ExportError: Triton cannot serve it, or ``out`` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(
            f"cannot write model repository {out}: it exists and is not an empty folder. "
            "Choose another --out"
        )
    manifest = manifests.read(artifact)
    reasons = {
        name: reason_against(name, manifest) for name in ([engine] if engine else manifest.engines)
    }
    served = [name for name, reason in reasons.items() if reason is None]
    left_out = [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None]
    if not served:
        raise ExportError(f"Triton cannot serve artifact {artifact}: {'; '.join(left_out)}")
    for line in left_out:
        say(f"left out {line}")
    for name in (name for name in served if manifest.engines[name].quantised):
        if read_recipe(artifact).levels > LEVELS_BEFORE:
            say(f"{name}: {NEEDS_DOT_PRODUCT}")
    with staged(out) as folder:
        for name in served:
            _write_model(artifact, manifest, name, folder, max_batch_size)
    return [out / _model_name(manifest, name) for name in served]


def reason_against(engine: str, manifest: Manifest) -> str | None:
    """Why Triton cannot serve an engine of an artifact, or None."""
    if engine not in manifest.engines:
        return f"the artifact does not hold it, it holds {', '.join(manifest.engines)}"
    backend = FORMATS[engine].triton
    if backend is None:
        served = [name for name, known in FORMATS.items() if known.triton]
        return f"only {', '.join(served)} can be served. Build with --target onnx"
    if manifest.gives(CONTACTS):
        return "Triton cannot tell whose contacts are whose. Build an artifact without --contacts"
    if manifest.dtype not in DATA_TYPES:
        return (
            f"the {backend.name} backend knows no {manifest.dtype}. "
            f"Build with --dtype {' or '.join(DATA_TYPES)}"
        )
    if backend.needs_op_library and manifest.engines[engine].op_library is None:
        return "the artifact was built without a C++ compiler, so nothing registers its attention"
    return None


def launch_line(repository: Path, models: list[Path]) -> str:
    """How to start the server: the native attention op of each model must be found."""
    versions = [model / VERSION for model in models]
    preloads = [str(path) for folder in versions for path in folder.glob(TORCH_LIBRARY)]
    folders = [str(folder) for folder in versions if (folder / ONNXRUNTIME_LIBRARY).exists()]
    folders += [PYTORCH_BACKEND_FOLDER] if preloads else []
    variables = [f"LD_LIBRARY_PATH={':'.join(folders)}:$LD_LIBRARY_PATH"] if folders else []
    variables += [f"LD_PRELOAD={':'.join(preloads)}"] if preloads else []
    return " ".join([*variables, f"tritonserver --model-repository={repository}"])


def _model_name(manifest: Manifest, engine: str) -> str:
    return f"{manifest.name}-{engine}"


def _write_model(
    artifact: Path, manifest: Manifest, engine: str, repository: Path, max_batch_size: int
) -> None:
    backend, entry = FORMATS[engine].triton, manifest.engines[engine]
    assert backend is not None
    name = _model_name(manifest, engine)
    folder = repository / name / VERSION
    folder.mkdir(parents=True)
    backend.write(artifact / entry.file, folder)
    library = None
    if entry.op_library is not None:
        library = Path(entry.op_library).name
        link_or_copy(artifact / entry.op_library, folder / library)
    text = render(
        f"{CONFIG_FILE}.j2",
        name=name,
        artifact=manifest.name,
        engine=engine,
        backend=backend,
        max_batch_size=max_batch_size,
        outputs=manifest.signature.outputs,
        data_type=DATA_TYPES[manifest.dtype],
        library=library,
    )
    (repository / name / CONFIG_FILE).write_text(text, encoding="utf-8")
