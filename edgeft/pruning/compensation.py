"""Let the weights that stay do the work of those that go: linear prediction of the removed channels.

A layer that loses input channels computes W_kept x_kept where it computed W_kept x_kept + W_gone x_gone. Channels of a
network are far from independent, so x_gone is predicted from x_kept by least squares over real inputs and the
prediction is folded into the weights: no op is added, nothing is trained (in the manner of He et al., "Channel
Pruning", ICCV 2017, with one pass for all layers, in closed form, from second moments).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgeft.pruning.macs import evaluation, layer_input
from edgeft.pruning.surgery import Removal

_RIDGE = 1e-3
"""Added to the diagonal of the second moments, as a share of its mean: a few hundred images do not pin down more."""

_WIDEST = 4096
"""Layers with more inputs stay as they were cut: VGG's first linear layer would need a matrix of 25,088 x 25,088."""


def second_moments(
    module: nn.Module, layers: Collection[str], inputs: Iterable[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return E[x x'] of the inputs of layers over samples and positions, each (inputs, inputs) float64.

    Args:
        module: The unpruned network; it runs in evaluation mode and stays as it is.
        layers: Dotted names. Left out of the result are those that this does not suit (transposed and grouped
            convolutions, more than 4,096 inputs) and those that the network does not call as modules.
        inputs: Batches (N, ...) of real inputs.
    """
    moments: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def collect(name: str, x: torch.Tensor) -> None:
        rows = x.movedim(1, -1) if isinstance(module.get_submodule(name), _ConvNd) else x
        rows = rows.reshape(-1, rows.shape[-1])
        counts[name] = counts.get(name, 0) + len(rows)
        # The products of one batch are exact enough in float32; their sum over batches is not always.
        moments[name] = moments.get(name, torch.zeros(())) + (rows.T @ rows).double()

    handles = [
        module.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs, name=name: collect(name, layer_input(args, kwargs)), with_kwargs=True
        )
        for name in layers
        if _suits(module.get_submodule(name))
    ]
    try:
        with evaluation(module), torch.no_grad():
            for x in inputs:
                module(x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / counts[name] for name, total in moments.items()}


def compensate(
    pruned: nn.Module,
    original: nn.Module,
    losses: Mapping[str, Removal],
    moments: Mapping[str, torch.Tensor],
) -> None:
    """Fold predictions of the removed channels into the weights that read the kept ones, in place.

    With P = E[x_kept x_kept']^-1 E[x_kept x_gone'], W_kept becomes W_kept + W_gone P'. In a kernel of several taps
    every tap does so: a channel is predicted from others at the same place.

    Args:
        pruned: The network after `surgery.cut`.
        original: The unpruned one.
        losses: What every layer lost.
        moments: Of the unpruned network (`second_moments`); layers without any stay as they were cut.
    """
    for name, moment in moments.items():
        loss = losses.get(name)
        if loss is None or not loss.inputs:
            continue
        weight = original.get_submodule(name).get_parameter("weight").detach()
        kept = [i for i in range(weight.shape[1]) if i not in loss.inputs]
        gone = sorted(loss.inputs)
        rows = [o for o in range(weight.shape[0]) if o not in loss.outputs]
        own = moment[kept][:, kept]
        ridge = _RIDGE * own.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        prediction = torch.linalg.solve(own + ridge * torch.eye(len(kept)), moment[kept][:, gone])
        carried = torch.einsum("og...,kg->ok...", weight[rows][:, gone].double(), prediction)
        with torch.no_grad():
            pruned.get_submodule(name).get_parameter("weight").add_(carried.to(weight.dtype))


def _suits(layer: nn.Module) -> bool:
    if isinstance(layer, _ConvNd):
        return layer.groups == 1 and not layer.transposed and layer.in_channels <= _WIDEST
    return isinstance(layer, nn.Linear) and layer.in_features <= _WIDEST
