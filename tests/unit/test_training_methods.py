"""The methods of the fine-tune stage, by the function that the pipeline calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from edgeft import stages
from edgeft.errors import ConfigError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.types import FloatModel


class Tiny(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width * 16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(self.two(self.one(x)), 1))


def batches(count: int, seed: int = 0) -> DataLoader:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.normal(0, 0.3, (count, 1, 8, 8)).astype(np.float32)
    images[labels == 0, :, :4] += 1
    images[labels == 1, :, 4:] += 1
    return DataLoader(TensorDataset(torch.from_numpy(images), torch.from_numpy(labels)), batch_size=8)


@pytest.fixture
def model() -> FloatModel:
    torch.manual_seed(0)
    preprocessing = ImagePreprocessing(size=8, resize=8, channels=1, mean=(0.0,), std=(1.0,))
    return FloatModel(module=Tiny().eval(), preprocessing=preprocessing, labels=("up", "down"))


def tune(model: FloatModel, **settings) -> FloatModel:
    return stages.finetune(model, batches(32), batches(16, seed=1), **{"epochs": 3, **settings})


def changed(before: FloatModel, after: FloatModel) -> set[str]:
    ours, theirs = before.module.state_dict(), after.module.state_dict()
    return {name.partition(".")[0] for name in ours if not torch.equal(ours[name], theirs[name])}


def test_fine_tuning_changes_all_or_the_last_blocks(model: FloatModel) -> None:
    original = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    assert changed(model, tune(model, head="head")) == {"one", "two", "head"}
    # Blocks and, where it is not given, the head are found by themselves.
    assert changed(model, tune(model, train_blocks=1)) == {"two", "head"}
    assert all(torch.equal(original[name], t) for name, t in model.module.state_dict().items())


def test_feature_extraction_changes_the_head_and_tells_its_times(model: FloatModel, tmp_path: Path) -> None:
    tuned = tune(model, method="feature-extraction", checkpoint=tmp_path / "training.ckpt")
    assert changed(model, tuned) == {"head"}
    results = tuned.history[-1].results
    assert results["feature_seconds"] > 0 and len(results["epochs"]) == 3
    assert results["val_accuracy"] == max(epoch["val_accuracy"] for epoch in results["epochs"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "training.ckpt", "training.csv", "features-train.safetensors", "features-val.safetensors"
    }  # fmt: skip


def test_retraining_knows_no_head(model: FloatModel) -> None:
    first = tune(model, method="retrain", head="head").module.state_dict()
    second = tune(model, method="retrain").module.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_teacher_of_another_width_is_followed(model: FloatModel) -> None:
    torch.manual_seed(1)
    teacher = Tiny(12)
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    settings = {"method": "distill", "teacher": teacher, "distill_weight": 1.0}
    logits = tune(model, **settings)
    features = tune(model, **settings, feature_weight=1.0)
    assert changed(logits, features) == {"one", "two", "head"}
    assert features.history[-1].config["teacher"] == {"source": "Tiny"}
    assert teacher.training and all(torch.equal(before[n], t) for n, t in teacher.state_dict().items())


def test_a_teacher_and_its_method_go_together(model: FloatModel) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        tune(model, teacher=Tiny())
    with pytest.raises(ConfigError, match="belong together"):
        tune(model, method="distill")
