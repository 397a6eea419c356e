"""The schemes of `model.source`: which names exist, how to construct them, what input they were made for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from edgeft import extras, recipe, user_code
from edgeft.errors import ModelError, nearest
from edgeft.models import builders, hf_files, keras_files, keras_network, networks, programs
from edgeft.models.keras_network import KerasNetwork
from edgeft.preprocessing import (
    ImagePreprocessing,
    Interpolation,
    Preprocessing,
    TextPreprocessing,
)

SCHEMES = ("builtin", "timm", "torchvision", "hf", "keras", "pt2", "onnx")
CODE = "code"
"""What `parse` calls the scheme of ``path/to/file.py:build``."""

_IMAGE, _TEXT, _TABLE = "image-classification", "text-classification", "tabular-classification"
_KINDS = {
    "timm": (_IMAGE,),
    "torchvision": (_IMAGE,),
    "hf": (_IMAGE, _TEXT),
    "keras": (_IMAGE, _TABLE),
    "pt2": (_IMAGE, _TABLE),
    "onnx": (_IMAGE, _TABLE),
    CODE: (_IMAGE, _TEXT, _TABLE),
}
_EXAMPLES = {
    _IMAGE: "torchvision:mobilenet_v2 or timm:mobilenetv3_small_100",
    _TEXT: "hf:FOLDER or path/to/file.py:build",
    _TABLE: "builtin:mlp or path/to/file.py:build",
}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PRETRAINED = {"digitsnet": "digitsnet-digits01234.safetensors"}
_TABULAR = ("mlp",)

Constructor = Callable[[int], nn.Module]


def default_preprocessing(
    model: recipe.Model, kind: str = _IMAGE, *, base: Path
) -> ImagePreprocessing | TextPreprocessing | None:
    """Return the preprocessing that the source's weights were made with, at `model.input_size` if given.

    Images: timm's and hf's come from the model's own configuration; torchvision, user code, .pt2 and .onnx get
    ImageNet's mean and deviation (224 pixels where the file says nothing). A Keras file's own Rescaling or
    Normalization behind its input moves in here, and a file without one is fed 0..1. With another input size the
    ratio of resizing to cropping stays. `model.mean` and `model.std` go over all that.
    Texts: the tokenizer beside the model; `max_length` 0 means that it is to be chosen from the data. Tables: None,
    all of it comes from the data.

    Args:
        model: Source, input size, tokenizer.
        kind: The recipe's ``task.kind``.
        base: Folder of the recipe.

    Raises:
        ModelError: The source is unknown, unreadable or of another kind.
        MissingDependencyError: Its package is not installed.
    """
    scheme, name = parse(model.source)
    _require_kind(scheme, name, model.source, kind)
    if kind == _TABLE:
        return None
    if kind == _TEXT:
        return _text_preprocessing(model, scheme, name, base)
    found = _image_preprocessing(model, scheme, name, base)
    for key, numbers in (("mean", model.mean), ("std", model.std)):
        if numbers is not None and len(numbers) != found.channels:
            raise ModelError(
                f"model.{key} has {len(numbers)} numbers; {model.source} takes {found.channels} channels",
                "give one number per channel",
            )
    mean, std = tuple(model.mean or found.mean), tuple(model.std or found.std)
    return dataclasses.replace(found, mean=mean, std=std)


def _image_preprocessing(model: recipe.Model, scheme: str, name: str, base: Path) -> ImagePreprocessing:
    match scheme:
        case "builtin":
            channels = 1 if name == "digitsnet" else 3
            return _image(model.input_size or 32, channels, (0.5,) * channels, (0.5,) * channels)
        case "timm":
            return _timm_preprocessing(model, name)
        case "hf":
            return hf_files.image_preprocessing(name, base=base, size=model.input_size)
        case "keras":
            network = keras(model, base)
            channels, size = _square(network.input_shape, model.source)
            mean, std = network.mean or (0.0,) * channels, network.std or (1.0,) * channels
            return _image(size, channels, mean, std)
        case "pt2" | "onnx":
            load = programs.load_exported if scheme == "pt2" else programs.load_onnx
            channels, size = _square(load(base / name)[1], model.source)
            if model.input_size not in (None, size):
                raise ModelError(
                    f"model.input_size: {model.source} takes {size} x {size} pixels and nothing else"
                )
            return _image(size, channels, _IMAGENET_MEAN[:channels], _IMAGENET_STD[:channels])
        case _:
            size = model.input_size or 224
            return _image(size, 3, _IMAGENET_MEAN, _IMAGENET_STD, resize=round(size * 256 / 224))


def constructor(source: str, base: Path, preprocessing: Preprocessing) -> Constructor:
    """Return a function of the number of classes that makes the network with fresh weights.

    Args:
        source: Of a scheme that constructs: builtin, timm, torchvision or user code.
        base: Folder of the recipe.
        preprocessing: Complete; its input shape decides the width of ``builtin:mlp``.

    Raises:
        ModelError: The source is unknown.
        MissingDependencyError: The source's package is not installed.
    """
    scheme, name = parse(source)
    if scheme == "builtin" and name in _TABULAR:
        return lambda classes: networks.MLP(preprocessing.input_shape[0], classes)
    if scheme == "builtin":
        return networks.NETWORKS[name]
    if scheme == "timm":
        timm = extras.load("timm", f"source {source}")
        return lambda classes: _module(timm.create_model(name, pretrained=False, num_classes=classes))
    if scheme == CODE:
        builder = builders.load(source, base)
        return lambda classes: builders.call(builder, classes, preprocessing)
    models = extras.load("torchvision.models", f"source {source}")
    return lambda classes: _module(models.get_model(name, weights=None, num_classes=classes))


def keras(model: recipe.Model, base: Path) -> KerasNetwork:
    """Return the network of a ``keras:FILE`` source, with the weights of `model.weights` if that is given.

    Raises:
        ModelError: A file that cannot be used, or a layer without a counterpart.
        MissingDependencyError: h5py is not installed.
    """
    _, name = parse(model.source)
    weights = base / model.weights if model.weights and model.weights.endswith(".h5") else None
    if weights is not None and not keras_files.is_weights(weights):
        raise ModelError(
            f"model.weights: {weights} is no weights file of Keras; allowed is .weights.h5",
            "save them with model.save_weights('name.weights.h5')",
        )
    read = keras_files.read(base / name, weights)
    try:
        return keras_network.convert(read, model.input_size)
    except ModelError as error:  # it knows the layer, but not the file
        raise ModelError(f"model.source {model.source}: {error.message}", error.hint) from error


def shipped_weights(source: str) -> Path | None:
    """Return the weights that come with a builtin network, or None."""
    scheme, name = parse(source)
    file = _PRETRAINED.get(name) if scheme == "builtin" else None
    return Path(__file__).parent / "weights" / file if file else None


def files(model: recipe.Model, *, base: Path) -> tuple[Path, ...]:
    """Return every existing file that building this model reads: weights, model file or folder, builder, tokenizer.

    Raises:
        ModelError: The source is unknown.
    """
    scheme, name = parse(model.source)
    paths: list[Path] = []
    if model.weights is not None:
        paths.append(base / model.weights)
    elif (shipped := shipped_weights(model.source)) is not None:
        paths.append(shipped)
    if scheme in ("keras", "pt2", "onnx"):
        paths.append(base / name)
    elif scheme == CODE:
        paths.append(base / user_code.split(name)[0])
    elif scheme == "hf":
        paths += sorted(path for path in hf_files.resolve(name, base).rglob("*") if path.is_file())
    if model.tokenizer is not None:
        tokenizer = base / model.tokenizer
        paths.append(tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer)
    return tuple(path for path in paths if path.is_file())


def parse(source: str) -> tuple[str, str]:
    """Split ``scheme:name`` and check that both exist; user code is (`CODE`, the whole source).

    Raises:
        ModelError: Unknown scheme or name; names the nearest known one.
        MissingDependencyError: The scheme's package is not installed.
    """
    if user_code.split(source)[0]:
        return CODE, source
    scheme, _, name = source.partition(":")
    if scheme not in SCHEMES or not name:
        close = nearest(scheme, SCHEMES) if name else nearest(scheme, networks.NETWORKS)
        allowed = (
            "builtin:NAME, timm:NAME, torchvision:NAME, hf:PATH_OR_NAME, keras:FILE, pt2:FILE, onnx:FILE"
        )
        raise ModelError(
            f"model.source: got {source!r}{close}; allowed are {allowed} and path/to/file.py:build",
            "for example builtin:digitsnet, torchvision:mobilenet_v2 or timm:mobilenetv3_small_100",
        )
    if scheme not in ("builtin", "timm", "torchvision"):
        return scheme, name
    names = _names(scheme, name)
    if name not in names:
        shown = f"; there are: {', '.join(sorted(names))}" if len(names) < 10 else ""
        raise ModelError(f"model.source: {scheme} has no model {name!r}{nearest(name, names)}{shown}")
    return scheme, name


def _require_kind(scheme: str, name: str, source: str, kind: str) -> None:
    kinds = _KINDS.get(scheme) or ((_TABLE,) if name in _TABULAR else (_IMAGE,))
    if kind not in kinds:
        raise ModelError(
            f"model.source {source!r} is for {' and '.join(kinds)}, and task.kind is {kind}",
            f"for {kind} use for example {_EXAMPLES[kind]}" if kind in _EXAMPLES else "",
        )


def _text_preprocessing(model: recipe.Model, scheme: str, name: str, base: Path) -> TextPreprocessing:
    if scheme == "hf":
        return hf_files.text_preprocessing(
            name, base=base, max_length=model.max_length, tokenizer=model.tokenizer
        )
    if model.tokenizer is None:
        raise ModelError(
            f"model.tokenizer is missing: {model.source} brings none", "give a tokenizer.json or its folder"
        )
    content, pad_id = hf_files.read_tokenizer(base / model.tokenizer)
    return TextPreprocessing(tokenizer=content, max_length=model.max_length or 0, pad_id=pad_id)


def _timm_preprocessing(model: recipe.Model, name: str) -> ImagePreprocessing:
    config = extras.load("timm.models", f"source {model.source}").get_pretrained_cfg(name)
    channels, own = _square(tuple(config.input_size), model.source)
    size = model.input_size or own
    return _image(
        size,
        channels,
        tuple(config.mean),
        tuple(config.std),
        resize=max(size, round(size / config.crop_pct)),
        interpolation="bicubic" if config.interpolation == "bicubic" else "bilinear",
    )


def _image(
    size: int,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    resize: int = 0,
    interpolation: Interpolation = "bilinear",
) -> ImagePreprocessing:
    return ImagePreprocessing(
        size=size, resize=resize or size, channels=channels, mean=mean, std=std, interpolation=interpolation
    )


def _square(shape: tuple[int, ...], source: str) -> tuple[int, int]:
    """Return channels and edge of an input (C, H, W)."""
    if len(shape) != 3 or shape[1] != shape[2] or shape[0] not in (1, 3):
        raise ModelError(
            f"model.source {source!r} takes inputs {shape}; allowed are squares of 1 or 3 channels: (C, size, size)"
        )
    return shape[0], shape[1]


def _names(scheme: str, name: str) -> list[str]:
    """Return the model names of a scheme that `name` may be (timm: also with its pretrained tag)."""
    if scheme == "builtin":
        return [*networks.NETWORKS, *_TABULAR]
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
