"""``model.int8.onnx``: the graph of ``model.onnx`` with every linear quantised to int8.

Weights have one scale per output channel, activations one per token, taken when they are computed
(dynamic quantisation). A token's numbers so depend on that token alone, never on the pack.
"""

from pathlib import Path

import onnx
import onnx.parser
import torch
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto

from exporter.errors import ExportError
from exporter.formats.onnx import export as onnx_float
from exporter.formats.onnx.attention import DOMAIN, OPSET
from exporter.model.packed_forward import PackedESM2
from exporter.weights import int8 as int8_weights
from exporter.weights.calibration import BUILT_IN, Calibration, measure
from exporter.weights.int8 import Recipe
from exporter.weights.mixture import BUDGET, choose
from exporter.weights.smoothing import SUFFIX
from runtime.manifest_schema import EngineEntry, MixtureEntry, Quantisation, SmoothingEntry
from runtime.weights import FILE_NAME as WEIGHTS_FILE
from runtime.weights import Place, read_places

FILE_NAME = "model.int8.onnx"

# uint8 and not int8: ONNX Runtime has no fast kernels for int8 activations on x86. They are shifted
# by 128, so that 1 to 255 stand for -127 to 127 steps.
_QUANTISE = """
<opset_import: ["" : {opset}], domain: "{domain}">
QuantizeRows (x) => (values, scales)
{{
  last = Constant <value = int64[1] {{-1}}> ()
  levels = Constant <value = float {{127}}> ()
  tiny = Constant <value = float {{1e-30}}> ()
  shift = Constant <value = uint8 {{128}}> ()
  highest = ReduceMax <keepdims = 0> (x, last)
  lowest = ReduceMin <keepdims = 0> (x, last)
  minus_lowest = Neg(lowest)
  largest = Max(highest, minus_lowest, tiny)
  steps = Div(largest, levels)
  tokens = Shape(steps)
  shifts = Expand(shift, tokens)
  values = QuantizeLinear <axis = 0> (x, steps, shifts)
  scales = Unsqueeze(steps, last)
}}
"""

# ONNX Runtime's own op, in every build of it for CPUs: MatMulInteger, Cast and Mul in one pass.
_LINEAR = """
<opset_import: ["" : {opset}, "com.microsoft" : 1], domain: "{domain}">
Int8Linear (values, scales, weight, weight_scales, bias) => (out)
{{
  shift = Constant <value = uint8 {{128}}> ()
  one = Constant <value = float {{1}}> ()
  by_channel = com.microsoft.MatMulIntegerToFloat(values, weight, one, weight_scales, shift)
  by_token = Mul(by_channel, scales)
  out = Add(by_token, bias)
}}
"""


def export(
    packed: PackedESM2, folder: Path, calibration: Calibration = BUILT_IN, budget: float = BUDGET,
    bits: int = 8,
) -> EngineEntry:  # fmt: skip
    """Exports ``packed`` into ``folder``, where ``weights.safetensors`` lies already.

    Args:
        packed: on the CPU, in float32.
        folder: where ``model.int8.onnx`` and ``weights.int8.safetensors`` go. The recipe of one
            that is there is kept: a graph with a planted fault is no model to measure.
        calibration: proteins on which the linears' inputs are measured.
        budget: relative L2 on them; linears stay in float until it is met.
        bits: of weights, 7 or 8; see ``exporter.weights.int8.LEVELS_OF_BITS``.

    Raises:
        ExportError: ``packed`` is in half precision: its weights are rounded already.
    """
    dtype = packed.embed_tokens.weight.dtype
    if dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        raise ExportError(
            f"target onnx-int8 quantises float32 weights, got {name}. Take --dtype float32"
        )
    entry = None
    if (folder / int8_weights.FILE_NAME).exists():
        recipe = int8_weights.read_recipe(folder)
    else:
        linears = dict(int8_weights.linears(packed))
        smoothing = measure(packed, linears.items(), calibration)
        recipe = Recipe(list(linears), smoothing, int8_weights.LEVELS_OF_BITS[bits])
        mixture = choose(packed, recipe, calibration, budget)
        recipe = mixture.recipe
        entry = MixtureEntry(
            in_float=list(mixture.in_float),
            num_linears=len(linears),
            budget=budget,
            error=mixture.error,
            error_of_int8=mixture.error_of_int8,
        )
    int8_weights.write(packed, folder, recipe)
    recipe = int8_weights.read_recipe(folder)
    smoothing = recipe.smoothing
    proto = onnx_float.lower(packed, folder)
    _quantise_linears(proto.graph, packed, folder, recipe)
    _use_smoothed(proto.graph, folder)
    proto.functions.extend(_functions())
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    path = folder / FILE_NAME
    onnx.save(proto, path)
    # By path, so that the checker follows the external data.
    onnx.checker.check_model(path, full_check=True)
    return EngineEntry(
        file=FILE_NAME,
        lowering=onnx_float.LOWERING,
        built_with=onnx_float.built_with(),
        quantised=Quantisation(
            weights=f"int8 in +-{recipe.levels}, one scale for each output channel",
            activations="uint8, one scale for each token, dynamic",
            file=int8_weights.FILE_NAME,
            budget={},  # the gate's: whoever builds writes it down
            smoothing=SmoothingEntry(
                proteins=calibration.proteins,
                sha256=calibration.sha256,
                num_tokens=calibration.num_tokens,
                folded=len(smoothing.factors) - len(smoothing.multiplied),
                multiplied=len(smoothing.multiplied),
            ),
            mixture=entry,
        ),
    )


def _functions() -> list[FunctionProto]:
    return [
        onnx.parser.parse_function(text.format(opset=OPSET, domain=DOMAIN))
        for text in (_QUANTISE, _LINEAR)
    ]


def _quantise_linears(graph: GraphProto, packed: PackedESM2, folder: Path, recipe: Recipe) -> None:
    """Replaces its linears; those that read the same activations share their quantised rows."""
    places = read_places(folder / int8_weights.FILE_NAME)
    biases = read_places(folder / WEIGHTS_FILE)
    linears = {
        f"{name}.weight": (name, module)
        for name, module in int8_weights.linears(packed)
        if name in recipe.linears
    }
    nodes: list[NodeProto] = []
    quantised: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type != "Gemm" or node.input[1] not in linears:
            nodes.append(node)
            continue
        x, weight, *rest = node.input
        name, linear = linears.pop(weight)
        if x not in quantised:
            quantised[x] = [f"{x}.int8", f"{x}.scale"]
            rows = x
            if name in recipe.smoothing.multiplied:
                factors, rows = f"{name}{SUFFIX}", f"{x}.smoothed"
                nodes.append(onnx.helper.make_node("Mul", [x, factors], [rows]))
                width = (linear.in_features,)
                external = _external(factors, TensorProto.FLOAT, width, places[factors])
                graph.initializer.append(external)
            nodes.append(onnx.helper.make_node("QuantizeRows", [rows], quantised[x], domain=DOMAIN))
        stored = int8_weights.stored_names(name)
        # The exporter drops a bias of zeros, which an untrained checkpoint has.
        bias = rest[0] if rest else f"{name}.bias"
        if not rest:
            place = biases[bias]
            shape = tuple(linear.bias.shape)
            graph.initializer.append(_external(bias, TensorProto.FLOAT, shape, place, WEIGHTS_FILE))
        inputs = [*quantised[x], *stored, bias]
        nodes.append(
            onnx.helper.make_node("Int8Linear", inputs, node.output, node.name, domain=DOMAIN)
        )
        rows, columns = linear.weight.shape
        graph.initializer.extend([
            _external(stored[0], TensorProto.INT8, (columns, rows), places[stored[0]]),
            _external(stored[1], TensorProto.FLOAT, (rows,), places[stored[1]]),
        ])  # fmt: skip
    if linears:
        raise ExportError(f"the graph has no linears {', '.join(linears)}: this is a bug")
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _use_smoothed(graph: GraphProto, folder: Path) -> None:
    """LayerNorms and biases that took factors in are read from the file of int8 weights."""
    places = read_places(folder / int8_weights.FILE_NAME)
    for tensor in graph.initializer:
        if tensor.name in places and tensor.data_type == TensorProto.FLOAT:
            shape, place = tuple(tensor.dims), places[tensor.name]
            tensor.CopyFrom(_external(tensor.name, TensorProto.FLOAT, shape, place))


def _external(
    name: str, dtype: int, shape: tuple[int, ...], place: Place, file: str = int8_weights.FILE_NAME
) -> TensorProto:
    tensor = TensorProto(name=name, data_type=dtype, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", file), ("offset", place.offset), ("length", place.length)
    ):  # fmt: skip
        tensor.external_data.add(key=key, value=str(value))
    return tensor
