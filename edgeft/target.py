"""Target profiles: what a device and its runtime want. Flat TOML, schema 1 (DESIGN: section 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from edgeft import extras, resources, schema
from edgeft.errors import ConfigError
from edgeft.schema import Strict
from edgeft.types import ArtifactScheme, Evidence, Format

RuntimeName = Literal["onnxruntime", "openvino", "litert", "tflm", "qnn", "torch-cuda"]
_CLOCKS: tuple[Evidence, ...] = ("measured", "hardware")
_EVIDENCE: dict[RuntimeName, tuple[Evidence, ...]] = {
    "onnxruntime": _CLOCKS,
    "openvino": _CLOCKS,
    "litert": _CLOCKS,
    "torch-cuda": ("hardware",),
    "tflm": ("executed", "estimated"),
    "qnn": ("simulated",),
}
_FLOAT_RUNTIMES: dict[RuntimeName, RuntimeName] = {"tflm": "litert", "qnn": "onnxruntime"}
"""Runtimes of integer files only, and what runs the float baseline of the same format instead."""


_CHOOSERS = ("AUTO", "MULTI", "HETERO", "BATCH")


class Runtime(Strict):
    """The runtime that executes the file."""

    name: RuntimeName
    requires: list[str]
    """Importable modules that export and measurement need."""
    host: str = ""
    """Where it is measured: ``[user@]board[:port]`` (SSH) or ``adb:SERIAL``, each with the path of its Python after it
    where that is not on the PATH; empty for this machine."""
    device: str = "cpu"
    """The runtime's own name of it; never one that chooses by itself."""
    threads: Annotated[int, Field(ge=1)] = 1
    options: dict[str, str] = {}
    """Passed to the runtime as they are."""
    float_options: list[dict[str, str]] = []
    """Further settings under which the float baseline is timed; the fastest of all counts."""

    @field_validator("device")
    @classmethod
    def _names_a_device(cls, device: str) -> str:
        if device.partition(":")[0] in _CHOOSERS:
            raise ValueError(
                "chooses devices by itself, and takes the CPU where another is missing; name the device (CPU, GPU, NPU)"
            )
        return device


class Compiler(Strict):
    """The device's own compiler, which turns the file into what the device runs and estimates what that costs.

    Its settings move the estimate by more than a change of the network does; reports show them all.
    """

    name: Literal["vela"]
    accelerator: str
    system_config: str
    memory_mode: str
    optimise: Literal["performance", "size"] = "performance"
    """What the compiler looks for: speed, or little memory."""


class Export(Strict):
    """The exported file."""

    format: Format
    static_shapes: bool = True
    batch: Annotated[int, Field(ge=1)] = 1
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Layout of the image input in the file."""
    io_dtype: Literal["float32", "int8", "uint8"] = "float32"
    opset: Annotated[int, Field(ge=18)] = 18
    """ONNX operator set, where the format is or passes through ONNX."""


class Numerics(Strict):
    """Integer numbers that the device's kernels take. Targets that agree here share one Q/DQ program."""

    granularity: Literal["per-channel", "per-tensor"] = "per-channel"
    """Of the weight scales."""
    symmetric_activations: bool = False
    """Whether activations have zero point 0."""
    weight_range: Literal["full", "half"] = "full"
    """``full``: [-127, 127]. ``half``: [-63, 63], which 16-bit sums of two products cannot saturate (DESIGN: rule
    11)."""

    @property
    def name(self) -> str:
        """What a variant other than the usual one is called; empty for the usual one."""
        parts = [
            "per-tensor" if self.granularity == "per-tensor" else "",
            "symmetric" if self.symmetric_activations else "",
            "half-range" if self.weight_range == "half" else "",
        ]
        return "-".join(part for part in parts if part)


FusedGroup = Literal["conv-activation", "activation-mul", "conv-add"]


class Precision(Numerics):
    """How the target's files hold the numbers of the Q/DQ program."""

    scheme: Literal["int8"] = "int8"
    weight_bits: Literal[8] = 8
    activation_bits: Literal[8] = 8
    activations: Literal["int8", "uint8"] = "int8"
    """How the file stores activations; the real values are the same (zero point shifted by 128)."""
    fused: list[FusedGroup] = []
    """Groups that one kernel computes without rounding inside: the program's quantizers there are left out."""
    schemes: list[ArtifactScheme] = []
    """Schemes that the device gains by, beside plain float32; a recipe with another one is refused. Empty: all that the
    format holds."""
    half_arithmetic: bool = False
    """Whether fp16 files compute in fp16, as a GPU does; else they store their weights so and compute in float32."""
    full_integer: bool = False
    """Whether the device runs integer ops only: an op left in float is then an error."""
    numeric_reference: str = "qdq-program"

    @property
    def numerics(self) -> Numerics:
        """The part of it that shapes the Q/DQ program."""
        return Numerics(**self.model_dump(include=set(Numerics.model_fields)))


class PruneLimits(Strict):
    """Channel counts that the device's kernels are fast at."""

    channel_multiple: Annotated[int, Field(ge=1)] = 8
    depthwise_multiple: Annotated[int, Field(ge=1)] | None = None
    """Of channels that a depthwise convolution filters; `channel_multiple` where it is absent. Its kernels have no
    inputs to share out among vector lanes: a rest of channels falls to scalar code."""
    min_channels: Annotated[int, Field(ge=1)] = 8

    @property
    def multiple_of_depthwise(self) -> int:
        """The multiple for channels of depthwise convolutions, which suits the other layers too."""
        return math.lcm(self.channel_multiple, self.depthwise_multiple or 1)


class Ops(Strict):
    """Operators that the device cannot run."""

    deny: list[str] = []
    max_fallback_ops: Annotated[int, Field(ge=0)] = 0


class Memory(Strict):
    """Memory of the device in bytes that the model may take; absent where it does not matter."""

    ram: Annotated[int, Field(gt=0)] | None = None
    """For the tensor arena, or the fast memory of an accelerator."""
    flash: Annotated[int, Field(gt=0)] | None = None
    """For the model file."""


class LatencyBudget(Strict):
    """A latency that the device must meet."""

    budget_ms: Annotated[float, Field(gt=0)] | None = None
    statistic: Literal["p50", "p90", "p99"] = "p50"


class TargetProfile(Strict):
    """One deployment target."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    id: str
    title: str
    kind: Literal["cpu", "gpu", "npu", "mcu"]
    evidence: Evidence
    isa_floor: list[str] = []
    """CPU flags without which the int8 kernels lose accuracy or speed (any one of them suffices)."""
    runtime: Runtime
    compiler: Compiler | None = None
    export: Export
    precision: Precision = Precision()
    prune: PruneLimits = PruneLimits()
    ops: Ops = Ops()
    memory: Memory = Memory()
    latency: LatencyBudget = LatencyBudget()

    @model_validator(mode="after")
    def _is_consistent(self) -> TargetProfile:
        allowed = _EVIDENCE[self.runtime.name]
        if self.evidence not in allowed:
            raise ValueError(
                f"evidence {self.evidence!r} does not go with runtime {self.runtime.name!r}: allowed is "
                f"{' or '.join(map(repr, allowed))}"
            )
        if (self.evidence == "estimated") != (self.compiler is not None):
            raise ValueError("evidence 'estimated' and a section [compiler] go together: give both or none")
        if self.export.format == "pt2" and (self.export.layout, self.export.static_shapes) != ("nchw", True):
            raise ValueError("export: .pt2 files have layout 'nchw' and static_shapes = true")
        if self.latency.budget_ms is not None and self.evidence in ("executed", "simulated"):
            raise ValueError(f"latency.budget_ms: a target that is {self.evidence!r} has no latency to check")
        if self.memory.ram is not None and self.runtime.name != "tflm":
            raise ValueError(
                f"memory.ram: runtime {self.runtime.name!r} does not tell what memory a model takes on the device; "
                "TensorFlow Lite Micro ('tflm') does"
            )
        return self

    @property
    def clocked(self) -> bool:
        """Whether a latency of this target comes from a clock; else from a compiler, or there is none."""
        return self.evidence in _CLOCKS


def load(value: str, base: Path | None = None) -> TargetProfile:
    """Read a target by shipped name or path (relative to `base`). Raises `ConfigError`."""
    path = resources.find("targets", value, base)
    profile = schema.read(path, TargetProfile)
    if profile.id != path.stem:
        raise ConfigError(
            f"{path}: id is {profile.id!r}, the file is named {path.stem!r}", "make the two equal"
        )
    return profile


def require_packages(profile: TargetProfile) -> None:
    """Raise `MissingDependencyError` with the pip line if a package of the profile is absent."""
    for module in profile.runtime.requires:
        extras.require(module, f"target {profile.id}")


def float_runtime(profile: TargetProfile) -> TargetProfile:
    """Return the profile under which the float baseline of a target runs: its own, or that of the format's CPU runtime.

    What runs integer files only (TensorFlow Lite Micro here, an NPU) leaves the float file of the same format to LiteRT
    or ONNX Runtime on the CPU; only its answers count, never its time.
    """
    name = _FLOAT_RUNTIMES.get(profile.runtime.name)
    if name is None:
        return profile
    runtime = Runtime(name=name, requires=[], host=profile.runtime.host, threads=profile.runtime.threads)
    precision = profile.precision.model_copy(update={"full_integer": False})
    changed = {"runtime": runtime, "evidence": "measured", "compiler": None, "precision": precision}
    return profile.model_copy(update=changed)


def common_prune_limits(profiles: Sequence[TargetProfile]) -> PruneLimits:
    """Return limits that suit every target: the least common channel multiple and the largest minimum."""
    return PruneLimits(
        channel_multiple=math.lcm(*(p.prune.channel_multiple for p in profiles)),
        depthwise_multiple=math.lcm(*(p.prune.multiple_of_depthwise for p in profiles)),
        min_channels=max(p.prune.min_channels for p in profiles),
    )


def require_budget(profile: TargetProfile, kind: str) -> None:
    """Raise `ConfigError` unless a target can tell what a network costs in terms of a pruning budget's kind."""
    if kind == "latency" and not profile.clocked and profile.compiler is None:
        raise ConfigError(
            f"prune.budget.latency: target {profile.id} is {profile.evidence}, its time cannot be measured",
            "name a target that runs here in prune.target, or give the budget as macs or size",
        )
    if kind == "ram" and profile.export.format != "tflite":
        raise ConfigError(
            f"prune.budget.ram: the memory of activations is read from .tflite files, and target {profile.id} takes "
            f"{profile.export.format} files, whose runtime fuses operations as it likes",
            "name a target of litert or tflm in prune.target, or give the budget as latency, macs or size",
        )
