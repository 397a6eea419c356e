"""What is minimised and by whom: the loss with a teacher, the optimizers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from edgeft import recipe
from edgeft.training.groups import LearningPlan


def loss(
    logits: torch.Tensor,
    y: torch.Tensor,
    config: recipe.Training,
    taught: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return cross-entropy, or its mixture with the divergence from a teacher (Hinton et al. 2015).

    Args:
        logits: Of the student, (N, K).
        y: Class indices, (N,).
        config: Label smoothing; of a `recipe.Distilled`, weight and temperature of the teacher.
        taught: The teacher's logits, (N, K), or None for plain cross-entropy.
        weights: Of the classes in the cross-entropy, (K,), or None for equal ones.
    """
    hard = F.cross_entropy(logits, y, weight=weights, label_smoothing=config.label_smoothing)
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


def optimizer(plan: LearningPlan, config: recipe.Training) -> torch.optim.Optimizer:
    """Return the optimizer over a plan's groups; each group keeps its full rate as ``peak_lr``."""
    settings: list[dict[str, Any]] = []
    for group in plan.groups:
        rate = config.learning_rate * group.multiplier
        decay = config.weight_decay if group.decayed else 0.0
        settings.append({"params": group.parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay})
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, momentum=config.momentum, nesterov=config.momentum > 0)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(settings, momentum=config.momentum)
    return torch.optim.Adam(settings) if config.optimizer == "adam" else torch.optim.AdamW(settings)


def set_pace(optimizer: torch.optim.Optimizer, factor: float, momentum: float | None) -> None:
    """Set every group's rate to `factor` of its full one and, unless None, its momentum or first beta."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif momentum is not None:
            group["momentum"] = momentum
