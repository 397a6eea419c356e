"""The budget of the prune stage within a run: whose device, which scheme, and whether it held in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgeft import extras, measure, target
from edgeft.pipeline.inputs import RunInputs
from edgeft.recipe import Quantize, Recipe
from edgeft.target import TargetProfile
from edgeft.types import FloatModel, Progress, TargetResult

_TIMED_INPUTS = 64


def profile(run: RunInputs) -> TargetProfile | None:
    """Return the target that the budget is found out on; None for a budget of MACs."""
    config = run.recipe.prune
    if config is None or config.budget.kind == "macs":
        return None
    return target.load(config.target or run.recipe.targets[0], run.base)


def scheme(run: RunInputs) -> Quantize:
    """Return how the files of a run are quantized; a recipe without the section makes float files."""
    return run.recipe.quantize or Quantize(scheme="none")


def facts(run: RunInputs) -> dict[str, Any]:
    """Return what a search for the budget reads, for the stage's key.

    The rounds of the clock are not among it: a longer measurement at the end of a run does not prune and train anew.
    """
    device = profile(run)
    if device is None:
        return {}
    keys = ("scheme", "float_layers")
    return {
        "device": device.model_dump(mode="json", by_alias=True),
        "scheme": {key: getattr(scheme(run), key) for key in keys},
        "preprocess": run.recipe.export.preprocess,
        "runtime": extras.versions(*device.runtime.requires),
    }


def check(run: RunInputs) -> None:
    """Raise what is known of a budget out of reach by the network's shapes, before its training begins.

    Raises:
        BudgetError: The budget is out of reach; the message names the best reachable.
        ModelError: The network cannot be pruned.
    """
    if run.recipe.prune is None:
        return
    from edgeft import stages

    network = FloatModel(module=run.build().module.eval(), preprocessing=run.preprocessing, labels=())
    stages.check_budget(network, run.recipe.prune, target.common_prune_limits(run.profiles))


def summary(results: Mapping[str, Any]) -> str:
    """Return one line about a prune stage's results."""
    plan, search = results["plan"], results.get("search")
    parts = [f"{plan['macs_after'] / plan['macs_before']:.0%} of the MACs"]
    if search:
        chosen = search["candidates"][search["chosen"]]
        parts.append(
            f"{chosen['value']:.2f} of the {search['kind']} on {search['target']} ({search['exports']} exports)"
        )
    parts.append(f"validation accuracy {results['val_accuracy']:.2%}")
    return ", ".join(parts)


def offers(recipe: Recipe, finetuned: Mapping[str, Any], results: Sequence[TargetResult]) -> list[str]:
    """Return what may help where an int8 file is slower than float: the rewrite, if the network has what it replaces.

    Args:
        recipe: The recipe.
        finetuned: Results of the fine-tune stage.
        results: What was measured.
    """
    slow = [r.target for r in results if r.artifact.scheme == "int8" and r.ratio and r.ratio.low > 1]
    rewritten = recipe.prune is not None and recipe.prune.rewrite != "none"
    sites = finetuned.get("results", {}).get("edge_lite_sites", 0)
    if not slow or rewritten or not sites:
        return []
    return [
        f"int8 is slower than float on {', '.join(slow)}: the network has {sites} modules (hardswish, SiLU, "
        'squeeze-and-excite) that int8 kernels are slow at; [prune] rewrite = "edge-lite" replaces them (alone: '
        "budget = { macs = 1.0 })"
    ]


def against_unpruned(run: RunInputs, device: TargetProfile, *, progress: Progress) -> dict[str, Any]:
    """Compare the final file of a target with the unpruned network's at the same scheme, by what the budget is of.

    A latency is timed in turns, or both files are compiled; sizes and memory are counted.

    Returns:
        ``{"against_unpruned": ratio}`` on the target of a budget that needs one, else nothing. Only what is timed has
        an interval.
    """
    from edgeft import stages

    wanted = profile(run)
    if wanted is None or wanted.id != device.id or "prune" not in run.folders or run.recipe.prune is None:
        return {}
    unpruned = stages.unpruned_file(run.folders["prune"])
    if unpruned is None:
        return {}
    kind, final = run.recipe.prune.budget.kind, run.artifact(device, "artifact")
    if kind != "latency" or run.estimate(device) is not None:
        ratio = stages.amount(kind, final, device) / stages.amount(kind, unpruned, device)
        exact = {"base": "unpruned", "head": "final", "ratio": ratio, "low": None, "high": None}
        return {"against_unpruned": exact}
    config = run.recipe.measure
    base, head = measure.latencies(
        [
            measure.Variant(label="unpruned", artifact=unpruned, profile=device),
            measure.Variant(label="final", artifact=final, profile=device),
        ],
        run.test_inputs[:_TIMED_INPUTS],
        rounds=config.rounds,
        min_runs=config.min_runs,
        min_seconds=config.min_seconds,
        progress=progress,
    )
    return {"against_unpruned": measure.ratio(head, base)}


def missed(run: RunInputs, results: Callable[[str], Mapping[str, Any]]) -> list[str]:
    """Return a note where the final file missed the budget that the search's candidate met.

    What is decided after pruning (layers taken back to float) makes it larger, and a clock has its noise: a latency
    is missed if its whole interval is above the budget.

    Args:
        run: The run.
        results: Returns what a stage left, by the stage's name.
    """
    device = profile(run)
    if device is None or run.recipe.prune is None:
        return []
    found = results(f"measure-{device.id}").get("results", {}).get("against_unpruned")
    budget = run.recipe.prune.budget
    if found is None or (found["ratio"] if found["low"] is None else found["low"]) <= budget.share:
        return []
    interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return [
        f"prune.budget.{budget.kind} = {budget.share:g} is missed: the final file on {device.id} has "
        f"{found['ratio']:.3f}{interval} of the unpruned network's {budget.kind}"
    ]
