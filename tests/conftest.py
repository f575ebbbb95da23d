import argparse
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache as cached
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from filelock import FileLock

from exporter.build import build
from exporter.build_options import BuildOptions
from exporter.formats.aoti.export import OPTIONS
from exporter.formats.tensorrt.options import PlanOptions
from exporter.model.packed_forward import PackedESM2
from exporter.model.precision import cast_copy
from exporter.model.reference import Reference, WeightsSource, WithoutMemory, load_reference
from exporter.model.sources.probe import ProbeSource
from exporter.model.synthetic import synthetic_state
from exporter.parity.golden import golden_pack
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.packs import Pack, parity_packs, with_names
from runtime.packing import PackedBatch
from runtime.user_cache import VARIABLE, default_folder

ARCHITECTURE = "esm2_t6_8M_UR50D"
LAYERS = (0, 3, 6)
COMMON_RESIDUES = "LAGVSERTIDPKQNFYMHWC"


MadeOnce = Callable[[str, Callable[[Path], object]], Path]

DATA = Path(__file__).parent / "data"
STORED_SCHEMAS = [int(path.name.split(".")[0][7:]) for path in DATA.glob("schema-*.tar.xz")]

# Two layers are enough where a test is about the gate and not about the model.
TINY = (2, 48, 4)
LABELS = ("soluble", "membrane", "other")


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """Commands that run in this process set up its logs."""
    loggers = [logging.getLogger(name) for name in (None, "runtime", "uvicorn")]
    levels = [logger.level for logger in loggers]
    own = loggers[0].handlers[:]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    for handler in set(loggers[0].handlers) - set(own):
        if type(handler) is logging.StreamHandler:
            loggers[0].removeHandler(handler)


@pytest.fixture(scope="session", autouse=True)
def cache(session_folder: Path) -> Iterator[Cache]:
    """Eager fair-esm's answers of this session: commands in other processes share them."""
    compiled = sorted(default_folder().glob("native-*"))
    os.environ[VARIABLE] = str(session_folder / "cache")
    for folder in compiled:
        # Named by all that it is made of: what make export compiled is not compiled again.
        with contextlib.suppress(FileExistsError):
            default_folder().mkdir(exist_ok=True)
            (default_folder() / folder.name).symlink_to(folder)
    yield Cache(default_folder())
    del os.environ[VARIABLE]


def few_packs(seed: int = 0) -> dict[str, Pack]:
    """Those that show most faults, at a tenth of the cost."""
    return with_names(
        parity_packs(seed),
        ("one residue", "one token", "every token", "many masks", "nearly all masks", "mixed"),
    )


@pytest.fixture(scope="session", autouse=True)
def _gates_run_few_packs() -> Iterator[None]:
    """The whole list is what ``make export`` and ``make parity`` run, and ``all_packs`` here.

    Of the golden proteins the long ones are left out, which take eager fair-esm most of a build.
    """
    short = [protein for protein in golden_pack() if len(protein.sequence) < 1000]
    with (
        patch("exporter.parity.verify.parity_packs", few_packs),
        patch("exporter.build.parity_packs", few_packs),
        patch("exporter.parity.golden.golden_pack", lambda: short),
    ):
        yield


@pytest.fixture(scope="session", autouse=True)
def _compilers_do_not_optimize_what_calls_kernels() -> Iterator[None]:
    """A fifth of a compiled engine's time of building, and 2 % of its speed on tiny packs."""
    with patch.dict(OPTIONS, {"aot_inductor.compile_wrapper_opt_level": "O0"}):
        yield


@pytest.fixture
def all_packs() -> Iterator[None]:
    with patch("exporter.parity.verify.parity_packs", parity_packs):
        yield


@pytest.fixture(scope="session")
def made_once(session_folder: Path) -> MadeOnce:
    """Makes what is dear to make once for all workers; tests must not change it."""

    def made_once(name: str, make: Callable[[Path], object]) -> Path:
        path = session_folder / name
        with FileLock(session_folder / f"{name}.lock"):
            if not path.exists():
                aside = session_folder / f"{name}.aside" / name
                aside.parent.mkdir(exist_ok=True)
                make(aside)
                aside.rename(path)
        return path

    return made_once


@pytest.fixture(scope="session")
def reference() -> Reference:
    return load_reference(WeightsSource("synthetic", ARCHITECTURE))


@pytest.fixture(scope="session")
def artifact(made_once: MadeOnce, cache: Cache) -> Path:
    """A verified artifact with several layers and a pooled output."""
    source = WeightsSource("synthetic", ARCHITECTURE)
    return made_once("tiny", built(source, ("torchscript", "onnx"), LAYERS, cache))


def stored_artifact(schema: int, folder: Path) -> Path:
    """The artifact of a manifest schema that ``tests/data`` holds, unpacked below ``folder``."""
    with tarfile.open(DATA / f"schema-{schema}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"schema-{schema}"


@pytest.fixture
def ready_artifact(tmp_path: Path) -> Path:
    """A whole small artifact, onnx and torchscript, of a test's own; nothing has to be built."""
    return stored_artifact(max(STORED_SCHEMAS), tmp_path)


@pytest.fixture(scope="session")
def tiny_checkpoint(made_once: MadeOnce) -> Path:
    """A small model, saved as fair-esm's are."""
    return made_once("tiny.pt", lambda path: save_checkpoint(path, TINY))


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Path, made_once: MadeOnce, cache: Cache) -> Path:
    """A verified artifact of ``tiny_checkpoint``, with golden answers for long proteins too."""
    source = WeightsSource("checkpoint", str(tiny_checkpoint))
    with patch("exporter.parity.golden.golden_pack", golden_pack):
        return made_once("artifact", built(source, ("torchscript", "onnx"), (0, 1, 2), cache))


@pytest.fixture(scope="session")
def task_artifact(tiny_checkpoint: Path, made_once: MadeOnce, cache: Cache) -> Path:
    """Of ``tiny_checkpoint``, with ONNX alone: all that can be asked for.

    Two layers, contacts, and a probe that labels proteins.
    """
    return made_once("tasks", probing(tiny_checkpoint, "mean", cache, contacts=True))


def probing(
    checkpoint: Path, on: str, cache: Cache, contacts: bool = False
) -> Callable[[Path], object]:
    """What builds an artifact with a random probe of ``LABELS`` into a folder."""

    def make(folder: Path) -> None:
        probe = folder.parent / f"{on}.npz"
        weight = np.random.default_rng(0).normal(size=(3, 48))
        np.savez(probe, weight=weight, bias=np.ones(3), classes=np.array(LABELS))
        source = WeightsSource(
            "checkpoint", str(checkpoint), contacts=contacts, probe=ProbeSource(str(probe), on)
        )
        build(BuildOptions(source, ("onnx",), (1, 2), out=folder), lambda line: None, cache)

    return make


@pytest.fixture(scope="session")
def compiled_artifact(tiny_checkpoint: Path, made_once: MadeOnce, cache: Cache) -> Path:
    """A verified artifact of ``tiny_checkpoint`` with AOTInductor alone."""
    source = WeightsSource("checkpoint", str(tiny_checkpoint))
    return made_once("compiled", built(source, ("aoti",), (0, 1, 2), cache))


@pytest.fixture(scope="session")
def trt_artifact(tiny_checkpoint: Path, made_once: MadeOnce, cache: Cache) -> Path:
    """A verified artifact of ``tiny_checkpoint`` with TensorRT, and with ONNX, which runs here."""
    options = BuildOptions(
        WeightsSource("checkpoint", str(tiny_checkpoint)), ("onnx", "tensorrt"), (0, 1, 2), "mean",
        of_format={
            "tensorrt": {"options": PlanOptions(("8.9",), max_tokens=4096, max_seqlen=2050)}
        },
    )  # fmt: skip

    def make(folder: Path) -> None:
        build(replace(options, out=folder), lambda line: None, cache)

    return made_once("tensorrt", make)


@cached
def wide_model(dtype: str) -> PackedESM2:
    """8M but for its layers, of which it has two, on the CPU; do not change it."""
    with tempfile.TemporaryDirectory() as folder:
        path = save_checkpoint(Path(folder) / "wide.pt", (2, 320, 20))
        reference = load_reference(WeightsSource("checkpoint", str(path)))
    packed = PackedESM2(reference.model, [2]).eval()
    return packed if dtype == "float32" else cast_copy(packed, getattr(torch, dtype))


def built(
    source: WeightsSource, targets: tuple[str, ...], layers: tuple[int, ...], cache: Cache
) -> Callable[[Path], object]:
    """What builds an artifact with pooling into a folder."""
    options = BuildOptions(source, targets, layers, "mean")
    return lambda folder: build(replace(options, out=folder), lambda line: None, cache)


def save_checkpoint(path: Path, shape: tuple[int, int, int], seed: int = 0) -> Path:
    """Random weights in a file as fair-esm's are."""
    import esm
    from esm.model.esm2 import ESM2

    num_layers, embed_dim, num_heads = shape
    with WithoutMemory():
        model = ESM2(*shape, esm.data.Alphabet.from_architecture("ESM-1b"), token_dropout=True)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state = synthetic_state(shapes, seed)
    state["lm_head.weight"] = state["embed_tokens.weight"]
    config = argparse.Namespace(
        encoder_layers=num_layers, encoder_embed_dim=embed_dim, encoder_attention_heads=num_heads,
        token_dropout=True,
    )  # fmt: skip
    named = {f"encoder.sentence_encoder.{name}": tensor for name, tensor in state.items()}
    torch.save({"cfg": {"model": config}, "model": named}, path)
    return path


@contextmanager
def default_signals() -> Iterator[None]:
    """What is started inside ignores none, as tests do that a shell or nohup runs in background."""
    ours = {
        number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def random_sequence(random: np.random.Generator, length: int) -> str:
    return "".join(random.choice(list(COMMON_RESIDUES), length))


@pytest.fixture
def sequences() -> list[str]:
    random = np.random.default_rng(7)
    drawn = [random_sequence(random, n) for n in (33, 5, 120, 61)]
    return [*drawn, "MK<mask>AYIA<mask>QR"]


@pytest.fixture
def batch(sequences: list[str]) -> PackedBatch:
    return PackedBatch.from_sequences(sequences)


@pytest.fixture
def tensors(batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``batch`` as the packed forward takes it."""
    return (
        torch.from_numpy(batch.input_ids),
        torch.from_numpy(batch.cu_seqlens),
        torch.tensor(batch.max_seqlen),
    )


# As where they are not installed: importing one fails, and importlib.util.find_spec finds none.
BLOCKER = "import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"


@pytest.fixture
def fresh_python() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs code in a new process in which the given packages cannot be imported."""

    def run(
        code: str, *arguments: object, blocked: tuple[str, ...] = (), **options: object
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BLOCKER.format(blocked=blocked) + code]
        command += [str(argument) for argument in arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)

    yield run


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], Path]]:
    """Shows a copy of an artifact, to all users, on a file system that cannot be written."""
    # pytest's own folders are for one user.
    with tempfile.TemporaryDirectory() as folder, ExitStack() as mounts:
        place = Path(folder)
        place.chmod(0o755)

        def read_only(artifact: Path) -> Path:
            shutil.copytree(artifact, place / artifact.name)
            for options in (["--bind", folder], ["-o", "remount,ro,bind"]):
                command = ["mount", *options, folder]
                mounted = subprocess.run(command, capture_output=True, text=True)
                if mounted.returncode:
                    pytest.skip(f"cannot mount read-only: {mounted.stderr.strip()}")
                if "--bind" in options:
                    mounts.callback(subprocess.run, ["umount", folder], check=True)
            return place / artifact.name

        yield read_only


@pytest.fixture
def as_nobody() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command as a user who may read everything and owns nothing."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root, with setpriv, can become another user")
    # Python itself may lie in a folder of root's.
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reading]
    if subprocess.run([*user, "true"], capture_output=True).returncode:
        pytest.skip("this container may not become another user")

    def run(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*user, *map(str, command)], capture_output=True, text=True, timeout=300, **options
        )

    return run
