"""Whether `example.py` gives edgeft's own answers where nothing is installed but numpy, Pillow and the one runtime.

Usage::

    python bench/example_check.py runs/weather4/packages/* --data bench/data/weather4/test [--samples 100]

For each package a fresh virtual environment gets numpy, Pillow and the runtime, in the versions installed here,
and a copy of the package reads and classifies pictures there, by the functions of its own `example.py`. Beside it
edgeft decodes the same pictures and runs the same file. Pictures are taken at equal distances from all below
`--data`; where their folders are called like the package's classes, accuracy is told too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edgeft import measure, package
from edgeft.data.folders import IMAGE_SUFFIXES
from edgeft.preprocessing import ImagePreprocessing

_DISTRIBUTIONS = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "litert": "ai-edge-litert",
    "tflm": "tflite-micro",
}
_NEEDED = ("numpy", "pillow")
# Runs in the fresh environment. The pictures' paths come as JSON, the logits go to a file.
_CLASSIFY = """
import json, sys
from pathlib import Path
import numpy as np
sys.dont_write_bytecode = True
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
from example import Model, load_sample
model = Model(folder)
pictures = json.loads(Path(sys.argv[2]).read_text())
np.save(sys.argv[3], np.concatenate([model(load_sample(path, folder)) for path in pictures]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare example.py in a fresh environment with edgeft.")
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--data", required=True, type=Path, help="folder of pictures, at any depth")
    parser.add_argument("--samples", type=int, default=100)
    chosen = parser.parse_args()
    pictures = _pictures(chosen.data, chosen.samples)
    table = Table(
        "package",
        "runtime",
        "installed there",
        "pictures",
        "same class",
        "largest difference [LSB]",
        "accuracy",
    )
    apart = False
    for folder in chosen.packages:
        row, same = _check(package.read(folder), pictures)
        apart |= not same
        table.add_row(f"{folder.resolve().parents[1].name}/{folder.name}", *row)
    Console(width=160).print(table)
    sys.exit(int(apart))


def _pictures(folder: Path, count: int) -> list[Path]:
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if len(found) < count:
        sys.exit(f"{folder}: {len(found)} pictures, {count} are asked for")
    return [found[index] for index in np.linspace(0, len(found) - 1, count).round().astype(int)]


def _check(made: package.Package, pictures: list[Path]) -> tuple[list[str], bool]:
    """Return a row of the table, and whether every picture got the same class."""
    picture = made.preprocessing
    if not isinstance(picture, ImagePreprocessing):
        sys.exit(f"{made.source}: takes no pictures")
    inputs = picture.normalize(np.stack([picture.decode(path) for path in pictures]))
    expected, _ = measure.predict(made.artifact, made.profile, inputs)
    logits, installed = _run_alone(made, pictures)
    same = logits.argmax(1) == expected.argmax(1)
    known = {label: index for index, label in enumerate(made.labels)}
    truth = [known.get(path.parent.name) for path in pictures]
    right = [label == answer for label, answer in zip(truth, logits.argmax(1), strict=True)]
    accuracy = "-" if None in truth else f"{np.mean(right):.1%}"
    row = [
        made.profile.runtime.name,
        ", ".join(installed),
        str(len(pictures)),
        f"{int(same.sum())}/{len(same)}",
        f"{float(np.abs(logits - expected).max() / made.lsb):.3g}",
        accuracy,
    ]
    return row, bool(same.all())


def _run_alone(made: package.Package, pictures: list[Path]) -> tuple[Any, list[str]]:
    """Return the logits (N, K) that a copy of the package gives in a fresh environment, and what is in that."""
    with tempfile.TemporaryDirectory(prefix="edgeft-example-") as scratch:
        base = Path(scratch)
        shutil.copytree(made.folder, base / "package")
        venv.create(base / "venv", with_pip=True)
        python = str(base / "venv" / "bin" / "python")
        wanted = [
            f"{name}=={metadata.version(name)}"
            for name in (*_NEEDED, _DISTRIBUTIONS[made.profile.runtime.name])
        ]
        _call([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])
        (base / "pictures.json").write_text(json.dumps([str(path.resolve()) for path in pictures]))
        arguments = ["package", "pictures.json", "logits.npy"]
        _call([python, "-c", _CLASSIFY, *(str(base / name) for name in arguments)])
        listed = _call([python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"])
        names = sorted(
            each["name"] for each in json.loads(listed) if each["name"] not in ("pip", "setuptools")
        )
        return np.load(base / "logits.npy"), names


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} ...: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
