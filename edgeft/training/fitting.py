"""The training loop: Lightning runs it, edgeft decides modes, randomness, the best epoch and resuming."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgeft import extras, recipe
from edgeft.errors import DataError
from edgeft.training import optimization
from edgeft.training.checkpoint import Checkpoint, State, read, write
from edgeft.types import EpochRecord, Progress, TrainingPhases, silent

extras.load("lightning", "training")  # declares torchvision's ops first, which Lightning imports
import lightning  # noqa: E402

Batch = tuple[torch.Tensor, torch.Tensor]

_PROGRESS_EVERY = 5  # batches


class Batches(Protocol):
    """What `fit` trains on: any iterable of (x, y) that knows how many batches it has."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


def fit(
    module: nn.Module,
    train: Batches,
    val: Batches,
    config: recipe.Training,
    *,
    seed: int,
    checkpoint: Path | None = None,
    head: str = "",
    teacher: nn.Module | None = None,
    phases: TrainingPhases | None = None,
    progress: Progress = silent,
) -> tuple[EpochRecord, ...]:
    """Train `module` IN PLACE; it ends up as it was after its best epoch, in evaluation mode.

    Best is the highest validation accuracy, of equals the lowest validation loss, of equals the earliest.

    Args:
        module: Maps (N, C, H, W) float32 to logits (N, K). An exported graph works too, with `phases`.
        train: Batches of (x, y). ``train.sampler.set_epoch`` is called with every epoch where there is one.
        val: Batches of (x, y), the same ones in each epoch.
        config: Optimizer, schedule, epochs. A `recipe.Distilled` says how far `teacher` is followed.
        seed: Of dropout and of everything else that draws from torch's generator, whose state is put back.
        checkpoint: Where to keep the state after each epoch. If the file exists, training continues after its
            last epoch and ends with the weights of an undisturbed run, bit for bit.
        head: Dotted prefix of the fresh head, which learns `config.head_lr_multiplier` times faster. Leave it
            out when all weights are fresh.
        teacher: Frozen network whose softened logits are followed (Hinton et al. 2015); put into evaluation
            mode. Without one, a `recipe.Distilled` trains with plain cross-entropy.
        phases: How to change between training and evaluation; `module.train()` and `.eval()` by default.
        progress: Told the running loss every few batches, in batches over all epochs.

    Returns:
        One record per epoch, also of those before a resume.

    Raises:
        DataError: `train` or `val` has no batch, or the loss is not finite.
        ModelError: Nothing is trainable, or nothing is called `head`.
        WorkspaceError: `checkpoint` cannot be read or written, or belongs to another training.
    """
    for name, batches in (("train", train), ("val", val)):
        if len(batches) == 0:
            raise DataError(f"training: {name} has no batch", "give every split at least one sample")
    if teacher is not None:
        teacher.eval()
    phases = phases or _ModulePhases(module)
    with torch.random.fork_rng(devices=[]):
        phases.enter_evaluation()
        memory_format = _choose_memory_format(module, teacher, val)
        loop = _Loop(
            network=module,
            train=_Epochs(train, seed),
            config=config,
            seed=seed,
            head=head,
            teacher=teacher,
            phases=phases,
            memory_format=memory_format,
            checkpoint=checkpoint,
            progress=progress,
        )
        if loop.first_epoch < config.epochs:
            _run(loop, _Epochs(val, seed), config)
    module.load_state_dict(loop.best)
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    phases.enter_evaluation()
    return loop.records


def _run(loop: _Loop, val: _Epochs, config: recipe.Training) -> None:
    """Let Lightning run the epochs that are left, without a word and without a file."""
    with _quiet_lightning():
        trainer = lightning.Trainer(
            max_epochs=config.epochs - loop.first_epoch,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=config.gradient_clip,
            inference_mode=False,
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(loop, loop.train_batches, val)
        except SystemExit as exit_:
            if not isinstance(exit_.__context__, KeyboardInterrupt):
                raise
            # Lightning answers Ctrl-C with exit code 1 and ignores further ones; the caller is to decide.
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None


class _ModulePhases:
    """The default phases: the module's own two modes."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def enter_training(self, epoch: int) -> None:
        self._module.train()

    def enter_evaluation(self) -> None:
        self._module.eval()


class _Epochs:
    """Batches that know their epoch also where Lightning counts from a resume; validation stays at epoch 0.

    torch is seeded before each pass, so that a user's own shuffling loader repeats itself after a resume. A
    plain list passes as well, which Lightning by itself would take for several loaders.
    """

    def __init__(self, batches: Batches, seed: int) -> None:
        self._batches, self._seed, self.epoch = batches, seed, 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        set_epoch = getattr(getattr(self._batches, "sampler", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.epoch)
        torch.manual_seed(_torch_seed(self._seed, self.epoch))
        yield from self._batches


class _Loop(lightning.LightningModule):
    """The hooks that Lightning calls.

    The networks are held in a plain tuple, out of reach of the module registry: Lightning restores the mode
    of every registered submodule by flag, without calling `train()`, and exported graphs need theirs called.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        train: _Epochs,
        config: recipe.Training,
        seed: int,
        head: str,
        teacher: nn.Module | None,
        phases: TrainingPhases,
        memory_format: torch.memory_format,
        checkpoint: Path | None,
        progress: Progress,
    ) -> None:
        super().__init__()
        self._held = (network, teacher)
        self.train_batches, self.config, self.seed, self.phases = train, config, seed, phases
        self.checkpoint, self.report, self.memory_format = checkpoint, progress, memory_format
        self.identity = json.dumps([type(config).__name__, config.model_dump(mode="json"), seed, len(train)])
        self.optimizer = optimization.optimizer(network, config, head)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: optimization.schedule(config, len(train), step)
        )
        self.records: tuple[EpochRecord, ...] = ()
        self.best: State = {}
        self._resume()
        self.first_epoch = len(self.records)
        self._losses: list[torch.Tensor] = []
        self._val: list[tuple[float, int, int]] = []  # summed loss, correct, samples
        self._started = 0.0

    def _resume(self) -> None:
        saved = read(self.checkpoint, self.identity) if self.checkpoint else None
        if saved is None:
            return
        self.records, self.best = saved.records, saved.best
        self._held[0].load_state_dict(saved.network)
        self.optimizer.load_state_dict(saved.optimizer)
        self.scheduler.load_state_dict(saved.scheduler)
        self.train_batches.epoch = len(saved.records)

    @property
    def epoch(self) -> int:
        """The epoch under way, 0-based, counted over resumes."""
        return self.train_batches.epoch

    def configure_optimizers(self) -> Any:
        """Hand over what `__init__` built, stepped per batch."""
        return {
            "optimizer": self.optimizer,
            "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"},
        }

    def on_train_epoch_start(self) -> None:
        """Enter training: the first time and after each validation."""
        self._losses, self._started = [], time.perf_counter()
        self.phases.enter_training(self.epoch)

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        """Return the loss of one batch."""
        network, teacher = self._held
        x, y = self._laid_out(batch)
        # Dropout must not depend on what else drew from the generator before a resume.
        torch.manual_seed(_torch_seed(self.seed, self.epoch, batch_index))
        taught = None
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(x)
        value = optimization.loss(network(x), y, self.config, taught)
        if not torch.isfinite(value):
            raise DataError(
                f"training: the loss is {value.item()} in epoch {self.epoch + 1}, batch {batch_index + 1}",
                "lower the learning rate, or set gradient_clip",
            )
        self._losses.append(value.detach())
        if batch_index % _PROGRESS_EVERY == 0:
            self._tell(batch_index)
        return value

    def on_validation_epoch_start(self) -> None:
        """Enter evaluation."""
        self._val = []
        self.phases.enter_evaluation()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Add one batch to the validation counts."""
        x, y = self._laid_out(batch)
        logits = self._held[0](x)
        total = F.cross_entropy(logits, y, reduction="sum").item()
        self._val.append((total, int((logits.argmax(1) == y).sum()), len(y)))

    def on_train_epoch_end(self) -> None:
        """Record the epoch, keep the network if it is the best so far, and write the checkpoint."""
        network = self._held[0]
        val_loss, correct, samples = (sum(column) for column in zip(*self._val, strict=True))
        record = EpochRecord(
            epoch=self.epoch,
            train_loss=float(torch.stack(self._losses).mean()),
            val_loss=val_loss / samples,
            val_accuracy=correct / samples,
            learning_rate=self._rate(),
            seconds=time.perf_counter() - self._started,
        )
        if not self.records or _score(record) > max(map(_score, self.records)):
            self.best = {name: _copy(value) for name, value in network.state_dict().items()}
        self.records += (record,)
        if self.checkpoint:
            write(
                self.checkpoint,
                Checkpoint(
                    identity=self.identity,
                    records=self.records,
                    network=dict(network.state_dict()),
                    best=self.best,
                    optimizer=self.optimizer.state_dict(),
                    scheduler=self.scheduler.state_dict(),
                ),
            )
        self._tell(len(self.train_batches))
        self.train_batches.epoch += 1

    def _laid_out(self, batch: Batch) -> Batch:
        x, y = batch
        return (x.to(memory_format=self.memory_format) if x.ndim == 4 else x), y

    def _rate(self) -> float:
        """Return the base learning rate at the start of the epoch."""
        per_epoch = len(self.train_batches)
        return self.config.learning_rate * optimization.schedule(
            self.config, per_epoch, self.epoch * per_epoch
        )

    def _tell(self, batches: int) -> None:
        per_epoch, epochs = len(self.train_batches), self.config.epochs
        message = f"epoch {self.epoch + 1}/{epochs}  loss {torch.stack(self._losses).mean():.2f}"
        if self.records:
            message += f"  val {100 * self.records[-1].val_accuracy:.1f} %"
        self.report(message, done=self.epoch * per_epoch + batches, total=epochs * per_epoch)


def _choose_memory_format(module: nn.Module, teacher: nn.Module | None, val: Batches) -> torch.memory_format:
    """Lay out `module` channels-last if it and the teacher can take such inputs.

    MobileNetV2 at 160 px trains in half the time like this on a CPU. A network that reshapes a map with
    `view` cannot; trying one sample tells.
    """
    x = next(iter(val))[0][:1]
    if x.ndim == 4:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        try:
            with torch.no_grad():
                for network in (module, teacher):
                    if network is not None:
                        network(x.to(memory_format=torch.channels_last))
        except RuntimeError:
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        else:
            return torch.channels_last
    return torch.contiguous_format


def _score(record: EpochRecord) -> tuple[float, float]:
    return record.val_accuracy, -record.val_loss


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _torch_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence what Lightning says about hardware it does not use and about the end of training."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # An accelerator that is there is not used: the numeric contract is trained where it is verified.
            warnings.filterwarnings("ignore", message=".*available but not used.*")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's use of torch's pytree
            yield
    finally:
        logger.setLevel(level)
