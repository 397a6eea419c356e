"""The prune stage: rewrite what int8 is slow at, cut channels to a budget, and recover the accuracy."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from edgeft import models, pruning, target, training
from edgeft.errors import ConfigError
from edgeft.pruning import Analysis, PrunedModel
from edgeft.pruning.search import Widths
from edgeft.recipe import Measure, Prune, Quantize
from edgeft.stages import weighing
from edgeft.stages.budgeting import choose, trial_device
from edgeft.stages.common import (
    accuracy,
    advanced,
    curve_results,
    digest,
    own_tensors,
    parse_config,
    step_record,
)
from edgeft.target import PruneLimits, TargetProfile
from edgeft.training import Batches
from edgeft.types import EpochRecord, FloatModel, Progress, silent

_GATE_BATCHES, _NORM_BATCHES, _MOMENT_BATCHES = 8, 32, 8
"""Batches for the means of squeeze-and-excite gates, for batch norms after a rewrite or a cut, and for the
second moments that say how much of a removed channel the others can make up for."""

_IDENTITY = "edgeft.step"


def prune(
    model: FloatModel,
    train: Batches,
    val: Batches,
    config: Prune | None = None,
    *,
    limits: PruneLimits | None = None,
    profile: TargetProfile | None = None,
    quantize: Quantize | None = None,
    timing: Measure | None = None,
    embedded: bool = False,
    statistics: Batches | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    **settings: Any,
) -> FloatModel:
    """Cut whole channels until the budget holds, then recover by distillation from the unpruned network.

    A budget of latency, size or memory is met by trying: candidates are exported, and timed in turns with the
    unpruned network, before anything is trained.

    Args:
        model: Trained float network.
        train: As in `finetune`.
        val: As in `finetune`.
        config: Settings; or keywords (`budget={"latency": 0.5}, target="cpu-onnxruntime"`).
        limits: Channel multiple and minimum of the targets; those of `profile`, or 8 and 8, by default.
        profile: The target that a budget of latency, size or memory is found out on; by default the one that
            ``config.target`` names.
        quantize: Scheme of the files that are tried; int8 by default.
        timing: Rounds and stop rule of the clock.
        embedded: Whether the files will normalise pictures by themselves.
        statistics: Unaugmented training batches in mixed order, for gradients, gates, batch norms and second moments;
            `train` by default.
        seed: As in `finetune`.
        checkpoint: As in `finetune`. Beside it lie a search's results, the unpruned network's file on the target, and
            the networks between the steps of an iterative schedule.
        device: As in `finetune`.
        progress: As in `finetune`.
        **settings: Fields of `recipe.Prune`.

    Raises:
        BudgetError: The budget is out of reach; the message names the best that is.
        ModelError: The architecture cannot be pruned or rewritten.
        ConfigError: A setting is unknown or out of range, or a budget needs a target.
        ExportError: A candidate cannot be exported.
        MeasurementError: A candidate cannot be timed.
        MissingDependencyError: The device is not there.
    """
    config = parse_config(Prune, config, settings)
    profile = find_profile(config, profile)
    limits = limits or (profile.prune if profile else PruneLimits())
    started = time.monotonic()
    statistics = train if statistics is None else statistics
    source, rewritten = rewrite(model, config, statistics, seed=seed)
    analysis = weighing.analyse(source, config, limits, statistics, seed=seed, progress=progress)
    with contextlib.ExitStack() as stack:
        folder = (
            checkpoint.parent
            if checkpoint
            else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeft-prune-")))
        )
        trial = trial_device(profile, quantize, val, timing, embedded=embedded)
        selection = choose(
            analysis, model, source.module, config, trial, folder, seed=seed, progress=progress
        )
        cutting = _Cutting(
            model=model,
            source=source,
            train=train,
            statistics=statistics,
            val=val,
            config=config,
            limits=limits,
            seed=seed,
            checkpoint=checkpoint,
            device=device,
            progress=progress,
        )
        pruned, steps = cutting.cut(analysis, selection.widths)
        cut_accuracy = accuracy(pruned.module, val)
        curve = cutting.recover(pruned.module)
    pruned.module.eval()
    results = {
        "plan": pruned.plan.to_dict(),
        **({"search": selection.search} if selection.search else {}),
        **({"rewrite": rewritten} if rewritten else {}),
        **({"steps": steps} if steps else {}),
        "val_accuracy_unpruned": accuracy(copy.deepcopy(model.module).eval(), val),
        "val_accuracy_before_recovery": cut_accuracy,
        "val_accuracy": accuracy(pruned.module, val),
        **curve_results(curve),
    }
    return advanced(model, pruned.module, step_record("prune", config, seed, started, results))


def find_profile(config: Prune, profile: TargetProfile | None) -> TargetProfile | None:
    """Return the target that a budget is found out on; None for a budget of MACs, which needs none.

    Raises:
        ConfigError: The budget needs a target and none is given.
    """
    kind = config.budget.kind
    if kind == "macs":
        return None
    if profile is None and config.target is None:
        raise ConfigError(
            f"budget = {{{kind}: {config.budget.share:g}}}: {kind} is that of a target's file, and no target is named",
            'name one: target="cpu-onnxruntime" (see edgeft targets)',
        )
    return profile or target.load(str(config.target))


def rewrite(
    model: FloatModel, config: Prune, statistics: Batches, *, seed: int
) -> tuple[FloatModel, dict[str, Any]]:
    """Return the network that is cut, and what was rewritten in it (nothing: the model itself).

    Args:
        model: The network; not changed.
        config: Says what is rewritten.
        statistics: Unaugmented training batches.
        seed: Of the order of the batches.

    Raises:
        ModelError: There is nothing to rewrite.
    """
    if config.rewrite == "none":
        return model, {}
    done = models.to_edge_lite(
        model.module, (x for x, _ in weighing.first_batches(statistics, _GATE_BATCHES, seed=seed))
    )
    # Other activations give other statistics; without new ones recovery would begin far away.
    training.reestimate_batch_norm(done.module, weighing.first_batches(statistics, _NORM_BATCHES, seed=seed))
    record = {
        "name": config.rewrite,
        "activations": list(done.activations),
        "gates": list(done.gates),
        "folded": list(done.folded),
    }
    return dataclasses.replace(model, module=done.module), record


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Cutting:
    """Cuts a network to known widths, at once or in steps, and trains it after the unpruned one."""

    model: FloatModel
    source: FloatModel
    train: Batches
    statistics: Batches
    val: Batches
    config: Prune
    limits: PruneLimits
    seed: int
    checkpoint: Path | None
    device: str
    progress: Progress

    def cut(self, analysis: Analysis, widths: Widths) -> tuple[PrunedModel, list[dict[str, Any]]]:
        """Return the network with the given widths, and what happened in the steps before the last one."""
        current, records = analysis, []
        # A rewrite that meets the budget by itself leaves nothing to cut little by little.
        steps = self.config.steps if widths != analysis.full else 1
        given = digest(self.model.module) if steps > 1 else ""
        full = weighing.unpruned_macs(analysis, self.model, self.config)
        for step in range(1, steps):
            narrowed = _between(analysis, widths, step / steps)
            identity = self._identity(given, narrowed)
            part = self._cut(current, narrowed)
            record: dict[str, Any] = {"macs": part.plan.macs_after / full}
            module = self._stored(step, identity)
            if module is None:
                record["val_accuracy_before_recovery"] = accuracy(part.module, self.val)
                self.recover(part.module, step=step)
                module = part.module
                self._store(step, identity, module)
            record["val_accuracy"] = accuracy(module, self.val)
            records.append(record)
            narrower = dataclasses.replace(self.source, module=module.eval())
            current = weighing.analyse(
                narrower, self.config, self.limits, self.statistics, seed=self.seed, progress=self.progress
            )
        last = self._cut(current, widths)
        parameters = sum(p.numel() for p in last.module.parameters())
        plan = weighing.from_unpruned(analysis.plan(widths, parameters), analysis, self.model, self.config)
        return PrunedModel(module=last.module, plan=plan), records

    def _cut(self, analysis: Analysis, widths: Widths) -> PrunedModel:
        """Return the network with the given widths, its weights and batch norms fitted to what is left."""
        batches = [x for x, _ in weighing.first_batches(self.statistics, _MOMENT_BATCHES, seed=self.seed)]
        pruned = analysis.apply(widths, moments=analysis.moments(batches))
        training.reestimate_batch_norm(
            pruned.module, weighing.first_batches(self.statistics, _NORM_BATCHES, seed=self.seed)
        )
        return pruned

    def recover(self, module: nn.Module, *, step: int | None = None) -> tuple[EpochRecord, ...]:
        """Train `module` in place after the unpruned network; for less long after a `step` that is not the last."""
        config = self.config
        if step is not None:
            config = config.model_copy(update={"epochs": config.recovery_epochs})
        return training.fit(
            module,
            self.train,
            self.val,
            config,
            seed=self.seed,
            checkpoint=None if step is not None else self.checkpoint,
            teacher=copy.deepcopy(self.model.module).eval(),
            device=self.device,
            progress=self.progress,
        )

    def _file(self, step: int) -> Path | None:
        return self.checkpoint and self.checkpoint.with_name(f"step-{step}.safetensors")

    def _identity(self, given: str, widths: Widths) -> str:
        """Return a hash of what the network after a step comes of: all but the data, the weights as their digest."""
        parts = [
            self.config.model_dump(mode="json"),
            self.limits.model_dump(mode="json"),
            self.seed,
            given,
            widths,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _store(self, step: int, identity: str, module: nn.Module) -> None:
        """Keep the network after a step, so that a run that is killed later does not train it again."""
        path = self._file(step)
        if path is not None:
            part = path.with_suffix(".part")
            save_file(own_tensors(module), part, metadata={_IDENTITY: identity})
            part.replace(path)

    def _stored(self, step: int, identity: str) -> nn.Module | None:
        """Return the network that the same stage has left after a step; another stage's is written over."""
        path = self._file(step)
        if path is None or not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(_IDENTITY) != identity:
                return None
        return pruning.restore(copy.deepcopy(self.source.module), load_file(path))


def _between(analysis: Analysis, widths: Widths, progress: float) -> Widths:
    """Return allowed widths that lie `progress` (0..1) of the way from the full ones to `widths`."""
    return tuple(
        min(allowed for allowed in ladder if allowed >= full + (final - full) * progress)
        for ladder, full, final in zip(analysis.ladders, analysis.full, widths, strict=True)
    )
