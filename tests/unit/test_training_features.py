"""Feature extraction: the backbone runs once, the cache is used again, the head alone learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from edgeft import recipe, training
from edgeft.errors import ModelError, WorkspaceError
from edgeft.training.features import FeatureSet

CONFIG = recipe.Finetune(method="feature-extraction", epochs=5, learning_rate=0.01, batch_size=8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3)
        )
        self.head = nn.Conv2d(8, 2, 1)
        self.runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return self.head(self.body(x).mean((2, 3), keepdim=True)).flatten(1)


def batches(samples: int = 40) -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(samples) % 2
    x = torch.randn(samples, 1, 6, 6, generator=generator) + y[:, None, None, None] * 1.5
    return DataLoader(TensorDataset(x, y), batch_size=8)


def fit_head(net: nn.Module, config: recipe.Finetune = CONFIG, **options):
    return training.fit_head(net, batches(), batches(16), config, **{"head": "head", "seed": 1, **options})


class KilledError(Exception):
    pass


def test_the_head_alone_learns_and_the_network_works_with_it() -> None:
    net, before = Net().train(), Net().state_dict()
    records, seconds = fit_head(net)
    after = net.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"} and seconds > 0
    assert not net.head._forward_pre_hooks
    assert records[-1].val_accuracy > 0.9
    logits, labels = training.predict(net.eval(), batches(16))
    best = max(record.val_accuracy for record in records)
    assert (logits.argmax(1) == labels).mean() == best


def test_the_backbone_runs_once_whatever_the_epochs() -> None:
    net = Net()
    fit_head(net)
    # 5 + 2 batches, and one more for each split to try the memory layout
    assert net.runs == 5 + 2 + 2


def test_a_killed_extraction_goes_on_from_its_cache_bit_for_bit(tmp_path: Path) -> None:
    undisturbed, killed, resumed = Net(), Net(), Net()
    records, _ = fit_head(undisturbed)

    def kill_in_third(message: str, *, done: int = 0, total: int = 0) -> None:
        if message.startswith("epoch 3/5"):
            raise KilledError

    path = tmp_path / "training.ckpt"
    with pytest.raises(KilledError):
        fit_head(killed, checkpoint=path, progress=kill_in_third)
    resumed_records, seconds = fit_head(resumed, checkpoint=path)
    assert resumed.runs == 0 and seconds > 0
    assert [r.val_loss for r in resumed_records] == [r.val_loss for r in records]
    assert torch.equal(undisturbed.head.weight, resumed.head.weight)


def test_features_of_another_backbone_are_not_taken_for_ours(tmp_path: Path) -> None:
    fit_head(Net(), checkpoint=tmp_path / "training.ckpt")
    (tmp_path / "training.ckpt").unlink()
    other = Net()
    with torch.no_grad():
        other.body[0].weight.mul_(2)
    fit_head(other, checkpoint=tmp_path / "training.ckpt")
    assert other.runs > 0


def test_a_broken_cache_is_named(tmp_path: Path) -> None:
    path = tmp_path / "features-train.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(WorkspaceError, match="features-train") as error:
        fit_head(Net(), checkpoint=tmp_path / "training.ckpt")
    assert "delete" in error.value.hint


def test_what_follows_the_head_would_be_lost_and_is_refused() -> None:
    class Scaled(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 3

    with pytest.raises(ModelError, match="comes after the layer 'head'"):
        fit_head(Scaled())
    with pytest.raises(ModelError, match="no layer 'classifier'"):
        fit_head(Net(), head="classifier")


def test_dropout_goes_before_the_head() -> None:
    plain, dropped = Net(), Net()
    fit_head(plain)
    fit_head(dropped, CONFIG.model_copy(update={"dropout": 0.5}))
    assert not torch.equal(plain.head.weight, dropped.head.weight)


def test_rare_classes_are_drawn_as_often() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    found = FeatureSet(torch.arange(100.0)[:, None], labels)
    loader = found.loader(10, 0, shuffle=True, imbalance="weighted-sampling")
    drawn = torch.cat([y for _, y in loader])
    assert len(drawn) == 100 and 35 <= int(drawn.sum()) <= 65
