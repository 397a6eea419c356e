"""The budgets of a target profile against what was found out about a file: memory, latency, operators on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

from edgeft.target import TargetProfile
from edgeft.types import BudgetResult, CompilerEstimate, ExportedArtifact, LatencyResult, MemoryResult


def check_budgets(
    profile: TargetProfile,
    artifact: ExportedArtifact,
    *,
    memory: MemoryResult | None = None,
    latency: LatencyResult | None = None,
    estimate: CompilerEstimate | None = None,
    slowest: str = "",
) -> tuple[BudgetResult, ...]:
    """Return every budget that a profile sets, with what was found out and the layer that takes most of it.

    Args:
        profile: The target.
        artifact: The file.
        memory: What it needs, where the target tells.
        latency: Of the clock, where there is one.
        estimate: Of the profile's compiler, where there is one.
        slowest: The layer that takes most of `latency`.
    """
    return tuple(_results(profile, artifact, memory, latency, estimate, slowest))


def _results(
    profile: TargetProfile,
    artifact: ExportedArtifact,
    memory: MemoryResult | None,
    latency: LatencyResult | None,
    estimate: CompilerEstimate | None,
    slowest: str,
) -> Iterator[BudgetResult]:
    ram, flash = profile.memory.ram, profile.memory.flash
    if ram is not None and memory is not None:
        used = memory.ram_bytes
        yield BudgetResult(
            name="ram", value=used, limit=ram, unit="bytes", met=used <= ram, culprit=memory.ram_layer
        )
    if flash is not None:
        used, layer = (
            (artifact.size_bytes, "") if memory is None else (memory.flash_bytes, memory.flash_layer)
        )
        yield BudgetResult(
            name="flash", value=used, limit=flash, unit="bytes", met=used <= flash, culprit=layer
        )
    limit_ms = profile.latency.budget_ms
    if limit_ms is not None and (latency is not None or estimate is not None):
        if latency is not None:
            ms = latency.percentile(float(profile.latency.statistic.removeprefix("p")))
        elif estimate is not None:
            ms, slowest = estimate.ms, _most_cycles(estimate)
        yield BudgetResult(
            name="latency", value=ms, limit=limit_ms, unit="ms", met=ms <= limit_ms, culprit=slowest
        )
    if estimate is not None:
        ops, most = estimate.fallback_ops, profile.ops.max_fallback_ops
        yield BudgetResult(
            name="fallback ops",
            value=len(ops),
            limit=most,
            unit="ops",
            met=len(ops) <= most,
            culprit=", ".join(ops),
        )


def _most_cycles(estimate: CompilerEstimate) -> str:
    layer = max(estimate.layers, key=lambda each: each.cycles, default=None)
    return f"{layer.op} {layer.name} ({layer.cycles:,} cycles)" if layer else ""
