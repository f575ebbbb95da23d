"""One plan: ``model.trt.onnx`` parsed, its attention lowered, and built for one kind of card."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from exporter.formats.tensorrt.attention import CUT_AT, RefusedError, lower_attention
from exporter.formats.tensorrt.graph import without_written_out_attention
from runtime.engines.tensorrt.library import collecting_logger, first_error, known_cards
from runtime.manifest_schema import Profile
from runtime.staging import staging


@dataclass(frozen=True, kw_only=True)
class PlanRecipe:
    """What a plan is built from and for.

    Attributes:
        graph: ``model.trt.onnx``, beside ``weights.safetensors``.
        num_layers: of the model.
        compute_capability: of the card, such as ``8.9``.
        rung: key of ``exporter.formats.tensorrt.attention.RUNGS``.
        profiles: the largest packs.
        refit: leave the weights out of the plan, to be read by name when it is loaded.
        timing_cache: a file that keeps what TensorRT measured; None keeps nothing.
    """

    graph: Path
    num_layers: int
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
        network, parser = _parsed(trt, builder, logger, recipe.graph, recipe.rung)
        lower_attention(trt, network, recipe.rung, recipe.num_layers)
        config = configured(trt, builder, recipe)
        with _kept_timings(config, recipe.timing_cache):
            serialized = builder.build_serialized_network(network, config)
        del parser
    if serialized is None:
        raise RefusedError(first_error(logger))
    return serialized


def configured(trt: Any, builder: Any, recipe: PlanRecipe) -> Any:
    """The ``IBuilderConfig`` of a recipe, but for what is known of kernels' times."""
    config = builder.create_builder_config()
    # TF32, the default, would cost the float32 budget a thousandfold.
    config.clear_flag(trt.BuilderFlag.TF32)
    if recipe.refit:
        # The fastest plan without weights: TensorRT may bake in what it sees of their values, so
        # they must come back as they were. The manifest's digests hold plan and weights.
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    _target(trt, config, recipe.compute_capability)
    for profile in recipe.profiles:
        config.add_optimization_profile(_profile(builder, profile))
    return config


def _parsed(trt: Any, builder: Any, logger: Any, graph: Path, rung: str) -> tuple[Any, Any]:
    # Strongly typed: in the dtypes of the graph. TensorRT 11 knows no other networks.
    strongly_typed = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    model = onnx.load(graph, load_external_data=False)
    if rung in CUT_AT:
        model = without_written_out_attention(model, CUT_AT[rung])
    # By its path it finds weights.safetensors.
    if not parser.parse(model.SerializeToString(), str(graph)):
        raise RefusedError(" ".join(parser.get_error(0).desc().split()))
    return network, parser


def _target(trt: Any, config: Any, compute_capability: str) -> None:
    """TensorRT-RTX builds for the card that it is told; TensorRT for the one that is here."""
    # Such a plan is for this model of card alone, which the manifest names. The level
    # SAME_COMPUTE_CAPABILITY would free it of that, but has fewer kernels to choose from.
    if cards := known_cards(trt):
        config.num_compute_capabilities = 1
        config.set_compute_capability(cards[compute_capability], 0)


def _profile(builder: Any, largest: Profile) -> Any:
    """Kernels are chosen for half of the tokens, in proteins half as long as the longest."""
    profile = builder.create_optimization_profile()
    tokens, proteins, longest = largest.max_tokens, largest.max_proteins, largest.max_seqlen
    usual_tokens = max(1, min(tokens, proteins * longest) // 2)
    usual_proteins = max(1, min(proteins, 2 * usual_tokens // longest))
    profile.set_shape("input_ids", (1,), (usual_tokens,), (tokens,))
    profile.set_shape("cu_seqlens", (2,), (usual_proteins + 1,), (proteins + 1,))
    profile.set_shape_input("max_seqlen", [1], [longest], [longest])
    return profile


@contextlib.contextmanager
def _kept_timings(config: Any, path: Path | None) -> Iterator[None]:
    """What TensorRT measured is read before and written after: the next build measures less."""
    if path is None:
        yield
        return
    known = b""
    with contextlib.suppress(OSError):
        known = path.read_bytes()
    # One of another card or version, or a damaged one, is not taken: then it starts anew.
    for content in (known, b""):
        timings = config.create_timing_cache(content)
        if timings is not None and config.set_timing_cache(timings, False):
            break
    yield
    if (measured := config.get_timing_cache()) is not None:
        with contextlib.suppress(OSError):  # a read-only cache costs the next build its time
            path.parent.mkdir(parents=True, exist_ok=True)
            with staging(path) as aside:
                aside.write_bytes(measured.serialize())
                aside.replace(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
