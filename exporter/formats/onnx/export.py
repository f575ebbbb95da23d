"""``model.onnx``: the packed forward as ONNX, its initializers left in ``weights.safetensors``."""

import logging
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript
import torch

from exporter.formats.onnx import contacts
from exporter.formats.onnx.attention import (
    DOMAIN,
    ONNX_DTYPES,
    OPSET,
    QUERY_BLOCK,
    VERSION,
    attention_function,
    register_schema,
)
from exporter.formats.onnx.fusion import fuse_rotary
from exporter.formats.tracing import dynamic_shapes, exporting, tracing_pack
from exporter.model import contact_head
from exporter.model.packed_forward import PackedESM2
from runtime.manifest_schema import EngineEntry
from runtime.weights import FILE_NAME as WEIGHTS_FILE
from runtime.weights import read_places

FILE_NAME = "model.onnx"
INPUT_NAMES = ("input_ids", "cu_seqlens", "max_seqlen")
LOWERING = (
    "esm2::VarlenAttention, without a kernel for it a model-local function: "
    f"a Loop over proteins, {QUERY_BLOCK} queries at a time"
)


def export(packed: PackedESM2, folder: Path) -> EngineEntry:
    """Exports ``packed`` into ``folder``, where ``weights.safetensors`` lies already.

    Args:
        packed: on the CPU, in the dtype to export.
        folder: where ``model.onnx`` goes.
    """
    proto = lower(packed, folder)
    path = folder / FILE_NAME
    onnx.save(proto, path)
    # By path, so that the checker follows the external data.
    onnx.checker.check_model(path, full_check=True)
    return EngineEntry(file=FILE_NAME, lowering=LOWERING, built_with=built_with())


def lower(packed: PackedESM2, folder: Path) -> onnx.ModelProto:
    """The graph with its functions, its parameters left in ``weights.safetensors``."""
    model = export_graph(packed)
    functions = fuse_rotary(model)
    proto = finish(model, packed, folder)
    heads = packed.num_heads, packed.head_dim
    proto.functions.extend([*functions, attention_function(onnx_dtype(packed), *heads)])
    return proto


def finish(model: ir.Model, packed: PackedESM2, folder: Path) -> onnx.ModelProto:
    """Names of the manifest, parameters in ``weights.safetensors``, no notes of the exporter."""
    _name_dimensions(model, packed)
    _point_to_weights(model, folder)
    _drop_metadata(model)
    contacts.put_last(model)
    proto = ir.to_proto(model)
    if packed.contact_head is not None:
        proto.functions.append(contacts.contacts_function())
    return proto


def built_with() -> dict[str, str]:
    """For the manifest."""
    return {"torch": str(torch.__version__), "onnx": onnx.__version__, "opset": str(OPSET)}


def export_graph(packed: PackedESM2) -> ir.Model:
    """The packed forward with ``esm2::VarlenAttention`` nodes, as PyTorch's exporter leaves it."""
    register_schema()
    contacts.register_contacts_schema()
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with exporting():
            program = torch.onnx.export(
                packed,
                tracing_pack(),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=INPUT_NAMES,
                output_names=packed.output_names,
                dynamic_shapes=dynamic_shapes(),
                custom_translation_table={
                    torch.ops.esm2.varlen_attention.default: _varlen_attention,
                    contact_head.OP.default: _add_contacts,
                },
            )
    finally:
        noisy.setLevel(level)
    assert program is not None
    return program.model


def _varlen_attention(
    q: Any, k: Any, v: Any, cu_seqlens: Any, max_seqlen: Any, softmax_scale: float
) -> Any:
    # Plain Python, not an onnxscript function: the exporter would inline that.
    opset = onnxscript.values.Opset(DOMAIN, VERSION)
    return opset.VarlenAttention(q, k, v, cu_seqlens, max_seqlen, softmax_scale=softmax_scale)


def _add_contacts(
    logits: Any, q: Any, k: Any, cu_seqlens: Any, softmax_scale: float, is_kept: Any, weight: Any
) -> Any:
    opset = onnxscript.values.Opset(DOMAIN, VERSION)
    inputs = logits, q, k, cu_seqlens, is_kept, weight
    return getattr(opset, contacts.OP_TYPE)(*inputs, softmax_scale=softmax_scale)


def _name_dimensions(model: ir.Model, packed: PackedESM2) -> None:
    """T, N + 1 and N: the names of the manifest, whatever torch.export called them."""
    model.graph.inputs[1].shape = ir.Shape(["N + 1"])
    for value in model.graph.outputs:
        width = value.shape[1] if value.shape is not None else None
        value.shape = ir.Shape([packed.outputs[str(value.name)][0], width])


def _point_to_weights(model: ir.Model, folder: Path) -> None:
    """Replaces each parameter by where it lies in ``weights.safetensors``."""
    places = read_places(folder / WEIGHTS_FILE)
    for name, value in model.graph.initializers.items():
        if name not in places:
            continue
        tensor = value.const_value
        assert tensor is not None and isinstance(tensor.shape, ir.Shape)
        value.const_value = ir.ExternalTensor(
            location=WEIGHTS_FILE,
            offset=places[name].offset,
            length=places[name].length,
            dtype=tensor.dtype,
            shape=tensor.shape,
            name=name,
            base_dir=folder,
        )


def _drop_metadata(model: ir.Model) -> None:
    """Removes the exporter's notes: they hold this machine's paths."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    for value in [*model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs]:
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()


def onnx_dtype(packed: PackedESM2) -> int:
    """``onnx.TensorProto``'s number of its activations' dtype."""
    return ONNX_DTYPES[str(packed.embed_tokens.weight.dtype).removeprefix("torch.")]
