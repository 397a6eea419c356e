"""LiteRT / TensorFlow Lite: a .tflite whose input and output have the profile's type, read back against the program."""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from edgeft import extras
from edgeft.errors import ExportError
from edgeft.exporters import stored_weights, tflite_weights
from edgeft.exporters.check import FileLayer, check_layers
from edgeft.exporters.float_islands import shield_float_layers
from edgeft.exporters.products import FileProduct
from edgeft.exporters.stored_weights import IntegerWeight
from edgeft.exporters.tflite_finish import finish
from edgeft.target import TargetProfile
from edgeft.types import QuantCoverage, QuantModel, TensorSpec, example_inputs

_MAC_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL", "CONV_3D")
_DTYPES = {np.int8: "int8", np.uint8: "uint8", np.float32: "float32", np.int32: "int32"}


def write(
    model: QuantModel, profile: TargetProfile, path: Path
) -> tuple[QuantCoverage, TensorSpec, TensorSpec]:
    """Write `model` to `path` and check the file. Returns and raises as `exporters.onnx.write`."""
    extras.require("litert_torch", f"target {profile.id}")
    example = example_inputs(model.preprocessing, profile.export.batch)
    layout = profile.export.layout if model.preprocessing.kind == "image" else "nk"
    with tempfile.TemporaryDirectory(prefix="edgeft-") as scratch:
        program = Path(scratch) / "program.pt2"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _translatable(model)
            torch.export.save(torch.export.export(graph, (example,)), program)
        converter().convert(
            program=str(program),
            output=str(path),
            shape=list(example.shape),
            dtype=model.preprocessing.input_dtype,
            layout=layout,
            quantized=model.scheme == "int8",
        )
    if model.scheme in ("float16", "int8-weights"):
        tflite_weights.store_weights(model, path)
    if profile.precision.granularity == "per-tensor":
        tflite_weights.merge_scales(path)
    finish(path, model, dtype=profile.export.io_dtype)
    file = _File(path)
    return check(model, path), file.spec("input", layout), file.spec("output", "nk")


def _translatable(model: QuantModel) -> torch.fx.GraphModule:
    """Return the program as the converter leaves its numbers alone."""
    if model.scheme == "int8":
        return shield_float_layers(model.program)
    if model.scheme == "float32":
        return model.program
    program = model.program
    if model.scheme == "int8-weights":
        program = stored_weights.with_float_weights(program)
    return stored_weights.keep_factors_apart(program)


def check(model: QuantModel, path: Path) -> QuantCoverage:
    """Read a .tflite back and require that its numbers are the program's. Raises `ExportError`."""
    graph = _File(path)
    graph.check_pools()
    layers: list[FileLayer] = []
    products: list[FileProduct] = []
    float_ops: list[str] = []
    for index, op in enumerate(graph.ops):
        if op["op_name"] in _MAC_OPS:
            layer, product = graph.layer(index), graph.product(index)
            if product is not None:
                products.append(product)
            elif layer is None:
                float_ops.append(f"{op['op_name']}_{index}")
            else:
                layers.append(layer)
    if model.scheme == "float16":
        return stored_weights.check_halves(model, graph.halves(), float_ops, file=path.name)
    if model.scheme == "int8-weights":
        return stored_weights.check_integers(model, graph.stored_integers(), float_ops, file=path.name)
    if not model.layers:
        return QuantCoverage(mac_ops=len(float_ops), int8_mac_ops=0, float_ops=tuple(float_ops))
    return check_layers(
        model,
        layers,
        float_ops,
        graph.activations(),
        file=path.name,
        products=products,
        islands=graph.float_islands(),
    )


class _File:
    """A .tflite opened without delegates, for reading its ops and constants."""

    def __init__(self, path: Path) -> None:
        module = extras.load("ai_edge_litert.interpreter", "the check of a .tflite file")
        try:
            self._interpreter: Any = module.Interpreter(
                str(path),
                num_threads=1,
                experimental_op_resolver_type=module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"{path.name}: LiteRT refuses the file: {error}") from error
        self.ops: list[dict[str, Any]] = self._interpreter._get_ops_details()
        self._tensors = {t["index"]: t for t in self._interpreter.get_tensor_details()}
        self._constants: set[int] = set(self._tensors) - {int(i) for op in self.ops for i in op["outputs"]}
        self._constants -= {int(d["index"]) for d in self._interpreter.get_input_details()}

    def spec(self, which: str, layout: Any) -> TensorSpec:
        """Return the spec of the only input or output."""
        details = getattr(self._interpreter, f"get_{which}_details")()[0]
        scale, zero_point = details["quantization"]
        return TensorSpec(
            name=details["name"],
            shape=tuple(int(n) for n in details["shape"]),
            dtype=_DTYPES[details["dtype"]],  # type: ignore[arg-type]
            layout=layout,
            scale=float(scale),
            zero_point=int(zero_point),
        )

    def activations(self) -> list[tuple[float, int]]:
        """Return (scale, zero point) of every int8 tensor that is computed or fed."""
        found = []
        for index, tensor in self._tensors.items():
            if tensor["dtype"] is np.int8 and index not in self._constants:
                found.append(_qparams(tensor))
        return found

    def halves(self) -> list[Any]:
        """Return the fp16 constants."""
        constants = [self._tensors[index] for index in sorted(self._constants)]
        return [self._interpreter.get_tensor(t["index"]) for t in constants if t["dtype"] is np.float16]

    def stored_integers(self) -> list[IntegerWeight]:
        """Return the int8 constants behind a DEQUANTIZE, one for each MAC op that reads it."""
        stored = {
            int(op["outputs"][0]): int(op["inputs"][0]) for op in self.ops if op["op_name"] == "DEQUANTIZE"
        }
        found = []
        for index, op in enumerate(self.ops):
            for tensor in {stored[int(i)] for i in op["inputs"] if int(i) in stored} & self._constants:
                if op["op_name"] in _MAC_OPS and self._tensors[tensor]["dtype"] is np.int8:
                    parameters = self._tensors[tensor]["quantization_parameters"]
                    values = self._interpreter.get_tensor(tensor)
                    axis = int(parameters["quantized_dimension"])
                    name = f"{op['op_name']}_{index}"
                    found.append(tflite_weights.read_weight(values, self._scales(tensor), axis, name))
        return found

    def float_islands(self) -> list[str]:
        """Return the ops other than MACs that compute on floats."""
        apart = (*_MAC_OPS, "QUANTIZE", "DEQUANTIZE", "DELEGATE")
        return [
            f"{op['op_name']}_{index}"
            for index, op in enumerate(self.ops)
            if op["op_name"] not in apart
            and any(
                self._tensors[int(i)]["dtype"] is np.float32 for i in op["outputs"] if int(i) in self._tensors
            )
        ]

    def check_pools(self) -> None:
        """Raise `ExportError` for a pooling op whose input and output scales differ: its kernel would ignore it."""
        for index, op in enumerate(self.ops):
            if op["op_name"] in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
                source, sink = self._tensors[int(op["inputs"][0])], self._tensors[int(op["outputs"][0])]
                if source["dtype"] is np.int8 and _qparams(source) != _qparams(sink):
                    raise ExportError(
                        f"{op['op_name']}_{index}: input and output are quantized differently, the kernel takes one",
                        "this is a defect of edgeft: please report it with the model's source",
                    )

    def layer(self, index: int) -> FileLayer | None:
        """Return op `index` in the contract's layout, or None if it computes in float."""
        op = self.ops[index]
        inputs = [int(i) for i in op["inputs"]]
        # A transposed convolution lists its output shape first: (shape, weight, data, bias).
        data, weight = (2, 1) if op["op_name"] == "TRANSPOSE_CONV" else (0, 1)
        source, kernel = self._tensors[inputs[data]], self._tensors[inputs[weight]]
        if source["dtype"] is not np.int8 or kernel["dtype"] is not np.int8:
            return None
        if inputs[weight] not in self._constants:
            return None  # two activations multiplied
        values = self._interpreter.get_tensor(inputs[weight])
        if op["op_name"] == "DEPTHWISE_CONV_2D":  # (1, kH, kW, O) -> (O, 1, kH, kW)
            values = values.transpose(3, 0, 1, 2)
        elif values.ndim == 4:  # (O, kH, kW, I) -> (O, I, kH, kW)
            values = values.transpose(0, 3, 1, 2)
        has_bias = len(inputs) > 2 and inputs[2] >= 0 and data == 0
        scale, zero_point = _qparams(source)
        return FileLayer(
            name=f"{op['op_name']}_{index}",
            weight=values,
            weight_scale=self._scales(inputs[weight]),
            bias=self._interpreter.get_tensor(inputs[2]) if has_bias else None,
            input_scale=scale,
            input_zero_point=zero_point,
            weight_zero_points=np.asarray(kernel["quantization_parameters"]["zero_points"]),
            bias_scale=self._scales(inputs[2]) if has_bias else None,
        )

    def product(self, index: int) -> FileProduct | None:
        """Return op `index` where it multiplies two int8 activations, else None."""
        op = self.ops[index]
        if op["op_name"] != "BATCH_MATMUL":
            return None
        factors = [int(i) for i in op["inputs"]]
        if any(i in self._constants or self._tensors[i]["dtype"] is not np.int8 for i in factors):
            return None
        left, right = (_qparams(self._tensors[i]) for i in factors)
        return FileProduct(name=f"{op['op_name']}_{index}", left=left, right=right)

    def _scales(self, index: int) -> Any:
        return np.asarray(self._tensors[index]["quantization_parameters"]["scales"], np.float32)


def _qparams(tensor: dict[str, Any]) -> tuple[float, int]:
    parameters = tensor["quantization_parameters"]
    if len(parameters["scales"]) != 1:
        raise ExportError(f"tensor {tensor['name']!r}: expected one scale, got {len(parameters['scales'])}")
    return float(parameters["scales"][0]), int(parameters["zero_points"][0])


class _Converter:
    """The converter process: started once, fed one program after the other."""

    def __init__(self) -> None:
        # A file, not a pipe: nobody reads it before the end, and a full pipe would block the converter.
        self._errors: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgeft.exporters.litert_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        atexit.register(self._process.kill)

    def convert(self, **request: Any) -> None:
        """Convert one program; see `litert_worker.convert`. Raises `ExportError`."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ExportError("the LiteRT converter has no pipes")
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            reply = stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            converter.cache_clear()
            self._process.wait()
            self._errors.seek(0)
            lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
            raise ExportError(
                f"litert-torch cannot convert the program: {lines[-1] if lines else 'no message'}"
            )


@functools.cache
def converter() -> _Converter:
    """Return the running converter process; the first call starts it and returns before it has imported."""
    return _Converter()
