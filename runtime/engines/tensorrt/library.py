"""TensorRT and TensorRT-RTX: one API under two names."""

import importlib
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

from runtime.errors import UnsupportedError
from runtime.manifest_schema import PlanEntry

# Module -> what people call it, and the extra that installs it.
LIBRARIES = {
    "tensorrt": ("TensorRT", "tensorrt"),
    "tensorrt_rtx": ("TensorRT-RTX", "tensorrt-rtx"),
}

# Key of ``EngineEntry.built_with``: the model of card that a plan of TensorRT is for.
BUILT_ON = "GPU"


def import_library(module: str) -> Any:
    """The library.

    Args:
        module: key of ``LIBRARIES``.

    Raises:
        UnsupportedError: it is not installed, or does not load here.
    """
    name, extra = LIBRARIES[module]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise UnsupportedError(
            f"{name} is not installed ({error}): pip install 'esm2-engines[{extra}]'"
        ) from None
    except OSError as error:  # its wheels load their libraries when they are imported
        raise UnsupportedError(f"{name} does not load: {error}") from None


def known_cards(trt: Any) -> dict[str, Any]:
    """The compute capabilities that TensorRT-RTX builds for, such as ``8.9``, to its names.

    Empty for TensorRT, which builds for the card that is here.
    """
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return {f"{sm[2:-1]}.{sm[-1]}": members[sm] for sm in members if sm.startswith("SM")}


@cache
def _logger_of(trt: Any) -> Any:
    """One of each library, which keeps the first that it is given."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(" ".join(message.split()))

    return Logger()


def collecting_logger(trt: Any) -> Any:
    """The library's logger, with no ``errors`` yet: its own sentences from now on, in order."""
    logger = _logger_of(trt)
    logger.errors.clear()
    return logger


def first_error(logger: Any) -> str:
    """What a ``collecting_logger`` heard first, which is what the others follow from."""
    return logger.errors[0] if logger.errors else "it gave no reason"


def choose_plan(plans: Sequence[PlanEntry], versions: dict[str, str], card: str) -> PlanEntry:
    """The plan for this card and an installed library.

    Args:
        plans: of the artifact.
        versions: of the installed libraries, by module.
        card: its compute capability.

    Raises:
        UnsupportedError: there is none; says which there are and what is here.
    """
    for plan in plans:
        if plan.compute_capability == card and versions.get(plan.library) == plan.version:
            return plan
    there = ", ".join(
        f"{LIBRARIES[plan.library][0]} {plan.version} on compute capability "
        f"{plan.compute_capability}"
        for plan in plans
    )
    here = " and ".join(
        f"{LIBRARIES[module][0]} {version}" for module, version in sorted(versions.items())
    )
    raise UnsupportedError(
        f"its plans are for {there or 'no card'}; here are {here or 'no TensorRT'} and a card of "
        f"compute capability {card}. Build one here: 'esm2-export build --target tensorrt'"
    )


def require_model(plan: PlanEntry, built_on: str | None, here: str) -> None:
    """Refuses a plan of TensorRT, whose kernels were chosen on another model of card.

    Args:
        plan: of the artifact.
        built_on: name of the card that it was built on; None in artifacts of before, whose plans
            take any card of their compute capability.
        here: name of the card that shall run it.

    Raises:
        UnsupportedError: it is another model.
    """
    if plan.library == "tensorrt" and built_on is not None and built_on != here:
        raise UnsupportedError(
            f"its plan is for {built_on}, this card is {here}. Build one here: 'esm2-export build "
            "--target tensorrt'"
        )


def switch_profile(context: Any, profile: int, stream: int) -> bool:
    """Whether an ``IExecutionContext`` took a profile.

    NVIDIA's documentation promises False for a refusal; its bindings raise instead
    (``context_set_optimization_profile_async`` in TensorRT's ``python/src/infer/pyCore.cpp``).
    """
    try:
        return bool(context.set_optimization_profile_async(profile, stream))
    except RuntimeError:
        return False


def installed_versions(plans: Sequence[PlanEntry]) -> dict[str, str]:
    """Versions of those libraries that the plans are for and that are installed, by module.

    Raises:
        UnsupportedError: none is.
    """
    versions, problems = {}, []
    for module in dict.fromkeys(plan.library for plan in plans):
        try:
            versions[module] = str(import_library(module).__version__)
        except UnsupportedError as error:
            problems.append(str(error))
    if not versions:
        raise UnsupportedError("; ".join(problems) or "it holds no plan")
    return versions
