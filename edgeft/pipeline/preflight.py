"""Cross-checks of a recipe before any work: targets, packages, data, calibration, model, gate."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from edgeft import calibration, compilers, data, exporters, gating, models, target
from edgeft.errors import ConfigError, DataError, EdgeftError, ModelError
from edgeft.measure import check_device, check_host, check_isa_floor, noninferiority, user_metric
from edgeft.pipeline import denials
from edgeft.preprocessing import ImagePreprocessing, Preprocessing
from edgeft.recipe import Recipe
from edgeft.target import TargetProfile
from edgeft.types import FloatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of `edgeft check`."""

    level: Literal["ok", "warning", "error"]
    topic: str
    text: str
    hint: str = ""
    error: EdgeftError | None = None


def check(recipe: Recipe, *, base: Path, thorough: bool = False) -> list[Finding]:
    """Return what was found, errors included; nothing is trained, decoded or written.

    Args:
        recipe: A parsed recipe.
        base: Folder that its paths are relative to.
        thorough: Whether to look also at what a run can do without: if the network's shapes allow the budget of
            pruning, which takes seconds (a run looks when it comes to train), and what later releases will need.
    """
    findings: list[Finding] = []
    for name in recipe.targets:
        findings += _guarded("targets", partial(_target, name, base, recipe))
    findings += _guarded("data", lambda: _data(recipe, base))
    if any(finding.topic == "data" and finding.error for finding in findings):
        return findings  # everything else depends on the numbers of classes and samples
    found = data.scan(recipe.task, base)
    counts = _expected_counts(recipe, found)
    findings += _guarded("model", lambda: _model(recipe, base, len(found.classes), thorough))
    findings += _guarded("metrics", lambda: _metrics(recipe, base))
    findings += _guarded("calibration", lambda: _calibration(recipe, base, counts["train"]))
    findings += _guarded("gate", lambda: _gate(recipe, counts["test"], thorough))
    return findings


def require_device(name: str) -> None:
    """Raise `MissingDependencyError` or `ConfigError` unless networks can be trained on this device."""
    if name != "cpu":  # which is always there; looking for others imports torch
        from edgeft import training

        training.require_device(name)


def _guarded(topic: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except EdgeftError as error:
        yield Finding(level="error", topic=topic, text=error.message, hint=error.hint, error=error)


def _target(name: str, base: Path, recipe: Recipe) -> Iterator[Finding]:
    profile = target.load(name, base)
    target.require_packages(profile)
    if profile.compiler is not None:
        compilers.check_settings(profile.compiler)
    check_host(profile)
    scheme = recipe.quantize.artifact_scheme if recipe.quantize else "float32"
    exporters.require_scheme(profile, scheme)
    device = check_device(profile)
    if scheme in ("int8", "int8-dynamic"):  # it is the integer kernels that saturate
        check_isa_floor(profile)
    if profile.precision.full_integer and recipe.quantize and recipe.quantize.float_layers:
        raise ConfigError(
            f"quantize.float_layers = {recipe.quantize.float_layers}: {profile.id} runs integer ops only",
            "leave float_layers out, or the target",
        )
    if recipe.export.preprocess == "embedded" and profile.precision.symmetric_activations:
        raise ConfigError(
            f'export.preprocess = "embedded": {profile.id} takes activations with zero point 0, and these have 128 '
            "steps from 0 up; raw pixels need 256",
            "leave export.preprocess out, or the target",
        )
    if recipe.prune and name == (recipe.prune.target or recipe.targets[0]):
        target.require_budget(profile, recipe.prune.budget.kind)
    on = f" ({device})" if device != "cpu" else ""
    yield Finding(level="ok", topic="targets", text=f"{profile.id}: {profile.title}{on}")


def _profiles(recipe: Recipe, base: Path) -> list[TargetProfile]:
    """Return the targets that can be read: what is wrong with the others is a finding of its own."""
    profiles = []
    for name in recipe.targets:
        with contextlib.suppress(ConfigError):
            profiles.append(target.load(name, base))
    return profiles


def _preprocessing(recipe: Recipe, base: Path) -> Preprocessing:
    template = models.default_preprocessing(recipe.model, recipe.task.kind, base=base)
    if isinstance(template, ImagePreprocessing):
        return template
    # The shape depends on the data, which reads fast.
    return data.load(recipe.task, template, base=base, seed=recipe.seed).preprocessing


def build_model(recipe: Recipe, base: Path, classes: int) -> models.BuiltModel:
    """Return the network of a recipe, for `classes` classes and the inputs of its data; try its teacher too.

    Raises:
        EdgeftError: As `models.build` and, for texts and tables, `data.load`.
    """
    method = recipe.finetune.method if recipe.finetune else "none"
    preprocessing = _preprocessing(recipe, base)
    build = partial(models.build, base=base, seed=recipe.seed, preprocessing=preprocessing)
    if recipe.finetune and recipe.finetune.teacher:
        followed = recipe.finetune.teacher.model_dump()
        build(recipe.model.model_copy(update=followed), classes, keep_head=True)
    return build(recipe.model, classes, fresh=method == "retrain", keep_head=method == "none")


def _model(recipe: Recipe, base: Path, classes: int, thorough: bool) -> Iterator[Finding]:
    method = recipe.finetune.method if recipe.finetune else "none"
    built = build_model(recipe, base, classes)
    from edgeft import training  # takes seconds: after everything that is found out faster

    for section in (recipe.finetune, recipe.prune, recipe.quantize):
        if section is not None:
            training.check(section)
    if built.not_trainable and method != "none":
        raise ModelError(
            f"finetune.method = {method!r}: {recipe.model.source} cannot be trained: {built.not_trainable}",
            'leave [finetune] out, or set method = "none"',
        )
    if built.not_prunable and recipe.prune:
        raise ModelError(
            f"[prune]: {recipe.model.source} cannot be pruned: {built.not_prunable}", "leave [prune] out"
        )
    if recipe.prune:
        from edgeft import stages

        stages.check_pruning(built.module, recipe.prune)
    profiles = _profiles(recipe, base)
    if recipe.prune and thorough:
        unpruned = FloatModel(
            module=built.module.eval(), preprocessing=_preprocessing(recipe, base), labels=()
        )
        stages.check_budget(unpruned, recipe.prune, target.common_prune_limits(profiles))
    if any(profile.ops.deny for profile in profiles):
        rewritten = recipe.prune is not None and recipe.prune.rewrite == "edge-lite"
        network = models.to_edge_lite(built.module).module if rewritten else built.module
        denials.check_operators(network, _preprocessing(recipe, base), profiles)
    if built.head:
        yield Finding(level="ok", topic="model", text=f"head {built.head!r} for {classes} classes")
    for line in built.account.lines():
        yield Finding(level="ok", topic="model", text=f"{recipe.model.source}: {line}")


def _data(recipe: Recipe, base: Path) -> Iterator[Finding]:
    found = data.scan(recipe.task, base)
    splits = ", ".join(f"{name} {sum(counts.values())}" for name, counts in found.counts.items())
    yield Finding(level="ok", topic="data", text=f"{len(found.classes)} classes, samples: {splits}")
    if found.bad:
        yield Finding(
            level="warning",
            topic="data",
            text=f"{len(found.bad)} files or rows are no samples and will be skipped",
        )


def _metrics(recipe: Recipe, base: Path) -> Iterator[Finding]:
    for metric in user_metric.load_all(recipe.evaluate.metrics, base):
        yield Finding(level="ok", topic="metrics", text=f"{metric.name} of {metric.path}")


def _calibration(recipe: Recipe, base: Path, available: int) -> Iterator[Finding]:
    if recipe.quantize is None or not recipe.quantize.calibrates:
        return
    wanted = calibration.load(recipe.quantize.calibration, base)
    if wanted.samples > available:
        raise DataError(
            f"calibration recipe {wanted.id!r} asks for {wanted.samples} samples, the training split has about "
            f"{available}",
            "give more data, or a calibration recipe with fewer samples (a path in quantize.calibration)",
        )
    yield Finding(level="ok", topic="calibration", text=f"{wanted.id}: {wanted.title}")
    halved = [p.id for p in _profiles(recipe, base) if p.precision.weight_range == "half"]
    if halved and recipe.quantize.method == "ptq" and not wanted.bias_correction:
        yield Finding(
            level="warning",
            topic="calibration",
            text=f"{', '.join(halved)}: half-range weights are coarse, and {wanted.id!r} does not correct biases: "
            "a MobileNetV2 calibrated like this agreed with its float model on 54 to 64 % of a test set",
            hint='quantize.calibration = "percentile", or quantize.method = "qat"',
        )


def _gate(recipe: Recipe, samples: int, thorough: bool) -> Iterator[Finding]:
    margin = gating.accuracy_margin(recipe.gate, samples)
    certifiable = noninferiority.certifiable_margin(samples)
    text = (
        f"{samples} test samples certify a drop of {certifiable:.1%} (at 2 % discordant pairs, 4 times in 5)"
    )
    if certifiable > margin:
        yield Finding(
            level="warning",
            topic="gate",
            text=f"{text}; the margin is {margin:.1%}: expect an inconclusive verdict even from an equal model",
            hint=f"about {_needed(recipe, margin)} test samples are needed, or a wider gate.accuracy_margin",
        )
        return
    yield Finding(level="ok", topic="gate", text=f"{text}; the margin is {margin:.1%}")
    kept = gating.Limits.of(recipe.gate).accuracy_margin
    if thorough and samples < _needed(recipe, kept):
        yield Finding(
            level="warning",
            topic="gate",
            text=f"from release to release `edgeft gate` keeps to {kept:.1%}, whatever the samples can certify: "
            f"with {samples} test samples expect it to be inconclusive where predictions change",
            hint=f"about {_needed(recipe, kept)} test samples are needed, or gate.accuracy_margin = "
            f"{math.ceil(1000 * certifiable) / 1000:g}",
        )


def _needed(recipe: Recipe, margin: float) -> int:
    """Return how many samples decide: every target is compared with the last release and with the anchor."""
    return noninferiority.samples_needed(margin, comparisons=2 * len(recipe.targets))


def _expected_counts(recipe: Recipe, found: data.Scan) -> dict[str, int]:
    """Return how many samples each split will have, up to rounding within the classes."""
    counts = {name: sum(c.values()) for name, c in found.counts.items()}
    rest = counts.pop("all", 0) or counts.get("train", 0)
    test = counts.get("test", round(rest * recipe.task.test_fraction))
    val = counts.get("val", round(rest * recipe.task.val_fraction))
    cut = (0 if "test" in counts else test) + (0 if "val" in counts else val)
    return {"train": rest - cut, "val": val, "test": test}
