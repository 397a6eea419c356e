"""Compare the int8 files of ``resnet8-keras.toml`` with MLPerf Tiny's own int8 file, on the same test images.

Usage, after `edgeft run bench/recipes/resnet8-keras.toml`::

    python bench/reference_resnet8.py [runs/resnet8-keras]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from edgeft import data, extras, models
from edgeft import recipe as recipes
from edgeft.measure.statistics import tango_interval, wilson_interval
from edgeft.types import ImageSamples

_BENCH = Path(__file__).resolve().parent
_RECIPE = _BENCH / "recipes" / "resnet8-keras.toml"
_REFERENCE = _BENCH / "data" / "keras" / "ic_resnet8_int8.tflite"


def main() -> None:
    workspace = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/resnet8-keras")
    recipe = recipes.load(_RECIPE)
    template = models.default_preprocessing(recipe.model, base=_RECIPE.parent)
    manifest = json.loads((workspace / "stages" / "00-data" / "manifest.json").read_text(encoding="utf-8"))
    splits = data.from_manifest(manifest, recipe.task, template, base=_RECIPE.parent)
    reference = _reference_predictions(splits.test)
    labels = splits.test.labels
    right = reference == labels
    low, high = wilson_interval(int(right.sum()), len(right))
    print(f"reference: {right.mean():.2%} [{low:.2%}, {high:.2%}] of {len(right)} images")
    for path in sorted(workspace.glob("stages/05-measure-*/measured.json")):
        ours = np.array(json.loads(path.read_text(encoding="utf-8"))["accuracy"]["predictions"]) == labels
        only_reference, only_ours = int((right & ~ours).sum()), int((ours & ~right).sum())
        low, high = tango_interval(only_reference, only_ours, len(right))
        print(
            f"{path.parent.name.removeprefix('05-measure-')}: {ours.mean():.2%}, "
            f"drop against the reference {right.mean() - ours.mean():+.2%} [{low:+.2%}, {high:+.2%}]"
        )


def _reference_predictions(samples: ImageSamples) -> np.ndarray:
    """Return the reference file's classes; it takes pixels - 128 as int8, (1, 32, 32, 3)."""
    interpreter = extras.load("ai_edge_litert.interpreter", "the reference").Interpreter(str(_REFERENCE))
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    classes = np.empty(len(samples), dtype=np.int64)
    for index in range(len(samples)):
        pixels = samples.pixels(index).astype(np.int16) - 128
        interpreter.set_tensor(source, pixels.astype(np.int8)[None])
        interpreter.invoke()
        classes[index] = int(interpreter.get_tensor(sink).argmax())
    return classes


if __name__ == "__main__":
    main()
