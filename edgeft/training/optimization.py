"""What is minimised and how: loss with a teacher, optimizer groups, learning-rate schedule."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from edgeft import recipe
from edgeft.errors import ModelError


def loss(
    logits: torch.Tensor, y: torch.Tensor, config: recipe.Training, taught: torch.Tensor | None = None
) -> torch.Tensor:
    """Return cross-entropy, or its mixture with the divergence from a teacher (Hinton et al. 2015).

    Args:
        logits: Of the student, (N, K).
        y: Class indices, (N,).
        config: Label smoothing; of a `recipe.Distilled`, weight and temperature of the teacher.
        taught: The teacher's logits, (N, K), or None for plain cross-entropy.
    """
    hard = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
    if taught is None or not isinstance(config, recipe.Distilled):
        return hard
    T = config.temperature
    soft = F.kl_div(
        F.log_softmax(logits / T, dim=1),
        F.log_softmax(taught / T, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    # Soft gradients shrink with 1/T^2; the factor keeps the mixture independent of the temperature.
    return (1 - config.distill_weight) * hard + config.distill_weight * T * T * soft


def optimizer(module: nn.Module, config: recipe.Training, head: str = "") -> torch.optim.Optimizer:
    """Return the optimizer over the trainable parameters, in groups.

    Norms and biases (parameters of at most one dimension) are not decayed. Parameters below `head` learn
    `config.head_lr_multiplier` times faster where the config has one.

    Raises:
        ModelError: Nothing is trainable, or nothing is called `head`.
    """
    boost = getattr(config, "head_lr_multiplier", 1.0) if head else 1.0
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            in_head = bool(head) and (name == head or name.startswith(f"{head}."))
            groups.setdefault((in_head, parameter.ndim > 1), []).append(parameter)
    if not groups:
        raise ModelError("training: the network has no trainable parameter")
    if boost != 1.0 and not any(in_head for in_head, _ in groups):
        raise ModelError(f"training: no trainable parameter is called {head!r} or lies below it")
    settings = [
        {
            "params": parameters,
            "lr": config.learning_rate * (boost if in_head else 1.0),
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (in_head, decayed), parameters in groups.items()
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(settings, lr=config.learning_rate)


def schedule(config: recipe.Training, steps_per_epoch: int, step: int) -> float:
    """Return the factor on the learning rate at `step` (0-based): linear warm-up, then cosine to zero.

    The first step already moves and the last one still does: neither is spent at a rate of zero.
    """
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
