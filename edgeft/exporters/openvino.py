"""OpenVINO IR, made from the uint8 QDQ ONNX file, and read back against the program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import extras
from edgeft.errors import ExportError
from edgeft.exporters import onnx, stored_weights
from edgeft.exporters.check import FileLayer, check_layers
from edgeft.exporters.openvino_info import model_info
from edgeft.exporters.products import FileProduct
from edgeft.exporters.stored_weights import IntegerWeight
from edgeft.target import TargetProfile
from edgeft.types import FloatArray, QuantCoverage, QuantModel, TensorSpec

_MAC_TYPES = (
    "Convolution",
    "GroupConvolution",
    "MatMul",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "ScaledDotProductAttention",  # what its conversion makes of two float products with a softmax between them
)
# What the frontend raises; these have no common base but Exception.
_FAILURES = ("GeneralFailure", "NotImplementedFailure", "OpConversionFailure", "OpValidationFailure")
# Nodes between a stored constant and the op that reads it.
_TRANSPARENT = ("Convert", "Reshape", "Transpose", "Squeeze", "Unsqueeze")


def write(
    model: QuantModel, profile: TargetProfile, path: Path
) -> tuple[QuantCoverage, TensorSpec, TensorSpec]:
    """Write `model` as `path` (.xml) and its .bin, and check them. Returns and raises as `exporters.onnx.write`."""
    ov = extras.load("openvino", f"target {profile.id}")
    frontend = extras.load("openvino.frontend", f"target {profile.id}")
    refusals = (RuntimeError, *(getattr(frontend, name) for name in _FAILURES))
    source = path.with_suffix(".source.onnx")
    _, image, logits = onnx.write(model, profile, source)
    try:
        converted = ov.convert_model(str(source))
        converted.set_friendly_name("edgeft")
        _keep_rounding_before_adds(converted)
        if model.scheme == "float16":
            _store_halves(converted)
        if model.scheme == "int8-weights":
            # The CPU plugin would quantize the inputs of linear layers with int8 weights too, in groups of 32.
            converted.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        # Nodes that the conversion makes are numbered through the process: the same model would get other bytes.
        for index, op in enumerate(converted.get_ordered_ops()):
            op.set_friendly_name(f"{op.get_type_name()}_{index}")
        for name, value in model_info(model).items():
            converted.set_rt_info(value, ["model_info", name])
        converted.set_rt_info(json.dumps(model.labels), ["edgeft", "labels"])
        converted.set_rt_info(json.dumps(model.preprocessing.to_dict()), ["edgeft", "preprocess"])
        # The default would store float weights in half precision, which a "float32" file must not do.
        ov.save_model(converted, str(path), compress_to_fp16=False)
    except refusals as error:
        raise ExportError(f"OpenVINO cannot convert the model: {' '.join(str(error).split())}") from error
    finally:
        source.unlink(missing_ok=True)
    if str(source.parent) in path.read_text(encoding="utf-8"):
        raise ExportError(f"{path.name} carries the build path {source.parent}")
    return check(model, path), image, logits


def _store_halves(converted: Any) -> None:
    """Store every float weight that is made of fp16 numbers as such; the conversion has folded the Casts.

    `save_model` can compress too, but would round the biases and the constants of formulas along.
    """
    ops = extras.load("openvino.opset8", "the OpenVINO exporter")
    for constant in [op for op in converted.get_ordered_ops() if op.get_type_name() == "Constant"]:
        values = np.asarray(constant.get_data())
        if stored_weights.is_half(values):
            readers = list(constant.output(0).get_target_inputs())
            restored = ops.convert(ops.constant(values.astype(np.float16)), "f32")
            for reader in readers:
                reader.replace_source_output(restored.output(0))
    converted.validate_nodes_and_infer_types()


def _keep_rounding_before_adds(converted: Any) -> None:
    """Put a 1x1 max-pool, which changes nothing, between a convolution and the addition that follows it.

    The CPU plugin otherwise fuses the two and leaves out the rounding of the convolution's result. On a MobileNetV2
    with ten residual additions 96.5 % of the logits then lay within 2 steps of the program, and 98.8 % with the pools,
    at 1.13 times the latency (one thread, AVX512-VNNI, 164 photos).
    """
    ops = extras.load("openvino.opset8", "the OpenVINO exporter")
    for add in [op for op in converted.get_ordered_ops() if op.get_type_name() == "Add"]:
        sources = [add.input_value(index) for index in (0, 1)]
        if any(source.get_node().get_type_name() != "FakeQuantize" for source in sources):
            continue
        for index, source in enumerate(sources):
            alone = len(source.get_target_inputs()) == 1  # a result that is read elsewhere too is not fused
            if alone and _ends_convolution(source.get_node().input_value(0).get_node()):
                pool = ops.max_pool(source, [1, 1], [1, 1], [0, 0], [0, 0], [1, 1])
                add.input(index).replace_source_output(pool.output(0))
    converted.validate_nodes_and_infer_types()


def _ends_convolution(node: Any) -> bool:
    """Return whether a node is a two-dimensional convolution, or the addition of its bias."""
    if node.get_type_name() == "Add":
        node = node.input_value(0).get_node()
    two_dimensional = node.get_output_partial_shape(0).rank == 4
    return node.get_type_name() in ("Convolution", "GroupConvolution") and two_dimensional


def check(model: QuantModel, path: Path) -> QuantCoverage:
    """Read an IR back and require that its numbers are the program's. Raises `ExportError`."""
    ov = extras.load("openvino", "the check of an OpenVINO file")
    ops = ov.Core().read_model(str(path)).get_ordered_ops()
    ranges = _KnownRanges(model)
    layers: list[FileLayer] = []
    products: list[FileProduct] = []
    float_ops: list[str] = []
    for op in ops:
        if op.get_type_name() in _MAC_TYPES:
            layer, product = _read_layer(op, ranges), _read_product(op, ranges)
            if product is not None:
                products.append(product)
            elif layer is None:
                float_ops.append(op.get_friendly_name())
            else:
                layers.append(layer)
    if model.scheme not in ("int8", "float32"):
        return _check_weights(model, ops, float_ops, path.name)
    if not model.layers:
        return QuantCoverage(mac_ops=len(float_ops), int8_mac_ops=0, float_ops=tuple(float_ops))
    activations = [ranges.find(op) for op in ops if op.get_type_name() == "FakeQuantize"]
    return check_layers(model, layers, float_ops, activations, file=path.name, products=products)


def _check_weights(model: QuantModel, ops: Any, float_ops: Sequence[str], file: str) -> QuantCoverage:
    """Check a file whose weights alone are stored small."""
    if model.scheme == "float16":
        constants = [op for op in ops if op.get_type_name() == "Constant"]
        stored = [np.asarray(c.get_data()) for c in constants if c.get_element_type().to_string() == "f16"]
        return stored_weights.check_halves(model, stored, float_ops, file=file)
    macs = [op for op in ops if op.get_type_name() in _MAC_TYPES]
    found = [_read_weight(op) for op in macs]
    return stored_weights.check_integers(
        model, [weight for weight in found if weight is not None], float_ops, file=file
    )


def _read_weight(op: Any) -> IntegerWeight | None:
    """Return the int8 weight of a MAC op in PyTorch's order with its scales, or None if it is none."""
    weight = op.input_value(1).get_node()
    while weight.get_type_name() in _TRANSPARENT:
        weight = weight.input_value(0).get_node()
    if weight.get_type_name() != "Multiply":
        return None
    source = weight.input_value(0).get_node()
    while source.get_type_name() in _TRANSPARENT:
        source = source.input_value(0).get_node()
    if source.get_type_name() != "Constant" or np.asarray(source.get_data()).dtype != np.int8:
        return None
    integers = np.asarray(source.get_data())
    if op.get_type_name() == "GroupConvolution" and integers.ndim > 4:
        integers = integers.reshape(-1, *integers.shape[2:])
    if op.get_type_name() == "MatMul" and not op.get_attributes()["transpose_b"]:
        integers = integers.T
    scales = _constant(weight.input_value(1).get_node()).reshape(-1).astype(np.float32)
    return IntegerWeight(name=op.get_friendly_name(), weight=integers, scale=scales)


class _KnownRanges:
    """Finds the scale behind a FakeQuantize, which stores the two ends of the range instead."""

    def __init__(self, model: QuantModel) -> None:
        self._known = [(a.scale, a.zero_point) for a in model.activations]
        steps = np.array(self._known, dtype=np.float64).reshape(-1, 2)
        # As the converter stores them: products rounded to float32, (A, 2).
        ends = (np.array([-128, 127]) - steps[:, 1:]) * steps[:, :1]
        self._ends = ends.astype(np.float32).astype(np.float64)

    def find(self, fake_quantize: Any) -> tuple[float, int]:
        """Return (scale, zero point in int8 numbers).

        The program's own where its range has the same two ends to within a rounding of float32, of several the
        nearest (two clamps to the same value may have scales one bit apart); else what the ends amount to, which the
        check will then refuse.
        """
        low, high = (float(_constant(fake_quantize.input_value(i).get_node()).reshape(-1)[0]) for i in (1, 2))
        if self._known:
            nearest = int(np.abs(self._ends - (low, high)).sum(axis=1).argmin())
            if np.allclose((low, high), self._ends[nearest], rtol=2.0**-22, atol=0):
                return self._known[nearest]
        scale = (high - low) / 255
        return scale, round(-128 - low / scale) if scale else 0


def _read_product(op: Any, ranges: _KnownRanges) -> FileProduct | None:
    """Return a product of two rounded activations, or None."""
    if op.get_type_name() != "MatMul":
        return None
    factors = [_rounding(op.input_value(index).get_node()) for index in (0, 1)]
    if any(factor.get_type_name() != "FakeQuantize" for factor in factors):
        return None
    left, right = (ranges.find(factor) for factor in factors)
    return FileProduct(name=op.get_friendly_name(), left=left, right=right)


def _rounding(node: Any) -> Any:
    """Return the node that a value comes from before it was transposed or reshaped."""
    while node.get_type_name() in ("Transpose", "Reshape", "Squeeze", "Unsqueeze"):
        node = node.input_value(0).get_node()
    return node


def _read_layer(op: Any, ranges: _KnownRanges) -> FileLayer | None:
    data = op.input_value(0).get_node()
    if data.get_type_name() == "Transpose":  # of an input with its channels last
        data = data.input_value(0).get_node()
    weight = op.input_value(1).get_node()
    if data.get_type_name() != "FakeQuantize" or weight.get_type_name() not in ("Multiply", *_TRANSPARENT):
        return None
    while weight.get_type_name() in _TRANSPARENT:  # GroupConvolution reshapes the dequantized weight
        weight = weight.input_value(0).get_node()
    if weight.get_type_name() != "Multiply":
        return None
    source = weight.input_value(0).get_node()
    if source.get_type_name() == "Subtract":
        raise ExportError(
            f"OpenVINO IR: the weights of {op.get_friendly_name()!r} have zero points, which makes it run in float",
            "this is a defect of edgeft: please report it with the model's source",
        )
    integers = _constant(source)
    if integers.dtype != np.int8:
        return None
    grouped = op.get_type_name() == "GroupConvolution" and integers.ndim > 4
    if grouped:  # (G, O/G, I/G, kH, kW)
        integers = integers.reshape(-1, *integers.shape[2:])
    if op.get_type_name() == "MatMul" and not op.get_attributes()["transpose_b"]:
        integers = integers.T
    scale, zero_point = ranges.find(data)
    weight_scale = _constant(weight.input_value(1).get_node()).reshape(-1).astype(np.float32)
    bias, bias_scale = _read_bias(op, np.float32(scale) * weight_scale)
    return FileLayer(
        name=op.get_friendly_name(),
        weight=integers,
        weight_scale=weight_scale,
        bias=bias,
        input_scale=scale,
        input_zero_point=zero_point,
        weight_zero_points=np.zeros(1),  # none are stored, see above
        bias_scale=bias_scale,
    )


def _read_bias(op: Any, scale: FloatArray) -> tuple[Any, Any]:
    """Return the integers of the constant that is added to the op's result, and their scales as stored.

    The bias of a linear layer on more than two dimensions is a float constant, on the grid of `scale`.
    """
    for reader in op.output(0).get_target_inputs():
        add = reader.get_node()
        if add.get_type_name() != "Add":
            continue
        for index in (0, 1):
            node, stored = add.input_value(index).get_node(), None
            while node.get_type_name() in ("Multiply", *_TRANSPARENT):
                if node.get_type_name() == "Multiply":
                    stored = _constant(node.input_value(1).get_node()).reshape(-1).astype(np.float32)
                node = node.input_value(0).get_node()
            if node.get_type_name() != "Constant":
                continue
            values = np.asarray(node.get_data()).reshape(-1)
            if values.dtype == np.int32:
                return values, stored
            if op.get_type_name() == "MatMul" and scale.size in (1, values.size) and stored is None:
                return np.rint(values / scale.astype(np.float64)).astype(np.int32), None
    return None, None


def _constant(node: Any) -> npt.NDArray[Any]:
    """Return the constant behind conversions and reshapes."""
    while node.get_type_name() in _TRANSPARENT:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        raise ExportError(f"OpenVINO IR: {node.get_friendly_name()!r} was expected to be a constant")
    return np.asarray(node.get_data())
