"""Build a network for a task: make or convert it, give it its head and weights, check that it takes the inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeft import recipe
from edgeft.errors import ModelError
from edgeft.models import hub, huggingface, inputs, programs, sources, surgery, weight_files
from edgeft.models.account import BuiltModel, LoadAccount
from edgeft.models.sources import CODE, Constructor, constructor, shipped_weights
from edgeft.preprocessing import ImagePreprocessing, Preprocessing, TextPreprocessing


def build(
    model: recipe.Model,
    classes: int,
    *,
    base: Path,
    seed: int,
    preprocessing: Preprocessing,
    fresh: bool = False,
    keep_head: bool = False,
) -> BuiltModel:
    """Build the network of a recipe for `classes` classes, from its weights.

    Only hub names download anything. A builtin network that ships with weights uses them where `model.weights` is
    absent. The head is fresh, drawn from `seed`, whatever head the file has.

    Args:
        model: Source, weights file (relative to `base`) and input size.
        classes: Size of the head, at least 2.
        base: Folder of the recipe.
        seed: Of the fresh values. torch's own generator is left alone.
        preprocessing: Complete; its `input_shape` is what the network must take.
        fresh: Use no weights at all (``finetune.method = "retrain"``). A .pt2 keeps its own: it cannot be trained.
        keep_head: Take the head from the file too, for a network that is trained already
            (``finetune.method = "none"``).

    Raises:
        ModelError: Unknown source; missing, unreadable or unfitting weights; no weights and not `fresh`; inputs
            that do not fit the network.
        MissingDependencyError: The source's package is not installed.
    """
    built = _assemble(
        model, classes, base=base, seed=seed, preprocessing=preprocessing, fresh=fresh, keep_head=keep_head
    )
    inputs.check(built.module, preprocessing, model.source, classes)
    return built


def _assemble(
    model: recipe.Model,
    classes: int,
    *,
    base: Path,
    seed: int,
    preprocessing: Preprocessing,
    fresh: bool,
    keep_head: bool,
) -> BuiltModel:
    """Build without checking the inputs; see `build`."""
    scheme, name = sources.parse(model.source)
    example = inputs.example_input(preprocessing)
    if scheme == "hf":
        if not isinstance(preprocessing, ImagePreprocessing | TextPreprocessing):
            raise ModelError(f"model.source {model.source}: takes images or texts, not rows of a table")
        built = huggingface.build(
            name,
            classes,
            base=base,
            seed=seed,
            preprocessing=preprocessing,
            example=example,
            weights=base / model.weights if model.weights else None,
            fresh=fresh,
            keep_head=keep_head,
        )
    elif scheme in ("keras", "onnx"):
        built = _converted(
            model, classes, base=base, seed=seed, example=example, fresh=fresh, keep_head=keep_head
        )
    elif scheme == "pt2":
        module, _ = programs.load_exported(base / name)
        built = BuiltModel(
            module=module,
            head="",
            account=LoadAccount(loaded=tuple(module.state_dict())),
            not_trainable=programs.EXPORTED_NOT_TRAINABLE,
            not_prunable=programs.EXPORTED_NOT_TRAINABLE,
        )
    else:
        construct = constructor(model.source, base, preprocessing)
        built = _constructed(
            model, construct, classes, base=base, seed=seed, example=example, fresh=fresh, keep_head=keep_head
        )
    built.module.eval()
    return _fit_channels(built, preprocessing)


def check_input(model: recipe.Model, preprocessing: Preprocessing, *, base: Path) -> None:
    """Check that the network of a recipe can take inputs of this shape, before any work.

    Raises:
        ModelError: The network fails on them, or strides over feature maps that are a single pixel already;
            names a size that works.
    """
    built = _assemble(model, 2, base=base, seed=0, preprocessing=preprocessing, fresh=True, keep_head=False)
    inputs.check(built.module, preprocessing, model.source, None)


def _constructed(
    model: recipe.Model,
    construct: Constructor,
    classes: int,
    *,
    base: Path,
    seed: int,
    example: torch.Tensor,
    fresh: bool,
    keep_head: bool,
) -> BuiltModel:
    """Build from an architecture's name or the user's code, and a weights file."""
    module = _construct(construct, classes, seed, model.source)
    from_code = sources.parse(model.source)[0] == CODE
    if from_code:
        head = surgery.find_head(module, _with_channels_of(module, example))
    else:
        head = _grown_layer(module, _construct(construct, classes + 1, seed, model.source), model.source)
    if fresh:
        notes = _redraw(module, seed) if from_code else ()
        account = LoadAccount(fresh=tuple(module.state_dict()), notes=notes)
    elif from_code and model.weights is None:
        account = LoadAccount(
            notes=(f"all {len(module.state_dict())} tensors are as {model.source} made them",)
        )
    else:
        account = _load(module, _weights_file(model, base), model, head, keep_head=keep_head)
    return BuiltModel(module=module, head=head, account=account)


def _converted(
    model: recipe.Model,
    classes: int,
    *,
    base: Path,
    seed: int,
    example: torch.Tensor,
    fresh: bool,
    keep_head: bool,
) -> BuiltModel:
    """Build from a file that holds architecture and weights."""
    scheme, name = sources.parse(model.source)
    notes: tuple[str, ...] = ()
    if scheme == "keras":
        network = sources.keras(model, base)
        notes, shape = network.notes, network.input_shape
        module: nn.Module = network.module
    else:
        module, shape = programs.load_onnx(base / name)
    # Channels may differ (they are adapted); the rest of the shape is part of the network.
    if tuple(example.shape[2:]) != shape[1:] or (len(shape) == 1 and example.shape[1] != shape[0]):
        raise ModelError(
            f"model.source {model.source} takes inputs {shape}, and the data gives {tuple(example.shape[1:])}"
        )
    own_example = torch.zeros(1, *shape)
    head = surgery.find_head(module, own_example)
    given = {tensor for tensor, _ in module.named_parameters()}
    if not keep_head:
        surgery.replace_head(module, classes, seed, example=own_example)
    elif (width := _watch_width(module, own_example)) != classes:
        raise ModelError(
            f"model.source {model.source} was trained for {width} classes, and the data has {classes}",
            "use a finetune.method that trains a head for these classes",
        )
    in_head = {tensor for tensor in given if tensor.startswith(f"{head}.")}
    if fresh:
        notes = (*notes, *_redraw(module, seed))
        account = LoadAccount(fresh=tuple(module.state_dict()), notes=notes)
    elif model.weights is not None and not model.weights.endswith(".h5"):
        account = _load(module, base / model.weights, model, head, keep_head=keep_head)
        account = dataclasses.replace(account, notes=notes)
    else:
        account = LoadAccount(
            loaded=tuple(t for t in module.state_dict() if keep_head or t not in in_head),
            left_out=() if keep_head else tuple(sorted(in_head)),
            fresh=()
            if keep_head
            else tuple(f"{head}.{t}" for t, _ in module.get_submodule(head).named_parameters()),
            notes=notes,
        )
    return BuiltModel(module=module, head=head, account=account)


def _with_channels_of(module: nn.Module, example: torch.Tensor) -> torch.Tensor:
    """Return the example with as many channels as the first convolution takes: they are adapted afterwards."""
    first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    return (
        example
        if first is None or example.ndim != 4
        else example[:, :1].expand(-1, first.in_channels, -1, -1)
    )


def _watch_width(module: nn.Module, example: torch.Tensor) -> int:
    with torch.inference_mode():
        return int(module(example).shape[1])


def _load(module: nn.Module, file: Path, model: recipe.Model, head: str, *, keep_head: bool) -> LoadAccount:
    label = f"model.weights: {file.name} for {model.source}"
    return weight_files.load(module, weight_files.read(file), head, keep_head=keep_head, label=label)


def _weights_file(model: recipe.Model, base: Path) -> Path:
    if model.weights is not None:
        return base / model.weights
    shipped = shipped_weights(model.source)
    if shipped is not None:
        return shipped
    scheme, name = sources.parse(model.source)
    if scheme in ("timm", "torchvision"):
        return hub.pretrained(scheme, name)
    raise ModelError(
        f"model.weights is missing: {model.source} brings no weights",
        'give model.weights = "FILE.safetensors", or finetune.method = "retrain" to train from scratch',
    )


def _construct(construct: Constructor, classes: int, seed: int, source: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return construct(classes)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"model.source {source!r} cannot be built for {classes} classes ({error})"
            ) from error


def _redraw(module: nn.Module, seed: int) -> tuple[str, ...]:
    """Give every layer fresh values, in place; return a note on what has no rule for that."""
    drawn: set[str] = set()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in module.named_modules():
            reset: Callable[[], Any] | None = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
                drawn |= {f"{name}.{key}".lstrip(".") for key, _ in layer.named_parameters(recurse=False)}
    kept = [name for name, _ in module.named_parameters() if name not in drawn]
    return (
        f"{len(kept)} parameters keep their values, their layers cannot be reset: {', '.join(kept[:4])}",
    ) * bool(kept)


def _grown_layer(module: nn.Module, larger: nn.Module, source: str) -> str:
    """Return the dotted name of the layer whose parameters grow with the number of classes.

    This holds for every architecture, where a list of attribute names (fc, classifier.1, head.fc) would not.
    """
    grown = {
        name.rpartition(".")[0]
        for (name, ours), theirs in zip(module.named_parameters(), larger.parameters(), strict=True)
        if ours.shape != theirs.shape
    }
    if len(grown) != 1 or "" in grown:
        raise ModelError(
            f"model.source {source!r} has {len(grown)} classification heads; exactly 1 is supported",
            "use an architecture with one linear or convolutional classifier",
        )
    return grown.pop()


def _fit_channels(built: BuiltModel, preprocessing: Preprocessing) -> BuiltModel:
    """Adapt the first convolution to pictures of another number of channels, and say so."""
    if not isinstance(preprocessing, ImagePreprocessing) or not built.trainable:
        return built
    first = next((layer for layer in built.module.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or first.groups != 1 or first.in_channels == preprocessing.channels:
        return built
    name = surgery.adapt_input_channels(built.module, preprocessing.channels)
    note = f"{name} adapted from {first.in_channels} to {preprocessing.channels} input channels"
    account = dataclasses.replace(built.account, notes=(*built.account.notes, note))
    return dataclasses.replace(built, account=account)
