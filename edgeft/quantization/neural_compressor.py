"""The second engine: Intel Neural Compressor's static quantization, brought into the numeric contract.

Neural Compressor decides where values are quantized, and with which scales (its PT2E path: torchao's quantizer for
oneDNN's fused kernels, its own settings and `autotune`). Its numbers are kept, in the contract's spelling (DESIGN:
section 5): uint8 activations become int8 ones with the zero point 128 lower, weights of -128 become -127, biases move
onto their int32 grids. The result is read back like any Q/DQ program and takes the same exporters and checks.

One thing is added, and recorded by name. oneDNN's kernels may end in float (a convolution that is fused with the
addition after it, the logits), and Neural Compressor leaves them so; those of ONNX Runtime and LiteRT cannot, and run
the whole layer in float instead. Such an end gets a quantizer with Neural Compressor's own observer.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import ObserverBase

from edgeft import extras
from edgeft.errors import ConfigError, QuantizationError
from edgeft.quantization import contract
from edgeft.quantization.capture import capture, check_no_batch_norm, module_path
from edgeft.quantization.modes import allow_modes
from edgeft.quantization.operators import ADDS, INTEGER_MACS, group_tail
from edgeft.quantization.program import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE, QUANTIZE_WEIGHT, read_back
from edgeft.target import Numerics
from edgeft.types import FloatModel, Progress, QuantModel, StepRecord, example_inputs, silent

_PURPOSE = 'quantize.engine = "neural-compressor"'
# uint8 to int8: the same real values with the zero point this much lower.
_SHIFT = 128


def quantize(
    model: FloatModel,
    batches: Sequence[torch.Tensor],
    *,
    numerics: Numerics | None = None,
    evaluate: Callable[[GraphModule], float] | None = None,
    max_accuracy_drop: float | None = None,
    progress: Progress = silent,
) -> QuantModel:
    """Return the Q/DQ program that Neural Compressor makes of `model`.

    With its default static settings; or, where `evaluate` and `max_accuracy_drop` are given, with those that its
    `autotune` finds (symmetric or asymmetric activations, ranges by histogram or moving average). If none of its
    trials holds the drop, the best one is returned: the caller has to look.

    The last record of the result's history tells the settings, the trials and the quantizers that were added.

    Args:
        model: The float network.
        batches: Model inputs (N, C, H, W) to calibrate with, drawn from the training split only.
        numerics: Integer numbers of the target's kernels; the usual ones by default.
        evaluate: Returns the accuracy of a program on the validation split, 0..1.
        max_accuracy_drop: Largest allowed drop of that accuracy against the float network, 0..1.
        progress: Told before every calibration batch.

    Raises:
        MissingDependencyError: Neural Compressor is not installed.
        ModelError: torch.export cannot capture the model.
        ConfigError: Neural Compressor has no such numerics, or only one of `evaluate` and `max_accuracy_drop` is given.
        QuantizationError: Neural Compressor refuses the network, a batch norm could not be folded, or a number cannot
            be spelled as the contract wants it.
    """
    if (evaluate is None) != (max_accuracy_drop is None):
        raise ConfigError(f"{_PURPOSE}: evaluate and max_accuracy_drop are given together or not at all")
    if numerics not in (None, Numerics()):
        # Its symmetric uint8 activations have zero point 127, not the middle, and its weights the full range.
        raise ConfigError(
            f"{_PURPOSE} cannot make {numerics.name} numerics",
            'use quantize.engine = "edgeft" for this target',
        )
    tool = _load()
    started = time.monotonic()
    captured: Any = capture(model.module, example_inputs(model.preprocessing))
    check_no_batch_norm(captured)
    # What its own `export` leaves on a graph, and its entry points ask for.
    captured._exported, captured.dynamic_shapes = True, None
    added: list[tuple[str, ...]] = []  # one entry per trial

    def calibrate(prepared: GraphModule) -> None:
        added.append(_quantize_group_ends(prepared))
        with torch.inference_mode():
            for index, batch in enumerate(batches):
                progress(f"Neural Compressor, trial {len(added)}, batch {index + 1}")
                prepared(batch)

    try:
        with _quiet():
            if evaluate is None or max_accuracy_drop is None:
                converted = tool.quantize(captured, tool.get_default_static_config(), run_fn=calibrate)
            else:
                converted = _autotune(tool, captured, calibrate, evaluate, max_accuracy_drop)
    except (ValueError, RuntimeError) as error:
        raise QuantizationError(
            f"Neural Compressor cannot quantize {type(model.module).__name__}: {error}",
            'use quantize.engine = "edgeft"',
        ) from error
    (chosen,) = converted.qconfig.values()
    program = read_back(_into_contract(converted), model)
    record = StepRecord(
        name="neural-compressor",
        config={"act_sym": chosen.act_sym, "act_algo": chosen.act_algo},
        seed=0,
        seconds=time.monotonic() - started,
        versions=extras.versions("neural_compressor", "torch", "torchao"),
        results={"trials": len(added), "added_quantizers": list(added[-1])},
    )
    return dataclasses.replace(program, history=(*model.history, record))


def _autotune(
    tool: Any,
    captured: GraphModule,
    calibrate: Callable[[GraphModule], None],
    evaluate: Callable[[GraphModule], float],
    max_accuracy_drop: float,
) -> GraphModule:
    """Let Neural Compressor try its settings until one holds the drop; what is scored is the program in our numbers."""
    baseline = evaluate(captured)

    def score(candidate: GraphModule) -> float:
        if not hasattr(candidate, "qconfig"):  # its first question is about the float network
            return baseline
        return evaluate(_into_contract(copy.deepcopy(candidate)))

    if baseline <= 0:
        raise QuantizationError("the float network's accuracy is 0: there is nothing to hold")
    candidates = [tool.StaticQuantConfig.get_config_set_for_tuning()]  # one entry that expands to all trials
    # Its limit is relative to the float network.
    config = tool.TuningConfig(config_set=candidates, tolerable_loss=max_accuracy_drop / baseline)
    best: GraphModule = tool.autotune(captured, config, eval_fn=score, run_fn=calibrate)
    return best


def _quantize_group_ends(prepared: GraphModule) -> tuple[str, ...]:
    """Observe the ends of integer groups that were left in float, in place, and return the layers' names.

    A value that some of its readers take quantized is quantized for the others too, by the same observer.
    """
    added = []
    for head in list(prepared.graph.nodes):
        sources = [observer for node in head.all_input_nodes if (observer := _observer(prepared, node))]
        if head.target not in INTEGER_MACS | ADDS or not sources:
            continue
        tail = group_tail(head)
        observing = next((user for user in tail.users if _observer(prepared, user)), None)
        bare = [user for user in tail.users if not _observer(prepared, user)]
        if not bare:
            continue
        if observing is None:
            name = f"group_end_{tail.name}"
            # Not calibrated yet: a copy of any activation's observer is a fresh one with the same settings.
            prepared.add_submodule(name, copy.deepcopy(sources[0]))
            with prepared.graph.inserting_after(tail):
                observing = prepared.graph.call_module(name, (tail,))
            added.append(module_path(head))
        else:
            tail.append(observing)  # before all readers
        for user in bare:
            user.replace_input_with(tail, observing)
    prepared.recompile()
    return tuple(added)


def _into_contract(program: GraphModule) -> GraphModule:
    """Return a converted graph, changed in place, with its numbers spelled as the contract spells them."""
    for node in program.graph.nodes:
        if node.target in (QUANTIZE, DEQUANTIZE):
            node.args = (node.args[0], *_signed_activation(node))
        elif node.target in (QUANTIZE_WEIGHT, DEQUANTIZE_WEIGHT):
            axis, zero_points = node.args[3], _tensor(program, node.args[2])
            if axis != 0 or bool(zero_points.any()):
                raise QuantizationError(f"{node.name}: weights are not symmetric per output channel")
            node.args = (*node.args[:4], contract.WEIGHT_MIN, contract.WEIGHT_MAX, torch.int8)
    for node in list(program.graph.nodes):
        if _is_integer_mac(node):
            _move_onto_grids(program, node)
    program.recompile()
    allow_modes(program)
    program.eval()
    return program


def _signed_activation(node: Node) -> tuple[Any, ...]:
    """Return scale, zero point, bounds and type of an activation as int8."""
    values: Any = node.args[1:5]
    scale, zero_point, low, high = values
    if (low, high) != (0, 255):
        raise QuantizationError(f"{node.name}: activations in [{low}, {high}] where uint8 was asked for")
    real = torch.tensor([(low - zero_point) * scale, (high - zero_point) * scale])
    if not bool(torch.isfinite(real).all()):
        raise QuantizationError(f"an activation range is not finite: {real.tolist()} at {node.name}")
    zero_point -= _SHIFT
    smallest, _ = contract.activation_qparams(torch.zeros(1), torch.zeros(1))
    if scale < float(smallest):  # a dead activation: kernels want a scale in their multipliers' range
        scale, zero_point = (value.item() for value in contract.activation_qparams(*real))
    return scale, zero_point, contract.ACTIVATION_MIN, contract.ACTIVATION_MAX, torch.int8


def _is_integer_mac(node: Node) -> bool:
    sources = [value.target for value in node.args[:2] if isinstance(value, Node)]
    return node.target in INTEGER_MACS and sources == [DEQUANTIZE, DEQUANTIZE_WEIGHT]


def _move_onto_grids(program: GraphModule, node: Node) -> None:
    """Move a layer's float weight and bias onto their integer grids, and a dead channel's scale into range."""
    source, kernel = node.all_input_nodes[:2]
    quantize: Any = kernel.args[0]
    weight, scale = (_tensor(program, value) for value in quantize.args[:2])
    number: Any = source.args[1]
    input_scale = torch.tensor(number)
    bias_node = node.args[2] if len(node.args) > 2 else None
    bias = _tensor(program, bias_node).detach() if isinstance(bias_node, Node) else None
    with torch.no_grad():
        floor = contract.weight_scale(torch.zeros_like(weight), bias=bias, input_scale=input_scale)
        scale.copy_(torch.maximum(scale.float(), floor))
        s_x, s_w = float(input_scale), scale.numpy()
        grid = contract.quantize_weight(weight.detach().numpy(), s_w)
        weight.copy_(torch.from_numpy(contract.dequantize_weight(grid, s_w)))
    if bias is not None:
        integers = contract.quantize_bias(bias.numpy(), s_x, s_w)
        # Its own, since a layer that is called twice has two input scales.
        name = f"bias_of_{node.name}"
        program.register_buffer(name, torch.from_numpy(contract.dequantize_bias(integers, s_x, s_w)))
        with program.graph.inserting_before(node):
            node.update_arg(2, program.graph.get_attr(name))


def _observer(graph: GraphModule, node: Node) -> torch.nn.Module | None:
    """Return the activation observer that `node` calls, or None."""
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, ObserverBase) and node.all_input_nodes[0].op != "get_attr" else None


def _tensor(program: GraphModule, node: Any) -> torch.Tensor:
    value = operator.attrgetter(str(node.target))(program)
    if not isinstance(value, torch.Tensor):
        raise QuantizationError(f"{node.target!r} is not a tensor")
    return value


def _load() -> Any:
    """Import Neural Compressor. Raises `MissingDependencyError`."""
    with _quiet():
        return extras.load("neural_compressor.torch.quantization", _PURPOSE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Neural Compressor's progress, which it logs at INFO and WARNING, off the terminal."""
    logger = logging.getLogger("neural_compressor")
    filters = logger.filters[:]
    # Its import sets the level, so a filter is what lasts.
    logger.addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        yield
    finally:
        logger.filters[:] = filters
