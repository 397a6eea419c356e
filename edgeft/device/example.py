"""Run this package's model with numpy and its one runtime; pictures need Pillow, texts the tokenizers package.

Usage::

    python example.py              # the first golden input that came with the package
    python example.py picture.jpg  # a picture of your own; a text, or column=cell,column=cell, where it takes those

Everything about the model is read from the files beside this one: `manifest.json` (file, runtime, tensors),
`preprocess.json` (how a sample becomes an input) and `labels.txt`. Copy `Model` and the `load_...` function of your
kind of data into your program, or port them: that is all a device has to do.
"""

# ruff: noqa: T201 - a program on a device, which speaks by printing
from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Invoke = Callable[[Array], Array]
"""Feeds one batch in the file's own layout and dtype to the runtime and returns its first output."""


class Model:
    """The packaged model: preprocessed samples (N, ...) in, logits (N, K) float32 out.

    Args:
        folder: The package.

    Attributes:
        manifest: Contents of `manifest.json`.
        labels: Class names, in the order of the logits.
        scores_only: Whether nothing is known of the outputs (a model that was made elsewhere), not even whether they
            are logits or probabilities.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.labels: list[str] = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
        preprocess = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
        self.scores_only: bool = preprocess["kind"] == "array"
        self._input: dict[str, Any] = self.manifest["inputs"][0]
        self._output: dict[str, Any] = self.manifest["outputs"][0]
        self._invoke: Invoke = _open(folder / self.manifest["model"]["path"], self.manifest["runtime"])

    def __call__(self, inputs: Array) -> Array:
        """Return logits (N, K) float32 for preprocessed inputs (N, ...): float32, or int32 token ids."""
        batch = max(1, self._input["shape"][0])  # a dynamic batch is written as -1 and fed one by one
        logits = []
        for start in range(0, len(inputs), batch):
            chunk = inputs[start : start + batch]
            missing = batch - len(chunk)
            full = np.concatenate([chunk, np.repeat(chunk[-1:], missing, axis=0)]) if missing else chunk
            logits.append(self._run(full)[: len(chunk)])
        return np.concatenate(logits)

    def _run(self, inputs: Array) -> Array:
        if self._input["layout"] == "nhwc":
            inputs = inputs.transpose(0, 2, 3, 1)
        output = self._invoke(np.ascontiguousarray(quantize(inputs, self._input)))
        return dequantize(output, self._output)


def quantize(values: Array, spec: dict[str, Any]) -> Array:
    """Turn real values into what a tensor of the file holds: float32 as it is, else integers of its scale."""
    if spec["dtype"] in ("float32", "int32"):  # token ids are integers already
        return values.astype(spec["dtype"])
    limits = np.iinfo(spec["dtype"])
    steps = np.rint(values / np.float32(spec["scale"])) + spec["zero_point"]
    return np.asarray(np.clip(steps, limits.min, limits.max), dtype=spec["dtype"])


def dequantize(values: Array, spec: dict[str, Any]) -> Array:
    """Turn what a tensor of the file holds into real values, float32."""
    if spec["dtype"] == "float32":
        return values.astype(np.float32)
    return (values.astype(np.float32) - np.float32(spec["zero_point"])) * np.float32(spec["scale"])


def load_picture(path: Path, image: dict[str, Any]) -> Array:
    """Read a picture as the model was trained to see it.

    Args:
        path: Anything that Pillow reads.
        image: The key ``image`` of `preprocess.json`.

    Returns:
        One input (1, C, H, W), float32.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        # Phones store rotation as a flag; a viewer turns the picture, so must the model's eye.
        picture = ImageOps.exif_transpose(opened).convert("L" if image["channels"] == 1 else "RGB")
    ratio = image["resize"] / min(picture.size)
    width, height = (max(image["resize"], round(edge * ratio)) for edge in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling[image["interpolation"].upper()])
    pixels = np.asarray(picture, dtype=np.uint8).reshape(height, width, image["channels"])
    top, left = (height - image["size"]) // 2, (width - image["size"]) // 2
    pixels = pixels[top : top + image["size"], left : left + image["size"]]
    scaled = pixels.astype(np.float32)
    if not image.get("embedded"):  # else the network does this itself
        mean, std = np.float32(image["mean"]), np.float32(image["std"])
        scaled = (scaled / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def load_text(text: str, settings: dict[str, Any], tokenizer: Path) -> Array:
    """Turn a text into token ids as in training: cut and filled to the model's length.

    Args:
        text: Anything.
        settings: The key ``text`` of `preprocess.json`.
        tokenizer: The package's `tokenizer.json`.

    Returns:
        One input (1, T), int32.
    """
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    cut, fill = encoder.truncation or {}, encoder.padding or {}
    length, pad_id = settings["max_length"], settings["pad_id"]
    encoder.enable_truncation(length, direction=cut.get("direction", "right"))
    encoder.enable_padding(length=length, pad_id=pad_id, direction=fill.get("direction", "right"))
    return np.array([encoder.encode(text).ids], dtype=np.int32)


def load_row(row: dict[str, str], settings: dict[str, Any]) -> Array:
    """Turn a table's row (column -> cell) into features as in training.

    Args:
        row: Cells as text; columns that the model does not use are ignored.
        settings: The key ``table`` of `preprocess.json`.

    Returns:
        One input (1, F), float32: standardised numbers, and one feature per category.

    Raises:
        ValueError: A column is missing, or a cell of a numeric one holds no finite number.
    """
    features: list[float] = []
    for column in settings["columns"]:
        name = column["name"]
        cell = row.get(name, "").strip()
        if not cell:
            needed = ", ".join(other["name"] for other in settings["columns"])
            raise ValueError(f"column {name!r} is missing or empty; the model needs {needed}")
        if column["type"] == "numeric":
            features.append((_finite_number(name, cell) - column["mean"]) / column["std"])
        else:
            features += [float(cell == category) for category in column["categories"]]
    return np.array([features], dtype=np.float32)


def _finite_number(column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"column {column!r} holds {cell!r}; a finite number is needed")
    return value


def load_sample(sample: str, folder: Path) -> Array:
    """Read a sample given on the command line: the path of a picture or .npy array, a text, or ``column=cell,...``."""
    preprocess = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
    settings = preprocess[preprocess["kind"]]
    if preprocess["kind"] == "image":
        return load_picture(Path(sample), settings)
    if preprocess["kind"] == "text":
        return load_text(sample, settings, folder / settings["tokenizer"])
    if preprocess["kind"] == "array":  # a model that was made elsewhere: arrays as they are
        return np.asarray(np.load(sample), settings["dtype"]).reshape(1, *settings["shape"])
    cells = (cell.partition("=") for cell in sample.split(","))
    return load_row({name.strip(): value for name, _, value in cells}, settings)


def probabilities(logits: Array) -> Array:
    """Return the softmax over the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def _open(path: Path, runtime: dict[str, Any]) -> Invoke:
    """Open the model file with the settings it was measured under."""
    openers = {
        "onnxruntime": _open_onnxruntime,
        "openvino": _open_openvino,
        "litert": _open_litert,
        "tflm": _open_tflm,
        "qnn": _open_qnn,
        "torch-cuda": _open_torch,
    }
    if runtime["name"] not in openers:
        raise ValueError(f"manifest.json: runtime {runtime['name']!r} is not one of {', '.join(openers)}")
    return openers[runtime["name"]](path, runtime)


def _open_onnxruntime(path: Path, runtime: dict[str, Any]) -> Invoke:
    import onnxruntime

    providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    if runtime["device"] not in providers:
        raise ValueError(f"manifest.json: device {runtime['device']!r} is not one of {', '.join(providers)}")
    provider = providers[runtime["device"]]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime["threads"]
    options.inter_op_num_threads = 1
    for key, value in runtime["options"].items():
        if "." in key:  # the others are settings of the provider
            options.add_session_config_entry(key, value)
    if runtime["device"] == "cuda":
        onnxruntime.preload_dlls()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # A CUDA graph, which some are timed with, needs inputs and outputs bound to fixed places; the answers are the same.
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider], enable_fallback=0)
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} asked for, got {session.get_providers()}")
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0])


def _open_qnn(path: Path, runtime: dict[str, Any]) -> Invoke:
    """Open the file on Qualcomm's HTP; on x86 that is the vendor's simulator, which takes its time."""
    import onnxruntime
    import onnxruntime_qnn

    provider = "QNNExecutionProvider"
    onnxruntime.register_execution_provider_library(provider, onnxruntime_qnn.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {**runtime["options"], "backend_path": onnxruntime_qnn.get_qnn_htp_path()}
    options.add_provider_for_devices(devices, {**settings, "offload_graph_io_quantization": "0"})
    session = onnxruntime.InferenceSession(str(path), options, enable_fallback=0)
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0])


def _open_torch(path: Path, runtime: dict[str, Any]) -> Invoke:
    import torch
    from torch.export.passes import move_to_device_pass

    device = runtime["device"]
    program = move_to_device_pass(torch.export.load(path), device).module()

    def invoke(batch: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(program(torch.from_numpy(batch).to(device)).cpu().numpy())

    return invoke


def _open_openvino(path: Path, runtime: dict[str, Any]) -> Invoke:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    if model.is_dynamic():  # one sample at a time runs faster as a static shape, and was measured so
        shape = model.inputs[0].get_partial_shape()
        shape[0] = 1
        model.reshape(shape)
    settings = dict(runtime["options"])
    if runtime["device"] == "CPU":
        settings["INFERENCE_NUM_THREADS"] = str(runtime["threads"])
    compiled = core.compile_model(model, runtime["device"], settings)
    return lambda batch: np.array(compiled([batch])[compiled.output(0)])


def _open_litert(path: Path, runtime: dict[str, Any]) -> Invoke:
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:  # old boards have the same interpreter under its former name
        from tflite_runtime.interpreter import Interpreter, OpResolverType

    _require_cpu(runtime)
    resolvers = {
        "auto": OpResolverType.AUTO,
        "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        "reference": OpResolverType.BUILTIN_REF,
    }
    kernels = runtime["options"].get("kernels", "auto")
    if set(runtime["options"]) - {"kernels"} or kernels not in resolvers:
        raise ValueError(
            f"manifest.json: options {runtime['options']}; allowed is kernels = {sorted(resolvers)}"
        )
    interpreter = Interpreter(
        model_path=str(path), num_threads=runtime["threads"], experimental_op_resolver_type=resolvers[kernels]
    )
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    result = interpreter.get_output_details()[0]["index"]

    def invoke(batch: Array) -> Array:
        interpreter.set_tensor(source, batch)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(result))

    return invoke


def _open_tflm(path: Path, runtime: dict[str, Any]) -> Invoke:
    from tflite_micro.python.tflite_micro.runtime import Interpreter

    _require_cpu(runtime)
    # Twice what it took where it was measured: another version keeps more or less per operator.
    interpreter = Interpreter.from_file(str(path), arena_size=2 * runtime["arena_bytes"])

    def invoke(batch: Array) -> Array:
        interpreter.set_input(batch, 0)
        interpreter.invoke()
        return np.asarray(interpreter.get_output(0))

    return invoke


def _require_cpu(runtime: dict[str, Any]) -> None:
    if runtime["device"].lower() != "cpu":
        raise ValueError(
            f"manifest.json: {runtime['name']} runs on the CPU here, not on {runtime['device']!r}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Classify a sample, or the first golden input, and print the best classes."""
    folder = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Classify a sample with the packaged model.")
    help_ = "a picture's path, a text, or column=cell,... (default: the package's first golden input)"
    parser.add_argument("sample", nargs="?", help=help_)
    parser.add_argument("--top", type=int, default=5, help="how many classes to print (default: 5)")
    chosen = parser.parse_args(arguments)

    if chosen.sample is None:
        with np.load(folder / "golden.npz") as golden:
            inputs = golden["inputs"][:1]
    else:
        try:
            inputs = load_sample(chosen.sample, folder)
        except (OSError, ValueError) as error:
            parser.error(f"{chosen.sample}: {error}")

    model = Model(folder)
    scores = model(inputs)[0]
    if not model.scores_only:
        scores = probabilities(scores)
    for index in np.argsort(-scores)[: chosen.top]:
        print(f"{scores[index]:{'.6g' if model.scores_only else '7.2%'}}  {model.labels[index]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
