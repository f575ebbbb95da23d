"""``model.trt.onnx`` and the plans that TensorRT or TensorRT-RTX builds from it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from exporter.errors import ExportError
from exporter.formats.onnx import export as onnx_cpu
from exporter.formats.tensorrt import graph as tensorrt_graph
from exporter.formats.tensorrt.attention import RUNGS, RefusedError
from exporter.formats.tensorrt.names import FILE_NAME
from exporter.formats.tensorrt.options import PlanOptions, profiles_of
from exporter.formats.tensorrt.plan import PlanRecipe, build_plan
from exporter.model.packed_forward import PackedESM2
from runtime.engines.tensorrt.engine import open_plan
from runtime.engines.tensorrt.library import BUILT_ON, LIBRARIES, import_library, known_cards
from runtime.engines.torch.aoti_cuda import capability_of_this_gpu
from runtime.errors import EngineError, UnsupportedError
from runtime.manifest_schema import EngineEntry, PlanEntry

FOLDER = "tensorrt"


def export(packed: PackedESM2, folder: Path, options: PlanOptions | None = None) -> EngineEntry:
    """Writes the graph and its plans into ``folder``, where ``weights.safetensors`` lies already.

    Args:
        packed: on the CPU, in the dtype to export.
        folder: where ``model.trt.onnx`` and ``tensorrt/`` go.
        options: which plans; None takes the defaults.

    Raises:
        ExportError: the library is missing, knows no such card, or refused every rung.
    """
    options = options or PlanOptions()
    trt, cards = library_and_cards(options)
    graph = folder / FILE_NAME
    onnx.save(tensorrt_graph.lower(packed, folder), graph)
    # By path, so that the checker follows the external data.
    onnx.checker.check_model(graph, full_check=True)
    plans = [_first_that_builds(trt, packed, folder, card, options) for card in cards]
    # A plan of TensorRT is for this model of card alone.
    model_of_card = {BUILT_ON: torch.cuda.get_device_name()} if trt.__name__ == "tensorrt" else {}
    return EngineEntry(
        file=FILE_NAME,
        lowering="; ".join(dict.fromkeys(RUNGS[plan.attention] for plan in plans)),
        built_with={**onnx_cpu.built_with(), trt.__name__: str(trt.__version__), **model_of_card},
        plans=plans,
    )


def check(longest: int, options: PlanOptions | None = None) -> None:
    """See ``Format.check``."""
    options = options or PlanOptions()
    if options.max_seqlen < longest:
        raise ExportError(
            f"--max-seqlen must be at least {longest}, the longest protein of the parity gate, got "
            f"{options.max_seqlen}"
        )
    library_and_cards(options)


def library_and_cards(options: PlanOptions) -> tuple[Any, Sequence[str]]:
    """The library that builds, and the compute capabilities that it builds for.

    Raises:
        ExportError: it is missing, knows no such card, or an option is wrong.
    """
    _check(options)
    trt = _library(options)
    cards = options.compute_capabilities or (_this_card(),)
    _check_known(trt, cards)
    return trt, cards


def _first_that_builds(
    trt: Any, packed: PackedESM2, folder: Path, card: str, options: PlanOptions
) -> PlanEntry:
    """Down the ladder: the best attention that builds, its weights outside where that builds."""
    refused: dict[str, str] = {}
    name = f"{trt.__name__.replace('_', '-')}-{trt.__version__}"
    sm = f"sm{card.replace('.', '')}"
    file = f"{FOLDER}/{sm}-{name}.plan"
    (folder / FOLDER).mkdir(exist_ok=True)
    # TensorRT compiles what reads weights from outside the plan on a card.
    has_card = torch.cuda.is_available()
    for rung in RUNGS:
        profiles = profiles_of(rung, options.max_tokens, options.max_seqlen, packed.num_heads)
        for refit in (True, False) if has_card else (False,):
            recipe = PlanRecipe(
                graph=folder / FILE_NAME, num_layers=packed.num_layers,
                compute_capability=card, rung=rung, profiles=profiles, refit=refit,
                timing_cache=_timings(trt, name, options),
            )  # fmt: skip
            plan = PlanEntry(
                file=file,
                library=trt.__name__,
                version=str(trt.__version__),
                compute_capability=card,
                attention=rung,
                profiles=profiles,
                refit=refit,
                refused=refused,
            )
            try:
                (folder / file).write_bytes(build_plan(trt, recipe))
                if has_card and card == _this_card():
                    open_plan(folder, plan, FILE_NAME)
            except (RefusedError, EngineError) as refusal:
                refused[f"{rung}, weights outside" if refit else rung] = str(refusal)
            else:
                return plan
    sentences = "; ".join(f"{what}: {why}" for what, why in refused.items())
    raise ExportError(f"target tensorrt, compute capability {card}: {sentences}")


def _timings(trt: Any, name: str, options: PlanOptions) -> Path | None:
    """Where TensorRT's measurements on this card are kept; TensorRT-RTX measures nothing."""
    if trt.__name__ != "tensorrt" or options.timing_caches is None:
        return None
    return options.timing_caches / f"{torch.cuda.get_device_name()} {name}.timings"


def _check(options: PlanOptions) -> None:
    wrong = [c for c in options.compute_capabilities if not re.fullmatch(r"\d+\.\d", c)]
    if wrong:
        raise ExportError(f"a compute capability is written as 8.9, got {', '.join(wrong)}")
    if not 1 <= options.max_seqlen <= options.max_tokens:
        raise ExportError(
            f"a pack of at most {options.max_tokens} tokens cannot hold a protein of "
            f"{options.max_seqlen}: --max-seqlen must be between 1 and --max-tokens"
        )


def _check_known(trt: Any, cards: Sequence[str]) -> None:
    known = known_cards(trt)
    if known and (unknown := [card for card in cards if card not in known]):
        raise ExportError(
            f"{LIBRARIES[trt.__name__][0]} {trt.__version__} builds for compute capabilities "
            f"{', '.join(known)}, not {', '.join(unknown)}. Build with TensorRT on such a card"
        )


def _library(options: PlanOptions) -> Any:
    """TensorRT for the card that is here; TensorRT-RTX, which needs none, for others."""
    here = {_this_card()} if torch.cuda.is_available() else set()
    problems = []
    for module in LIBRARIES:
        if module == "tensorrt" and (not here or set(options.compute_capabilities) - here):
            problems.append("TensorRT builds on the card that it builds for")
            continue
        try:
            return import_library(module)
        except UnsupportedError as error:
            problems.append(str(error))
    raise ExportError(f"target tensorrt: {'; '.join(problems)}")


def _this_card() -> str:
    if not torch.cuda.is_available():
        raise ExportError(
            "target tensorrt builds for the card of this machine, and there is none: name others, "
            "such as --compute-capability 8.0,8.9"
        )
    return capability_of_this_gpu()
