"""Freeze a fake-quant graph, convert it to the Q/DQ program, prove that they are equal, and read it back."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from edgeft.errors import ModelError, QuantizationError
from edgeft.quantization import contract, weight_only
from edgeft.quantization.capture import float_mac_names, module_path
from edgeft.quantization.embeddings import bake_embeddings
from edgeft.quantization.fake_quant import ActivationFakeQuant, WeightFakeQuant
from edgeft.quantization.modes import allow_modes
from edgeft.quantization.operators import CLAMPS, INTEGER_MACS
from edgeft.quantization.prepare import activation_sites, weight_sites
from edgeft.quantization.ranges import range_table, write_ranges
from edgeft.quantization.rewrites import leave_saturation_to_quantizers
from edgeft.types import ActivationQuant, FloatModel, QuantLayer, QuantModel, example_inputs

_decomposed = torch.ops.quantized_decomposed
QUANTIZE = _decomposed.quantize_per_tensor.default
DEQUANTIZE = _decomposed.dequantize_per_tensor.default
QUANTIZE_WEIGHT = _decomposed.quantize_per_channel.default
DEQUANTIZE_WEIGHT = _decomposed.dequantize_per_channel.default


def convert(graph: GraphModule, source: FloatModel, check: torch.Tensor) -> QuantModel:
    """Return the Q/DQ program of a calibrated (or trained) fake-quant graph.

    Ranges and weight scales are frozen and biases moved onto their int32 grids first; then the program must
    give the frozen graph's outputs bit for bit. The graph itself is not changed.

    Args:
        graph: From `prepare`, with observed ranges.
        source: The float model, for labels and preprocessing.
        check: Inputs (N, C, H, W) on which the two are compared.

    Raises:
        QuantizationError: A range is not finite, or program and graph differ.
    """
    graph = copy.deepcopy(graph)
    _check_groups(graph)
    graph.eval()
    freeze(graph)
    # One channel fits both memory layouts, and torch picks kernels (whose sums round differently) by the strides:
    # a copy with the plain ones keeps the choice equal in both graphs.
    check = check.clone(memory_format=torch.contiguous_format)
    with torch.inference_mode():
        expected = graph(check)
    leave_saturation_to_quantizers(graph)
    program: GraphModule = convert_pt2e(graph, fold_quantize=False)
    allow_modes(program)
    program.eval()
    with torch.inference_mode():
        got = program(check)
    if not torch.equal(expected, got):
        difference = float((got - expected).abs().max())
        raise QuantizationError(
            f"the Q/DQ program differs from the trained fake-quant graph by up to {difference:.3g}",
            "this is a defect of edgeft: please report it with the model's source",
        )
    return read_back(program, source)


@torch.no_grad()
def freeze(graph: GraphModule) -> None:
    """Fix every scale of a fake-quant graph and move weights and biases onto their integer grids, in place."""
    for site in activation_sites(graph):
        site.freeze()
    for node in graph.graph.nodes:
        if node.target not in INTEGER_MACS:
            continue
        weight_quant = _module(graph, node.args[1])
        input_quant = _module(graph, node.args[0])
        if not isinstance(weight_quant, WeightFakeQuant) or not isinstance(input_quant, ActivationFakeQuant):
            continue  # a float MAC op, listed in the coverage
        weight = _tensor(graph, node.args[1].args[0])
        bias_node = node.args[2] if len(node.args) > 2 else None
        if isinstance(bias_node, Node):
            bias_node = _own_bias(graph, node, bias_node)
        bias = _tensor(graph, bias_node) if isinstance(bias_node, Node) else None
        input_scale, _ = input_quant.calculate_qparams()
        scale = weight_quant.scale(weight, bias=bias, input_scale=input_scale)
        weight_quant.freeze(scale)
        s_x, s_w = float(input_scale), scale.numpy()
        with torch.no_grad():
            # Converters divide where torch multiplies by the reciprocal; on the grid both round to the same integer.
            grid = contract.quantize_weight(weight.detach().numpy(), s_w, numerics=weight_quant.numerics)
            weight.copy_(torch.from_numpy(contract.dequantize_weight(grid, s_w)))
            if bias is not None:
                integers = contract.quantize_bias(bias.detach().numpy(), s_x, s_w)
                bias.copy_(torch.from_numpy(contract.dequantize_bias(integers, s_x, s_w)))
    bake_embeddings(graph)
    graph.recompile()
    if any(site._frozen is None for site in weight_sites(graph)):
        raise QuantizationError("a weight quantizer belongs to no convolution or linear layer")


def _own_bias(graph: GraphModule, node: Node, bias_node: Node) -> Node:
    """Give a layer that is called again a bias of its own: its grid follows this call's input scale."""
    readers = [n for n in graph.graph.nodes if n.op == "get_attr" and n.target == bias_node.target]
    if next(user for reader in readers for user in reader.users) is node:
        return bias_node
    name = f"bias_of_{node.name}"
    graph.register_parameter(name, torch.nn.Parameter(_tensor(graph, bias_node).detach().clone()))
    with graph.graph.inserting_before(node):
        own: Node = graph.graph.get_attr(name)
    node.update_arg(2, own)
    return own


def read_back(program: GraphModule, source: FloatModel | QuantModel) -> QuantModel:
    """Read every integer, scale and zero point of a Q/DQ program into a `QuantModel`."""
    layers = [_read_layer(program, node) for node in program.graph.nodes if _is_integer_mac(node)]
    activations = {
        node.name: ActivationQuant(name=node.name, scale=float(node.args[1]), zero_point=int(node.args[2]))
        for node in program.graph.nodes
        if node.target is QUANTIZE
    }
    return QuantModel(
        program=program,
        layers=tuple(layers),
        activations=tuple(activations.values()),
        float_ops=float_mac_names(program),
        output=_program_output(program),
        preprocessing=source.preprocessing,
        labels=source.labels,
        history=source.history,
    )


def save(model: QuantModel, folder: Path) -> None:
    """Write the program to `folder/program.pt2`, and its table of ranges to `folder/ranges.json`."""
    example = example_inputs(model.preprocessing, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns about its own pytree registrations
        exported = torch.export.export(
            model.program, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},)
        )
    torch.export.save(exported, folder / "program.pt2", extra_files={"scheme": model.scheme})
    write_ranges(range_table(model), folder / "ranges.json")


def load(folder: Path, source: FloatModel | QuantModel) -> QuantModel:
    """Read what `save` wrote; `source` gives labels and preprocessing. Raises `ModelError`."""
    extra: dict[str, Any] = {"scheme": ""}
    try:
        loaded = torch.export.load(folder / "program.pt2", extra_files=extra)
        program: Any = loaded.module(check_guards=False)
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelError(
            f"{folder / 'program.pt2'} cannot be read: {error}", "run the quantize stage again"
        ) from error
    allow_modes(program)
    program.eval()
    if extra["scheme"] in ("int8-weights", "int8-dynamic"):
        return weight_only.read_back(program, source, extra["scheme"])
    return dataclasses.replace(read_back(program, source), scheme=extra["scheme"])


def _is_integer_mac(node: Node) -> bool:
    return (
        node.target in INTEGER_MACS
        and isinstance(node.args[0], Node)
        and node.args[0].target is DEQUANTIZE
        and isinstance(node.args[1], Node)
        and node.args[1].target is DEQUANTIZE_WEIGHT
    )


def _read_layer(program: GraphModule, node: Node) -> QuantLayer:
    source = _node(node.args[0])
    weight_quantize = _node(_node(node.args[1]).args[0])
    scales = _tensor(program, weight_quantize.args[1]).detach().numpy().astype(np.float32)
    weight = _tensor(program, weight_quantize.args[0]).detach().numpy()
    bias_node = node.args[2] if len(node.args) > 2 else None
    bias = _tensor(program, bias_node).detach().numpy() if isinstance(bias_node, Node) else None
    source_range = _activation(source)
    scale = source_range.scale
    return QuantLayer(
        name=module_path(node),
        op=str(node.target).split(".")[1],
        weight=contract.quantize_weight(weight, scales),
        weight_scale=scales,
        bias=None if bias is None else contract.quantize_bias(bias, scale, scales),
        input=source_range,
        output=_group_output(node),
    )


def _group_output(node: Node) -> ActivationQuant | None:
    """Return the quantization at the end of the fused group that `node` heads."""
    users: Sequence[Node] = list(node.users)
    if len(users) == 1 and users[0].target in CLAMPS:
        users = list(users[0].users)
    quantize = next((u for u in users if u.target is QUANTIZE), None)
    return _activation(quantize) if quantize is not None else None


def _program_output(program: GraphModule) -> ActivationQuant | None:
    result: Any = next(n for n in program.graph.nodes if n.op == "output").args[0]
    last = result[0] if isinstance(result, (tuple, list)) else result
    return _activation(last) if isinstance(last, Node) and last.target is DEQUANTIZE else None


def _activation(node: Node) -> ActivationQuant:
    scale: Any = node.args[1]
    zero_point: Any = node.args[2]
    return ActivationQuant(name=node.name, scale=float(np.float32(scale)), zero_point=int(zero_point))


def _check_groups(graph: GraphModule) -> None:
    """Check that a deep copy kept its sites' groups inside the copy (a shared range must not leak outside)."""
    sites = set(activation_sites(graph))
    if any(peer not in sites for site in sites for peer in site.group):
        raise QuantizationError("a copied fake-quant graph shares ranges with its original")


def _node(value: Any) -> Node:
    if not isinstance(value, Node):
        raise QuantizationError(f"a graph node was expected, got {value!r}")
    return value


def _module(graph: GraphModule, node: Any) -> torch.nn.Module | None:
    return (
        graph.get_submodule(str(node.target)) if isinstance(node, Node) and node.op == "call_module" else None
    )


def _tensor(graph: GraphModule, node: Any) -> torch.Tensor:
    """Return the tensor behind a get_attr node."""
    target = str(_node(node).target)
    owner, _, name = target.rpartition(".")
    value = getattr(graph.get_submodule(owner) if owner else graph, name)
    if not isinstance(value, torch.Tensor):
        raise QuantizationError(f"{target!r} is not a tensor")
    return value
