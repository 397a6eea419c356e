"""Build a network for a task: construct, find the head, load weights, check the input size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgeft import recipe
from edgeft.errors import ModelError
from edgeft.models import weight_files
from edgeft.models.sources import Constructor, constructor, default_preprocessing, shipped_weights
from edgeft.models.weight_files import LoadAccount
from edgeft.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A network in evaluation mode, the dotted prefix of its head, and where its tensors came from."""

    module: nn.Module
    head: str
    account: LoadAccount


def build(
    model: recipe.Model,
    classes: int,
    *,
    base: Path,
    seed: int,
    fresh: bool = False,
    keep_head: bool = False,
) -> BuiltModel:
    """Build the network of a recipe for `classes` classes, from its weights.

    Weights are never downloaded. A builtin network that ships with weights uses them where `model.weights` is
    absent. The head is fresh, drawn from `seed`, whatever head the file has.

    Args:
        model: Source, weights file (relative to `base`) and input size.
        classes: Size of the head, at least 2.
        base: Folder of the recipe.
        seed: Of the fresh values. torch's own generator is left alone.
        fresh: Use no weights at all (``finetune.method = "retrain"``).
        keep_head: Take the head from the file too, for a network that is trained already
            (``finetune.method = "none"``).

    Raises:
        ModelError: Unknown source; missing, unreadable or unfitting weights; no weights and not `fresh`; an
            input too small for the network.
        MissingDependencyError: The source's package is not installed.
    """
    construct = constructor(model.source)
    module = _construct(construct, classes, seed, model.source)
    head = _find_head(module, _construct(construct, classes + 1, seed, model.source), model.source)
    file = None if fresh else _weights_file(model, base)
    if file is None:
        account = LoadAccount(fresh=tuple(module.state_dict()))
    else:
        label = f"model.weights: {file.name} for {model.source}"
        account = weight_files.load(module, weight_files.read(file), head, keep_head=keep_head, label=label)
    module.eval()
    _check_input(module, default_preprocessing(model), model.source)
    return BuiltModel(module=module, head=head, account=account)


def check_input(model: recipe.Model, preprocessing: Preprocessing) -> None:
    """Check that the network of a recipe can take inputs of this size, before any work.

    Raises:
        ModelError: The network fails on them, or strides over feature maps that are a single pixel already;
            names a size that works.
    """
    module = _construct(constructor(model.source), 2, 0, model.source).eval()
    _check_input(module, preprocessing, model.source)


def _weights_file(model: recipe.Model, base: Path) -> Path:
    if model.weights is not None:
        return base / model.weights
    shipped = shipped_weights(model.source)
    if shipped is None:
        raise ModelError(
            f"model.weights is missing: {model.source} brings no weights, and edgeft downloads none",
            'give model.weights = "FILE.safetensors", or finetune.method = "retrain" to train from scratch',
        )
    return shipped


def _construct(construct: Constructor, classes: int, seed: int, source: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return construct(classes)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"model.source {source!r} cannot be built for {classes} classes ({error})"
            ) from error


def _find_head(module: nn.Module, larger: nn.Module, source: str) -> str:
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


def _check_input(module: nn.Module, preprocessing: Preprocessing, source: str) -> None:
    size = preprocessing.size
    problem = _input_problem(module, preprocessing.channels, size)
    if not problem:
        return
    sizes = (larger for larger in (16, 32, 64, 96, 128, 160, 192, 224, 256, 384) if larger > size)
    works = next((str(s) for s in sizes if not _input_problem(module, preprocessing.channels, s)), "")
    raise ModelError(
        f"model.input_size: {source} cannot take {size} x {size} pixels: {problem}",
        f"set model.input_size to {works} or more" if works else "leave model.input_size out",
    )


def _input_problem(module: nn.Module, channels: int, size: int) -> str:
    """Return why one input of this size does not go through, or an empty string."""
    with _stride_watch(module) as wasted, torch.inference_mode():
        try:
            logits = module(torch.zeros(1, channels, size, size))
        except (RuntimeError, ValueError, AssertionError) as error:
            return str(error).partition("\n")[0]
    if wasted:
        return f"layer {wasted[0]} strides over a map that is smaller than its stride"
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        return "the output is not a matrix of logits (N, classes)"
    return ""


@contextmanager
def _stride_watch(module: nn.Module) -> Iterator[list[str]]:
    """Collect the names of layers that subsample what is down to less than their stride.

    Such a network runs without an error and sees little but padding.
    """
    wasted: list[str] = []

    def watch(name: str, stride: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if min(inputs[0].shape[-2:]) < stride:
                wasted.append(name)

        return hook

    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            stride = max(layer.stride) if isinstance(layer.stride, tuple) else int(layer.stride)
            handles.append(layer.register_forward_pre_hook(watch(name, stride)))
    try:
        yield wasted
    finally:
        for handle in handles:
            handle.remove()
