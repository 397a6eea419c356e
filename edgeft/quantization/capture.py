"""From nn.Module to a graph with its batch norms folded: the common ground of float and int8 export."""

from __future__ import annotations

import copy
import linecache
import traceback
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

# prepare_pt2e calls these itself, but after it would be too late for the annotator to see plain convolutions.
from torchao.quantization.pt2e.utils import _fuse_conv_bn_, _fuse_linear_bn_

from edgeft.errors import ModelError, QuantizationError
from edgeft.quantization import decompositions, modes, normalization, operators, rewrites
from edgeft.types import FloatModel, QuantModel, example_inputs

_BATCH_NORMS = {
    torch.ops.aten.batch_norm.default,
    torch.ops.aten._native_batch_norm_legit_no_training.default,
}
# Whose code runs between a network's own lines while it is captured.
_MACHINERY = {"torch", "sympy", "contextlib", "functools"}
# Convolutions that name their padding: the same op with numbers.
_PADDING_BY_NAME = {
    torch.ops.aten.conv1d.padding: torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.padding: torch.ops.aten.conv2d.default,
}


def capture(module: nn.Module, example: torch.Tensor) -> GraphModule:
    """Export `module` in evaluation mode to an ATen graph with folded batch norms and a dynamic batch.

    The caller's module is not changed. The result's `train()` and `eval()` work (they switch dropout).

    Args:
        module: Maps (N, C, H, W) or (N, F) float32, or token ids (N, T) int32, to (N, K).
        example: One or more inputs; the batch size in it is not kept.

    Raises:
        ModelError: torch.export cannot capture the network, or a weight is not finite.
    """
    module = copy.deepcopy(module).eval()
    statistics = (b for b in module.named_buffers() if b[0].endswith(("running_mean", "running_var")))
    _check_finite([*module.named_parameters(), *statistics])
    # A batch of one would be specialised: torch.export treats sizes 0 and 1 as constants.
    batch = example[:1].expand(2, *example.shape[1:]).contiguous()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            exported = torch.export.export(module, (batch,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError, TypeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"torch.export cannot capture {type(module).__name__}: {first}{_source_line(error)}",
            "forward() must not branch on the values of tensors (take torch.where or a mask), nor turn them into "
            "Python numbers or numpy arrays",
        ) from error
    _check_dynamic_batch(exported, module)
    graph: GraphModule = exported.module(check_guards=False)
    if isinstance(module, normalization.NormalizedNetwork):
        normalization.hide_wrapper(graph)
    rewrites.make_functional(graph)
    _spell_out_padding(graph)
    decompositions.spell_out_attention(graph)
    decompositions.spell_out_products(graph)
    _fuse_conv_bn_(graph)
    _fuse_linear_bn_(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    modes.allow_modes(graph)
    graph.eval()
    _check_same_function(module, graph, batch)
    return graph


def float_program(model: FloatModel) -> QuantModel:
    """Return the float network as a program without Q/DQ ops: what the float baselines are exported from."""
    graph = capture(model.module, example_inputs(model.preprocessing))
    return QuantModel(
        program=graph,
        layers=(),
        activations=(),
        float_ops=float_mac_names(graph),
        output=None,
        preprocessing=model.preprocessing,
        labels=model.labels,
        history=model.history,
        scheme="float32",
    )


def module_path(node: Node) -> str:
    """Return the dotted path of the module that `node` came from, or the node's name."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return path.removeprefix("L['self'].").replace("L__self__", "") or node.name


def float_mac_names(graph: GraphModule) -> tuple[str, ...]:
    """Return the names of MAC ops that do not read two dequantized values, in graph order."""
    decomposed = torch.ops.quantized_decomposed
    dequantize = {decomposed.dequantize_per_tensor.default, decomposed.dequantize_per_channel.default}
    names = []
    for node in graph.graph.nodes:
        # A float layer behind an integer one reads a dequantized activation, but its weight is float.
        integer = all(isinstance(arg, Node) and arg.target in dequantize for arg in node.args[:2])
        if node.target in operators.FLOAT_MACS | operators.INTEGER_MACS and not integer:
            names.append(module_path(node))
    return tuple(names)


def check_no_batch_norm(graph: GraphModule) -> None:
    """Raise `QuantizationError` naming a batch norm that has no convolution or linear layer to fold into."""
    # The folding pass leaves no module path on what it could not fold; the statistics still have theirs.
    means: list[Any] = [n.args[3] for n in graph.graph.nodes if n.target in _BATCH_NORMS]
    left = [str(mean.target).removesuffix(".running_mean") for mean in means]
    if left:
        raise QuantizationError(
            f"batch norm {left[0]!r} (and {len(left) - 1} more) has no convolution or linear layer before it",
            'such networks (DenseNet, pre-activation ResNets) need quantize.engine = "edgeft"',
        )


def _check_finite(parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
    for name, value in parameters:
        if not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"weight {name!r} holds NaN or infinite values", "retrain, or load other weights"
            )


def _source_line(error: BaseException) -> str:
    """Return where in the network's own code an error arose, as file:line and the line itself."""
    found = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__", ""))
        if name != __name__ and name.partition(".")[0] not in _MACHINERY:
            file = frame.f_code.co_filename
            found = f"\n  at {file}:{number}: {linecache.getline(file, number).strip()}"
    return found


def _check_dynamic_batch(exported: torch.export.ExportedProgram, module: nn.Module) -> None:
    (name,) = exported.graph_signature.user_inputs
    source = next(node for node in exported.graph.nodes if node.name == name)
    size = source.meta["val"].shape[0]
    # A size that the forward pass pinned to one number is still called symbolic.
    if isinstance(size, int) or size.node.maybe_as_int() is not None:
        raise ModelError(
            f"{type(module).__name__} works for one batch size only",
            "take the batch size from the input's shape instead of writing it into a reshape",
        )


def _spell_out_padding(graph: GraphModule) -> None:
    """Turn padding="same" and "valid" into numbers, where both sides get the same.

    torch.export keeps the words in an op of its own, which would leave these convolutions in float.
    """
    for node in graph.graph.nodes:
        if node.target not in _PADDING_BY_NAME:
            continue
        value, weight, bias, stride, padding, dilation, groups = _convolution_arguments(node)
        extra = [d * (k - 1) for d, k in zip(dilation, weight.meta["val"].shape[2:], strict=True)]
        if padding == "valid":
            extra = [0] * len(extra)
        if any(total % 2 for total in extra):
            continue  # an even kernel pads one side more: stays a float MAC op, by name
        node.target = _PADDING_BY_NAME[node.target]
        node.args = (value, weight, bias, stride, [total // 2 for total in extra], dilation, groups)
        node.kwargs = {}


def _convolution_arguments(node: Node) -> tuple[Any, ...]:
    """Return a convolution's seven arguments with the defaults and single numbers written out."""
    given: list[Any] = [*node.args, *[None] * 7][:7]
    dimensions = len(node.args[1].meta["val"].shape) - 2  # type: ignore[union-attr]
    for index, default in ((3, 1), (4, "valid"), (5, 1), (6, 1)):
        given[index] = default if given[index] is None else given[index]
    for index in (3, 5):
        numbers = list(given[index]) if isinstance(given[index], list | tuple) else [given[index]]
        given[index] = numbers * (dimensions // len(numbers))
    return tuple(given)


def _check_same_function(module: nn.Module, graph: GraphModule, batch: torch.Tensor) -> None:
    """Require that folding kept the function.

    A layer that is called twice with two batch norms behind it would have both folded into the one weight.
    """
    generator = torch.Generator().manual_seed(0)
    if batch.is_floating_point():
        inputs = torch.randn(batch.shape, generator=generator)
    else:  # token ids that every vocabulary has
        inputs = torch.randint(1, 8, batch.shape, generator=generator, dtype=batch.dtype)
    with torch.inference_mode():
        expected, got = module(inputs), graph(inputs)
    if not torch.allclose(got, expected, rtol=0, atol=1e-3 * float(expected.abs().amax()) + 1e-6):
        raise ModelError(
            f"folding the batch norms of {type(module).__name__} changed its outputs by up to "
            f"{float((got - expected).abs().amax()):.3g}",
            "a layer that is called twice cannot have a different batch norm after each call: give it two weights",
        )
