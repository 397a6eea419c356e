"""The vocabulary: frozen records that flow between the stages, and the protocols they meet each other by.

Nothing here imports torch at run time, so that a board or a CI job without torch can read every record.
Shapes are (N, C, H, W); times are in milliseconds, sizes in bytes, MACs are multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgeft.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.float32]
InputArray = npt.NDArray[np.float32] | npt.NDArray[np.int32]
"""Model inputs (N, ...): images (N, C, H, W) float32, token ids (N, T) int32, table rows (N, F) float32."""
IntArray = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

Split = Literal["train", "val", "test"]
Evidence = Literal["measured", "executed", "estimated", "simulated", "hardware"]
Format = Literal["onnx", "openvino", "tflite", "pt2"]
Scheme = Literal["none", "int8"]


class Progress(Protocol):
    """How long work reports that it is alive; the CLI draws it, everyone else may ignore it."""

    def __call__(self, message: str, *, done: int = 0, total: int = 0) -> None:
        """Report `message`; with `total` > 0, `done` of `total` units are finished."""


def silent(message: str, *, done: int = 0, total: int = 0) -> None:
    """Ignore progress: the default `Progress`."""


class TrainingPhases(Protocol):
    """What a network wants done when training and evaluation take turns.

    An exported graph has to be switched by its own `train()`/`eval()`, and its observers may only run in
    training; the training loop calls these two at every change of phase and nothing else.
    """

    def enter_training(self, epoch: int) -> None:
        """Prepare for training steps of `epoch` (0-based)."""

    def enter_evaluation(self) -> None:
        """Prepare for forward passes that must not change anything."""


class Samples(Protocol):
    """One split of a data set: model inputs, labels and content identities, in a fixed order."""

    @property
    def ids(self) -> Sequence[str]:
        """Content hash of every sample (64 hex digits of SHA-256); the key of paired comparisons."""

    @property
    def labels(self) -> IntArray:
        """Class indices, shape (N,), into the data set's sorted class names."""

    def __len__(self) -> int: ...

    def inputs(self, indices: Sequence[int]) -> InputArray:
        """Return the model inputs (len(indices), ...) of the samples at `indices`, as the device would make them."""

    def name(self, index: int) -> str:
        """Return what sample `index` is called in messages and reports: a path, or file and row."""

    def preview(self, index: int) -> bytes | str:
        """Return what a person looks at: the bytes of a small PNG, or a text."""


class ImageSamples(Samples, Protocol):
    """Samples that are pictures, which training may augment before they become inputs."""

    def image(self, index: int) -> Pixels:
        """Return sample `index` uncropped, shorter side at `preprocessing.resize`: (H, W, C) uint8."""

    def pixels(self, index: int) -> Pixels:
        """Return sample `index` as the model sees it before normalisation: (size, size, C) uint8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """A data set, split; `calibration` is drawn from `train` only and by the calibration recipe."""

    train: Samples
    val: Samples
    test: Samples
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    """Complete: what depends on the data (statistics of columns, length of texts) is taken from `train` only."""
    fingerprint: str
    skipped: tuple[str, ...] = ()
    """Files left out because they could not be read (`task.bad_samples = "skip"`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What one stage did: its effective config, seed, time and versions. Lands in the report."""

    name: str
    config: Mapping[str, Any]
    seed: int
    seconds: float
    versions: Mapping[str, str]
    results: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One epoch of training: mean training loss, and loss and accuracy (0..1) on the validation split."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatModel:
    """A float network with what it needs to be used: preprocessing, labels and the way it came about.

    `module` maps inputs (N, *preprocessing.input_shape) to logits (N, len(labels)) and is in evaluation mode.
    """

    module: torch.nn.Module
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    history: tuple[StepRecord, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: (C, H, W), (T,) or (F,)."""
        return self.preprocessing.input_shape


def example_inputs(preprocessing: Preprocessing, batch: int = 1) -> torch.Tensor:
    """Return inputs that a network takes, (batch, *input_shape): zeros, or token ids 1 (0 is padding for most)."""
    import torch

    shape = (batch, *preprocessing.input_shape)
    if preprocessing.input_dtype == "int32":
        return torch.ones(shape, dtype=torch.int32)
    return torch.zeros(shape)


ArtifactScheme = Literal["float32", "float16", "int8", "int8-weights", "int8-dynamic", "unknown"]
"""How a file holds its numbers; ``unknown`` is a file that edgeft did not make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationQuant:
    """Affine per-tensor quantization of one activation, in the contract's int8 numbers.

    Real value = (q - zero_point) * scale with q in [-128, 127]; the scale is float32-valued.
    """

    name: str
    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantLayer:
    """One MAC layer with integer weights (convolution or linear) of the program.

    Args:
        name: Dotted module path where torch.export kept one, else the graph node's name.
        op: The ATen op, e.g. ``conv2d`` or ``linear``.
        weight: int8 in [-127, 127], PyTorch layout: (O, I/groups, kH, kW) or (O, I).
        weight_scale: float32, shape (O,).
        bias: int32 at scale ``input.scale * weight_scale``, shape (O,), or None (none, or a float one).
        input: Quantization of the layer's activation input; None where that is float, or quantized at run time.
        output: Quantization where the fused group ends, or None if that group ends in float.
    """

    name: str
    op: str
    weight: npt.NDArray[np.int8]
    weight_scale: FloatArray
    bias: npt.NDArray[np.int32] | None
    input: ActivationQuant | None
    output: ActivationQuant | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantModel:
    """The Q/DQ program: the one numeric truth that every exported file is compared with.

    `program` is a torch.export graph module with explicit quantize/dequantize ops, (N, C, H, W) float32 in,
    logits (N, K) float32 out; its batch dimension is dynamic. `layers` and `activations` are what an exporter
    must find again in its own file; `float_ops` names the MAC ops that were left in float; the scale of `output`
    (the logits; None if they are float) is "one LSB" in parity results. A float network has no layers here.
    """

    program: torch.fx.GraphModule
    layers: tuple[QuantLayer, ...]
    activations: tuple[ActivationQuant, ...]
    float_ops: tuple[str, ...]
    output: ActivationQuant | None
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    history: tuple[StepRecord, ...] = ()
    scheme: ArtifactScheme = "int8"
    deviations: tuple[str, ...] = ()
    """Quantizers left out inside a target's fused groups, by name; empty in the program that targets share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantCoverage:
    """How many MAC ops of an exported file are int8, and which ops are not, by name.

    `float_ops` are MAC ops, `float_islands` other ops that compute in float between integer ones (a LayerNorm).
    """

    mac_ops: int
    int8_mac_ops: int
    float_ops: tuple[str, ...] = ()
    float_islands: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Share of MAC ops in int8, 0..1; 1 for a file without MAC ops."""
        return self.int8_mac_ops / self.mac_ops if self.mac_ops else 1.0


TensorDtype = Literal[
    "float32", "int32", "int8", "uint8",
    "float16", "float64", "int16", "int64", "uint16", "uint32", "uint64", "bool",
]  # fmt: skip
"""Of an input or output; edgeft's own files have one of the first four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """An input or output of an exported file.

    `layout` is ``nchw``, ``nhwc``, or ``nk`` for anything with two dimensions: what is fed is (N, C, H, W) or
    (N, K). With ``native`` (files that edgeft did not make) it is the tensor as the file wants it. ``int32`` holds
    token ids; another integer tensor carries the scale and zero point that turn real values into it:
    q = round(x / scale) + zero_point, clipped to the dtype. In the shape of an output, -1 is a free dimension.
    """

    name: str
    shape: tuple[int, ...]
    dtype: TensorDtype
    layout: Literal["nchw", "nhwc", "nk", "native"]
    scale: float = 0.0
    zero_point: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedArtifact:
    """A model file for one runtime, checked against the program it came from.

    `files` lists everything that belongs to it (OpenVINO: .xml and .bin), `path` the one to open;
    `sha256` maps file names to digests.
    """

    path: Path
    files: tuple[Path, ...]
    format: Format
    scheme: ArtifactScheme
    sha256: Mapping[str, str]
    size_bytes: int
    coverage: QuantCoverage
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    deviations: tuple[str, ...] = ()
    """Quantizers of the program that this file leaves out, inside the target's fused groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyResult:
    """Top-1 accuracy with everything a paired comparison needs later.

    `predictions` (N,) are argmax class indices, `ids` the samples' content hashes in the same order.
    `low` and `high` are the two-sided 95 % Wilson score bounds.
    """

    accuracy: float
    low: float
    high: float
    predictions: IntArray
    labels: IntArray
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityResult:
    """Agreement of an exported file with the Q/DQ program (or the float model) over the test set.

    One LSB is the program's output scale. A flip counts as `confident_flips` if the reference's margin between
    its two best logits is above two LSB. `within_2_lsb` is the share of single logits at most two LSB apart.
    """

    samples: int
    agreement: float
    flips: int
    confident_flips: int
    lsb: float
    max_lsb: float
    mean_lsb: float
    within_2_lsb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeReport:
    """What the runtime said of itself and of the compiled file.

    `mac_precision` counts MAC ops by the precision that the runtime executes them in, e.g. {"int8": 52}.
    `partitions` is the number of delegate partitions where the runtime has such a thing, else 1.
    """

    runtime: str
    version: str
    device: str
    mac_precision: Mapping[str, int]
    partitions: int = 1
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyResult:
    """Latency of one file on one runtime from fresh worker processes; raw samples are kept.

    `samples_ms` holds one tuple per process; `load_ms` and `first_ms` one value per process.
    """

    label: str
    evidence: Evidence
    threads: int
    samples_ms: tuple[tuple[float, ...], ...]
    load_ms: tuple[float, ...]
    first_ms: tuple[float, ...]
    peak_rss_bytes: int
    runtime: RuntimeReport

    def percentile(self, q: float) -> float:
        """Return percentile `q` (0..100) over all steady runs of all processes, in ms."""
        return float(np.percentile(np.concatenate([np.asarray(s) for s in self.samples_ms]), q))

    @property
    def p50_ms(self) -> float:
        """Median steady latency in ms."""
        return self.percentile(50)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputResult:
    """Inferences per second of one file with several streams at a time, from fresh worker processes.

    `runs`, `seconds` and `samples_ms` have one entry per process; the latter holds the latencies of all streams.
    """

    label: str
    evidence: Evidence
    threads: int
    """Of each stream."""
    streams: int
    runs: tuple[int, ...]
    seconds: tuple[float, ...]
    samples_ms: tuple[tuple[float, ...], ...]
    peak_rss_bytes: int

    @property
    def per_second(self) -> tuple[float, ...]:
        """Inferences per second of every process."""
        return tuple(runs / seconds for runs, seconds in zip(self.runs, self.seconds, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioResult:
    """Latency of `head` over `base` with a 95 % bootstrap interval over process pairs (below 1 is faster)."""

    base: str
    head: str
    ratio: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its two-sided 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """How one class fares, each figure 0..1; `support` samples have it as label, `predicted` as prediction.

    A figure that is a division by zero (no support, no prediction, or neither) is 0 and named in `undefined`.
    """

    name: str
    support: int
    predicted: int
    precision: Estimate
    recall: Estimate
    f1: Estimate
    undefined: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """The samples whose highest probability falls into one of equally wide bins: means of it and of being right."""

    samples: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationMetrics:
    """What is known of a classifier's answers on one split, each figure 0..1 with its interval.

    `confusion` (K, K) counts samples by label (row) and prediction (column). The macro figures are plain means over
    the classes that occur among labels or predictions, as scikit-learn takes them; balanced accuracy is over those
    among the labels. `reliability` are the bins of the expected calibration error, from low confidence to high.
    """

    samples: int
    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_precision: Estimate
    macro_recall: Estimate
    macro_f1: Estimate
    calibration_error: Estimate
    top5_accuracy: Estimate | None
    """With more than five classes."""
    roc_auc: Estimate | None
    """With two classes, the second being the positive one, and samples of both."""
    per_class: tuple[ClassMetrics, ...]
    confusion: IntArray
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """A sample as it is shown to people: what it is, and what the model took it for.

    `probability` is that of the prediction, `label_probability` that of the true class.
    """

    index: int
    id: str
    name: str
    label: str
    prediction: str
    probability: float
    label_probability: float
    png: str = ""
    """The picture as base64; empty for samples that are texts or table rows."""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Samples of one class that were taken for another: `count` of the `support` that the class has."""

    label: str
    prediction: str
    count: int
    support: int
    exhibits: tuple[Exhibit, ...] = ()
    """Some of them, the surest mistakes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """What a classifier gets wrong, to be looked at: samples of highest loss, and the most confused classes."""

    hardest: tuple[Exhibit, ...]
    confusions: tuple[Confusion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEstimate:
    """One operator of a compiled file, as the compiler's model of the device sees it."""

    name: str
    """Of the tensor that it makes, where the compiler tells; else of the operator."""
    op: str
    cycles: int
    macs: int
    sram_bytes: int
    """Peak of the fast memory while it runs."""
    utilisation: float
    """Share of the device's multipliers that it keeps busy, 0..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilerEstimate:
    """What a device's compiler says that a file will cost there; nothing of it was measured by a clock.

    `settings` are those that move the estimate (``accelerator``, ``system_config``, ``memory_mode``): with `tool` and
    `version` they belong beside every figure. `fallback_ops` run on the CPU beside the device: the cycles lack them.
    """

    tool: str
    version: str
    settings: Mapping[str, str]
    cycles: int
    """Of one inference."""
    ms: float
    sram_bytes: int
    """Fast memory at the peak."""
    dram_bytes: int
    """Slow memory that can be written; 0 where the device has none in use."""
    flash_bytes: int
    """Of the compiled file, weights included."""
    npu_ops: int
    file: Path | None = None
    """The compiled file."""
    fallback_ops: tuple[str, ...] = ()
    layers: tuple[LayerEstimate, ...] = ()

    @property
    def source(self) -> str:
        """Tool, version and settings in one line, for people."""
        return f"{self.tool} {self.version}, {', '.join(self.settings.values())}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryResult:
    """Memory that a file needs on its device, in bytes; both figures are exact.

    `ram_layer` is the operator at which most bytes of tensors are alive, `flash_layer` the one with most bytes of
    weights; empty where the source does not tell.
    """

    ram_bytes: int
    """Tensor arena, or the fast memory of an accelerator."""
    flash_bytes: int
    """The model file as it lies on the device."""
    ram_layer: str
    flash_layer: str
    source: str
    """What found out: runtime or compiler with its version."""


BudgetName = Literal["ram", "flash", "latency", "fallback ops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetResult:
    """One budget of a target profile against what was found out; `culprit` tells which layer costs the most of it."""

    name: BudgetName
    value: float
    limit: float
    unit: Literal["bytes", "ms", "ops"]
    met: bool
    culprit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetResult:
    """Everything that was found out about one target; what the report and the verdict are made of.

    Latencies are those of a clock, where `evidence` is ``measured`` or ``hardware``. A target that is ``executed`` or
    ``simulated`` has none, and one that is ``estimated`` has the compiler's `estimate` instead.
    """

    target: str
    evidence: Evidence
    artifact: ExportedArtifact
    baseline: ExportedArtifact
    """The unpruned float model in the same format."""
    accuracy: AccuracyResult
    baseline_accuracy: AccuracyResult
    parity: ParityResult
    runtime: RuntimeReport
    """Of the runtime that the answers come from."""
    latency: LatencyResult | None = None
    baseline_latency: LatencyResult | None = None
    """Of the fastest float setting of this runtime."""
    other_float: tuple[LatencyResult, ...] = ()
    """The runtime's other float settings, e.g. f32 where bf16 is its default."""
    ratio: RatioResult | None = None
    other_ratios: tuple[RatioResult, ...] = ()
    estimate: CompilerEstimate | None = None
    memory: MemoryResult | None = None
    """Where the device's memory counts (microcontrollers, NPUs)."""
    budgets: tuple[BudgetResult, ...] = ()
    """Those that the profile sets."""
    metrics: ClassificationMetrics | None = None
    baseline_metrics: ClassificationMetrics | None = None
    user_metrics: Mapping[str, float] = field(default_factory=dict)
    """What the recipe's own `evaluate.metrics` say, by name."""
    baseline_user_metrics: Mapping[str, float] = field(default_factory=dict)
    gallery: Gallery | None = None


Outcome = Literal["pass", "fail", "inconclusive", "no baseline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of a verdict."""

    name: str
    target: str
    outcome: Outcome
    detail: str
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The gate's decision: fail if any check fails, else inconclusive if any is, else pass."""

    outcome: Outcome
    reference: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
