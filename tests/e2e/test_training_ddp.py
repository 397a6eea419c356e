"""Training in two processes by torchrun: the same call, the result of a single one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import hashlib, json, os, sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from edgeft import recipe, training

torch.set_num_threads(1)
pixels, labels = load_digits(return_X_y=True)
pixels = (pixels / 16).astype(np.float32)


class Rows:
    def __init__(self, part):
        self.rows, self.labels = pixels[part], labels[part]

    def __len__(self):
        return len(self.labels)

    def inputs(self, indices):
        return self.rows[indices]


def loader(part, **options):
    return training.loader(Rows(part), None, batch_size=32, seed=5, **options)


torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 10))
folder = Path(sys.argv[1])
rank = os.environ.get("RANK", "0")
config = recipe.Finetune(epochs=6, learning_rate=3e-3, ema_decay=0.9, unfreeze_every=1, imbalance="weighted-loss")
told = []
records = training.fit(
    net, loader(slice(0, 1200), shuffle=True), loader(slice(1200, None)), config, seed=5,
    head="4", blocks=[("0", "1")], checkpoint=folder / f"rank{rank}" / "training.ckpt",
    progress=lambda message, **_: told.append(message),
)
logits, y = training.predict(net, loader(slice(1200, None)))
state = b"".join(tensor.numpy().tobytes() for tensor in net.state_dict().values())
(folder / f"rank{rank}.json").write_text(json.dumps({
    "weights": hashlib.sha256(state).hexdigest(),
    "accuracy": float((logits.argmax(1) == y).mean()),
    "samples": len(y),
    "epochs": [record.val_accuracy for record in records],
    "told": len(told),
}))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(SCRIPT)
    return path


def train(script: Path, folder: Path, processes: int) -> list[dict]:
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(script: Path, tmp_path: Path) -> None:
    (alone,) = train(script, tmp_path / "one", 1)
    first, second = train(script, tmp_path / "two", 2)
    assert first["weights"] == second["weights"] and first["epochs"] == second["epochs"]
    assert first["samples"] == alone["samples"] == 597, "evaluation afterwards sees every sample"
    assert first["accuracy"] == pytest.approx(max(first["epochs"]), abs=1e-9), "validation is summed up"
    assert alone["accuracy"] > 0.85
    assert first["accuracy"] == pytest.approx(alone["accuracy"], abs=0.02)
    assert (tmp_path / "two" / "rank0" / "training.ckpt").is_file()
    assert not (tmp_path / "two" / "rank1").exists(), "the first process alone writes and tells"
    assert first["told"] and not second["told"]
