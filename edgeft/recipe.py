"""The recipe: what to make, from what, for which devices. One TOML file, schema 1 (DESIGN: section 4)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from edgeft import schema
from edgeft.schema import Strict

Fraction = Annotated[float, Field(gt=0.0, lt=1.0, strict=False)]
Positive = Annotated[float, Field(gt=0.0, strict=False)]
NonNegative = Annotated[float, Field(ge=0.0, strict=False)]
Count = Annotated[int, Field(ge=1)]


def _plain_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError("a name is letters, digits, '.', '_' and '-', because it becomes a folder of runs/")
    return value


class Task(Strict):
    """What is to be learned, from which data."""

    kind: Literal["image-classification"] = "image-classification"
    data: str
    """Folder of class folders (optionally under train/, val/, test/), or ``builtin:digits``."""
    bad_samples: Literal["error", "skip"] = "error"
    """What to do with a file that cannot be read as an image: stop, or leave it out and count it."""
    val_fraction: Fraction = 0.15
    """Share of the data held back for validation where the folder has no val/."""
    test_fraction: Fraction = 0.25
    """Share of the data held back for the test where the folder has no test/."""


class Model(Strict):
    """Where the network comes from."""

    source: str
    """``builtin:NAME``, ``timm:NAME`` or ``torchvision:NAME``."""
    weights: str | None = None
    """A .safetensors file, or a .pth with nothing but tensors in it."""
    input_size: Annotated[int, Field(ge=8)] | None = None
    """Height and width in pixels; the source's own by default."""


class Training(Strict):
    """Knobs that every training stage shares."""

    epochs: Count = 10
    batch_size: Count = 32
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.01
    """Not applied to norms and biases."""
    warmup_epochs: NonNegative = 0.0
    """Linear warm-up before the cosine decay to zero."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0, strict=False)] = 0.0
    gradient_clip: Positive | None = 1.0
    """Largest gradient norm; absent means no clipping."""
    augment: Literal["none", "crop", "crop-flip"] = "crop-flip"
    """Random resized crops, and mirroring where left and right mean the same."""


class Finetune(Training):
    """Carry the pretrained network over to the new classes."""

    method: Literal["fine-tune", "retrain", "none"] = "fine-tune"
    """fine-tune: all layers from the given weights; retrain: same network, fresh weights; none: as it is."""
    head_lr_multiplier: Positive = 10.0
    """The fresh head learns this much faster than the pretrained layers."""


class Distilled(Training):
    """Training that follows a teacher: the network as it was before the stage."""

    distill_weight: Annotated[float, Field(ge=0.0, le=1.0, strict=False)] = 0.7
    """Share of the loss that comes from the teacher's softened logits (Hinton et al. 2015)."""
    temperature: Positive = 3.0


class PruneBudget(Strict):
    """What the pruned network may cost, as a share of the unpruned one."""

    macs: Fraction


class Prune(Distilled):
    """Remove whole channels until the budget holds, then recover by distillation."""

    budget: PruneBudget = PruneBudget(macs=0.6)
    importance: Literal["magnitude"] = "magnitude"
    learning_rate: Positive = 5e-4


class Quantize(Distilled):
    """Integer numerics: train them (qat) or calibrate them (ptq)."""

    scheme: Literal["none", "int8"] = "int8"
    method: Literal["qat", "ptq"] = "qat"
    calibration: str = "minmax"
    """A shipped calibration recipe, or the path of one."""
    max_accuracy_drop: Fraction | None = None
    """Largest allowed drop of the Q/DQ program against the stage's float input, on the validation split."""
    epochs: Count = 3
    learning_rate: Positive = 1e-4
    weight_decay: NonNegative = 0.0
    augment: Literal["none", "crop", "crop-flip"] = "crop"


class Measure(Strict):
    """How latency is timed (DESIGN: section 9)."""

    rounds: Annotated[int, Field(ge=2)] = 6
    """Fresh worker processes per file; files of one target take turns (A B B A)."""
    min_runs: Count = 30
    """A process stops after at least this many steady runs and `min_seconds`."""
    min_seconds: Positive = 0.3


class Gate(Strict):
    """Limits of the verdict."""

    accuracy_margin: Fraction | None = None
    """Largest acceptable accuracy drop; by default the smallest that the test set's size can certify."""
    min_coverage: Annotated[float, Field(ge=0.0, le=1.0, strict=False)] = 0.99
    """Least share of MAC ops in int8 (schemes other than int8 are not checked)."""
    max_size_ratio: Positive = 1.0
    """Largest file size relative to the float file of the same format."""


class Recipe(Strict):
    """One run: a model, a data set, targets, and a section per stage. An absent section skips its stage."""

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    name: Annotated[str, AfterValidator(_plain_name)] = "run"
    seed: Annotated[int, Field(ge=0)] = 0
    targets: Annotated[list[str], Field(min_length=1)]
    task: Task
    model: Model
    finetune: Finetune | None = None
    prune: Prune | None = None
    quantize: Quantize | None = None
    measure: Measure = Measure()
    gate: Gate = Gate()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.targets)) != len(self.targets):
            raise ValueError("targets: every target may be named once")
        if self.task.val_fraction + self.task.test_fraction >= 0.9:
            raise ValueError(
                "task.val_fraction + task.test_fraction must leave at least a tenth for training"
            )
        return self

    def to_toml(self) -> str:
        """Return the effective recipe as TOML, every default written out."""
        return schema.dump(self)


def load(path: Path) -> Recipe:
    """Read a recipe file. Paths inside it are relative to the file's folder. Raises `ConfigError`."""
    return schema.read(path, Recipe)
