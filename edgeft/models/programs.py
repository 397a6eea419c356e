"""Networks that come as a graph: ``pt2:FILE`` (torch.export) and ``onnx:FILE``."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeft import extras
from edgeft.errors import ModelError

EXPORTED_NOT_TRAINABLE = (
    "a torch.export program has its layers taken apart: it quantizes and exports, but neither trains "
    "nor is pruned"
)
_BROKEN = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)


def load_exported(path: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the network of a file that `torch.export.save` wrote, and its input's shape without the batch.

    Raises:
        ModelError: No such file, a broken one, not one input and one output, or a fixed batch size.
    """
    _require_file(path)
    pt2e = extras.load("torchao.quantization.pt2e", f"source pt2:{path.name}")
    try:
        program = torch.export.load(path)
    except _BROKEN as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"model.source: {path} is no whole torch.export file ({reason})") from error
    inputs, outputs = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(
            f"model.source: {path.name} has {len(inputs)} inputs and {len(outputs)} outputs; allowed is one of each"
        )
    node = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == inputs[0])
    batch, *shape = node.meta["val"].shape
    if isinstance(batch, int):
        raise ModelError(
            f"model.source: {path.name} takes batches of {batch} only",
            "export with dynamic_shapes=({0: torch.export.Dim('batch')},)",
        )
    module = program.module(check_guards=False)
    pt2e.allow_exported_model_train_eval(module)
    module.eval()  # returns nothing here
    return module, tuple(int(size) for size in shape)


def load_onnx(path: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """Return an ONNX file as a trainable network of torch layers, and its input's shape without the batch.

    Raises:
        ModelError: No such file, a broken one, not one input, an open input size, or an op without a trainable
            counterpart.
        MissingDependencyError: onnx2torch is not installed.
    """
    import onnx

    _require_file(path)
    message = extras.load("google.protobuf.message", "onnx")
    onnx2torch = extras.load("onnx2torch", f"source onnx:{path.name}")
    try:
        model = onnx.load(path)
    except (message.DecodeError, OSError, ValueError) as error:
        raise ModelError(f"model.source: {path} is no whole ONNX file ({error})") from error
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise ModelError(
            f"model.source: {path.name} has {len(inputs)} inputs and {len(model.graph.output)} outputs; allowed is "
            "one of each"
        )
    shape = tuple(int(size.dim_value) for size in inputs[0].type.tensor_type.shape.dim)[1:]
    if not shape or 0 in shape:
        raise ModelError(
            f"model.source: {path.name} leaves its input size open", "export it with a fixed size"
        )
    try:
        module: Any = onnx2torch.convert(_without_aliases(model))
    except (NotImplementedError, *_BROKEN) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"model.source: {path.name} cannot be turned into a trainable network ({reason})",
            "export the original torch network with torch.export.save and give it as pt2:FILE, or rebuild it in "
            "torch (model.source = 'file.py:build')",
        ) from error
    return module.eval(), shape


def _without_aliases(model: Any) -> Any:
    """Give constants that a file shares through Identity nodes a copy each, as onnx2torch looks for them by name."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Identity" and node.input[0] in constants:
            copied = model.graph.initializer.add()
            copied.CopyFrom(constants[node.input[0]])
            copied.name = node.output[0]
            model.graph.node.remove(node)
    return model


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise ModelError(
            f"model.source: {path} does not exist", "give a file; its path is relative to the recipe's folder"
        )
