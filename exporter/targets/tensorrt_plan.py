"""One plan: ``model.trt.onnx`` parsed, its attention lowered, and built for one kind of card."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.targets.tensorrt_attention import RefusedError, lower_attention
from runtime.engines.tensorrt_library import collecting_logger, first_error
from runtime.manifest import Profile


@dataclass(frozen=True)
class PlanRecipe:
    """What a plan is built from and for.

    Attributes:
        graph: ``model.trt.onnx``, beside ``weights.safetensors``.
        num_layers: of the model.
        weights: their names.
        compute_capability: of the card, such as ``8.9``.
        rung: key of ``exporter.targets.tensorrt_attention.RUNGS``.
        profiles: the largest packs.
        refit: leave the weights out of the plan, to be read by name when it is loaded.
        timing_cache: a file that keeps what TensorRT measured; None keeps nothing.
    """

    graph: Path
    num_layers: int
    weights: Sequence[str]
    compute_capability: str
    rung: str
    profiles: Sequence[Profile]
    refit: bool
    timing_cache: Path | None


def build_plan(trt: Any, recipe: PlanRecipe) -> Any:
    """The serialized plan, a buffer of bytes.

    Args:
        trt: the library, ``tensorrt`` or ``tensorrt_rtx``.
        recipe: what to build.

    Raises:
        RefusedError: by the parser, the attention layers or the builder.
    """
    logger = collecting_logger(trt)
    with _quiet():
        builder = trt.Builder(logger)
        # The network's weights lie in the parser's memory, so the parser must live.
        network, parser = _parsed(trt, builder, logger, recipe.graph)
        lower_attention(trt, network, recipe.rung, recipe.num_layers)
        config = builder.create_builder_config()
        # TF32, the default, would cost the float32 budget a thousandfold.
        config.clear_flag(trt.BuilderFlag.TF32)
        if recipe.refit:
            _leave_weights_out(trt, network, config, recipe.weights)
        _target(trt, config, recipe.compute_capability)
        for profile in recipe.profiles:
            config.add_optimization_profile(_profile(builder, profile))
        with _kept_timings(config, recipe.timing_cache):
            serialized = builder.build_serialized_network(network, config)
        del parser
    if serialized is None:
        raise RefusedError(first_error(logger))
    return serialized


def _parsed(trt: Any, builder: Any, logger: Any, graph: Path) -> tuple[Any, Any]:
    # Strongly typed: in the dtypes of the graph. TensorRT 11 knows no other networks.
    strongly_typed = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    # By path, so that it finds weights.safetensors.
    if not parser.parse_from_file(str(graph)):
        raise RefusedError(" ".join(parser.get_error(0).desc().split()))
    return network, parser


def _leave_weights_out(trt: Any, network: Any, config: Any, names: Sequence[str]) -> None:
    unknown = [name for name in names if not network.mark_weights_refittable(name)]
    if unknown:
        raise RefusedError(f"cannot be refitted by name: {', '.join(unknown[:3])}")
    config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
    config.set_flag(trt.BuilderFlag.STRIP_PLAN)


def _target(trt: Any, config: Any, compute_capability: str) -> None:
    """TensorRT-RTX builds for the card that it is told; TensorRT for the one that is here."""
    cards = known_cards(trt)
    if not cards:
        return
    config.num_compute_capabilities = 1
    config.set_compute_capability(cards[compute_capability], 0)


def known_cards(trt: Any) -> dict[str, Any]:
    """The compute capabilities that TensorRT-RTX builds for, such as ``8.9``, to its names.

    Empty for TensorRT, which builds for the card that is here.
    """
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return {f"{sm[2:-1]}.{sm[-1]}": members[sm] for sm in members if sm.startswith("SM")}


def _profile(builder: Any, largest: Profile) -> Any:
    profile = builder.create_optimization_profile()
    tokens, proteins, longest = largest.max_tokens, largest.max_proteins, largest.max_seqlen
    usual = max(1, tokens // 2), max(1, proteins // 2), max(1, longest // 2)
    profile.set_shape("input_ids", (1,), (usual[0],), (tokens,))
    profile.set_shape("cu_seqlens", (2,), (usual[1] + 1,), (proteins + 1,))
    profile.set_shape_input("max_seqlen", [1], [usual[2]], [longest])
    return profile


@contextlib.contextmanager
def _kept_timings(config: Any, path: Path | None) -> Iterator[None]:
    """What TensorRT measured is read before and written after: the next build measures less."""
    if path is None:
        yield
        return
    known = path.read_bytes() if path.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(known), False)
    yield
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(config.get_timing_cache().serialize()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
