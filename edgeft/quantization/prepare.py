"""Fake-quant graphs: insert the quantizers, calibrate them, switch them between the phases of training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import allow_exported_model_train_eval
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from edgeft.calibration import CalibrationRecipe
from edgeft.quantization.annotator import FIXED_RANGES, FusedGroupAnnotator, keeps_range
from edgeft.quantization.capture import capture, check_no_batch_norm
from edgeft.quantization.fake_quant import ActivationFakeQuant, WeightFakeQuant
from edgeft.target import Numerics
from edgeft.types import FloatModel, Progress, example_inputs, silent

# Weight of one batch in the moving averages. Training has hundreds of steps, calibration a handful.
_TRAINING_MOMENTUM = 0.02
_CALIBRATION_MOMENTUM = 0.1


def prepare(
    model: FloatModel,
    *,
    numerics: Numerics | None = None,
    rewrites: Sequence[Callable[[GraphModule], None]] = (),
) -> GraphModule:
    """Return the model's fake-quant graph: captured, batch norms folded, quantizers at the ends of fused groups.

    It maps (N, C, H, W) float32 to logits (N, K), is in evaluation mode, and has seen no data yet.

    Args:
        model: The float network.
        numerics: Integer numbers of the target's kernels; the usual ones by default.
        rewrites: Called one after the other on the captured float graph, each changing it in place without
            changing its function (cross-layer equalization, SmoothQuant).

    Raises:
        ModelError: torch.export cannot capture the model.
        QuantizationError: A batch norm could not be folded.
    """
    captured = capture(model.module, example_inputs(model.preprocessing))
    check_no_batch_norm(captured)
    for rewrite in rewrites:
        rewrite(captured)
    graph: GraphModule = prepare_pt2e(captured, FusedGroupAnnotator(numerics))
    _separate_sites(graph)
    _keep_output_extremes(graph)
    allow_exported_model_train_eval(graph)
    graph.eval()
    return graph


def activation_sites(graph: GraphModule) -> list[ActivationFakeQuant]:
    """Return the activation quantizers of a prepared graph, in graph order."""
    return [m for m in _called_modules(graph) if isinstance(m, ActivationFakeQuant)]


def weight_sites(graph: GraphModule) -> list[WeightFakeQuant]:
    """Return the weight quantizers of a prepared graph, in graph order."""
    return [m for m in _called_modules(graph) if isinstance(m, WeightFakeQuant)]


def calibrate(
    graph: GraphModule,
    batches: Iterable[torch.Tensor],
    recipe: CalibrationRecipe,
    *,
    progress: Progress = silent,
) -> None:
    """Find activation ranges from float forward passes of a prepared graph, in place.

    Rounding is off meanwhile, so that every site sees what the float network computes.

    Args:
        graph: From `prepare`.
        batches: Model inputs (N, C, H, W), drawn from the training split only.
        recipe: Which statistic of the extremes to keep.
        progress: Told about every batch.
    """
    momentum = 1.0 if recipe.observer == "minmax" else _CALIBRATION_MOMENTUM
    sites = activation_sites(graph)
    graph.eval()
    quantizers: list[ActivationFakeQuant | WeightFakeQuant] = [*sites, *weight_sites(graph)]
    for quantizer in quantizers:
        quantizer.enabled = False
    for site in sites:
        site.observing, site.momentum = True, momentum
    with torch.inference_mode():
        for index, batch in enumerate(batches):
            graph(batch)
            progress(f"calibrating, batch {index + 1}")
    for site in sites:
        site.observing = False
    for quantizer in quantizers:
        quantizer.enabled = True


class QatPhases:
    """The phases of quantization-aware training (`TrainingPhases`).

    Ranges follow a moving average for the first `observe_epochs` epochs and then stand still, so that the weights
    settle on fixed grids (Jacob et al. 2018 delay in the other direction; freezing late is torchao's advice).
    """

    def __init__(self, graph: GraphModule, *, observe_epochs: int) -> None:
        self._graph = graph
        self._sites = activation_sites(graph)
        self._observe_epochs = observe_epochs
        for site in self._sites:
            site.momentum = _TRAINING_MOMENTUM

    def enter_training(self, epoch: int) -> None:
        """Switch the graph to training and its observers on while `epoch` is below the limit."""
        self._graph.train()
        for site in self._sites:
            site.observing = epoch < self._observe_epochs

    def enter_evaluation(self) -> None:
        """Switch the graph to evaluation; validation data must not move the ranges."""
        self._graph.eval()
        for site in self._sites:
            site.observing = False


def _called_modules(graph: GraphModule) -> list[torch.nn.Module]:
    return [graph.get_submodule(str(n.target)) for n in graph.graph.nodes if n.op == "call_module"]


def _separate_sites(graph: GraphModule) -> None:
    """Give every site that shares a quantizer one of its own, tied to the others by their common range.

    prepare_pt2e calls one module object at all sites of a shared range, which would observe values twice and
    blend the sites in one moving average (seen to clip 40 % of the range). Here each producer keeps its own
    extremes, the common range is their union, and sites behind a range-keeping op do not observe at all.
    """
    shared: dict[ActivationFakeQuant, list[Node]] = defaultdict(list)
    for node in graph.graph.nodes:
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            if isinstance(module, ActivationFakeQuant):
                shared[module].append(node)
    for nodes in shared.values():
        group = []
        for node in nodes:
            site = ActivationFakeQuant()
            site.observes = not _keeps_range(node.args[0])
            known = [bounds for op, bounds in FIXED_RANGES.items() if node.all_input_nodes[0].target is op]
            if known:
                site.fix_range(*known[0])
            graph.set_submodule(str(node.target), site)
            group.append(site)
        for site in group:
            site.share_range(tuple(group))
    graph.recompile()


def _keep_output_extremes(graph: GraphModule) -> None:
    """Let the sites that decide the range of the graph's outputs keep the overall extremes."""
    for result in next(n for n in graph.graph.nodes if n.op == "output").all_input_nodes:
        site = graph.get_submodule(str(result.target)) if result.op == "call_module" else None
        if isinstance(site, ActivationFakeQuant):
            for peer in site.group:
                peer.keeps_extremes = True


def _keeps_range(source: object) -> bool:
    """Return whether a value was made by an op that only moves values of observed ranges."""
    if not isinstance(source, Node):
        return False
    if keeps_range(source):
        return True
    # A quantizer on top of a quantizer of the same range: an input edge behind an annotated output.
    return source.op == "call_module" and "activation_post_process" in str(source.target)
