"""Whether bf16 autocast gains anything on this machine: a short trial on a copy of the network."""

from __future__ import annotations

import copy
import time

import torch
import torch.nn.functional as F
from torch import nn

_ROUNDS = 3
# Rounding costs accuracy, if little: it has to be worth it in time, and clearly beyond the clock's noise.
_LEAST_SECONDS = 30.0
_LEAST_SHARE = 0.2


def bf16_gains(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], steps: int) -> bool:
    """Return whether `steps` training steps under bf16 autocast would save half a minute and a fifth of the time.

    Both precisions take turns on a copy; `module` and torch's generator are left alone.

    Args:
        module: In training mode as it will be trained.
        batch: Inputs and labels of one step, on the module's device.
        steps: Optimizer steps that the training will take.
    """
    x, y = batch
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        trial = copy.deepcopy(module)
        _seconds(trial, x, y, bf16=False)  # the first pass allocates
        plain = [_seconds(trial, x, y, bf16=False)]
        if plain[0] * steps < _LEAST_SECONDS:
            return False  # even a forward pass in no time could not save as much
        try:
            _seconds(trial, x, y, bf16=True)
            reduced = [_seconds(trial, x, y, bf16=True)]
            for _ in range(_ROUNDS - 1):
                plain.append(_seconds(trial, x, y, bf16=False))
                reduced.append(_seconds(trial, x, y, bf16=True))
        except RuntimeError:
            return False  # an op of this network has no bf16 kernel here
    saved = min(plain) - min(reduced)
    return saved * steps >= _LEAST_SECONDS and saved >= _LEAST_SHARE * min(plain)


def _seconds(module: nn.Module, x: torch.Tensor, y: torch.Tensor, *, bf16: bool) -> float:
    started = time.perf_counter()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        logits = module(x)
    F.cross_entropy(logits.float(), y).backward()  # type: ignore[no-untyped-call]
    module.zero_grad(set_to_none=True)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - started
