"""A whole run whose files take raw pixels: pruned to a size, quantized, packaged, and asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import digits_recipe, run_edgeft
from PIL import Image

from edgeft import package


@pytest.mark.slow
def test_a_run_with_embedded_preprocessing(tmp_path: Path):
    recipe = tmp_path / "digits.toml"
    text = digits_recipe(targets=("cpu-onnxruntime",), finetune="epochs = 3", quantize="epochs = 1")
    text = text.replace("[prune]\n", "[prune]\nbudget = { size = 0.8 }\n")
    recipe.write_text(text + '\n[export]\npreprocess = "embedded"\n')
    done = run_edgeft("run", recipe, cwd=tmp_path, timeout=600)
    assert done.returncode in (0, 1), done.stderr
    (workspace,) = (tmp_path / "runs").iterdir()
    report = json.loads((workspace / "report.json").read_text())
    for result in report["targets"]:
        assert result["parity"]["agreement"] >= 0.99
        for file in ("artifact", "baseline"):
            assert [source["dtype"] for source in result[file]["inputs"]] == ["uint8"]
    assert report["data"]["preprocessing"]["embedded"] is True
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    picture = tmp_path / "picture.png"
    Image.fromarray(pixels).save(picture)
    for folder in sorted((workspace / "packages").iterdir()):
        made = package.read(folder)
        assert made.manifest["runtime"]["mac_precision"] == {"int8": made.artifact.coverage.mac_ops}
        assert np.array_equal(made.golden_inputs, made.golden_inputs.astype(np.uint8))
        (own,) = package.predict(made, [str(picture)], top=1)
        alone = subprocess.run(
            [sys.executable, str(folder / "example.py"), str(picture)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert alone.stdout.split()[1] == own.labels[0]
