"""Whether a network takes the inputs that the preprocessing makes, before any work is done on them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from edgeft.errors import ModelError
from edgeft.preprocessing import ImagePreprocessing, Preprocessing, TextPreprocessing


def example_input(preprocessing: Preprocessing) -> torch.Tensor:
    """Return one valid input (1, *input_shape): zeros; for texts the largest token id, once, and any other."""
    if not isinstance(preprocessing, TextPreprocessing):
        return torch.zeros(1, *preprocessing.input_shape)
    ids = torch.full(
        (1, *preprocessing.input_shape), 1 if preprocessing.pad_id == 0 else 0, dtype=torch.int32
    )
    ids[0, 0] = _largest_id(preprocessing)
    return ids


def _largest_id(preprocessing: TextPreprocessing) -> int:
    added = json.loads(preprocessing.tokenizer).get("added_tokens", ())
    return max([preprocessing.vocab_size - 1, *(int(token["id"]) for token in added)])


def check(module: nn.Module, preprocessing: Preprocessing, source: str, classes: int | None) -> None:
    """Raise `ModelError` if the network fails on one input, or does not return logits; name a size that works.

    Args:
        module: In evaluation mode.
        preprocessing: Complete.
        source: What to call the network.
        classes: Logits per sample; None for any number.
    """
    problem = _input_problem(module, example_input(preprocessing), classes)
    if not problem:
        return
    if isinstance(preprocessing, TextPreprocessing):
        length = preprocessing.max_length
        lengths = [n for n in (512, 256, 128, 64, 32, 16, 8) if n < length]
        shorter = (dataclasses.replace(preprocessing, max_length=n) for n in lengths)
        works = next(
            (p.max_length for p in shorter if not _input_problem(module, example_input(p), classes)), 0
        )
        raise ModelError(
            f"model.max_length: {source} cannot take {length} tokens: {problem}",
            f"set model.max_length to {works} or less"
            if works
            else "check that model.tokenizer belongs to it",
        )
    if not isinstance(preprocessing, ImagePreprocessing):
        raise ModelError(
            f"model.source {source} cannot take {preprocessing.input_shape[0]} numbers: {problem}"
        )
    size, channels = preprocessing.size, preprocessing.channels
    sizes = (larger for larger in (16, 32, 64, 96, 128, 160, 192, 224, 256, 384) if larger > size)
    fits = next(
        (s for s in sizes if not _input_problem(module, torch.zeros(1, channels, s, s), classes)), None
    )
    raise ModelError(
        f"model.input_size: {source} cannot take {size} x {size} pixels: {problem}",
        f"set model.input_size to {fits} or more" if fits else "leave model.input_size out",
    )


def _input_problem(module: nn.Module, example: torch.Tensor, classes: int | None) -> str:
    """Return why this input does not go through, or an empty string."""
    with _stride_watch(module) as wasted, torch.inference_mode():
        try:
            logits = module(example)
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            return str(error).partition("\n")[0]
    if wasted:
        return f"layer {wasted[0]} strides over a map that is smaller than its stride"
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        return "the output is not a matrix of logits (N, classes)"
    if classes is not None and logits.shape[1] != classes:
        return f"it returns {logits.shape[1]} values for {classes} classes"
    return ""


@contextmanager
def _stride_watch(module: nn.Module) -> Iterator[list[str]]:
    """Collect the names of layers that subsample what is down to less than their stride.

    Such a network runs without an error and sees little but padding.
    """
    wasted: list[str] = []

    def watch(name: str, stride: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            pixels: torch.Tensor = args[0] if args else kwargs["input"]
            if min(pixels.shape[-2:]) < stride:
                wasted.append(name)

        return hook

    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            stride = max(layer.stride) if isinstance(layer.stride, tuple) else int(layer.stride)
            handles.append(layer.register_forward_pre_hook(watch(name, stride), with_kwargs=True))
    try:
        yield wasted
    finally:
        for handle in handles:
            handle.remove()
