"""torch.export programs (.pt2): float32, or computing in fp16 behind float32 inputs and outputs."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from edgeft.errors import ExportError
from edgeft.exporters.stored_weights import check_halves
from edgeft.preprocessing import ImagePreprocessing
from edgeft.target import TargetProfile
from edgeft.types import QuantCoverage, QuantModel, TensorSpec, example_inputs

_aten = torch.ops.aten
_MAC_OPS = {
    *(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.linear.default),
    *(_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.matmul.default),
}


class _Network(nn.Module):
    """A network that computes in a type of its own, between inputs of any and float32 outputs."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = copy.deepcopy(network).to(dtype), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Pixels become numbers; token ids stay what they are.
        values = x.to(self.dtype) if x.is_floating_point() or x.dtype == torch.uint8 else x
        logits: torch.Tensor = self.network(values)
        return logits.float()


def write(
    model: QuantModel, profile: TargetProfile, path: Path
) -> tuple[QuantCoverage, TensorSpec, TensorSpec]:
    """Write `model` to `path` for one batch size and check the file.

    Returns:
        Coverage, and the specs of input and logits.

    Raises:
        ExportError: torch.export refuses the program, a number does not fit fp16, or the file differs from it.
    """
    half = model.scheme == "float16" and profile.precision.half_arithmetic
    network = _Network(model.program, torch.float16 if half else torch.float32)
    for name, value in network.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise ExportError(
                f"{name.removeprefix('network.')!r} does not fit fp16, which ends at 65,504",
                'use quantize.scheme = "none" on this target',
            )
    batch, wanted = profile.export.batch, model.preprocessing
    pixels = isinstance(wanted, ImagePreprocessing) and wanted.embedded
    example = example_inputs(wanted, batch)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.export.export(network, (example.to(torch.uint8) if pixels else example,))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError, TypeError) as error:
        raise ExportError(
            f"torch.export refuses the program: {str(error).strip().partition(chr(10))[0]}"
        ) from error
    for node in program.graph.nodes:  # without paths and lines of source code
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    torch.export.save(program, path)
    return (
        check(model, path, half=half),
        TensorSpec(
            name="input",
            shape=(batch, *wanted.input_shape),
            dtype="uint8" if pixels else wanted.input_dtype,
            layout="nchw" if wanted.kind == "image" else "nk",
            scale=1.0 if pixels else 0.0,
        ),
        TensorSpec(name="logits", shape=(batch, len(model.labels)), dtype="float32", layout="nk"),
    )


def check(model: QuantModel, path: Path, *, half: bool) -> QuantCoverage:
    """Read a file back and require that its weights are the program's. Raises `ExportError`."""
    program: ExportedProgram = torch.export.load(path)
    macs = tuple(node.name for node in program.graph.nodes if node.target in _MAC_OPS)
    stored = [value.detach() for value in program.state_dict.values() if value.is_floating_point()]
    if model.scheme == "float16":
        dtype = torch.float16 if half else torch.float32
        weights = [value.half().numpy() for value in stored if value.dtype == dtype]
        return check_halves(model, weights, macs, file=path.name)
    kept = {name.removeprefix("network."): value for name, value in program.state_dict.items()}
    for name, value in model.program.state_dict().items():
        if name not in kept or not torch.equal(kept[name], value):
            raise ExportError(f"{path.name}: {name!r} is not the program's")
    return QuantCoverage(mac_ops=len(macs), int8_mac_ops=0, float_ops=macs)
