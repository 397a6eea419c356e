"""The schemes of `model.source`: which names exist, how to construct them, what input they were made for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from edgeft import extras, recipe
from edgeft.errors import ModelError, nearest
from edgeft.models import networks
from edgeft.preprocessing import Interpolation, Preprocessing

SCHEMES = ("builtin", "timm", "torchvision")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PRETRAINED = {"digitsnet": "digitsnet-digits01234.safetensors"}

Constructor = Callable[[int], nn.Module]


def default_preprocessing(model: recipe.Model) -> Preprocessing:
    """Return the preprocessing that the source's weights were made with, at `model.input_size` if given.

    timm's comes from the model's pretrained configuration, torchvision's is ImageNet's at 224 pixels. With
    another input size the ratio of resizing to cropping stays.

    Raises:
        ModelError: The source is unknown.
        MissingDependencyError: Its package is not installed.
    """
    scheme, name = parse(model.source)
    if scheme == "builtin":
        channels = 1 if name == "digitsnet" else 3
        size = model.input_size or 32
        return Preprocessing(
            size=size, resize=size, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels
        )
    if scheme == "torchvision":
        size = model.input_size or 224
        return Preprocessing(
            size=size, resize=round(size * 256 / 224), channels=3, mean=_IMAGENET_MEAN, std=_IMAGENET_STD
        )
    config = extras.load("timm.models", f"source {model.source}").get_pretrained_cfg(name)
    channels, height, width = config.input_size
    if height != width or channels not in (1, 3):
        raise ModelError(
            f"model.source {model.source!r} takes inputs {config.input_size}; allowed are squares"
        )
    size = model.input_size or height
    interpolation: Interpolation = "bicubic" if config.interpolation == "bicubic" else "bilinear"
    return Preprocessing(
        size=size,
        resize=max(size, round(size / config.crop_pct)),
        channels=channels,
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation=interpolation,
    )


def constructor(source: str) -> Constructor:
    """Return a function of the number of classes that makes the network with fresh weights.

    Raises:
        ModelError: The source is unknown.
        MissingDependencyError: Its package is not installed.
    """
    scheme, name = parse(source)
    if scheme == "builtin":
        return networks.NETWORKS[name]
    if scheme == "timm":
        timm = extras.load("timm", f"source {source}")
        return lambda classes: _module(timm.create_model(name, pretrained=False, num_classes=classes))
    models = extras.load("torchvision.models", f"source {source}")
    return lambda classes: _module(models.get_model(name, weights=None, num_classes=classes))


def shipped_weights(source: str) -> Path | None:
    """Return the weights that come with a builtin network, or None."""
    scheme, name = parse(source)
    file = _PRETRAINED.get(name) if scheme == "builtin" else None
    return Path(__file__).parent / "weights" / file if file else None


def parse(source: str) -> tuple[str, str]:
    """Split ``scheme:name`` and check that both exist.

    Raises:
        ModelError: Unknown scheme or name; names the nearest known one.
        MissingDependencyError: The scheme's package is not installed.
    """
    scheme, _, name = source.partition(":")
    if scheme not in SCHEMES or not name:
        close = nearest(scheme, SCHEMES) if name else nearest(scheme, networks.NETWORKS)
        raise ModelError(
            f"model.source: got {source!r}{close}; allowed are builtin:NAME, timm:NAME and torchvision:NAME",
            "for example builtin:digitsnet, torchvision:mobilenet_v2 or timm:mobilenetv3_small_100",
        )
    names = _names(scheme, name)
    if name not in names:
        shown = f"; there are: {', '.join(sorted(names))}" if len(names) < 10 else ""
        raise ModelError(f"model.source: {scheme} has no model {name!r}{nearest(name, names)}{shown}")
    return scheme, name


def _names(scheme: str, name: str) -> list[str]:
    """Return the model names of a scheme that `name` may be (timm: also with its pretrained tag)."""
    if scheme == "builtin":
        return list(networks.NETWORKS)
    if scheme == "timm":
        timm = extras.load("timm", f"source timm:{name}")
        if "." in name and name in timm.list_pretrained(f"{name.partition('.')[0]}.*"):
            return [name]
        return [str(known) for known in timm.list_models()]
    models = extras.load("torchvision.models", f"source torchvision:{name}")
    return [str(known) for known in models.list_models(module=models)]


def _module(made: Any) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise ModelError(f"model.source: got a {type(made).__name__} where a network was expected")
    return made
