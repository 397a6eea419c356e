"""Packages of networks that need no training: the brightest channel of a picture, linear layers on texts and rows."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import tiny_packages
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgeft.preprocessing import ImagePreprocessing, Preprocessing
from edgeft.types import TensorSpec

COLORS = ("red", "green", "blue")
SIZE = 8
PICTURES = ImagePreprocessing(size=SIZE, resize=SIZE, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)


def paint(path: Path, color: str, seed: int, *, jpeg: bool = False) -> Path:
    """Write a noisy picture whose mean is brightest in one channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(20, 160, (SIZE, SIZE + 3, 3))
    pixels[:, :, COLORS.index(color)] += 90
    Image.fromarray(pixels.astype(np.uint8)).save(path, format="JPEG" if jpeg else "PNG")
    return path


def paint_all(root: Path, per_color: int = 4, *, mistakes: int = 0) -> Path:
    """Write a folder of class folders; the first `mistakes` of each hold a picture of the next color."""
    for index, color in enumerate(COLORS):
        for number in range(per_color):
            shown = COLORS[(index + (number < mistakes)) % 3]
            paint(root / color / f"{number:03}.png", shown, seed=1000 * index + number)
    return root


def write_color_package(
    folder: Path,
    labels: tuple[str, ...] = COLORS,
    *,
    channels: tuple[int, int, int] = (0, 1, 2),
    name: str = "net",
) -> Path:
    """Write a package whose logits are the logarithms of the channels' means: not finite for a black picture.

    Args:
        folder: The package.
        labels: Names of the classes.
        channels: Which channel each class looks at; another order than 0, 1, 2 gives wrong answers.
        name: Of the graph: another name makes another file that gives the same answers.
    """
    order = numpy_helper.from_array(np.array(channels), "order")
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
        helper.make_node("Log", ["mean"], ["log"]),
        helper.make_node("Gather", ["log", "order"], ["logits"], axis=1),
    ]
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    return _write(folder, PICTURES, labels, "nchw", nodes, [order, axes], name)


def write_linear_package(folder: Path, preprocessing: Preprocessing, labels: tuple[str, ...]) -> Path:
    """Write a package of one linear layer without bias, for texts or rows; its weights depend on the shapes only."""
    shape = (preprocessing.input_shape[0], len(labels))
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["input"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["real", "weight"], ["logits"]),
    ]
    return _write(folder, preprocessing, labels, "nk", nodes, [numpy_helper.from_array(weight, "weight")])


def _write(
    folder: Path,
    preprocessing: Preprocessing,
    labels: tuple[str, ...],
    layout: str,
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    name: str = "net",
) -> Path:
    shape, dtype = (1, *preprocessing.input_shape), preprocessing.input_dtype
    kind = TensorProto.INT32 if dtype == "int32" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", kind, shape)],
        [
            helper.make_tensor_value_info(
                "logits", TensorProto.FLOAT, (1, 3 if layout == "nchw" else len(labels))
            )
        ],
        constants,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    model = folder.with_name(f"{folder.name}.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), model)
    result = tiny_packages.target_result("onnxruntime", [model])
    artifact = dataclasses.replace(
        result.artifact,
        inputs=(TensorSpec(name="input", shape=shape, dtype=dtype, layout=layout),),
        outputs=(TensorSpec(name="logits", shape=(1, len(labels)), dtype="float32", layout="nk"),),
    )
    golden = np.zeros((1, len(labels)), np.float32)
    tiny_packages.write(
        folder,
        dataclasses.replace(result, artifact=artifact),
        tiny_packages.any_host(),
        preprocessing=preprocessing,
        labels=labels,
        golden_inputs=np.ones(shape, dtype),
        golden_outputs=golden,
        reference_outputs=golden,
    )
    model.unlink()
    return folder
