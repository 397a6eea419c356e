"""The hooks that Lightning calls: modes, randomness, pace, the best epoch, the checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgeft import extras, recipe
from edgeft.errors import DataError
from edgeft.training import checkpoint as files
from edgeft.training import optimization, placement, precision, schedules
from edgeft.training.averaging import WeightAverage, floating_buffers
from edgeft.training.batches import Batch, Epochs, torch_seed
from edgeft.training.groups import LearningPlan
from edgeft.training.penultimate import FeatureMatch
from edgeft.training.placement import World
from edgeft.types import EpochRecord, Progress, TrainingPhases

extras.load("lightning", "training")  # declares torchvision's ops first, which Lightning imports
import lightning  # noqa: E402

_PROGRESS_EVERY = 5  # batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training, ready to run: networks on their device, batches, and how to go about it."""

    network: nn.Module
    teacher: nn.Module | None
    match: FeatureMatch | None
    plan: LearningPlan
    config: recipe.Training
    phases: TrainingPhases
    train: Epochs
    trial_batch: Batch
    class_weights: torch.Tensor | None
    bf16: bool | None
    """None: a trial decides."""
    buffers_average: bool
    memory_format: torch.memory_format
    seed: int
    world: World
    checkpoint: Path | None
    progress: Progress


class Loop(lightning.LightningModule):
    """The hooks that Lightning calls.

    The networks are held inside the job, out of reach of the module registry: Lightning restores the mode of
    every registered submodule by flag, without calling `train()`, and exported graphs need theirs called.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job, self.bf16 = job, job.bf16
        config = job.config
        self.identity = json.dumps(
            [type(config).__name__, config.model_dump(mode="json"), job.seed, len(job.train)]
        )
        self.optimizer = optimization.optimizer(job.plan, config)
        if job.match is not None:
            rate = config.learning_rate
            self.optimizer.add_param_group(
                {"params": list(job.match.parameters()), "lr": rate, "peak_lr": rate, "weight_decay": 0.0}
            )
        self.average = (
            WeightAverage(job.network, config.ema_decay, buffers=job.buffers_average)
            if config.ema_decay is not None
            else None
        )
        if job.world.size > 1:  # what DDP averages the gradients of
            self.shared = nn.ParameterList(
                p for group in self.optimizer.param_groups for p in group["params"]
            )
        self.records: tuple[EpochRecord, ...] = ()
        self.best: files.State = {}
        self._resume()
        self.first_epoch = len(self.records)
        self._losses: list[torch.Tensor] = []
        self._val: list[tuple[float, int, int]] = []  # summed loss, correct, samples
        self._started = 0.0

    def _resume(self) -> None:
        job = self.job
        saved = files.read(job.checkpoint, self.identity) if job.checkpoint else None
        if saved is None:
            return
        self.records, self.best, self.bf16 = saved.records, saved.best, saved.bf16
        job.network.load_state_dict(saved.network)
        self.optimizer.load_state_dict(saved.optimizer)
        if self.average is not None:
            self.average.load_state_dict(saved.average)
        if job.match is not None:
            job.match.load_state_dict(saved.match)
        job.train.epoch = len(saved.records)

    @property
    def epoch(self) -> int:
        """The epoch under way, 0-based, counted over resumes."""
        return self.job.train.epoch

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or so many brought nothing better that the rest is left out."""
        patience, done = self.job.config.early_stopping, len(self.records)
        if patience is not None and done:
            best = max(range(done), key=lambda epoch: _score(self.records[epoch]))  # of equals the first
            if done - 1 - best >= patience:
                return True
        return done >= self.job.config.epochs

    def configure_optimizers(self) -> Any:
        """Hand over what `__init__` built."""
        return self.optimizer

    def on_fit_start(self) -> None:
        """Decide on the precision, in one process for all."""
        if self.bf16 is None:
            job, gains = self.job, False
            if job.world.rank == 0:
                steps = job.config.epochs * len(job.train)
                gains = precision.bf16_gains(job.network, self._laid_out(job.trial_batch), steps)
            self.bf16 = bool(self.trainer.strategy.broadcast(gains))

    def on_train_epoch_start(self) -> None:
        """Enter training: the first time and after each validation."""
        self._losses, self._started = [], time.perf_counter()
        self.job.phases.enter_training(self.epoch)
        self.job.plan.enter_epoch(self.epoch)

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Set rates and momentum, and seed the generator."""
        job = self.job
        steps = len(job.train)
        step = self.epoch * steps + batch_index
        losses = [record.val_loss for record in self.records]
        optimization.set_pace(
            self.optimizer,
            schedules.factor(job.config, steps, step, losses),
            schedules.momentum(job.config, steps, step),
        )
        # Dropout must not depend on what else drew from the generator before a resume.
        rank = (job.world.rank,) if job.world.size > 1 else ()
        torch.manual_seed(torch_seed(job.seed, self.epoch, batch_index, *rank))

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        """Return the loss of one batch."""
        job = self.job
        x, y = self._laid_out(batch)
        taught = None
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bool(self.bf16)):
            if job.teacher is not None:
                with torch.no_grad():
                    taught = job.teacher(x).float()
            logits = job.network(x)
        value = optimization.loss(logits.float(), y, job.config, taught, job.class_weights)
        if job.match is not None and isinstance(job.config, recipe.Finetune):
            value = value + job.config.feature_weight * job.match()
        if not torch.isfinite(value):
            raise DataError(
                f"training: the loss is {value.item()} in epoch {self.epoch + 1}, batch {batch_index + 1}",
                "lower the learning rate, or set gradient_clip",
            )
        self._losses.append(value.detach())
        if batch_index % _PROGRESS_EVERY == 0:
            self._tell(batch_index)
        return value

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_index: int) -> None:
        """Take the step's weights into their average."""
        if self.average is not None:
            self.average.update()

    def on_validation_epoch_start(self) -> None:
        """Enter evaluation, of the averaged weights if there are such; all processes have the same ones."""
        self._val = []
        placement.average(floating_buffers(self.job.network), self.job.world)
        if self.average is not None:
            self.average.swap()
            placement.average(floating_buffers(self.job.network), self.job.world)
        self.job.phases.enter_evaluation()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Add one batch to the validation counts."""
        x, y = self._laid_out(batch)
        if len(y):  # a process may have no part in the last batch
            logits = self.job.network(x)
            loss = F.cross_entropy(logits, y, reduction="sum").item()
            self._val.append((loss, int((logits.argmax(1) == y).sum()), len(y)))

    def on_train_epoch_end(self) -> None:
        """Record the epoch, keep the network if it is the best so far, and write checkpoint and log."""
        job = self.job
        record = self._record()
        if not self.records or _score(record) > max(map(_score, self.records)):
            self.best = _copied(job.network.state_dict())
        if self.average is not None:
            self.average.swap()
        self.records += (record,)
        if job.checkpoint and job.world.rank == 0:
            self._write(job.checkpoint)
        self._tell(len(job.train))
        job.train.epoch += 1
        self.trainer.should_stop = self.finished

    def _record(self) -> EpochRecord:
        job = self.job
        sums = [sum(column) for column in zip(*self._val, strict=True)] or [0.0, 0.0, 0.0]
        sums += [float(torch.stack(self._losses).sum()), len(self._losses)]
        val_loss, correct, samples, train_loss, steps = placement.total(sums, job.world, self.device)
        first_step = self.epoch * len(job.train)
        losses = [record.val_loss for record in self.records]
        return EpochRecord(
            epoch=self.epoch,
            train_loss=train_loss / steps,
            val_loss=val_loss / samples,
            val_accuracy=correct / samples,
            learning_rate=job.config.learning_rate
            * schedules.factor(job.config, len(job.train), first_step, losses),
            seconds=time.perf_counter() - self._started,
        )

    def _write(self, path: Path) -> None:
        job = self.job
        files.write(
            path,
            files.Checkpoint(
                identity=self.identity,
                records=self.records,
                network=dict(job.network.state_dict()),
                best=self.best,
                optimizer=self.optimizer.state_dict(),
                average=self.average.state_dict() if self.average is not None else {},
                match=dict(job.match.state_dict()) if job.match is not None else {},
                bf16=bool(self.bf16),
            ),
        )
        files.write_log(path.with_suffix(".csv"), self.records, bf16=bool(self.bf16))

    def _laid_out(self, batch: Batch) -> Batch:
        x, y = batch
        return (x.to(memory_format=self.job.memory_format) if x.ndim == 4 else x), y

    def _tell(self, batches: int) -> None:
        per_epoch, epochs = len(self.job.train), self.job.config.epochs
        message = f"epoch {self.epoch + 1}/{epochs}  loss {torch.stack(self._losses).mean():.2f}"
        if self.records:
            message += f"  val {100 * self.records[-1].val_accuracy:.1f} %"
        self.job.progress(message, done=self.epoch * per_epoch + batches, total=epochs * per_epoch)


def _score(record: EpochRecord) -> tuple[float, float]:
    return record.val_accuracy, -record.val_loss


def _copied(state: Mapping[str, Any]) -> files.State:
    """Return a copy on the CPU: a GPU's memory is for training."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
    }
