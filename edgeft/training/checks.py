"""Settings of a training that are fine one by one and make no sense together."""

from __future__ import annotations

from edgeft import recipe
from edgeft.errors import ConfigError

_BACKBONE_ONLY = ("train_blocks", "unfreeze_every", "block_lr_decay", "freeze_batch_norm")
_NO_BACKBONE = {
    "feature-extraction": "trains the head alone",
    "retrain": "has nothing pretrained to keep",
    "none": "trains nothing",
}
"""Why a method has no blocks to freeze or pace."""


def check(config: recipe.Training) -> None:
    """Check that the settings of a training section go together, before any work.

    Raises:
        ConfigError: A warm-up that one-cycle brings itself or that lasts as long as the training; bf16 for
            fake-quant graphs; blocks to freeze or pace where the method has none; unfreezing that never
            happens; a feature weight without a teacher.
    """
    section = type(config).__name__.lower()
    if config.warmup_epochs and config.schedule == "one-cycle":
        raise ConfigError(
            f'{section}.warmup_epochs = {config.warmup_epochs:g}: schedule = "one-cycle" brings its own warm-up',
            "leave warmup_epochs out, or choose another schedule",
        )
    if config.warmup_epochs >= config.epochs:
        raise ConfigError(
            f"{section}.warmup_epochs = {config.warmup_epochs:g}: the training has {config.epochs} epochs",
            "warm up for a part of them",
        )
    if isinstance(config, recipe.Quantize) and config.precision == "bf16":
        raise ConfigError(
            'quantize.precision = "bf16": fake-quant graphs are trained in float32, as the program is verified',
            "leave precision out",
        )
    if isinstance(config, recipe.Finetune):
        _check_method(config)


def _check_method(config: recipe.Finetune) -> None:
    if config.method in _NO_BACKBONE:
        for key in _BACKBONE_ONLY:
            if getattr(config, key) != recipe.Finetune.model_fields[key].default:
                raise ConfigError(
                    f'finetune.{key}: method = "{config.method}" {_NO_BACKBONE[config.method]}',
                    f'leave {key} out, or use method = "fine-tune"',
                )
    if config.unfreeze_every is not None and config.unfreeze_every >= config.epochs:
        raise ConfigError(
            f"finetune.unfreeze_every = {config.unfreeze_every}: the training ends after {config.epochs} "
            "epochs, before the first block joins the head",
            "unfreeze sooner, or train longer",
        )
    if config.feature_weight and config.method != "distill":
        raise ConfigError(
            f'finetune.feature_weight = {config.feature_weight:g}: method = "{config.method}" follows no teacher',
            'leave it out, or use method = "distill"',
        )
