"""Open a model file by its kind."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Final

from edgeft.errors import ModelError
from edgeft.inspection.analysis import Precisions
from edgeft.inspection.records import Graph, Inspection

FORMATS: Final = {".onnx": "onnx", ".xml": "openvino", ".tflite": "tflite"}


def inspect(path: Path | str) -> Inspection:
    """Read a model file, whoever made it, without running it.

    Args:
        path: An .onnx, OpenVINO .xml (its .bin beside it) or .tflite file.

    Raises:
        ModelError: There is no such file, it is of another kind, or it is damaged.
        MissingDependencyError: The package that reads .tflite files is not installed.
    """
    path = Path(path)
    name = FORMATS.get(path.suffix.lower())
    if not path.is_file():
        raise ModelError(f"{path}: no such file", "give an .onnx, .xml or .tflite file, or a package")
    if name is None:
        raise ModelError(
            f"{path}: {path.suffix or 'a file without suffix'} is not known",
            f"allowed are {', '.join(FORMATS)}, and packages",
        )
    # Each needs a parser of its own, of which only one has to be installed.
    graph: Graph = importlib.import_module(f"edgeft.inspection.{name}_file").parse(path)
    precisions = Precisions(graph)
    weights: Counter[str] = Counter()
    for value in graph.values.values():
        weights[value.dtype] += value.stored_bytes
    sizes = {file.name: file.stat().st_size for file in graph.files}
    return Inspection(
        path=path,
        format=graph.format,
        version=graph.version,
        producer=graph.producer,
        files=sizes,
        size_bytes=sum(sizes.values()),
        inputs=graph.inputs,
        outputs=graph.outputs,
        ops=precisions.ops(),
        weights={dtype: stored for dtype, stored in weights.most_common() if stored},
        coverage=precisions.coverage(),
        metadata=graph.metadata,
    )


def damaged(path: Path, reason: object) -> ModelError:
    """Return the error for a file that is not what its name says, or is not all there."""
    return ModelError(
        f"{path}: damaged, truncated or not a {path.suffix} file ({reason})", "copy or export it again"
    )
