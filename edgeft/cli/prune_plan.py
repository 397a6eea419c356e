"""What `edgeft prune --explain` prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeft.cli import console

_NAMED = 3


def show(plan: Mapping[str, Any], folder: Path) -> None:
    """Print a prune plan: the groups, the search for the budget, and the shares that would be left.

    Where the budget is out of reach, it is for the caller to say so.
    """
    output = console.make()
    output.print()
    timed = any(group["time_share"] is not None for group in plan["groups"])
    console.print_table([_group(group, plan, timed) for group in plan["groups"]], output)
    output.print(
        f"Uncut: accuracy {plan['accuracy']:.2%}, loss {plan['loss']:.4f} on {plan['samples']} validation samples; the "
        "changes are those with this group alone cut to half, or as far as it may be, and nothing trained.",
        soft_wrap=True,
    )
    output.print(f"Time: {plan['times']}.", soft_wrap=True)
    if plan["fixed"]:
        layers = ", ".join(f"{layer} ({reason})" for layer, reason in plan["fixed"].items())
        output.print(f"In no group and not cut: {layers}.", soft_wrap=True)
    for line in rewrite_lines(plan["rewrite"]):
        output.print(line, soft_wrap=True)
    if plan["search"]:
        output.print()
        console.print_table(search_rows(plan["search"]), output)
    if share := plan["plan"]:
        output.print(
            f"plan:     {share['macs_share']:.1%} of the MACs, {share['params_share']:.1%} of the parameters",
            soft_wrap=True,
        )
    output.print(f"written:  {console.shown(folder / 'prune-plan.json')}", soft_wrap=True)


def search_rows(search: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row for every candidate of a search for a budget."""
    return [
        _candidate(candidate, search["kind"], chosen=number == search["chosen"])
        for number, candidate in enumerate(search["candidates"])
    ]


def rewrite_lines(rewrite: Mapping[str, Any]) -> list[str]:
    """Return what a rewrite changes, in words."""
    if not rewrite:
        return []
    return [
        f"Rewrite {rewrite['name']}: {len(rewrite['activations'])} activations become ReLU6, "
        f"{len(rewrite['gates'])} squeeze-and-excite modules are dropped."
    ]


def _group(group: Mapping[str, Any], plan: Mapping[str, Any], timed: bool) -> dict[str, str]:
    more = len(group["layers"]) - _NAMED
    names = "\n".join(group["layers"][:_NAMED]) + (f"\nand {more} more" if more > 0 else "")
    cut = group["accuracy"] is not None
    row = {
        "written by": names,
        "coupled by": "\n".join(group["coupled_by"]) or "-",
        "width": str(group["width"])
        + (f" -> {group['planned_width']}" if group["planned_width"] is not None else "")
        + (f" {group['unit']}s" if group["unit"] != "channel" else ""),
        "MACs": f"{group['macs_share']:.1%}",
    }
    if timed:
        row["time"] = "-" if group["time_share"] is None else f"{group['time_share']:.1%}"
    return row | {
        "tried": str(group["tried_width"]) if cut else "-",
        "accuracy, points": f"{100 * (group['accuracy'] - plan['accuracy']):+.1f}" if cut else "-",
        "loss": f"{group['loss'] - plan['loss']:+.4f}" if cut else "-",
        "not cut": group["limit"] or "",
    }


def _candidate(candidate: Mapping[str, Any], kind: str, *, chosen: bool) -> dict[str, str]:
    interval = "" if candidate["low"] is None else f" [{candidate['low']:.3f}, {candidate['high']:.3f}]"
    row = {"MACs": f"{candidate['macs']:.1%}", kind: f"{candidate['value']:.3f}{interval}"}
    if "latency_ms" in candidate:
        row |= {"ms": f"{candidate['latency_ms']:.3g}", "unpruned ms": f"{candidate['unpruned_ms']:.3g}"}
    if "ram_bytes" in candidate:
        row["RAM, KB"] = f"{candidate['ram_bytes'] / 1000:.1f}"
    return row | {"file, KB": f"{candidate['size_bytes'] / 1000:.1f}", "chosen": "yes" if chosen else ""}
