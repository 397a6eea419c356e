"""The model card of a package: what it is, what it was made from, how good and how fast, and its limits.

After Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019). Every figure is one of the run's records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edgeft.preprocessing import Preprocessing
from edgeft.target import TargetProfile
from edgeft.types import (
    AccuracyResult,
    ClassificationMetrics,
    CompilerEstimate,
    Estimate,
    LatencyResult,
    TargetResult,
)

_FEW_SAMPLES: Final = 30
"""Below so many test samples of a class its figures say little; the card names such classes."""
_SHOWN: Final = 12

_SAMPLES: Final = {"image": "a picture", "text": "a text", "table": "a row of a table"}
_EVIDENCE: Final = {
    "measured": "measured by the clock on the host below",
    "executed": "executed, but not on the device: numbers and memory count, the time does not",
    "estimated": "answers executed here, cost estimated by the vendor's compiler, not measured",
    "simulated": "run in the vendor's simulator; there is no latency",
    "hardware": "measured by the clock on the device",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a model came from, for its card: nothing in it changes what the package does.

    Args:
        name: What the model is called.
        model: Source of the pretrained network, e.g. ``timm:mobilenetv3_small_100``.
        data: The data set, as the recipe names it.
        counts: Split -> number of samples.
        steps: What was done, one line each.
        notes: What a user should know besides, e.g. samples left out.
    """

    name: str = ""
    model: str = ""
    data: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    steps: Sequence[str] = ()
    notes: Sequence[str] = ()


def render(
    result: TargetResult,
    *,
    profile: TargetProfile,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    origin: Origin,
    data_fingerprint: str,
    versions: Mapping[str, str],
    host: Mapping[str, Any],
) -> str:
    """Return the card as Markdown; the arguments are those of `package.write`."""
    sections = {
        "Model": _model(result, preprocessing, labels, origin),
        "Data": _data(origin, data_fingerprint),
        "Quality": _quality(result),
        "Cost": _cost(result, host),
        "Limits": _limits(result, profile, origin),
        "Use": _use(preprocessing),
    }
    title = f"# {origin.name or 'Model'} for {profile.title}"
    made = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    blocks = [title, *(f"## {heading}\n\n{chr(10).join(lines)}" for heading, lines in sections.items())]
    return "\n\n".join([*blocks, f"Made with {made}."]) + "\n"


def _model(
    result: TargetResult, preprocessing: Preprocessing, labels: Sequence[str], origin: Origin
) -> Iterator[str]:
    artifact = result.artifact
    yield f"Takes {_SAMPLES[preprocessing.kind]} and tells {len(labels)} classes apart: {_some(labels)}."
    yield ""
    if origin.model:
        yield f"- From: `{origin.model}`"
    yield from (f"- {step}" for step in origin.steps)
    yield f"- File: `{artifact.path.name}` ({artifact.format}, {artifact.scheme}, {artifact.size_bytes:,} bytes)"
    for kind, specs in (("Input", artifact.inputs), ("Output", artifact.outputs)):
        for spec in specs:
            yield f"- {kind}: `{spec.name}` {spec.dtype} {list(spec.shape)} ({spec.layout})"
    coverage = artifact.coverage
    if artifact.scheme == "int8":
        yield f"- Multiply-accumulate ops in int8: {coverage.int8_mac_ops} of {coverage.mac_ops}"
        if in_float := (*coverage.float_ops, *coverage.float_islands):
            yield f"- In float: {_some(in_float)}"


def _data(origin: Origin, fingerprint: str) -> Iterator[str]:
    if origin.data:
        yield f"- Source: `{origin.data}`"
    if origin.counts:
        yield "- Samples: " + ", ".join(f"{count:,} {split}" for split, count in origin.counts.items())
    yield f"- Fingerprint: `{fingerprint}`"


def _quality(result: TargetResult) -> Iterator[str]:
    yield (
        f"On the {len(result.accuracy.ids):,} test samples, through this very file and its runtime, with 95 % "
        "intervals; beside it the unpruned float model."
    )
    yield ""
    yield "| metric | this file | float |"
    yield "|---|---|---|"
    ours = _figures(result.accuracy, result.metrics)
    theirs = _figures(result.baseline_accuracy, result.baseline_metrics)
    for name, estimate in ours.items():
        yield f"| {name} | {_estimate(estimate)} | {_estimate(theirs.get(name))} |"
    for name, value in result.user_metrics.items():
        yield f"| {_cell(name)} | {value:g} | {result.baseline_user_metrics.get(name, float('nan')):g} |"
    parity = result.parity
    yield ""
    yield (
        f"The file agrees with the program that it was exported from on {_percent(parity.agreement)} of "
        f"{parity.samples:,} samples ({parity.flips} other answers, {parity.confident_flips} of them where "
        f"the program was sure; at most {parity.max_lsb:g} LSB of the logits apart)."
    )
    if result.metrics is not None:
        yield from _classes(result.metrics)


def _figures(accuracy: AccuracyResult, metrics: ClassificationMetrics | None) -> dict[str, Estimate]:
    if metrics is None:
        return {"accuracy": Estimate(value=accuracy.accuracy, low=accuracy.low, high=accuracy.high)}
    figures = {
        "accuracy": metrics.accuracy,
        "balanced accuracy": metrics.balanced_accuracy,
        "macro precision": metrics.macro_precision,
        "macro recall": metrics.macro_recall,
        "macro F1": metrics.macro_f1,
        "expected calibration error": metrics.calibration_error,
        "accuracy of the five best": metrics.top5_accuracy,
        "area under the ROC curve": metrics.roc_auc,
    }
    return {name: estimate for name, estimate in figures.items() if estimate is not None}


def _classes(metrics: ClassificationMetrics) -> Iterator[str]:
    yield ""
    yield "| class | test samples | precision | recall | F1 |"
    yield "|---|---|---|---|---|"
    for each in metrics.per_class:
        figures = {"precision": each.precision, "recall": each.recall, "f1": each.f1}
        cells = ["-" if name in each.undefined else _estimate(value) for name, value in figures.items()]
        yield f"| {_cell(each.name)} | {each.support} | {' | '.join(cells)} |"


def _cost(result: TargetResult, host: Mapping[str, Any]) -> Iterator[str]:
    yield f"One sample at a time; {_EVIDENCE[result.evidence]} (evidence: {result.evidence})."
    yield ""
    yield from _times(result)
    if result.estimate is not None:
        yield from _estimated(result.estimate)
    if result.memory is not None:
        memory = result.memory
        yield f"- RAM: {memory.ram_bytes:,} bytes by {memory.source}, most of it at {memory.ram_layer}"
        yield f"- flash: {memory.flash_bytes:,} bytes, most of them in {memory.flash_layer}"
    for budget in result.budgets:
        state = "met" if budget.met else f"MISSED ({budget.culprit})" if budget.culprit else "MISSED"
        yield f"- budget of {budget.name}: {budget.value:,.6g} of {budget.limit:,.6g} {budget.unit}, {state}"
    runtime = result.runtime
    yield f"- runtime: {runtime.runtime} {runtime.version} on {runtime.device}"
    if runtime.mac_precision:
        executed = ", ".join(f"{count} in {name}" for name, count in runtime.mac_precision.items())
        yield f"- multiply-accumulate ops as they were executed: {executed}"
    flags = " ".join(host.get("flags") or ())
    yield f"- host: {host.get('cpu')}, {host.get('cores')} cores{', ' + flags if flags else ''}"
    if result.latency is not None:
        yield f"- peak memory of the process: {result.latency.peak_rss_bytes:,} bytes"


def _times(result: TargetResult) -> Iterator[str]:
    """Say what a clock has told, where one has."""
    for name, each in (
        ("this file", result.latency),
        ("the fastest float setting", result.baseline_latency),
    ):
        if each is not None:
            yield f"- {name}: {_percentiles(each)}, {each.threads} thread{'s' if each.threads > 1 else ''}"
    if result.ratio is not None:
        ratio = result.ratio
        yield (
            f"- ratio of the two: {ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] (95 %, {ratio.pairs} pairs "
            "of processes)"
        )


def _estimated(estimate: CompilerEstimate) -> Iterator[str]:
    yield f"- latency: {estimate.ms:.3g} ms, {estimate.cycles:,} cycles by {estimate.source}"
    on_cpu = f": {_some(estimate.fallback_ops)}" if estimate.fallback_ops else ""
    yield f"- operators: {estimate.npu_ops} on the accelerator, {len(estimate.fallback_ops)} on the CPU{on_cpu}"


def _percentiles(latency: LatencyResult) -> str:
    return ", ".join(f"p{q} {latency.percentile(q):.3g} ms" for q in (50, 90, 99))


def _limits(result: TargetResult, profile: TargetProfile, origin: Origin) -> Iterator[str]:
    yield "- It knows its classes only: whatever else it is shown gets one of them as well."
    yield (
        "- The figures hold for data like the test samples. The intervals say what their number leaves open, not what "
        "another camera, place or time would change."
    )
    if result.artifact.scheme in ("int8", "int8-dynamic") and profile.isa_floor:
        yield f"- CPU: needs one of {', '.join(profile.isa_floor)}; `verify.py` refuses others."
    if result.metrics is not None:
        few = [c.name for c in result.metrics.per_class if c.support < _FEW_SAMPLES]
        if few:
            yield f"- Fewer than {_FEW_SAMPLES} test samples, so little is known: {_some(few)}."
    if result.gallery is not None:
        for confusion in result.gallery.confusions[:3]:
            yield (
                f"- Takes {confusion.label!r} for {confusion.prediction!r} in {confusion.count} of "
                f"{confusion.support} test samples."
            )
    if result.artifact.deviations:
        yield f"- Computes without rounding where the program rounds: {_some(result.artifact.deviations)}."
    yield from (f"- {note}" for note in origin.notes)


def _use(preprocessing: Preprocessing) -> Iterator[str]:
    sample = {"image": "picture.jpg", "text": '"a text"', "table": '"column=cell,column=cell"'}
    yield "`python verify.py` checks every file, this device's CPU and the model's answers here;"
    more = {"image": " (and Pillow for pictures)", "text": " (and tokenizers for texts)"}
    yield f"`python example.py {sample[preprocessing.kind]}` classifies."
    yield f"Both need numpy and the runtime only{more.get(preprocessing.kind, '')}."


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{_percent(estimate.value)} [{_percent(estimate.low)}, {_percent(estimate.high)}]"


def _percent(share: float) -> str:
    """Format a share 0..1, never rounding up to a full 100 %."""
    return "99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
