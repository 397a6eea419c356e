"""A Keras file as a torch network: a `torch.fx.GraphModule` of plain torch layers, NCHW in, logits out.

Convolutions and batch norms stay the ordinary modules that pruning, batch-norm folding and quantization know,
under their Keras names. What differs between the frameworks is settled here once: the order of axes, "same"
padding (kept exactly, for the size of the input), the order of a flattened map, and the softmax at the end, which
edgeft has in its loss.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from edgeft.errors import ModelError
from edgeft.models import keras_files, keras_layers
from edgeft.models.keras_files import KerasFile
from edgeft.models.keras_layers import LAYERS, Call, activation_name

_MERGES = ("Add", "Concatenate", "Multiply")
_SHAPES = ("Flatten", "Reshape")
# Augmentation inside the model: active in Keras's training only.
_TRAINING_ONLY = (
    "ActivityRegularization", "GaussianDropout", "GaussianNoise", "RandomBrightness", "RandomContrast", "RandomFlip",
    "RandomRotation", "RandomTranslation", "RandomZoom",
)  # fmt: skip
_KEEPS_ORDER = ("Activation", "BatchNormalization", "Dropout", "LeakyReLU", "ReLU", "Rescaling")


@dataclass(frozen=True, slots=True, kw_only=True)
class KerasNetwork:
    """A converted network.

    `input_shape` is (C, H, W) or (F,). `mean` and `std` (per channel, in units of 0..1) are what the file's own
    scaling behind its input amounts to; that layer is then no longer in `module`. Both are empty if it has none.
    """

    module: fx.GraphModule
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


def input_shape(file: KerasFile, size: int | None = None) -> tuple[int, ...]:
    """Return the input's shape as (C, H, W) or (F,).

    Args:
        file: The Keras model.
        size: Height and width instead of the file's.

    Raises:
        ModelError: The file leaves the size open and none is given, or the input is no image or row.
    """
    shape = list(_input_shape(file.config))
    if len(shape) == 3:
        height, width, channels = shape
        height, width = (size, size) if size else (height, width)
        if height is None or width is None:
            raise ModelError("the Keras model leaves its input size open", "set model.input_size")
        return (int(channels), int(height), int(width))
    if len(shape) == 1 and shape[0]:
        return (int(shape[0]),)
    raise ModelError(
        f"the Keras model takes inputs {tuple(shape)}; allowed are (height, width, channels) and (n,)"
    )


def convert(file: KerasFile, size: int | None = None) -> KerasNetwork:
    """Convert a Keras model layer by layer.

    Args:
        file: Architecture and weights.
        size: Height and width of the input instead of the file's.

    Raises:
        ModelError: A layer or a setting that has no exact counterpart; names the layer and its class.
    """
    shape = input_shape(file, size)
    builder = _Builder(file)
    result = builder.model(file.config, "", [builder.input(shape)])
    if len(result) != 1:
        raise ModelError(f"the Keras model has {len(result)} outputs; exactly 1 is supported")
    builder.graph.output(builder.as_keras(result[0]).node)
    module = fx.GraphModule(builder.root, builder.graph, class_name="KerasNetwork")
    mean, std = builder.input_scaling()
    return KerasNetwork(
        module=module.eval(), input_shape=shape, mean=mean, std=std, notes=tuple(builder.notes)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """A tensor on its way: its node, an example of it, and how it relates to Keras's order of axes."""

    node: fx.Node
    example: torch.Tensor
    flattened: tuple[int, ...] = ()
    """The map (C, H, W) that this vector was flattened from, where that matters."""
    is_input: bool = False
    """The network's input, or it after scaling that moves into the preprocessing."""


@dataclass(slots=True)
class _Builder:
    file: KerasFile
    graph: fx.Graph = field(default_factory=fx.Graph)
    root: nn.Module = field(default_factory=nn.Module)
    notes: list[str] = field(default_factory=list)
    scale: Any = None
    offset: Any = None

    def input(self, shape: tuple[int, ...]) -> _Value:
        return _Value(node=self.graph.placeholder("x"), example=torch.zeros(1, *shape), is_input=True)

    def model(self, config: dict[str, Any], prefix: str, inputs: list[_Value]) -> list[_Value]:
        """Add the layers of a model, nested ones too; return its outputs."""
        if config["class_name"] == "Sequential":
            (value,) = inputs
            entries = [e for e in keras_files.layers_of(config) if e["class_name"] != "InputLayer"]
            for index, entry in enumerate(entries):
                last = not prefix and index == len(entries) - 1
                (value,) = self.layer(entry, prefix, [value], last=last)
            return [value]
        inner = config["config"]
        outputs = _references(inner["output_layers"])
        values: dict[tuple[str, int], _Value] = {
            (name, 0): value
            for (name, _), value in zip(_references(inner["input_layers"]), inputs, strict=True)
        }
        waiting = [
            (entry, index, _sources(node))
            for entry in inner["layers"]
            for index, node in enumerate(entry.get("inbound_nodes", []))
        ]
        # Shared layers are listed once, with uses that may lie far behind: go round until all have run.
        while waiting:
            ready = [use for use in waiting if all(source in values for source in use[2])]
            if not ready:
                raise ModelError(f"the Keras model {inner['name']!r} uses layers that its file does not have")
            for entry, index, sources in ready:
                name = keras_files.name_of(entry)
                if (name, index) not in values:
                    last = not prefix and (name, index) in outputs
                    values[name, index] = self.layer(entry, prefix, [values[s] for s in sources], last=last)[
                        0
                    ]
            waiting = [use for use in waiting if use not in ready]
        return [values[reference] for reference in outputs]

    def layer(self, entry: dict[str, Any], prefix: str, inputs: list[_Value], *, last: bool) -> list[_Value]:
        """Add one use of a layer; `last` tells that it makes the network's output."""
        kind, path = entry["class_name"], f"{prefix}{keras_files.name_of(entry)}"
        if keras_files.is_model(entry):
            return self.model(entry, f"{path}.", inputs)
        call = self._call(kind, path, entry["config"], inputs)
        if kind in _TRAINING_ONLY:
            self.notes.append(f"{path} ({kind}) is left out: it acts in Keras's training only")
            return inputs
        if kind in ("Rescaling", "Normalization") and inputs[0].is_input:
            return [self._move_to_preprocessing(call, inputs[0])]
        try:
            if kind in _MERGES:
                return [self._merge(call, inputs)]
            if kind in _SHAPES:
                return [self._reshape(call, inputs[0])]
            return [self._plain(call, inputs[0], last=last)]
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise call.error(f"cannot be converted ({str(error).partition(chr(10))[0]})") from error

    def as_keras(self, value: _Value) -> _Value:
        """Return a flattened map in Keras's order of values; other values as they are."""
        if not value.flattened:
            return value
        value = self._add_module(value, "_order", nn.Unflatten(1, value.flattened))
        value = self._add_function(torch.permute, value, (0, 2, 3, 1))
        return replace(self._add_module(value, "_flatten", nn.Flatten(1)), flattened=())

    def input_scaling(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and std, per channel in units of 0..1, that do what the file's own scaling of 0..255 did."""
        if self.scale is None:
            return (), ()
        std = 1 / (255 * self.scale)
        return tuple(float(v) for v in -self.offset * std), tuple(float(v) for v in std)

    def _call(self, kind: str, path: str, config: dict[str, Any], inputs: list[_Value]) -> Call:
        call = Call(
            path=path,
            kind=kind,
            config=config,
            variables=self.file.variables.get(path, {}),
            shape=tuple(inputs[0].example.shape),
            flattened=inputs[0].flattened,
            keras_version=self.file.version,
        )
        known = (*LAYERS, *_MERGES, *_SHAPES, *_TRAINING_ONLY, "Normalization")
        if kind not in known:
            raise call.error(
                f"this class is custom or not supported; supported are {', '.join(sorted(known))}",
                "replace the layer in Keras, or rebuild the network in torch (model.source = 'file.py:build')",
            )
        if config.get("data_format") == "channels_first":
            raise call.error("data_format channels_first is not supported", "save it with channels_last")
        if len(inputs) != 1 and kind not in _MERGES:
            raise call.error(f"it has {len(inputs)} inputs; allowed is 1")
        return call

    def _plain(self, call: Call, value: _Value, *, last: bool) -> _Value:
        if call.kind == "Normalization":
            raise call.error("it is supported right behind the input only")
        if value.flattened and call.kind not in (*_KEEPS_ORDER, "Dense"):
            value = self.as_keras(value)
            call = replace(call, flattened=())
        layers = LAYERS[call.kind](call)
        if last:
            layers = self._logits(call, layers)
        flattened = value.flattened if call.kind in _KEEPS_ORDER else ()
        for suffix, layer in layers:
            value = self._add_module(value, call.path + suffix, layer)
        return replace(value, flattened=flattened)

    def _logits(self, call: Call, layers: keras_layers.Named) -> keras_layers.Named:
        """Drop the softmax at the end; turn one sigmoid unit into the two logits (0, z)."""
        activation = "softmax" if call.kind == "Softmax" else activation_name(call.config)
        if activation == "softmax":
            self.notes.append(f"the softmax at the end ({call.path}) is dropped: the network returns logits")
            return layers[:-1]
        if activation == "sigmoid" and call.kind == "Dense" and call.config["units"] == 1:
            dense = layers[0][1]
            if isinstance(dense, nn.Linear):
                self.notes.append(f"the sigmoid at the end ({call.path}) becomes two logits, 0 and its input")
                return [(layers[0][0], _two_logits(dense))]
        return layers

    def _move_to_preprocessing(self, call: Call, value: _Value) -> _Value:
        """Keep a scaling right behind the input as x * scale + offset, and out of the network."""
        channels = call.shape[1]
        if call.kind == "Rescaling":
            scale = np.broadcast_to(np.asarray(call.config["scale"], dtype=np.float64), channels)
            offset = np.broadcast_to(np.asarray(call.config["offset"], dtype=np.float64), channels)
        else:
            mean, variance = (_constant(call, name, channels) for name in ("mean", "variance"))
            # Keras: (x - mean) / max(sqrt(variance), 1e-7)
            scale = 1 / np.maximum(np.sqrt(variance), 1e-7)
            offset = -mean * scale
        first = self.scale is None
        self.offset = offset if first else self.offset * scale + offset
        self.scale = scale if first else self.scale * scale
        self.notes.append(f"{call.path} ({call.kind}) moved into the preprocessing")
        return value

    def _merge(self, call: Call, values: list[_Value]) -> _Value:
        orders = {value.flattened for value in values}
        if len(orders) > 1 or call.kind == "Concatenate":
            values = [self.as_keras(value) for value in values]
        ranks = {value.example.ndim for value in values}
        if len(ranks) > 1:
            raise call.error(f"its inputs have {sorted(ranks)} axes; allowed is one number of axes")
        nodes, examples = [v.node for v in values], [v.example for v in values]
        if call.kind == "Concatenate":
            dim = _torch_axis(int(call.config.get("axis", -1)), examples[0].ndim)
            return _Value(
                node=self.graph.call_function(torch.cat, (nodes, dim)), example=torch.cat(examples, dim)
            )
        op: Callable[[Any, Any], Any] = operator.add if call.kind == "Add" else operator.mul
        node = reduce(lambda a, b: self.graph.call_function(op, (a, b)), nodes)
        return _Value(node=node, example=reduce(op, examples), flattened=values[0].flattened)

    def _reshape(self, call: Call, value: _Value) -> _Value:
        shape = tuple(value.example.shape)
        target = None if call.kind == "Flatten" else _target_shape(call, shape)
        if target is None or len(target) == 1:
            if len(shape) == 2:
                return value
            matters = shape[1] > 1 and shape[2] * shape[3] > 1
            flat = self._add_module(value, call.path, nn.Flatten(1))
            return replace(flat, flattened=shape[1:] if matters else ())
        if len(target) != 3:
            raise call.error(f"it makes {target}; allowed are vectors and maps (height, width, channels)")
        height, width, channels = target
        if len(shape) == 4:
            value = self._add_function(torch.permute, value, (0, 2, 3, 1))
            value = self._add_module(value, f"{call.path}_flatten", nn.Flatten(1))
        else:
            value = self.as_keras(value)
        if height * width == 1:
            return self._add_module(value, call.path, nn.Unflatten(1, (channels, 1, 1)))
        value = self._add_module(value, call.path, nn.Unflatten(1, (height, width, channels)))
        return self._add_function(torch.permute, value, (0, 3, 1, 2))

    def _add_module(self, value: _Value, path: str, layer: nn.Module) -> _Value:
        name = path.replace(".", "_").replace("/", "_")
        known = getattr(self.root, name, None)
        # A shared layer is one module with several uses; helpers without weights just need a name of their own.
        if known is None:
            self.root.add_module(name, layer)
        elif not any(True for _ in layer.parameters()):
            name = f"{name}_{sum(n.startswith(name) for n, _ in self.root.named_children())}"
            self.root.add_module(name, layer)
        layer = self.root.get_submodule(name).eval()
        with torch.no_grad():
            example = layer(value.example)
        return _Value(node=self.graph.call_module(name, (value.node,)), example=example)

    def _add_function(self, function: Callable[..., Any], value: _Value, *args: Any) -> _Value:
        node = self.graph.call_function(function, (value.node, *args))
        return _Value(node=node, example=function(value.example, *args))


def _input_shape(config: dict[str, Any]) -> list[Any]:
    """Return the shape (without the batch) of a model's one input."""
    entries = keras_files.layers_of(config)
    first = entries[0]
    if config["class_name"] != "Sequential":
        inputs = _references(config["config"]["input_layers"])
        if len(inputs) != 1:
            raise ModelError(f"the Keras model has {len(inputs)} inputs; exactly 1 is supported")
        first = next(e for e in entries if keras_files.name_of(e) == inputs[0][0])
    shape = first["config"].get("batch_shape") or first["config"].get("batch_input_shape")
    if shape is None and keras_files.is_model(first):
        return _input_shape(first)
    shape = shape or config["config"].get("build_input_shape")
    if shape is None:
        raise ModelError(
            "the Keras model does not say what shape it takes", "build it in Keras before saving"
        )
    return list(shape[1:])


def _references(value: Any) -> list[tuple[str, int]]:
    """Return (layer, use) of ``["conv", 0, 0]`` or of a list of such."""
    items = [value] if value and isinstance(value[0], str) else value
    return [(str(item[0]), int(item[1])) for item in items]


def _sources(node: Any) -> list[tuple[str, int]]:
    """Return what one use of a layer takes: Keras 2 lists it, Keras 3 hides it in its call's arguments."""
    if isinstance(node, list):
        return _references(node)
    found: list[tuple[str, int]] = []

    def walk(part: Any) -> None:
        if isinstance(part, dict) and part.get("class_name") == "__keras_tensor__":
            name, use, _ = part["config"]["keras_history"]
            found.append((str(name), int(use)))
        elif isinstance(part, dict | list):
            for inner in part.values() if isinstance(part, dict) else part:
                walk(inner)

    walk(node["args"])
    walk(node.get("kwargs", {}))
    return found


def _target_shape(call: Call, shape: tuple[int, ...]) -> tuple[int, ...]:
    target = [int(size) for size in call.config["target_shape"]]
    if -1 in target:
        known = -int(np.prod(target))
        target[target.index(-1)] = int(np.prod(shape[1:])) // known
    return tuple(target)


def _torch_axis(axis: int, rank: int) -> int:
    """Turn an axis of (N, H, W, C) or (N, F) into one of (N, C, H, W) or (N, F)."""
    axis %= rank
    return axis if rank == 2 else {0: 0, 1: 2, 2: 3, 3: 1}[axis]


def _constant(call: Call, name: str, channels: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    given = call.config.get(name)
    values = call.variable(name) if given is None else np.asarray(given)
    return np.broadcast_to(values.astype(np.float64).reshape(-1), channels)


def _two_logits(dense: nn.Linear) -> nn.Linear:
    """Return the layer whose softmax is the sigmoid of `dense`: sigmoid(z) = softmax(0, z)[1]."""
    double = nn.Linear(dense.in_features, 2, dense.bias is not None)
    with torch.no_grad():
        for target, source in zip(double.parameters(), dense.parameters(), strict=True):
            target.copy_(torch.cat([torch.zeros_like(source), source]))
    return double
