"""Fake-quant graphs: insert the quantizers where the annotator wants them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from edgeft.errors import QuantizationError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization.annotator import FusedGroupAnnotator
from edgeft.quantization.capture import capture
from edgeft.quantization.fake_quant import ActivationFakeQuant, WeightFakeQuant
from edgeft.quantization.modes import DROPOUTS, allow_modes
from edgeft.quantization.operators import fixed_range, keeps_range
from edgeft.quantization.rewrites import make_normalization_a_layer
from edgeft.target import Numerics
from edgeft.types import FloatModel, example_inputs


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
    """
    captured = capture(model.module, example_inputs(model.preprocessing))
    for rewrite in rewrites:
        rewrite(captured)
    picture = model.preprocessing
    takes_pixels = isinstance(picture, ImagePreprocessing) and picture.embedded
    if takes_pixels:
        make_normalization_a_layer(captured)
    graph: GraphModule = prepare_pt2e(captured, FusedGroupAnnotator(numerics))
    _separate_sites(graph)
    _follow_numerics(graph, numerics or Numerics())
    if takes_pixels:
        _take_pixels(graph)
    _keep_output_extremes(graph)
    allow_modes(graph)
    graph.eval()
    return graph


def activation_sites(graph: GraphModule) -> list[ActivationFakeQuant]:
    """Return the activation quantizers of a prepared graph, in graph order."""
    return [m for m in _called_modules(graph) if isinstance(m, ActivationFakeQuant)]


def weight_sites(graph: GraphModule) -> list[WeightFakeQuant]:
    """Return the weight quantizers of a prepared graph, in graph order."""
    return [m for m in _called_modules(graph) if isinstance(m, WeightFakeQuant)]


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
            known = fixed_range(_behind_dropouts(node.all_input_nodes[0]))
            if known:
                site.fix_range(*known)
            graph.set_submodule(str(node.target), site)
            group.append(site)
        for site in group:
            site.share_range(tuple(group))
    graph.recompile()


def _follow_numerics(graph: GraphModule, numerics: Numerics) -> None:
    """Tell every quantizer which integers the target's kernels take."""
    for site in activation_sites(graph):
        site.symmetric = numerics.symmetric_activations
    for quantizer in weight_sites(graph):
        quantizer.follow(numerics)


def _take_pixels(graph: GraphModule) -> None:
    """Give the quantizers of the graph's input the range 0..255, whose steps are pixels: nothing is rounded there.

    Raises:
        QuantizationError: The target's kernels take symmetric activations, whose grid has 128 steps from 0 up.
    """
    for node in graph.graph.nodes:
        if node.op != "call_module" or node.all_input_nodes[0].op != "placeholder":
            continue
        site = graph.get_submodule(str(node.target))
        if isinstance(site, ActivationFakeQuant):
            if site.symmetric:
                raise QuantizationError(
                    "raw pixels need 256 steps, and activations with zero point 0 have 128 from 0 up",
                    'leave export.preprocess = "embedded" out, or the targets with symmetric activations',
                )
            site.fix_range(0.0, 255.0)


def _keep_output_extremes(graph: GraphModule) -> None:
    """Let the sites that decide the range of the graph's outputs keep the overall extremes."""
    for result in next(n for n in graph.graph.nodes if n.op == "output").all_input_nodes:
        site = graph.get_submodule(str(result.target)) if result.op == "call_module" else None
        if isinstance(site, ActivationFakeQuant):
            for peer in site.group:
                peer.keeps_extremes = True


def _behind_dropouts(node: Node) -> Node:
    while node.target in DROPOUTS:
        node = node.all_input_nodes[0]
    return node


def _keeps_range(source: object) -> bool:
    """Return whether a value was made by an op that only moves values of observed ranges."""
    if not isinstance(source, Node):
        return False
    if keeps_range(source):  # of float values nobody else knows the range
        return any(origin.op == "call_module" for origin in source.all_input_nodes)
    # A quantizer on top of a quantizer of the same range: an input edge behind an annotated output.
    return source.op == "call_module" and "activation_post_process" in str(source.target)
