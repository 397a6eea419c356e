"""Compare what stands in an exported file with the Q/DQ program it came from. Formats bring the numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeft.errors import ExportError
from edgeft.types import FloatArray, QuantCoverage, QuantLayer, QuantModel

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
    """

    name: str
    weight: npt.NDArray[np.int8]
    weight_scale: FloatArray
    bias: npt.NDArray[np.int32] | None
    input_scale: float
    input_zero_point: int


def check_layers(
    model: QuantModel,
    layers: Sequence[FileLayer],
    float_ops: Sequence[str],
    activations: Sequence[tuple[float, int]],
    *,
    file: str,
) -> QuantCoverage:
    """Require that every number of the file is the program's; return how many MAC ops are int8.

    Args:
        model: The program.
        layers: Integer MAC ops found in the file.
        float_ops: Names of MAC ops found in float.
        activations: (scale, zero point in int8 numbers) of every quantized activation in the file.
        file: Name for messages.

    Raises:
        ExportError: A layer is missing or doubled, or one of its integers or scales differs.
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
        elif len(layers) + len(float_ops) >= len(model.layers) + len(model.float_ops) and not float_ops:
            raise ExportError(f"{file}: no layer holds the integer weights of {expected.name!r}", _DEFECT)
    strangers = [layer.name for rest in found.values() for layer in rest]
    if strangers:
        raise ExportError(
            f"{file}: {strangers[0]!r} holds integer weights that are not in the program", _DEFECT
        )
    _check_activations(model, activations, file)
    return QuantCoverage(
        mac_ops=len(layers) + len(float_ops), int8_mac_ops=len(layers), float_ops=tuple(float_ops)
    )


def _key(weight: npt.NDArray[np.int8]) -> bytes:
    return len(weight).to_bytes(4, "big") + np.ascontiguousarray(weight).tobytes()


def _difference(expected: QuantLayer, layer: FileLayer) -> str | None:
    """Return what differs between a program's layer and a file's, or None."""
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
    return None


def _check_activations(model: QuantModel, activations: Sequence[tuple[float, int]], file: str) -> None:
    known = {(np.float32(a.scale), a.zero_point) for a in model.activations}
    for scale, zero_point in activations:
        if (np.float32(scale), zero_point) not in known:
            raise ExportError(
                f"{file}: an activation has scale {scale!r} and zero point {zero_point}, which the program does not know",
                _DEFECT,
            )
