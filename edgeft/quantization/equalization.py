"""Cross-layer equalization: level the channels between two layers (Nagel et al. 2019, arXiv:1906.04721, section 4.1).

A channel that one layer makes small and the next one makes up for spends few of the 256 steps of the activation
between them, and few of the steps of both weights. Where f(s x) = s f(x) for positive s lies between, a channel can be
scaled by s behind the first layer and by 1/s in front of the second: a ReLU has that property. ReLU6 and hardswish have
not; the paper puts ReLU in ReLU6's place, which changes the function, and is not done here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from edgeft.errors import QuantizationError
from edgeft.quantization.inspection import constant, count_readers, storage

aten = torch.ops.aten

_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default}
_LINEARS = {aten.linear.default}
# f(s x) = s f(x) for every s > 0, element by element.
_HOMOGENEOUS = {
    aten.relu.default,
    aten.relu_.default,
    aten.leaky_relu.default,
    aten.leaky_relu_.default,
    aten.dropout.default,
    aten.dropout_.default,
}
_MOST_ROUNDS = 50
# Rounds end when no channel moves by more than this share.
_SETTLED = 1e-3


def equalize_layers(graph: GraphModule) -> int:
    """Level the channels of every pair of layers that allows it, in place; the graph's function stays the same.

    Pairs are two convolutions or two linear layers with nothing or a ReLU between them, of which nobody else reads the
    values or the weights. Chains (pointwise, depthwise, pointwise) are levelled in turn until they settle.

    Args:
        graph: Captured float graph with folded batch norms.

    Returns:
        The number of pairs.

    Raises:
        QuantizationError: There is no such pair.
    """
    pairs = list(_find_pairs(graph))
    if not pairs:
        raise QuantizationError(
            "cross_layer_equalization: no two layers of this network can be equalized",
            "they must follow each other with nothing or a ReLU between (ReLU6 and hardswish cannot be scaled); "
            "use a calibration recipe without it",
        )
    with torch.no_grad():
        for _ in range(_MOST_ROUNDS):
            if max(pair.level() for pair in pairs) < 1 + _SETTLED:
                break
    return len(pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Two layers that share C channels: the first one's outputs.

    Args:
        weight: Of the first layer, output channels first.
        bias: Of the first layer, (C,), or None.
        next_weight: Of the second layer, (O, C / groups, ...).
        groups: Of the second layer; C where it is depthwise.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    next_weight: torch.Tensor
    groups: int

    def level(self) -> float:
        """Make the largest weight of each channel equal in both layers; return the largest factor, at least 1."""
        ours = self.weight.flatten(1).abs().amax(1)
        outputs, inputs = self.next_weight.shape[:2]
        by_channel = self.next_weight.reshape(self.groups, outputs // self.groups, inputs, -1)
        theirs = by_channel.abs().amax((1, 3)).flatten()
        # A channel that is dead on one side has nothing to be levelled with.
        alive = (ours > 0) & (theirs > 0)
        factor = torch.where(alive, torch.sqrt(theirs / torch.where(alive, ours, 1.0)), 1.0)
        self.weight.mul_(factor.reshape(-1, *[1] * (self.weight.dim() - 1)))
        if self.bias is not None:
            self.bias.mul_(factor)
        scaled = by_channel / factor.reshape(self.groups, 1, inputs, 1)
        self.next_weight.copy_(scaled.reshape(self.next_weight.shape))
        return float(torch.maximum(factor, 1 / factor).amax())


def _find_pairs(graph: GraphModule) -> Iterator[_Pair]:
    readers = count_readers(graph)

    def own(node: object) -> torch.Tensor | None:
        """Return a constant that one op alone reads, or None."""
        value = constant(graph, node)
        return value if value is not None and readers[storage(value)] == 1 else None

    for first in graph.graph.nodes:
        kind = next((ops for ops in (_CONVOLUTIONS, _LINEARS) if first.target in ops), None)
        second = _only_reader(first)
        while second is not None and second.target in _HOMOGENEOUS:
            second = _only_reader(second)
        if kind is None or second is None or second.target not in kind:
            continue
        bias_node = first.args[2] if len(first.args) > 2 else None
        weight, bias, next_weight = own(first.args[1]), own(bias_node), own(second.args[1])
        if weight is None or next_weight is None or (bias is None and bias_node is not None):
            continue
        groups = second.args[6] if len(second.args) > 6 else 1
        yield _Pair(weight=weight, bias=bias, next_weight=next_weight, groups=int(groups))  # type: ignore[arg-type]


def _only_reader(node: Node) -> Node | None:
    """Return the op that alone reads `node` as its first input, or None."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].args and users[0].args[0] is node else None
