"""ONNX: a QDQ file with uint8 activations, int8 weight and int32 bias initializers, checked against the program."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from edgeft.errors import ExportError
from edgeft.exporters import onnx_inputs, onnx_rewrite, onnx_weights, stored_weights
from edgeft.exporters.check import FileLayer, check_layers
from edgeft.exporters.float_islands import shield_onnx_layers
from edgeft.exporters.onnx_rewrite import MAC_OPS, OnnxGraph
from edgeft.exporters.products import FileProduct
from edgeft.preprocessing import ImagePreprocessing
from edgeft.target import TargetProfile
from edgeft.types import QuantCoverage, QuantModel, TensorSpec, example_inputs


def write(
    model: QuantModel, profile: TargetProfile, path: Path
) -> tuple[QuantCoverage, TensorSpec, TensorSpec]:
    """Write `model` to `path` and check the file.

    Labels and preprocessing ride in the file's metadata. The bytes depend on the program and the versions only.

    Returns:
        Coverage, and the specs of input and logits.

    Raises:
        ExportError: torch.onnx cannot translate the program, or the file differs from it.
    """
    proto = _translate(model, profile)
    if model.scheme == "float16" and profile.precision.half_arithmetic:
        proto = onnx_weights.compute_in_halves(proto)
    graph = OnnxGraph(proto)
    if model.scheme == "float16":
        onnx_weights.store_halves(graph)
    elif model.scheme == "int8-weights":
        onnx_rewrite.fold_transposes(graph)
        onnx_weights.spell_out_dequantization(graph)
    elif model.scheme == "int8-dynamic":
        onnx_rewrite.fold_transposes(graph)
        onnx_weights.multiply_integers(graph)
    elif model.layers:
        onnx_rewrite.fold_weights(graph)
        onnx_rewrite.fold_transposes(graph)
        onnx_rewrite.separate_zero_points(graph)
        onnx_rewrite.shift_activations(graph, unsigned=profile.precision.activations == "uint8")
        onnx_rewrite.quantize_biases(graph, model)
        if profile.precision.granularity == "per-tensor":
            onnx_rewrite.merge_scales(graph)
        onnx_rewrite.drop_clamps(graph)
        onnx_rewrite.pool_means(graph)
        shield_onnx_layers(graph)
    source = _shape_input(graph, model, profile)
    onnx_rewrite.finish(graph)
    metadata = {
        "edgeft.labels": json.dumps(model.labels),
        "edgeft.preprocess": json.dumps(model.preprocessing.to_dict()),
    }
    for key, value in sorted(metadata.items()):
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    logits = TensorSpec(
        name="logits", shape=(source.shape[0], len(model.labels)), dtype="float32", layout="nk"
    )
    return check(model, path), source, logits


def _shape_input(graph: OnnxGraph, model: QuantModel, profile: TargetProfile) -> TensorSpec:
    """Give the graph the input that model and profile ask for, and return what that is."""
    wanted = model.preprocessing
    batch = profile.export.batch if profile.export.static_shapes else -1
    if not isinstance(wanted, ImagePreprocessing):
        return TensorSpec(
            name="input", shape=(batch, *wanted.input_shape), dtype=wanted.input_dtype, layout="nk"
        )
    if wanted.embedded:
        onnx_inputs.take_pixels(graph, keep_quantizer=profile.export.format == "openvino")
    last = profile.export.layout == "nhwc"
    if last:
        onnx_inputs.take_channels_last(graph)
    channels, *edges = wanted.input_shape
    return TensorSpec(
        name="input",
        shape=(batch, *edges, channels) if last else (batch, channels, *edges),
        dtype="uint8" if wanted.embedded else "float32",
        layout=profile.export.layout,
        scale=1.0 if wanted.embedded else 0.0,
    )


# OpenVINO's exporter starts from the same translation, which costs seconds: kept as long as the program lives.
_translations: weakref.WeakKeyDictionary[torch.fx.GraphModule, dict[tuple[bool, int, int], bytes]] = (
    weakref.WeakKeyDictionary()
)


def _translate(model: QuantModel, profile: TargetProfile) -> onnx.ModelProto:
    key = (profile.export.static_shapes, profile.export.batch, profile.export.opset)
    known = _translations.setdefault(model.program, {})
    if key not in known:
        known[key] = _run_torch_onnx(model, profile).SerializeToString()
    return onnx.load_from_string(known[key])


def _run_torch_onnx(model: QuantModel, profile: TargetProfile) -> onnx.ModelProto:
    static = profile.export.static_shapes
    example = example_inputs(model.preprocessing, profile.export.batch if static else 2)
    dynamic = None if static else ({0: torch.export.Dim("batch")},)
    try:
        # torch.onnx prints its progress; a library must not.
        silence = io.StringIO()
        with (
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                stored_weights.without_rounding(model.program),
                (example,),
                dynamo=True,
                dynamic_shapes=dynamic,
                opset_version=profile.export.opset,
                input_names=["input"],
                output_names=["logits"],
                optimize=True,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        raise ExportError(
            f"torch.onnx cannot translate the program: {str(error).strip().splitlines()[0]}"
        ) from error
    if exported is None:
        raise ExportError("torch.onnx returned no program")
    return exported.model_proto


def check(model: QuantModel, path: Path) -> QuantCoverage:
    """Read an ONNX file back and require that its numbers are the program's. Raises `ExportError`."""
    if model.scheme not in ("int8", "float32"):
        return onnx_weights.check(model, path)
    graph = OnnxGraph(onnx.load(path))
    layers: list[FileLayer] = []
    products: list[FileProduct] = []
    float_ops: list[str] = []
    for node in graph.nodes:
        if node.op_type not in MAC_OPS:
            continue
        layer, product = _read_layer(graph, node), _read_product(graph, node)
        if product is not None:
            products.append(product)
        elif layer is None:
            float_ops.append(node.name)
        else:
            layers.append(layer)
    activations = []
    for node in graph.nodes:
        dequantizes = node.op_type == "DequantizeLinear" and not graph.is_constant(node.input[0])
        if node.op_type == "QuantizeLinear" or dequantizes:
            scale, zero = graph.value(node.input[1]), graph.value(node.input[2])
            activations.append((float(scale), _signed(zero)))
    if not model.layers:
        return QuantCoverage(mac_ops=len(float_ops), int8_mac_ops=0, float_ops=tuple(float_ops))
    return check_layers(
        model,
        layers,
        float_ops,
        activations,
        file=path.name,
        products=products,
        islands=_float_islands(graph),
    )


# Between dequantizing and quantizing these are one integer kernel, or only move integers (targets/operators.md).
_INTEGER_OPS = {
    "Add", "AveragePool", "Clip", "Concat", "Expand", "Flatten", "Gather", "GlobalAveragePool", "Identity", "LeakyRelu",
    "MaxPool", "Mul", "Relu", "Reshape", "Sigmoid", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


def _float_islands(graph: OnnxGraph) -> list[str]:
    """Return the ops other than MACs that ONNX Runtime computes in float between integer ones."""
    apart = (*MAC_OPS, "QuantizeLinear", "DequantizeLinear")
    users = graph.users()
    return [
        node.name
        for node in graph.nodes
        if node.op_type not in apart
        and _depends_on_input(graph, node)
        and not (_has_integer_kernel(node) and _ends_quantized(users[node.output[0]]))
    ]


def _has_integer_kernel(node: onnx.NodeProto) -> bool:
    nearest = any(a.name == "mode" and a.s == b"nearest" for a in node.attribute)
    return node.op_type in _INTEGER_OPS or (node.op_type == "Resize" and nearest)


def _depends_on_input(graph: OnnxGraph, node: onnx.NodeProto) -> bool:
    return any(name and not graph.is_constant(name) for name in node.input)


def _ends_quantized(readers: Sequence[onnx.NodeProto]) -> bool:
    # A DequantizeLinear reads integers already.
    apart = ("QuantizeLinear", "DequantizeLinear", "Relu", "Clip")
    return bool(readers) and all(reader.op_type in apart for reader in readers)


def _read_product(graph: OnnxGraph, node: onnx.NodeProto) -> FileProduct | None:
    """Return a product of two dequantized activations, or None."""
    factors = [graph.producer(name) for name in node.input]
    if len(factors) != 2 or any(f is None or f.op_type != "DequantizeLinear" for f in factors):
        return None
    if any(graph.is_constant(f.input[0]) for f in factors if f is not None):
        return None
    left, right = (
        (float(graph.value(f.input[1])), _signed(graph.value(f.input[2]))) for f in factors if f is not None
    )
    return FileProduct(name=node.name, left=left, right=right)


def _read_layer(graph: OnnxGraph, node: onnx.NodeProto) -> FileLayer | None:
    data = graph.producer(node.input[0])
    weight = graph.producer(node.input[1])
    if data is None or weight is None or {data.op_type, weight.op_type} != {"DequantizeLinear"}:
        return None
    if not graph.is_constant(weight.input[0]):
        return None  # two activations multiplied
    integers: Any = graph.value(weight.input[0])
    scales = np.atleast_1d(graph.value(weight.input[1]))
    if node.op_type == "MatMul":
        integers = integers.T
    bias, bias_scale = _read_bias(graph, node)
    if bias is None and node.op_type == "MatMul":
        bias = _read_added_bias(graph, node, np.float32(graph.value(data.input[1])) * scales)
    return FileLayer(
        name=node.name,
        weight=integers,
        weight_scale=scales,
        bias=bias,
        input_scale=float(graph.value(data.input[1])),
        input_zero_point=_signed(graph.value(data.input[2])),
        weight_zero_points=graph.value(weight.input[2]),
        bias_scale=bias_scale,
    )


def _read_bias(graph: OnnxGraph, node: onnx.NodeProto) -> tuple[Any, Any]:
    """Return the int32 bias and its scales as they are stored, or None and None."""
    if len(node.input) < 3 or not node.input[2]:
        return None, None
    source = graph.producer(node.input[2])
    if source is None or source.op_type != "DequantizeLinear":
        raise ExportError(f"{node.name}: its bias is not an int32 initializer")
    if graph.value(source.input[2]).any():
        raise ExportError(f"{node.name}: its bias has a zero point")
    return graph.value(source.input[0]), np.atleast_1d(graph.value(source.input[1]))


def _read_added_bias(graph: OnnxGraph, node: onnx.NodeProto, scale: Any) -> Any:
    """Return the bias of a linear layer on more than two dimensions: a constant added in float, on its grid."""
    for reader in graph.users()[node.output[0]]:
        constants = [name for name in reader.input if graph.is_constant(name)]
        if reader.op_type == "Add" and constants:
            value = graph.value(constants[0]).astype(np.float64)
            if value.ndim == 1:
                return np.rint(value / scale.astype(np.float64)).astype(np.int32)
    return None


def _signed(zero_point: Any) -> int:
    return int(zero_point) - (128 if zero_point.dtype == np.uint8 else 0)
