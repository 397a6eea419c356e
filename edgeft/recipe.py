"""The recipe: what to make, from what, for which devices. One TOML file, schema 1 (DESIGN: section 4)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from edgeft import schema
from edgeft.schema import Strict
from edgeft.types import ArtifactScheme

Fraction = Annotated[float, Field(gt=0.0, lt=1.0, strict=False)]
Share = Annotated[float, Field(gt=0.0, le=1.0, strict=False)]
Positive = Annotated[float, Field(gt=0.0, strict=False)]
NonNegative = Annotated[float, Field(ge=0.0, strict=False)]
Count = Annotated[int, Field(ge=1)]


def _plain_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError("a name is letters, digits, '.', '_' and '-', because it becomes a folder of runs/")
    return value


class Task(Strict):
    """What is to be learned, from which data."""

    kind: Literal["image-classification", "text-classification", "tabular-classification"] = (
        "image-classification"
    )
    data: str
    """Images: a folder of class folders, a table of paths and labels, or ``builtin:digits``. Text and tables: a
    .csv, .tsv or .jsonl file with a row per sample. Also a folder with train, val and test of these in it."""
    val_data: str | None = None
    """Table of the validation split, where `data` is the table of the training split."""
    test_data: str | None = None
    """Table of the test split, where `data` is the table of the training split."""
    label_column: str = "label"
    path_column: str = "path"
    """Image tables: column of the files' paths, relative to the table."""
    text_column: str = "text"
    numeric_columns: list[str] | None = None
    """Tables: columns of numbers; by default all that hold nothing else, save `categorical_columns`."""
    categorical_columns: list[str] | None = None
    """Tables: columns of categories; by default all that are not numbers."""
    bad_samples: Literal["error", "skip"] = "error"
    """What to do with a sample that cannot be read: stop, or leave it out and count it."""
    val_fraction: Fraction = 0.15
    """Share of the data held back for validation where the data has no such split."""
    test_fraction: Fraction = 0.25
    """Share of the data held back for the test where the data has no such split."""


class Model(Strict):
    """Where the network comes from."""

    source: str
    """``builtin:NAME``, ``timm:NAME``, ``torchvision:NAME``, ``hf:PATH_OR_NAME``, ``keras:FILE``, ``pt2:FILE``,
    ``onnx:FILE`` or ``path/to/file.py:build``."""
    weights: str | None = None
    """A .safetensors file, a .pth with nothing but tensors in it, or a Keras .weights.h5."""
    input_size: Annotated[int, Field(ge=8)] | None = None
    """Height and width in pixels; the source's own by default."""
    mean: list[float] | None = None
    """Images: per channel, subtracted from pixels in 0..1; the source's own by default."""
    std: list[Positive] | None = None
    """Images: per channel, what that is divided by. [0.00392157] (1/255) feeds a grey network 0..255."""
    max_length: Annotated[int, Field(ge=4)] | None = None
    """Text: tokens per sample; by default what 99 % of the training texts fit into."""
    tokenizer: str | None = None
    """Text: a tokenizer.json, or the folder of one; by default the one beside the model."""


class Training(Strict):
    """Knobs that every training stage shares."""

    epochs: Count = 10
    batch_size: Count = 32
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "adamw"
    """sgd has Nesterov momentum."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0, strict=False)] = 0.9
    """Of sgd and rmsprop."""
    learning_rate: Positive = 1e-3
    schedule: Literal["cosine", "constant", "step", "one-cycle", "reduce-on-plateau"] = "cosine"
    """step multiplies by `step_factor` every `step_epochs`; reduce-on-plateau after as many epochs without a better
    validation loss; one-cycle is Smith & Topin's (2018) and brings its own warm-up."""
    step_epochs: Count = 5
    step_factor: Fraction = 0.1
    warmup_epochs: NonNegative = 0.0
    """Linear warm-up before the schedule."""
    weight_decay: NonNegative = 0.01
    """Not applied to norms and biases."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0, strict=False)] = 0.0
    gradient_clip: Positive | None = 1.0
    """Largest gradient norm; absent means no clipping."""
    ema_decay: Fraction | None = None
    """Keep an exponential moving average of the weights (per step), and validate and return that."""
    early_stopping: Count | None = None
    """Stop after as many epochs without a better validation result; the best weights are kept in any case."""
    imbalance: Literal["none", "weighted-loss", "weighted-sampling"] = "none"
    """What to do where classes differ in size: weigh the loss, or draw the samples, by inverse class frequency."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """bf16 runs the forward pass under autocast; auto does so where a short trial on this machine gains by it."""
    augment: Literal["none", "crop", "crop-flip", "trivial"] = "crop-flip"
    """Images: random resized crops, mirroring where left and right mean the same, and torchvision's
    TrivialAugmentWide (Müller & Hutter 2021) on top of both."""


class Distilled(Training):
    """Training that may follow a teacher; in pruning and quantization that is the network before the stage."""

    distill_weight: Annotated[float, Field(ge=0.0, le=1.0, strict=False)] = 0.7
    """Share of the loss that comes from the teacher's softened logits (Hinton et al. 2015)."""
    temperature: Positive = 3.0


class Teacher(Strict):
    """The network that is followed under ``finetune.method = "distill"``: trained for the same classes."""

    source: str
    weights: str | None = None


class Finetune(Distilled):
    """Carry the pretrained network over to the new classes."""

    learning_rate: Positive = 3e-4
    """In a recipe the default depends on what is trained: 3e-4 for pretrained image networks, 1e-4 for pretrained text
    networks, 1e-3 for fresh weights, heads and tables."""
    method: Literal["fine-tune", "feature-extraction", "retrain", "distill", "none"] = "fine-tune"
    """fine-tune: train from the given weights; feature-extraction: train the head alone on features that are
    computed once; retrain: same network, fresh weights; distill: fine-tune after a teacher; none: as it is."""
    head_lr_multiplier: Positive = 10.0
    """The fresh head learns this much faster than the pretrained layers."""
    train_blocks: Count | None = None
    """Train only the last so many blocks, and the head; all by default."""
    block_lr_decay: Annotated[float, Field(gt=0.0, le=1.0, strict=False)] = 1.0
    """Discriminative learning rates: each block, counted from the head, learns at this share of the one behind it
    (Howard & Ruder 2018)."""
    unfreeze_every: Count | None = None
    """Gradual unfreezing: start with the head, and add the next block every so many epochs (Howard & Ruder 2018)."""
    freeze_batch_norm: bool = False
    """Leave the batch norms' statistics as pretrained: for sets too small to estimate them."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0, strict=False)] | None = None
    """Rate of all dropout layers of the network; the source's own by default."""
    teacher: Teacher | None = None
    feature_weight: NonNegative = 0.0
    """Weight of the distance between student's and teacher's features (before the heads), through a linear map that
    is learned along with the student (Romero et al. 2015)."""

    @model_validator(mode="after")
    def _teacher_fits_method(self) -> Self:
        if (self.method == "distill") != (self.teacher is not None):
            raise ValueError('finetune.teacher and finetune.method = "distill" belong together')
        return self


class PruneBudget(Strict):
    """What the pruned network may cost, as a share of the unpruned one before any rewrite: exactly one of these."""

    latency: Share | None = None
    """Of the unpruned network's latency at this recipe's scheme, measured on `prune.target` before any training."""
    macs: Share | None = None
    size: Share | None = None
    """Of the unpruned network's exported file."""
    ram: Share | None = None
    """Of what the unpruned network takes at run time on `prune.target`: with TensorFlow Lite Micro the whole arena,
    with a device's compiler its SRAM, of other .tflite files the activations that are alive at once."""

    @property
    def kind(self) -> Literal["latency", "macs", "size", "ram"]:
        """Which of them is given."""
        return next(kind for kind in _BUDGETS if getattr(self, kind) is not None)

    @property
    def share(self) -> float:
        """The given share."""
        share: float = getattr(self, self.kind)
        return share

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [kind for kind in _BUDGETS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"prune.budget is one of {', '.join(_BUDGETS)}; given: {', '.join(given) or 'nothing'}"
            )
        return self


_BUDGETS: tuple[Literal["latency", "macs", "size", "ram"], ...] = ("latency", "macs", "size", "ram")


class Prune(Distilled):
    """Remove whole channels until the budget holds, then recover by distillation.

    Zeros scattered over the weights, also two in every four, are not on offer: the dense int8 kernels of ONNX Runtime,
    OpenVINO and LiteRT multiply by them as by any other number, so that a file would be no faster.
    """

    budget: PruneBudget = PruneBudget(macs=0.6)
    target: str | None = None
    """Whose runtime a latency, size or ram budget is found out on: one of `targets`, by default the first."""
    criterion: Literal["magnitude", "l1", "l2", "bn-scale", "taylor", "random"] = "magnitude"
    """How channels are judged: by the magnitudes of all that they run through, the norm of their filters alone, their
    batch norm's scale, what the loss would change by (on training samples), or by chance, as the control."""
    allocation: Literal["global", "uniform"] = "global"
    """Where is cut: where channels matter least in the whole network, or the same share everywhere."""
    keep: list[str] = []
    """Layers whose outputs are not cut, by dotted name; ``*`` matches any part of a name."""
    floor: dict[str, Share] = {}
    """Least share of its outputs that a layer keeps, by dotted name; ``*`` matches any part of a name, and the largest
    share counts. A quarter stays in any case."""
    steps: Count = 1
    """1 cuts everything at once. More cut little by little, each judging the channels anew, with a recovery of
    `recovery_epochs` after each step but the last, which has `epochs`."""
    recovery_epochs: Count = 1
    rewrite: Literal["none", "edge-lite"] = "none"
    """edge-lite: before pruning, hardswish and SiLU become ReLU6, and squeeze-and-excite is dropped, which int8 kernels
    are slow at."""
    learning_rate: Positive = 5e-4

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.budget.share == 1.0 and self.rewrite == "none":
            raise ValueError(
                f'prune.budget.{self.budget.kind} = 1.0 cuts nothing: leave [prune] out, or set rewrite = "edge-lite"'
            )
        return self


class Quantize(Distilled):
    """Lower precision: train it (qat), calibrate it (ptq), or find out what is needed (auto)."""

    scheme: Literal["none", "fp16", "int8", "int8-weights", "int8-dynamic"] = "int8"
    """``int8`` computes in integers throughout; ``int8-weights`` and ``fp16`` store weights small and compute in
    float; ``int8-dynamic`` finds activation ranges at run time (ONNX Runtime, linear layers)."""
    method: Literal["qat", "ptq", "auto", "none"] = "qat"
    """Of ``int8``; the other schemes need neither training nor calibration and have ``none``. ``auto``: ptq if it
    holds `max_accuracy_drop`, else qat, else the most sensitive layers stay float."""
    engine: Literal["edgeft", "neural-compressor"] = "edgeft"
    """Who finds the numbers. Neural Compressor knows ptq, which is its default, and auto."""
    calibration: str = "percentile"
    """A shipped calibration recipe, or the path of one; ``minmax`` by default for Neural Compressor."""
    float_layers: list[str] = []
    """Layers that stay float, by dotted name; ``*`` matches any part of a name."""
    scales: Literal["moving-average", "learned"] = "moving-average"
    """How QAT finds activation ranges: as a moving average of what occurs, or by gradient (LSQ)."""
    observe_epochs: Annotated[int, Field(ge=0)] | None = None
    """Epochs in which ranges move; after them they stand still. By default the first two thirds of the epochs."""
    max_accuracy_drop: Fraction | None = None
    """Largest allowed drop of the program against the stage's float input, on the validation split; 0.01 by default
    where the method is auto, else unlimited."""
    epochs: Count = 3
    learning_rate: Positive = 1e-4
    weight_decay: NonNegative = 0.0
    augment: Literal["none", "crop", "crop-flip", "trivial"] = "crop"

    @property
    def calibrates(self) -> bool:
        """Whether the scheme needs to see data."""
        return self.scheme == "int8"

    @property
    def artifact_scheme(self) -> ArtifactScheme:
        """What exported files are called that hold the scheme."""
        return _ARTIFACT_SCHEMES[self.scheme]

    @model_validator(mode="before")
    @classmethod
    def _limit_auto(cls, data: Any) -> Any:
        """Write the default limit out, without which auto would have nothing to look for."""
        if isinstance(data, dict) and data.get("method") == "auto" and data.get("max_accuracy_drop") is None:
            return data | {"max_accuracy_drop": 0.01}
        return data

    @model_validator(mode="before")
    @classmethod
    def _suit_method(cls, data: Any) -> Any:
        """Write the defaults out that follow from scheme and engine."""
        if not isinstance(data, dict):
            return data
        if data.get("scheme", "int8") not in ("int8", "none"):
            return {"method": "none"} | data
        if data.get("engine") == "neural-compressor":
            return {"method": "ptq", "calibration": "minmax"} | data
        return data

    @model_validator(mode="after")
    def _method_fits_scheme(self) -> Self:
        if self.scheme == "none":
            return self
        if self.scheme == "int8":
            if self.method == "none":
                raise ValueError(
                    'quantize.method = "none" goes with the schemes fp16, int8-weights and int8-dynamic'
                )
            if self.engine == "neural-compressor" and self.method == "qat":
                raise ValueError(
                    'quantize.engine = "neural-compressor" does not train: method is "ptq" or "auto"'
                )
            return self
        idle = ["method"] if self.method != "none" else []
        fields = type(self).model_fields
        idle += [
            name
            for name in _INT8_ONLY
            if getattr(self, name) != fields[name].get_default(call_default_factory=True)
        ]
        if idle:
            raise ValueError(
                f'quantize.scheme = "{self.scheme}" needs neither training nor calibration: '
                f"leave out {', '.join(idle)}"
            )
        return self


_INT8_ONLY = ("engine", "calibration", "float_layers", "scales", "observe_epochs")
"""Settings of the quantize stage that only the scheme int8 reads."""
_ARTIFACT_SCHEMES: dict[str, ArtifactScheme] = {
    "none": "float32",
    "fp16": "float16",
    "int8": "int8",
    "int8-weights": "int8-weights",
    "int8-dynamic": "int8-dynamic",
}


class Measure(Strict):
    """How latency is timed (DESIGN: section 9)."""

    rounds: Annotated[int, Field(ge=2)] = 6
    """Fresh worker processes per file; files of one target take turns (A B B A)."""
    min_runs: Count = 30
    """A process stops after at least this many steady runs and `min_seconds`."""
    min_seconds: Positive = 0.3


class Export(Strict):
    """What the exported files do besides the network; the rest is in the targets' profiles."""

    preprocess: Literal["separate", "embedded"] = "separate"
    """embedded: normalisation is part of the network from the quantize stage on, and the files take raw uint8 pixels.
    Resizing and cropping stay with the device."""


SMALLEST_MARGIN: Final = 1e-4
"""This one takes about 13 million test samples to decide."""


class Gate(Strict):
    """Limits of the verdict."""

    accuracy_margin: Annotated[float, Field(ge=SMALLEST_MARGIN, lt=1.0, strict=False)] | None = None
    """Largest acceptable accuracy drop; by default, against a run's own float model, the smallest that the test set's
    size can certify, and 0.01 against a baseline."""
    min_coverage: Annotated[float, Field(ge=0.0, le=1.0, strict=False)] = 0.99
    """Least share of MAC ops in int8 (schemes other than int8 are not checked)."""
    max_confident_flips: Annotated[float, Field(ge=0.0, le=1.0, strict=False)] = 0.01
    """Largest share of samples that the file classifies otherwise than the program it came from, although the program
    was sure of its class by more than two steps of its output."""
    max_size_ratio: Positive = 1.0
    """Largest file size relative to the float file of the same format."""
    latency_ratio: Positive = 1.05
    """Largest p50 latency relative to the baseline's (`edgeft gate`)."""
    size_ratio: Positive = 1.05
    """Largest file size, MACs, arena and flash relative to the baseline's (`edgeft gate`)."""


class Evaluate(Strict):
    """Metrics besides the built-in ones."""

    metrics: list[str] = []
    """``path/to/file.py:function``, each called with labels (N,) and probabilities (N, K), returns a number or a
    dictionary of numbers."""


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
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    measure: Measure = Measure()
    gate: Gate = Gate()

    @model_validator(mode="before")
    @classmethod
    def _suit_learning_rate(cls, data: Any) -> Any:
        """Write the default learning rate of fine-tuning out, which depends on method and kind of data."""
        finetune = data.get("finetune") if isinstance(data, dict) else None
        if not isinstance(finetune, dict) or "learning_rate" in finetune:
            return data
        task = data.get("task")
        kind = task.get("kind") if isinstance(task, dict) else None
        rate = 1e-4 if kind == "text-classification" else 3e-4
        if kind == "tabular-classification" or finetune.get("method") in ("retrain", "feature-extraction"):
            rate = 1e-3
        return data | {"finetune": finetune | {"learning_rate": rate}}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.targets)) != len(self.targets):
            raise ValueError("targets: every target may be named once")
        if self.prune and self.prune.target is not None and self.prune.target not in self.targets:
            raise ValueError(
                f"prune.target = {self.prune.target!r} is none of the recipe's targets: {', '.join(self.targets)}"
            )
        if self.export.preprocess == "embedded" and self.task.kind != "image-classification":
            raise ValueError(
                f'export.preprocess = "embedded" is for pictures; task.kind is {self.task.kind!r}'
            )
        if (
            self.export.preprocess == "embedded"
            and self.quantize is not None
            and self.quantize.engine == "neural-compressor"
        ):
            raise ValueError(
                'export.preprocess = "embedded" needs quantize.engine = "edgeft": the other one finds the range of the '
                "input by itself, so that raw pixels would be rounded"
            )
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
