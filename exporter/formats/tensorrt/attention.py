"""TensorRT's own attention layers in place of the attention that ``model.trt.onnx`` writes out.

The layers go in by TensorRT's API: the parser's op for them reads its lengths from another input in
TensorRT-RTX 1.7 than TensorRT 11 documents, and ignores them without a word where it does not.
"""

from collections.abc import Iterable
from typing import Any

from exporter.formats.tensorrt.names import LENGTHS, tensor_name

# Where the written-out attention is cut out for a layer of TensorRT.
CUT_AT = {"packed": "", "padded": "_grid"}

# Best first, with what the manifest says of each. The last is the graph as it stands.
RUNGS = {
    "packed": "IAttention on the pack itself, bounds from cu_seqlens",
    "padded": "IAttention on proteins padded in the graph, with their lengths",
    "masked": "MatMul, Softmax, MatMul on proteins padded in the graph, masked",
}


class RefusedError(Exception):
    """TensorRT does not take something; the message is its own sentence, or names what it lacks."""


def lower_attention(trt: Any, network: Any, rung: str, num_layers: int) -> None:
    """Puts the attention layers of ``rung`` into a parsed network.

    Args:
        trt: the library, ``tensorrt`` or ``tensorrt_rtx``.
        network: its ``INetworkDefinition``, of ``model.trt.onnx`` cut at ``CUT_AT``; changed in
            place.
        rung: key of ``RUNGS``.
        num_layers: of the model.

    Raises:
        RefusedError: this version has no such layer, or does not take what it is given.
    """
    if rung not in CUT_AT:
        return
    if not hasattr(trt, "AttentionIOForm") or not hasattr(network, "add_attention_v2"):
        raise RefusedError(
            f"{trt.__name__} {trt.__version__} has no attention layer that takes lengths"
        )
    tensors = {tensor.name: tensor for tensor in _tensors(network)}
    for layer in range(num_layers):
        _attend(trt, network, tensors, layer, rung)


def _attend(trt: Any, network: Any, tensors: dict[str, Any], layer: int, rung: str) -> None:
    suffix = CUT_AT[rung]
    q, k, v, written_out = (
        tensors[tensor_name(layer, role + suffix)] for role in ("q", "k", "v", "out")
    )
    dtype = q.dtype
    # TensorRT's sign that its float16 kernel shall add in float32, no computation of its own:
    # docs.nvidia.com/deeplearning/tensorrt, release notes of 11.3.0.
    is_widened = dtype == trt.float16
    if is_widened:
        q, k, v = (network.add_cast(rows, trt.float32).get_output(0) for rows in (q, k, v))
    attention = network.add_attention_v2(
        q, k, v, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
    )
    if attention is None:
        raise RefusedError(f"{trt.__name__} {trt.__version__} does not take q, k and v as they are")
    attention.name = tensor_name(layer, rung)
    try:
        if rung == "packed":
            form, lengths = trt.AttentionIOForm.PACKED_NHD, tensors["cu_seqlens"]
            attention.query_form, attention.query_lengths = form, lengths
        else:
            form, lengths = trt.AttentionIOForm.PADDED_BHND, tensors[LENGTHS]
            # float32 has no fused kernel; half precision that has none goes down the ladder.
            attention.decomposable = dtype == trt.float32
        attention.key_value_form, attention.key_value_lengths = form, lengths
    except RuntimeError as error:  # how the bindings refuse a property
        raise RefusedError(str(error)) from None
    if attention.key_value_lengths is None or attention.key_value_form != form:
        raise RefusedError(f"{trt.__name__} {trt.__version__} dropped the lengths of its attention")
    attended = attention.get_output(0)
    if is_widened:
        attended = network.add_cast(attended, dtype).get_output(0)
    _redirect(network, written_out.name, attended)


def _redirect(network: Any, name: str, tensor: Any) -> None:
    """Gives every reader of the tensor ``name`` another one; what computed it is left unread."""
    readers = [
        (layer, place)
        for layer in _layers(network)
        for place in range(layer.num_inputs)
        if (read := layer.get_input(place)) is not None and read.name == name
    ]
    assert readers, f"nothing reads {name}"
    for layer, place in readers:
        layer.set_input(place, tensor)


def _layers(network: Any) -> Iterable[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def _tensors(network: Any) -> Iterable[Any]:
    for index in range(network.num_inputs):
        yield network.get_input(index)
    for layer in _layers(network):
        for index in range(layer.num_outputs):
            yield layer.get_output(index)
