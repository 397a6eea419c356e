"""Learning rates as functions of the step and of past validation losses: a resume needs no state of theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeft import recipe

# One-cycle as torch.optim.lr_scheduler.OneCycleLR has it by default.
_RISING = 0.3
_START, _END = 1 / 25, 1 / 25e4
_LOW_MOMENTUM, _HIGH_MOMENTUM = 0.85, 0.95


def factor(
    config: recipe.Training, steps_per_epoch: int, step: int, val_losses: Sequence[float] = ()
) -> float:
    """Return the factor on the learning rate at `step` (0-based): a linear warm-up, then the schedule.

    The first step already moves and the last one still does: neither is spent at a rate of zero. Epochs of
    ``step`` are counted from the end of the warm-up.

    Args:
        config: Schedule, warm-up, epochs.
        steps_per_epoch: Optimizer steps in each epoch.
        step: Counted over all epochs.
        val_losses: Of the epochs so far, for ``reduce-on-plateau``.
    """
    total = config.epochs * steps_per_epoch
    if config.schedule == "one-cycle":
        return _one_cycle(_START, 1.0, _END, step, total)
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
    if config.schedule == "step":
        return float(config.step_factor ** ((step - warmup) // (config.step_epochs * steps_per_epoch)))
    if config.schedule == "reduce-on-plateau":
        return float(config.step_factor ** _plateaus(val_losses, config.step_epochs))
    return 1.0


def momentum(config: recipe.Training, steps_per_epoch: int, step: int) -> float | None:
    """Return the momentum (Adam: the first beta) at `step`; None leaves the optimizer's own.

    One-cycle lowers it while the rate is high (Smith & Topin 2018).
    """
    if config.schedule != "one-cycle" or (config.optimizer in ("sgd", "rmsprop") and not config.momentum):
        return None
    total = config.epochs * steps_per_epoch
    return _one_cycle(_HIGH_MOMENTUM, _LOW_MOMENTUM, _HIGH_MOMENTUM, step, total)


def _one_cycle(start: float, peak: float, end: float, step: int, total: int) -> float:
    top = max(_RISING * total - 1, 0.0)
    if step < top:
        return _cosine(start, peak, step / top)
    return _cosine(peak, end, (step - top) / max(total - 1 - top, 1.0))


def _cosine(a: float, b: float, share: float) -> float:
    return b + (a - b) * 0.5 * (1 + math.cos(math.pi * share))


def _plateaus(losses: Sequence[float], patience: int) -> int:
    """Count how often `patience` epochs in a row brought no loss below the best so far."""
    best, waited, count = math.inf, 0, 0
    for loss in losses:
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited == patience:
            waited, count = 0, count + 1
    return count
