"""Packages of model files that edgeft did not make: the file for its target, with golden vectors and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from edgeft.package import writing
from edgeft.package.layout import CARD
from edgeft.preprocessing import ArrayPreprocessing
from edgeft.target import TargetProfile
from edgeft.types import (
    BudgetResult,
    CompilerEstimate,
    ExportedArtifact,
    FloatArray,
    InputArray,
    MemoryResult,
    RuntimeReport,
)


def write_foreign(
    folder: Path,
    *,
    artifact: ExportedArtifact,
    profile: TargetProfile,
    labels: Sequence[str],
    golden_inputs: InputArray,
    golden_outputs: FloatArray,
    inputs_origin: str,
    lsb: float,
    report: RuntimeReport,
    memory: MemoryResult | None,
    estimate: CompilerEstimate | None,
    budgets: Sequence[BudgetResult],
    versions: Mapping[str, str],
    host: Mapping[str, Any],
) -> Path:
    """Write a package of a file made elsewhere; it appears complete or not at all, and replaces an older one.

    Args:
        folder: The package itself.
        artifact: The file, with one input and one output (N, K), both as the file has them.
        profile: The target.
        labels: Names of the K outputs.
        golden_inputs: Real values (n, ...), or ids.
        golden_outputs: What the target's runtime gave for them, (n, K) real values.
        inputs_origin: What the golden inputs are.
        lsb: One step of the outputs, the unit of the tolerance; above 0.
        report: Of the runtime.
        memory: On the device, where the target tells.
        estimate: Of the target's compiler, with the compiled file.
        budgets: Those of the target.
        versions: Package name -> version of what made it.
        host: Fingerprint of this host.

    Returns:
        `folder`.

    Raises:
        VerificationError: Golden vectors or labels that do not fit the model.
        ExportError: Operators that TensorFlow Lite Micro does not come with.
        WorkspaceError: The folder cannot be written.
    """
    dtype: Literal["float32", "int32"] = "int32" if golden_inputs.dtype.kind == "i" else "float32"
    with writing.appearing(folder) as partial:
        firmware = writing.write_contents(
            partial,
            artifact=artifact,
            profile=profile,
            preprocessing=ArrayPreprocessing(shape=golden_inputs.shape[1:], dtype=dtype),
            labels=labels,
            golden={"inputs": golden_inputs, "outputs": golden_outputs, "reference": golden_outputs},
            lsb=lsb,
            memory=memory,
            estimate=estimate,
        )
        card = _card(artifact, profile, labels, inputs_origin, report, memory, estimate, budgets)
        writing.write_text(partial / CARD, "\n".join(card))
        manifest = {
            **writing.describe(artifact, profile, report, profile.evidence, lsb),
            "metrics": writing.costs(memory, estimate, budgets),
            "name": artifact.path.stem,
            "golden": {"samples": len(golden_inputs), "classes": len(labels), "origin": inputs_origin},
            "firmware": firmware,
            "versions": dict(versions),
            "host": dict(host),
        }
        writing.seal(partial, manifest)
    return folder


def _card(
    artifact: ExportedArtifact,
    profile: TargetProfile,
    labels: Sequence[str],
    inputs_origin: str,
    report: RuntimeReport,
    memory: MemoryResult | None,
    estimate: CompilerEstimate | None,
    budgets: Sequence[BudgetResult],
) -> Iterator[str]:
    (takes,), (gives,) = artifact.inputs, artifact.outputs
    yield from (f"# {artifact.path.stem} for {profile.title}", "", "## Model", "")
    yield f"Made elsewhere and packed as it is: `{artifact.path.name}`, {artifact.size_bytes:,} bytes."
    yield ""
    yield f"- Input: `{takes.name}` {takes.dtype} {list(takes.shape)}, as the file has it"
    yield f"- Output: `{gives.name}` {gives.dtype} {list(gives.shape)}, {len(labels)} scores"
    yield f"- Golden vectors: {inputs_origin}, through {report.runtime} {report.version} on {report.device}"
    yield from ("", "## Cost", "")
    if estimate is not None:
        yield f"- latency: {estimate.ms:.3g} ms, {estimate.cycles:,} cycles, estimated by {estimate.source}"
        yield f"- operators: {estimate.npu_ops} on the accelerator, {len(estimate.fallback_ops)} on the CPU"
    if memory is not None:
        yield f"- RAM: {memory.ram_bytes:,} bytes by {memory.source}, most of it at {memory.ram_layer}"
        yield f"- flash: {memory.flash_bytes:,} bytes, most of them in {memory.flash_layer}"
    else:
        yield "`edgeft bench` measures it."
    for budget in budgets:
        state = "met" if budget.met else "MISSED"
        value, limit = (f"{each:,.10g}" for each in (budget.value, budget.limit))
        yield f"- budget of {budget.name}: {value} of {limit} {budget.unit}, {state}"
    yield from ("", "## Limits", "")
    yield "Nothing is known of the data that it was trained on, of its accuracy, or of what makes its inputs."
    yield ""
