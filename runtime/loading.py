"""From an artifact folder to an engine that runs packs.

The path: candidates in order of speed -> what speaks against each, in sentences -> the first
without is checked, loaded, and validated if so wished. What fails to load is passed over too.
"""

import dataclasses
import importlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.attention import ATTENTION_CHOICES, Attention, default_attention
from runtime.device import check_device, kind_of
from runtime.engine import Engine, Settings
from runtime.engines.table import BY_SPEED, FORMATS
from runtime.errors import EngineError, Esm2Error, UnsupportedError, cause
from runtime.threads import Threads
from runtime.trust.whom import Trust, trusted

if TYPE_CHECKING:
    from runtime.manifest_schema import Manifest

logger = logging.getLogger(__name__)


def load(
    artifact: str | os.PathLike[str],
    engine: str = "auto",
    device: str = "auto",
    attention: Attention | None = None,
    threads: int | None = None,
    concurrency: int = 1,
    tf32: bool = False,
    cuda_graphs: bool = False,
    check_files: bool = True,
    validate: bool = False,
    trust: Trust | None = None,
) -> Engine:
    """Loads an engine of an artifact.

    Args:
        artifact: the folder that ``esm2-export build`` wrote.
        engine: a format of ``runtime.engines.table``, such as ``"onnx"``, or ``"auto"``: the
            fastest that the artifact holds and that runs here with these arguments.
            ``"onnx-int8"`` is taken by name only.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` for another card, or ``"auto"``: cuda where one
            of the engines runs there.
        attention: ``"auto"``, the fastest kernel; ``"standard"``, the reference's arithmetic; or,
            on CUDA, ``"flash-attn-3"``, ``"flash-attn"``, ``"flash"`` or ``"memory-efficient"``.
            None takes ``"standard"`` where ``ESM2_V1_ATTENTION`` (or ``VIRNUCPRO_V1_ATTENTION``) is
            true, else ``"auto"``. The choice and its reason are logged, and in ``engine.spec``.
        threads: CPU threads of the engine. None takes ``OMP_NUM_THREADS``, else one for each core
            that the affinity mask and the cgroups' CPU quota give this process.
        concurrency: how many packs share those threads, at most as many as there are threads. More
            than one raises the throughput of a stream on a CPU, and the time that a single pack
            takes. Engines that cannot take several packs at once run one.
        tf32: let float32 products on CUDA be rounded to TF32: faster, and a thousand times less
            exact than the parity gate allows. PyTorch has one switch for the process: an engine
            for CUDA that it runs sets it when it is loaded.
        cuda_graphs: on CUDA, in engines that PyTorch runs: capture packs of at most 4,096 tokens as
            CUDA graphs, one for each bucket of sizes, and replay them.
        check_files: compare the SHA-256 of the files that the engine reads with the manifest.
        validate: compare every file, and run the artifact's golden proteins (see
            ``runtime.selftest``): the engine is right on this machine, with these libraries.
        trust: a file with a public key in PEM, or with certificates: only what its owner signed is
            loaded. Every file is compared with the signature before anything is opened. None takes
            ``ESM2_TRUSTED_KEY``, and without that trusts everybody. See ``docs/trust.md``.

    Raises:
        ArtifactError: the artifact is missing, damaged, cannot be read, or is not signed by whom is
            trusted.
        UnsupportedError: the artifact is whole, but nothing of what was asked for runs here; says
            of every candidate why.
        EngineError: an argument is wrong, the engine is not in the artifact or cannot be loaded, or
            ``validate`` found it wrong.
        InputError: ``threads`` or ``concurrency`` is not a whole number of at least 1.
    """
    from runtime import manifest as manifests

    _check_arguments(engine, device, attention)
    on_cpu = Threads.resolve(threads, concurrency)
    settings = Settings(attention or default_attention(), on_cpu, tf32, cuda_graphs)
    folder = Path(artifact)
    manifest = manifests.read(folder, check_files=False, trust=trust)
    # Of a signature every file was compared.
    to_check = trusted(trust) is None
    if engine != "auto" and engine not in manifest.engines:
        raise EngineError(
            f"artifact {folder} holds no engine {engine!r}, it holds "
            f"{', '.join(manifest.engines)}. Build it with 'esm2-export build --target {engine}'"
        )
    if validate and to_check:
        manifests.check(manifest, folder)
    check_own = check_files and not validate and to_check
    loaded = _first_that_loads(folder, manifest, engine, device, settings, check_own)
    because = f" ({loaded.spec.attention_reason})" if loaded.spec.attention_reason else ""
    logger.info(
        "%s on %s: attention %s%s",
        loaded.spec.format, loaded.spec.device, loaded.spec.attention, because,
    )  # fmt: skip
    if validate:
        try:
            _validate(loaded, folder, manifest)
        except BaseException:
            loaded.close()
            raise
    return loaded


def _check_arguments(engine: str, device: str, attention: str | None) -> None:
    check_device(device)
    for value, choices, what in (
        (engine, ("auto", *FORMATS), "engine"),
        (attention, (None, *ATTENTION_CHOICES), "attention"),
    ):
        if value not in choices:
            *others, last = (choice for choice in choices if choice is not None)
            raise EngineError(f"{what} must be {', '.join(others)} or {last}, got {value!r}")


def _first_that_loads(
    folder: Path, manifest: "Manifest", engine: str, device: str, settings: Settings,
    check_files: bool,
) -> Engine:  # fmt: skip
    from runtime import manifest as manifests

    refusals: list[str] = []
    errors: list[EngineError] = []
    for name, where in _candidates(engine, device):
        if name not in manifest.engines:
            continue
        module = _engine_module(name)
        if reasons := module.unsupported_reasons(manifest, where, settings):
            refusals.append(f"{name} on {where}: {'; '.join(reasons)}")
            continue
        if check_files:
            manifests.check(manifest, folder, manifest.engines[name].files)
        try:
            loaded = _loaded(module, folder, manifest, name, where, settings)
            loaded.spec = dataclasses.replace(loaded.spec, passed_over=tuple(refusals))
            return loaded
        except EngineError as error:
            logger.info("%s on %s is passed over: %s", name, where, error)
            refusals.append(f"{name} on {where}: {error}")
            errors.append(error)
    if engine != "auto" and len(errors) == 1:
        raise errors[0]
    # What is whole and does not run here is one thing, what fails to load another.
    broken = any(not isinstance(error, UnsupportedError) for error in errors)
    kind = EngineError if broken else UnsupportedError
    raise kind(_no_engine(manifest, engine, device, refusals))


def _candidates(engine: str, device: str) -> Iterator[tuple[str, str]]:
    """Formats and where they would run, fastest first."""
    for where in BY_SPEED if device == "auto" else (device,):
        for name in BY_SPEED[kind_of(where)] if engine == "auto" else (engine,):
            yield name, where


def _loaded(
    module: Any, folder: Path, manifest: "Manifest", name: str, device: str, settings: Settings
) -> Engine:
    try:
        engine: Engine = module.load(folder, manifest, device, settings)
    except Esm2Error:
        raise
    except Exception as error:  # libraries fail in classes of their own, and in Python's
        entry = manifest.engines[name]
        raise EngineError(
            f"cannot load {folder / entry.file}: {cause(error)} (built with {entry.built_with}, "
            f"here {module.library()})"
        ) from error
    return engine


def _no_engine(manifest: "Manifest", engine: str, device: str, refusals: list[str]) -> str:
    if engine != "auto":
        where = [refusal.removeprefix(f"{engine} ") for refusal in refusals]
        return f"cannot load engine {engine!r} of {manifest.name!r} {'; '.join(where)}"
    held = [FORMATS[name] for name in manifest.engines if name in FORMATS]
    refusals = [*refusals, *(f"{f.name} {f.by_name_only}" for f in held if f.by_name_only)]
    names = dict.fromkeys(name for name, _ in _candidates(engine, device))
    if absent := [name for name in names if name not in manifest.engines]:
        refusals = [*refusals, f"not in the artifact: {', '.join(absent)}"]
    return f"no engine of {manifest.name!r} runs here: {'; '.join(refusals)}"


def _validate(engine: Engine, folder: Path, manifest: "Manifest") -> None:
    from runtime.selftest import selftest

    result = selftest(engine, folder, manifest, check_files=False)
    if not result.passed:
        raise EngineError(f"{result.worst_line()}. Do not use this engine here")


def _engine_module(name: str) -> Any:
    return importlib.import_module(FORMATS[name].module)
