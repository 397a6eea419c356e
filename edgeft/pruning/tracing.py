"""Follow a network's channels with `torch-pruning`, and stop where it cannot.

Two things that its dependency graph gets wrong are mended here: a reshape whose channels it cannot map (the channel
shuffle of ShuffleNet: it divides by zero and gives the whole network up) ends the groups that reach it, and
zeros padded beside the channels (the parameter-free shortcut of CIFAR ResNets) shift their numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch_pruning.dependency import index_mapping
from torch_pruning.ops import OPTYPE

from edgeft.errors import ModelError, nearest
from edgeft.pruning.macs import Layer, all_trainable

# What torch-pruning 1.6 dies with on operations that it does not know: it has no exceptions of its own.
_TRACER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

_MAPPERS = {
    OPTYPE.CONCAT: index_mapping.update_concat_index_mapping,
    OPTYPE.SPLIT: index_mapping.update_split_index_mapping,
    OPTYPE.RESHAPE: index_mapping.update_reshape_index_mapping,
    OPTYPE.UNBIND: index_mapping.update_unbind_index_mapping,
    OPTYPE.EXPAND: index_mapping.update_expand_index_mapping,
    OPTYPE.SLICE: index_mapping.update_slice_index_mapping,
}

# Where a mapping failed, those of its neighbours are not to be trusted either.
_DIVIDING = (OPTYPE.SPLIT, OPTYPE.UNBIND, OPTYPE.SLICE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A dependency graph, its groups, and the operations where its knowledge ends.

    `opaque` maps an operation to why nothing that reaches it can be cut; `paddings` maps one that puts zeros beside
    the channels to the range of its outputs that are channels of its input.
    """

    graph: Any
    groups: tuple[Any, ...]
    opaque: Mapping[Any, str]
    paddings: Mapping[Any, range]


@dataclass(frozen=True, slots=True)
class _Shift:
    """An index mapping of torch-pruning: channel i of a padding's input is channel i + start of its output."""

    channels: range
    reverse: bool

    def __call__(self, indices: list[Any]) -> list[Any]:
        if not self.reverse:
            return [type(i)(idx=i.idx + self.channels.start, root_idx=i.root_idx) for i in indices]
        inside = [i for i in indices if i.idx in self.channels]
        return [type(i)(idx=i.idx - self.channels.start, root_idx=i.root_idx) for i in inside]


class _Graph(torch_pruning.DependencyGraph):  # type: ignore[misc] # the package has no types
    """A dependency graph that knows how many channels come out of a padding."""

    def get_out_channels(self, module_or_node: Any) -> int | None:
        """Return the output channels of a layer or of a zero padding, None where they are not its own."""
        padded = _padded(module_or_node)
        own: int | None = super().get_out_channels(module_or_node)
        return padded[1] if padded else own


def check_prunable(module: nn.Module, named: Mapping[str, Collection[str]]) -> None:
    """Raise `ModelError` if the channels of `module` cannot be cut or an argument names no layer of it.

    Args:
        module: The network.
        named: Layers by the argument that names them.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, Layer)}
    if isinstance(module, torch.jit.ScriptModule) or (isinstance(module, fx.GraphModule) and not layers):
        raise ModelError(
            f"a {type(module).__name__} cannot be pruned: an exported or scripted graph has fixed shapes "
            "and no layers",
            "prune the eager network and export the result",
        )
    if not layers:
        raise ModelError("a network without convolution and linear layers cannot be pruned")
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer):
            raise ModelError(
                f"layer {name} cannot be cut: its weight is computed by a parametrization",
                "call torch.nn.utils.parametrize.remove_parametrizations on it first",
            )
        # torch.nn.utils.weight_norm, spectral_norm and prune, which are older than parametrizations.
        if "weight" not in layer._parameters:
            parts = ", ".join(part for part, _ in layer.named_parameters() if part.startswith("weight"))
            raise ModelError(
                f"layer {name} cannot be cut: its weight is computed from {parts} at every call",
                "call torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove on it first",
            )
    for argument, names in named.items():
        for name in names:
            if name not in layers:
                raise ModelError(
                    f"{argument}: {name!r} is no convolution or linear layer of this network"
                    f"{nearest(name, layers)}",
                    f"the last ones are {', '.join(list(layers)[-3:])}",
                )


def trace(module: nn.Module, example: torch.Tensor) -> Trace:
    """Follow the channels of `module`.

    Args:
        module: Network in evaluation mode.
        example: An input with a batch of 1.

    Raises:
        ModelError: torch-pruning cannot follow the network's operations.
    """
    graph = _Graph()
    opaque: dict[Any, str] = {}
    with torch.enable_grad(), all_trainable(module):
        try:
            # A tuple: torch-pruning unpacks a bare tensor along its batch axis and tries that first.
            graph.build_dependency(module, (example,), verbose=False)
        except _TRACER_ERRORS as error:
            if not hasattr(graph, "module2node"):
                raise _failure(f"this {type(module).__name__}", error) from error
            opaque = _isolate(graph)
        paddings = _map_paddings(graph)
        try:
            groups = tuple(_groups(graph))
        except ModelError:
            if opaque:
                raise
            opaque = _isolate(graph)
            groups = tuple(_groups(graph))
    return Trace(graph=graph, groups=groups, opaque=opaque, paddings=paddings)


def _failure(what: str, error: Exception) -> ModelError:
    return ModelError(
        f"torch-pruning cannot follow the channels of {what}: {type(error).__name__}: {error}",
        "leave the prune stage out for this architecture",
    )


def _groups(graph: Any) -> Iterator[Any]:
    """Yield the group of every layer's outputs once, seen from its widest layer: only that has all its channels."""
    layers = [layer for layer in graph.module2node if isinstance(layer, (_ConvNd, nn.Linear))]
    widths = {layer: graph.get_out_channels(layer) for layer in layers}
    seen: set[Any] = set()
    for layer in sorted(layers, key=lambda layer: -widths[layer]):
        if layer in seen:
            continue
        pruner = graph.get_pruner_of_module(layer)
        try:
            group = graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(widths[layer])))
        except _TRACER_ERRORS as error:
            raise _failure(f"layer {graph._module2name[layer]}", error) from error
        seen.update(
            item.dep.target.module for item in group if graph.is_out_channel_pruning_fn(item.dep.handler)
        )
        yield group


def _isolate(graph: Any) -> dict[Any, str]:
    """End the graph at every operation whose channels cannot be mapped; return those, and why."""
    opaque = {}
    for operation, node in graph.module2node.items():
        kind = node.type.name.lower()
        try:
            mapper = _MAPPERS.get(node.type)
            if mapper is not None:
                mapper(graph, node)
            mapped = node.type not in _DIVIDING
        except _TRACER_ERRORS:
            mapped = False
        if not mapped:
            node.dependencies.clear()
            node.type = OPTYPE.ELEMENTWISE  # the channels are mapped again for every group
            opaque[operation] = f"{kind} of channels after {_source(node)}"
    return opaque


def _source(node: Any) -> str:
    """Return the name of a layer that feeds `node`."""
    queue, seen = list(node.inputs), set()
    while queue:
        found = queue.pop(0)
        if found._name:
            return str(found._name)
        seen.add(found)
        queue.extend(n for n in found.inputs if n not in seen)
    return "the input"


def _map_paddings(graph: Any) -> dict[Any, range]:
    """Teach the graph every zero padding of the channel axis of (N, C, ...) tensors."""
    paddings = {}
    for operation, node in graph.module2node.items():
        padded = _padded(node)
        if padded is None:
            continue
        channels, _ = padded
        paddings[operation] = channels
        for source in node.inputs:
            _map(node, source, _Shift(channels, True))
            _map(source, node, _Shift(channels, False))
    return paddings


def _padded(node: Any) -> tuple[range, int] | None:
    """Return which outputs of a zero padding of channels are its inputs, and how many it has; None for all else."""
    function = getattr(node, "grad_fn", None)
    if function is None or "ConstantPad" not in type(function).__name__:
        return None
    shape = function._input_metadata[0].shape
    from_end = 2 * (len(shape) - 2)  # pairs of the last axis come first
    sides = tuple(function._saved_pad[from_end : from_end + 2]) if len(shape) in (2, 4, 5) else ()
    return (range(sides[0], shape[1] - sides[1]), shape[1]) if any(sides) else None


def is_spatial(node: Any) -> bool:
    """Return whether `node` slices (N, C, ...) tensors along other axes than their channels."""
    function = node.grad_fn
    return (
        node.type == OPTYPE.SLICE
        and len(getattr(function, "_saved_self_sym_sizes", ())) in (4, 5)
        and function._saved_dim != 1
    )


def _map(start: Any, end: Any, mapping: _Shift) -> None:
    for dependency in start.dependencies:
        if dependency.target is end:
            dependency.index_mapping[0] = mapping
