"""Training in one call: prepare the networks, let Lightning run the loop, leave the best epoch behind."""

from __future__ import annotations

import contextlib
import logging
import signal
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from edgeft import extras, recipe
from edgeft.errors import ConfigError, DataError
from edgeft.training import placement
from edgeft.training.batches import Batches, Epochs, all_labels
from edgeft.training.checks import check
from edgeft.training.groups import Blocks, LearningPlan, dropout_rate
from edgeft.training.loop import Job, Loop
from edgeft.training.penultimate import FeatureMatch, feature_match
from edgeft.training.sampling import class_weights
from edgeft.types import EpochRecord, Progress, TrainingPhases, silent

extras.load("lightning", "training")
import lightning  # noqa: E402


def fit(
    module: nn.Module,
    train: Batches,
    val: Batches,
    config: recipe.Training,
    *,
    seed: int,
    checkpoint: Path | None = None,
    head: str = "",
    blocks: Blocks = (),
    teacher: nn.Module | None = None,
    teacher_head: str = "",
    phases: TrainingPhases | None = None,
    paces: Mapping[str, float] | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[EpochRecord, ...]:
    """Train `module` IN PLACE; it ends up as it was after its best epoch, in evaluation mode and on the CPU.

    Best is the highest validation accuracy, of equals the lowest validation loss, of equals the earliest.
    Under torchrun every process calls this alike: each takes its part of every batch, gradients and validation
    are shared, the first one writes the checkpoint, and all end up with the same weights.

    Args:
        module: Maps inputs (N, ...) to logits (N, K). An exported graph works too, with `phases`.
        train: Batches of (x, y). ``train.sampler.set_epoch`` is called with every epoch where there is one.
        val: Batches of (x, y), the same ones in each epoch.
        config: Optimizer, schedule, epochs. A `recipe.Distilled` says how far `teacher` is followed, a
            `recipe.Finetune` how the paces of the layers differ.
        seed: Of dropout and of everything else that draws from torch's generator, whose state is put back.
        checkpoint: Where to keep the state after each epoch; a log of the same name, .csv, lies beside it. If
            the file exists, training continues after its last epoch and ends with the weights of an
            undisturbed run, bit for bit.
        head: Dotted prefix of the fresh head, which learns `config.head_lr_multiplier` times faster. Leave it
            out when all weights are fresh.
        blocks: Dotted prefixes of every block from input to output, without the head.
        teacher: Frozen network whose softened logits are followed (Hinton et al. 2015); put into evaluation
            mode. Without one, a `recipe.Distilled` trains with plain cross-entropy.
        teacher_head: Dotted prefix of the teacher's head, needed for a `config.feature_weight` above 0.
        phases: How to change between training and evaluation; `module.train()` and `.eval()` by default.
        paces: Multiples of the base learning rate for single parameters, by name (learned scales). A parameter named
            here need not learn in every epoch.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        progress: Told the running loss every few batches, in batches over all epochs.

    Returns:
        One record per epoch, also of those before a resume.

    Raises:
        DataError: `train` or `val` has no batch, or the loss is not finite.
        ModelError: Nothing is trainable, or nothing is called `head`.
        ConfigError: Settings contradict each other or the network, or the device's name is unknown.
        MissingDependencyError: The device is not there.
        WorkspaceError: `checkpoint` cannot be read or written, or belongs to another training.
    """
    check(config)
    if phases is not None and config.precision == "bf16":
        raise ConfigError('precision = "bf16": graphs with phases of their own are trained in float32')
    if config.imbalance == "weighted-sampling" and not getattr(
        getattr(train, "sampler", None), "balanced", False
    ):
        raise ConfigError(
            'imbalance = "weighted-sampling": these training batches are not drawn that way',
            'make them by edgeft\'s loader with imbalance = "weighted-sampling", or use "weighted-loss"',
        )
    world = placement.world()
    place = placement.find_device(device, world)
    plan = LearningPlan(module, config, head, blocks, paces or {})
    networks = [module] if teacher is None else [module, teacher]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[place] if place.type == "cuda" else []))
        for name, batches in (("train", train), ("val", val)):
            stack.enter_context(placement.sharded(batches, world))
            if len(batches) == 0:
                raise DataError(f"training: {name} has no batch", "give every split at least one sample")
        rate = config.dropout if isinstance(config, recipe.Finetune) else None
        stack.enter_context(dropout_rate(module, rate))
        stack.callback(plan.release)
        for network in networks:
            stack.callback(network.to, "cpu")
            network.to(place)
        if teacher is not None:
            teacher.eval()
        bf16 = {"auto": None, "bf16": True, "float32": False}[config.precision]
        own_phases = phases or _ModulePhases(module)
        own_phases.enter_evaluation()
        x, y = (tensor.to(place) for tensor in next(iter(val)))
        memory_format = placement.choose_memory_format(networks, x[:1])
        match = None
        if isinstance(config, recipe.Finetune) and config.feature_weight and teacher is not None:
            match = _matched(stack, (module, head), (teacher, teacher_head), x[:1], seed)
        loop = Loop(
            Job(
                network=module,
                teacher=teacher,
                match=match,
                plan=plan,
                config=config,
                phases=own_phases,
                train=Epochs(train, seed, world),
                trial_batch=(x, y),
                class_weights=_loss_weights(config, train, module, x[:1]),
                bf16=False if phases is not None else bf16,
                buffers_average=phases is None,
                memory_format=memory_format,
                seed=seed,
                world=world,
                checkpoint=checkpoint,
                progress=progress if world.rank == 0 else silent,
            )
        )
        if not loop.finished:
            unfreezes = bool(paces) or any(group.start > 0 for group in plan.groups)
            options = placement.trainer_options(place, world, unfreezes=unfreezes)
            _run(loop, Epochs(val, seed, world), options)
    module.load_state_dict(loop.best)
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    own_phases.enter_evaluation()
    return loop.records


def _run(loop: Loop, val: Epochs, options: dict[str, object]) -> None:
    """Let Lightning run the epochs that are left, without a word and without a file."""
    config = loop.job.config
    with _quiet_lightning():
        trainer = lightning.Trainer(
            max_epochs=config.epochs - loop.first_epoch,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=config.gradient_clip,
            inference_mode=False,
            use_distributed_sampler=False,
            **options,  # type: ignore[arg-type]
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(loop, loop.job.train, val)
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


def _matched(
    stack: contextlib.ExitStack,
    student: tuple[nn.Module, str],
    teacher: tuple[nn.Module, str],
    example: torch.Tensor,
    seed: int,
) -> FeatureMatch:
    torch.manual_seed(seed)
    return stack.enter_context(feature_match(student, teacher, example))


def _loss_weights(
    config: recipe.Training, train: Batches, module: nn.Module, example: torch.Tensor
) -> torch.Tensor | None:
    """Return the weights of the classes in the loss, (K,), where the config asks for them."""
    if config.imbalance != "weighted-loss":
        return None
    with torch.no_grad():
        classes = module(example).shape[1]
    return torch.from_numpy(class_weights(all_labels(train), classes)).to(example.device)


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence what Lightning says about hardware it does not use and about the end of training."""
    loggers = [
        logging.getLogger(f"lightning.{name}") for name in ("pytorch.utilities.rank_zero", "fabric.utilities")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # An accelerator that is there is not used unless it is asked for.
            warnings.filterwarnings("ignore", message=".*available but not used.*")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's use of torch's pytree
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
