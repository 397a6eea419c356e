"""The phases of quantization-aware training: who observes, who learns, and when they stop."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from edgeft.quantization import inspection
from edgeft.quantization.fake_quant import ActivationFakeQuant, WeightFakeQuant
from edgeft.quantization.operators import CONCATS, IDENTITIES, INTEGER_MACS, MOVES, aten
from edgeft.quantization.prepare import activation_sites, weight_sites

# Weight of one batch in the moving averages: training has hundreds of steps.
_MOMENTUM = 0.02
# Of learned scales, as a multiple of the weights' rate: it is a relative change per step (their logarithm is learned).
_SCALE_PACE = 10.0
# Their results are among their inputs' values; bilinear resizing only shares the range. Dropout makes what it keeps
# larger in training, which must neither be clipped nor rounded again.
_SAME_VALUES = (MOVES | CONCATS | IDENTITIES) - {
    aten.upsample_bilinear2d.vec,
    aten.upsample_bilinear2d.default,
}


class QatPhases:
    """The phases of quantization-aware training (`TrainingPhases`).

    Ranges move in the first `observe_epochs` epochs and then stand still, so that the weights settle on fixed grids
    (Jacob et al. 2018 delay in the other direction; freezing late is torchao's advice). They follow a moving average,
    or with `learned` the gradient, as the weights' scales then do too (Esser et al. 2020); known ranges and those of
    the graph's outputs are never learned.

    Learned scales are parameters of the graph: make the phases before an optimizer, and on a rebuilt graph before
    its state is loaded.

    Args:
        graph: From `prepare`, with observed ranges.
        observe_epochs: Number of epochs in which ranges move.
        learned: Whether scales are learned.

    Raises:
        QuantizationError: Scales are to be learned, and a range was not observed or is not finite.
    """

    def __init__(self, graph: GraphModule, *, observe_epochs: int, learned: bool = False) -> None:
        self._graph = graph
        self._sites = activation_sites(graph)
        self._weights = weight_sites(graph)
        self._repeating = _repeating_sites(graph)
        self._observe_epochs = observe_epochs
        for site in self._sites:
            site.momentum = _MOMENTUM
        _train_folded_biases(graph)
        if learned:
            _learn_scales(graph)

    @property
    def paces(self) -> dict[str, float]:
        """Return the multiple of the base learning rate at which each learned scale learns, by parameter name."""
        quantizers: list[ActivationFakeQuant | WeightFakeQuant] = [*self._sites, *self._weights]
        learned = {id(quantizer.stretch) for quantizer in quantizers if quantizer.stretch is not None}
        return {name: _SCALE_PACE for name, p in self._graph.named_parameters() if id(p) in learned}

    def enter_training(self, epoch: int) -> None:
        """Switch the graph to training, and let its ranges move while `epoch` is below the limit."""
        self._graph.train()
        self._move_ranges(epoch < self._observe_epochs)
        for site in self._repeating:
            site.repeats = True

    def enter_evaluation(self) -> None:
        """Switch the graph to evaluation; validation data must not move the ranges."""
        self._graph.eval()
        self._move_ranges(False)
        for site in self._repeating:
            site.repeats = False

    def _move_ranges(self, moving: bool) -> None:
        for site in self._sites:
            site.observing = moving
        for quantizer in self._weights:
            quantizer.learning = moving


def _train_folded_biases(graph: GraphModule) -> None:
    """Let the biases learn that folded batch norms have left behind: torchao's pass makes them constants."""
    for node in graph.graph.nodes:
        if node.target not in INTEGER_MACS or len(node.args) < 3:
            continue
        weight_quantizer = _quantizer(graph, node.args[1])
        source = node.args[1].args[0] if weight_quantizer is not None else node.args[1]
        weight, bias = inspection.constant(graph, source), inspection.constant(graph, node.args[2])
        if weight is not None and bias is not None:
            bias.requires_grad_(weight.requires_grad)


def _learn_scales(graph: GraphModule) -> None:
    for site in activation_sites(graph):
        if site.learnable and site.stretch is None:
            site.learn_range()
    # A layer that is called twice has two quantizers on its one weight, which can have one grid only.
    first: dict[int, WeightFakeQuant] = {}
    for node in graph.graph.nodes:
        quantizer = _quantizer(graph, node)
        weight = inspection.constant(graph, node.args[0]) if isinstance(quantizer, WeightFakeQuant) else None
        if not isinstance(quantizer, WeightFakeQuant) or weight is None or quantizer.stretch is not None:
            continue
        if not weight.requires_grad:  # a constant of a rewritten op lies on its grid already
            continue
        quantizer.learn_scale(weight)
        quantizer.share_scale(first.setdefault(inspection.storage(weight), quantizer))


def _repeating_sites(graph: GraphModule) -> list[ActivationFakeQuant]:
    """Return the sites whose values come from sites of the same range and were only moved since."""
    found = []
    for node in graph.graph.nodes:
        site = _quantizer(graph, node)
        if isinstance(site, ActivationFakeQuant) and _comes_rounded(graph, node.args[0], site):
            found.append(site)
    return found


def _comes_rounded(graph: GraphModule, source: Node, site: ActivationFakeQuant) -> bool:
    if source.target in _SAME_VALUES:
        return all(_comes_rounded(graph, value, site) for value in source.all_input_nodes)
    before = _quantizer(graph, source)
    return isinstance(before, ActivationFakeQuant) and before in site.group


def _quantizer(graph: GraphModule, node: Node) -> ActivationFakeQuant | WeightFakeQuant | None:
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, ActivationFakeQuant | WeightFakeQuant) else None
