"""Compare what stands in an exported file with the Q/DQ program it came from. Formats bring the numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeft.errors import ExportError
from edgeft.exporters.products import FileProduct, check_products, float_islands
from edgeft.target import TargetProfile
from edgeft.types import FloatArray, QuantCoverage, QuantLayer, QuantModel

_HALF_RANGE = 63
_DEFECT = "the converter changed the numbers; please report the model and the versions of the packages"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLayer:
    """One integer MAC op as it stands in a file, brought into the contract's layout.

    Args:
        name: The op's name in the file.
        weight: int8, output channels first: (O, ...) in the order of PyTorch's (O, I/groups, kH, kW).
        weight_scale: float32, shape (O,), or (1,) where the file stores one for all.
        bias: int32 (O,) or None.
        input_scale: Scale of the activation input.
        input_zero_point: Zero point of the activation input in int8 numbers.
        weight_zero_points: Of the weights; all 0 in the contract.
        bias_scale: float32, (O,) or (1,), where the file stores one; None if it follows from the two scales.
    """

    name: str
    weight: npt.NDArray[np.int8]
    weight_scale: FloatArray
    bias: npt.NDArray[np.int32] | None
    input_scale: float
    input_zero_point: int
    weight_zero_points: npt.NDArray[np.generic]
    bias_scale: FloatArray | None = None


def check_numerics(model: QuantModel, profile: TargetProfile) -> None:
    """Require that a program was made for the numbers that a target's kernels take. Raises `ExportError`."""
    wanted, off = profile.precision.numerics, ""
    for layer in model.layers:
        if wanted.weight_range == "half" and int(np.abs(layer.weight.astype(np.int16)).max()) > _HALF_RANGE:
            off = f"weights of {layer.name!r} leave [-{_HALF_RANGE}, {_HALF_RANGE}]"
        if wanted.granularity == "per-tensor" and len(set(layer.weight_scale.tolist())) > 1:
            off = f"layer {layer.name!r} has a weight scale for each channel"
    if wanted.symmetric_activations and any(activation.zero_point for activation in model.activations):
        off = "activations have zero points"
    if off:
        raise ExportError(
            f"target {profile.id} takes {wanted.name} numbers only: {off}",
            "quantize the model for this target: edgeft.quantize(..., numerics=profile.precision.numerics)",
        )


def check_layers(
    model: QuantModel,
    layers: Sequence[FileLayer],
    float_ops: Sequence[str],
    activations: Sequence[tuple[float, int]],
    *,
    file: str,
    products: Sequence[FileProduct] = (),
    islands: Sequence[str] | None = None,
) -> QuantCoverage:
    """Require that every number of the file is the program's; return how many MAC ops are int8.

    Args:
        model: The program.
        layers: Integer MAC ops found in the file.
        float_ops: Names of MAC ops found in float.
        activations: (scale, zero point in int8 numbers) of every quantized activation in the file.
        file: Name for messages.
        products: Integer products of two activations found in the file.
        islands: Names of other ops found in float between integer ones; by default the program's own.

    Raises:
        ExportError: A layer is missing, doubled or in float, or one of its integers or scales differs.
    """
    found: dict[bytes, list[FileLayer]] = defaultdict(list)
    for layer in layers:
        found[_key(layer.weight)].append(layer)
    for expected in model.layers:
        candidates = found[_key(expected.weight)]
        match = next((c for c in candidates if _difference(expected, c) is None), None)
        if match is None and candidates:
            raise ExportError(
                f"{file}: layer {expected.name!r}: {_difference(expected, candidates[0])}", _DEFECT
            )
        if match is not None:
            candidates.remove(match)
        else:
            in_float = f"; in float there: {', '.join(float_ops)}" if float_ops else ""
            raise ExportError(
                f"{file}: no integer layer holds the weights of {expected.name!r}{in_float}", _DEFECT
            )
    strangers = [layer.name for rest in found.values() for layer in rest]
    if strangers:
        raise ExportError(
            f"{file}: {strangers[0]!r} holds integer weights that are not in the program", _DEFECT
        )
    _check_activations(model, activations, file)
    check_products(model.program, products, file=file)
    return QuantCoverage(
        mac_ops=len(layers) + len(products) + len(float_ops),
        int8_mac_ops=len(layers) + len(products),
        float_ops=tuple(float_ops),
        float_islands=float_islands(model.program) if islands is None else tuple(islands),
    )


def _key(weight: npt.NDArray[np.int8]) -> bytes:
    return len(weight).to_bytes(4, "big") + np.ascontiguousarray(weight).tobytes()


def _difference(expected: QuantLayer, layer: FileLayer) -> str | None:
    """Return what differs between a program's layer and a file's, or None."""
    if expected.input is None:
        return "its input is float in the program"
    if layer.weight_zero_points.any():
        return "weights have a zero point other than 0"
    scale = np.broadcast_to(layer.weight_scale, expected.weight_scale.shape)
    if not np.array_equal(scale, expected.weight_scale):
        return "weight scales differ"
    if np.float32(layer.input_scale) != np.float32(expected.input.scale):
        return f"input scale is {layer.input_scale!r}, the program has {expected.input.scale!r}"
    if layer.input_zero_point != expected.input.zero_point:
        return f"input zero point is {layer.input_zero_point}, the program has {expected.input.zero_point}"
    wanted = np.zeros(len(expected.weight), np.int32) if expected.bias is None else expected.bias
    got = np.zeros(len(expected.weight), np.int32) if layer.bias is None else layer.bias
    # A float32 bias carries 24 bits: beyond 2^24 its integer is known to within its rounding only.
    tolerance = np.abs(wanted.astype(np.float64)) * 2.0**-23
    off = np.abs(wanted.astype(np.float64) - got) > tolerance
    if off.any():
        channel = int(np.argmax(off))
        return f"bias of channel {channel} is {int(got[channel])}, the program has {int(wanted[channel])}"
    if layer.bias_scale is not None and got.any():
        # litert-torch was seen to store channel 0's scale for all channels where all biases are equal.
        product = np.float32(layer.input_scale) * scale
        if not np.allclose(np.broadcast_to(layer.bias_scale, product.shape), product, rtol=2.0**-20, atol=0):
            return "bias scales are not the input scale times the weight scales"
    return None


def _check_activations(model: QuantModel, activations: Sequence[tuple[float, int]], file: str) -> None:
    """Require that file and program quantize to the same set of (scale, zero point)."""
    constants = _constant_nodes(model)  # stored as integers: no quantizer of theirs is in a file
    known = {
        (float(np.float32(a.scale)), a.zero_point): a.name
        for a in model.activations
        if a.name not in constants
    }
    allowed = {(float(np.float32(a.scale)), a.zero_point) for a in model.activations}
    found = {(float(np.float32(scale)), zero_point) for scale, zero_point in activations}
    strange = "".join(
        f"; scale {scale!r} with zero point {zero} there is not the program's"
        for scale, zero in found - allowed
    )
    for (scale, zero_point), name in known.items():
        if (scale, zero_point) not in found:
            makers = [
                layer.name
                for layer in model.layers
                if layer.output
                and (float(np.float32(layer.output.scale)), layer.output.zero_point) == (scale, zero_point)
            ]
            of = f", the output of layer {makers[0]!r}" if makers else ""
            raise ExportError(
                f"{file}: no activation has scale {scale!r} and zero point {zero_point} of {name!r}{of}{strange}",
                _DEFECT,
            )
    if strange:
        raise ExportError(f"{file}: an activation is quantized otherwise{strange}", _DEFECT)


def _constant_nodes(model: QuantModel) -> set[str]:
    """Return the names of the program's nodes that do not depend on its input."""
    constants: set[str] = set()
    for node in model.program.graph.nodes:
        if node.op != "placeholder" and all(source.name in constants for source in node.all_input_nodes):
            constants.add(node.name)
    return constants
