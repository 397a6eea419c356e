"""Normalisation inside of the network, so that a device feeds raw pixels (DESIGN: section 8)."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.fx import GraphModule

from edgeft.errors import ConfigError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.types import FloatModel

_WRAPPED = "network"
_LARGEST_PIXEL = 255.0


class Normalization(nn.Module):
    """Turn pixels in 0..255, (N, C, H, W) float32, into (x / 255 - mean) / std, in one product and one sum.

    It is an op of its own: inside of the network's first convolution, zero padding would mean black pixels instead of
    mean ones. It does not learn.

    Args:
        mean: Per channel, in units of 0..1.
        std: Per channel, in units of 0..1.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        means, stds = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        self.register_buffer("weight", (1 / (_LARGEST_PIXEL * stds)).float().reshape(-1, 1, 1))
        self.register_buffer("bias", (-means / stds).float().reshape(-1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the normalised picture, of the same shape."""
        return pixels * self.weight + self.bias

    def pixels(self, normalized: torch.Tensor) -> torch.Tensor:
        """Return the whole numbers that normalised pictures were made of, of the same shape."""
        return torch.round((normalized - self.bias) / self.weight)


class NormalizedNetwork(nn.Module):
    """A network of normalised pictures behind the normalisation."""

    def __init__(self, network: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.normalization = normalization
        self.network = network
        self.train(network.training)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, K) of pixels in 0..255, (N, C, H, W) float32."""
        logits: torch.Tensor = self.network(self.normalization(pixels))
        return logits


def embed_normalization(model: FloatModel) -> FloatModel:
    """Return the model of raw pixels, with the same answers; the given one is part of it and not changed.

    Raises:
        ConfigError: Its inputs are not pictures.
    """
    picture = model.preprocessing
    if not isinstance(picture, ImagePreprocessing):
        raise ConfigError(
            f'export.preprocess = "embedded" is for pictures; the model takes a {picture.kind}',
            "leave it out of the recipe",
        )
    normalization = Normalization(picture.mean, picture.std)
    return dataclasses.replace(
        model,
        module=NormalizedNetwork(model.module, normalization),
        preprocessing=dataclasses.replace(picture, embedded=True),
    )


def raw_inputs(model: FloatModel, inputs: torch.Tensor) -> torch.Tensor:
    """Return what the model of raw pixels takes in the place of `inputs`, normalised pictures (N, C, H, W)."""
    module = embed_normalization(model).module
    return module.normalization.pixels(inputs) if isinstance(module, NormalizedNetwork) else inputs


def hide_wrapper(graph: GraphModule) -> None:
    """Name the layers of a captured `NormalizedNetwork` as those of the network inside, in place."""
    for node in graph.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {
                key: (_inner_path(entry[0]), *entry[1:]) for key, entry in stack.items()
            }


def _inner_path(path: str) -> str:
    start = path.removeprefix("L['self'].")
    if start == _WRAPPED:
        return ""
    return start.removeprefix(f"{_WRAPPED}.")
