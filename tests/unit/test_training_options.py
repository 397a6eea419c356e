"""Every knob of a training: optimizers, schedules, paces, averages, early stopping, weights, precision, device."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from edgeft import recipe, training
from edgeft.errors import ConfigError, MissingDependencyError, ModelError, WorkspaceError
from edgeft.training import checkpoint as files
from edgeft.training import optimization, precision, schedules
from edgeft.training.averaging import WeightAverage
from edgeft.training.groups import LearningPlan, dropout_rate
from edgeft.training.sampling import class_weights

BLOCKS = (("one",), ("two",))


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.one = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.two(self.one(x)).mean((2, 3))))


def batches(shuffle: bool = False, samples: int = 24, batch_size: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    y = (torch.arange(samples) % 3 == 0).long()
    x = torch.randn(samples, 1, 6, 6, generator=generator) + y[:, None, None, None] * 1.5
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=shuffle)


def fit(net: nn.Module, config: recipe.Training, **options):
    given = {"head": "head", "blocks": BLOCKS, "seed": 1, **options}
    return training.fit(net, batches(shuffle=True), batches(), config, **given)


def tune(**settings) -> recipe.Finetune:
    return recipe.Finetune(**{"epochs": 4, "learning_rate": 0.01, **settings})


class KilledError(Exception):
    pass


TEACHER = {"source": "builtin:digitsnet"}
OPTIONS = {
    "adam": {"optimizer": "adam"},
    "rmsprop": {"optimizer": "rmsprop"},
    "one-cycle": {"schedule": "one-cycle", "optimizer": "sgd"},
    "plateau": {"schedule": "reduce-on-plateau", "step_epochs": 1, "learning_rate": 0.3},
    "step": {"schedule": "step", "step_epochs": 1, "warmup_epochs": 0.5},
    "ema": {"ema_decay": 0.9},
    "unfreezing": {"unfreeze_every": 1, "block_lr_decay": 0.5},
    "norms": {"freeze_batch_norm": True, "dropout": 0.5},
    "weighted": {"imbalance": "weighted-loss"},
    "bf16": {"precision": "bf16"},
    "features": {"method": "distill", "teacher": TEACHER, "feature_weight": 0.5},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_training_is_an_undisturbed_one_under_every_option(tmp_path: Path, name: str) -> None:
    config = tune(**OPTIONS[name])
    options = {}
    if config.method == "distill":
        options = {"teacher": Net(6), "teacher_head": "head"}
    undisturbed, killed, resumed = Net(), Net(), Net()
    records = fit(undisturbed, config, **options)

    def kill_in_third(message: str, *, done: int = 0, total: int = 0) -> None:
        if message.startswith("epoch 3/4") and done < 9:
            raise KilledError

    checkpoint = tmp_path / "training.ckpt"
    with pytest.raises(KilledError):
        fit(killed, config, checkpoint=checkpoint, progress=kill_in_third, **options)
    torch.manual_seed(99)
    resumed_records = fit(resumed, config, checkpoint=checkpoint, **options)
    assert [(r.train_loss, r.val_loss, r.learning_rate) for r in resumed_records] == [
        (r.train_loss, r.val_loss, r.learning_rate) for r in records
    ]
    for key, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
    assert not torch.equal(undisturbed.head.weight, Net().head.weight)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_cycle_is_that_of_torch(optimizer: str) -> None:
    config = recipe.Training(optimizer=optimizer, schedule="one-cycle", epochs=4, learning_rate=0.2)
    parameter = nn.Parameter(torch.zeros(2, 2))
    make = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    reference = make([parameter], lr=0.2, **({"momentum": 0.9} if optimizer == "sgd" else {}))
    cycle = torch.optim.lr_scheduler.OneCycleLR(reference, max_lr=0.2, total_steps=20)
    ours = optimization.optimizer(LearningPlan(nn.Linear(2, 2), config), config)
    for step in range(20):
        optimization.set_pace(ours, schedules.factor(config, 5, step), schedules.momentum(config, 5, step))
        (theirs,), mine = reference.param_groups, ours.param_groups[0]
        assert mine["lr"] == pytest.approx(theirs["lr"], rel=1e-6)
        key = "momentum" if optimizer == "sgd" else "betas"
        assert mine[key] == pytest.approx(theirs[key])
        if step < 19:
            reference.step()
            cycle.step()


def test_step_and_plateau_multiply_where_they_say() -> None:
    step = recipe.Training(schedule="step", epochs=6, step_epochs=2, step_factor=0.5)
    assert [schedules.factor(step, 3, 3 * epoch) for epoch in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    plateau = recipe.Training(schedule="reduce-on-plateau", epochs=9, step_epochs=2, step_factor=0.5)
    losses = [5, 4, 4.5, 4.2, 4.1, 4.3, 3, 3.5]
    factors = [schedules.factor(plateau, 3, 0, losses[:done]) for done in range(9)]
    assert factors == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]
    constant = recipe.Training(schedule="constant", epochs=4, warmup_epochs=1)
    assert [schedules.factor(constant, 2, s) for s in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (tune(schedule="one-cycle", warmup_epochs=1), "finetune.warmup_epochs"),
        (recipe.Prune(epochs=3, warmup_epochs=3), "prune.warmup_epochs"),
        (recipe.Quantize(precision="bf16"), "quantize.precision"),
        (tune(unfreeze_every=4), "finetune.unfreeze_every"),
        (tune(feature_weight=1), "finetune.feature_weight"),
        (tune(method="retrain", train_blocks=1), "finetune.train_blocks"),
        (tune(method="feature-extraction", block_lr_decay=0.5), "finetune.block_lr_decay"),
        (tune(train_blocks=3), "has 2 blocks"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config: recipe.Training, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        fit(Net(), config)
    assert told in error.value.message and error.value.hint


def test_a_network_without_known_blocks_cannot_be_unfrozen_by_blocks() -> None:
    with pytest.raises(ConfigError, match="train_blocks: needs a network with a head and blocks"):
        fit(Net(), tune(train_blocks=1), blocks=())


def test_blocks_learn_the_slower_the_further_from_the_head() -> None:
    net = Net()
    plan = LearningPlan(net, tune(block_lr_decay=0.5, head_lr_multiplier=4, unfreeze_every=1), "head", BLOCKS)
    names = {id(p): name for name, p in net.named_parameters()}
    paces = {names[id(p)]: (group.multiplier, group.start) for group in plan.groups for p in group.parameters}
    assert paces["head.weight"] == (4, 0) and paces["two.0.weight"] == (1, 1)
    assert paces["one.0.weight"] == paces["one.1.bias"] == (0.5, 2)


def test_frozen_blocks_keep_weights_and_statistics_and_are_released_at_the_end() -> None:
    net, before = Net(), Net().state_dict()
    fit(net, tune(train_blocks=1))
    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("one."))
    assert not torch.equal(before["two.0.weight"], after["two.0.weight"])
    assert not torch.equal(before["two.1.running_mean"], after["two.1.running_mean"])
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_unfreezing_adds_a_block_at_a_time() -> None:
    net, learning = Net(), []
    net.register_forward_hook(
        lambda *_: (
            learning.append(tuple(b[0].weight.requires_grad for b in (net.one, net.two)))
            if torch.is_grad_enabled() and net.training
            else None
        )
    )
    fit(net, tune(unfreeze_every=1, epochs=3))
    assert learning == [(False, False)] * 3 + [(False, True)] * 3 + [(True, True)] * 3


def test_frozen_statistics_stand_still_while_weights_learn() -> None:
    net, before = Net(), Net().state_dict()
    fit(net, tune(freeze_batch_norm=True))
    assert torch.equal(net.one[1].running_mean, before["one.1.running_mean"])
    assert not torch.equal(net.one[1].weight, before["one.1.weight"])


def test_the_dropout_rate_holds_for_the_training_only() -> None:
    net, seen = Net(), set()
    net.drop.register_forward_hook(lambda layer, *_: seen.add(layer.p))
    fit(net, tune(epochs=1, dropout=0.7))
    assert seen == {0.7} and net.drop.p == 0.3
    with pytest.raises(ConfigError, match="no dropout layer"), dropout_rate(nn.Linear(2, 2), 0.5):
        pass


def test_the_average_follows_the_weights_and_swaps_in_and_out() -> None:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
        average = WeightAverage(layer, 0.5, buffers=True)
        expected = 0.0
        for step, value in enumerate((1.0, 2.0, 3.0), start=1):
            layer.weight.fill_(value)
            average.update()
            decay = min(0.5, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * value
    average.swap()
    assert layer.weight.item() == pytest.approx(expected)
    average.swap()
    assert layer.weight.item() == 3.0


def test_the_averaged_weights_are_validated_and_returned() -> None:
    plain, averaged = Net(), Net()
    config = tune(epochs=1, learning_rate=0.05)
    fit(plain, config)
    (record,) = fit(averaged, config.model_copy(update={"ema_decay": 0.999}))
    assert not torch.equal(plain.one[0].weight, averaged.one[0].weight)
    logits, labels = training.predict(averaged, batches())
    loss = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    assert loss == pytest.approx(record.val_loss, rel=1e-4)


def test_training_stops_early_and_does_not_go_on_when_called_again(tmp_path: Path) -> None:
    net = Net()
    config = recipe.Training(epochs=30, learning_rate=0.5, early_stopping=2, optimizer="sgd")
    records = fit(net, config, checkpoint=tmp_path / "c")
    scores = [(r.val_accuracy, -r.val_loss) for r in records]
    best = scores.index(max(scores))
    assert len(records) == best + 3 < 30
    logits, labels = training.predict(net, batches())
    assert (logits.argmax(1) == labels).mean() == records[best].val_accuracy
    assert fit(Net(), config, checkpoint=tmp_path / "c") == records


def test_rare_classes_weigh_more() -> None:
    labels = np.array([0, 0, 0, 2])
    weights = class_weights(labels, 3)
    assert weights == pytest.approx([2 / 3, 0, 2]) and weights[labels].mean() == pytest.approx(1)
    logits, y = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), torch.tensor([0, 2])
    ours = optimization.loss(logits, y, recipe.Training(), weights=torch.from_numpy(weights))
    rows = nn.functional.cross_entropy(logits, y, reduction="none")
    assert ours.item() == pytest.approx((rows[0] * 2 / 3 + rows[1] * 2).item() / (2 / 3 + 2))


def test_batches_that_are_not_drawn_as_asked_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="not drawn that way") as error:
        fit(Net(), tune(imbalance="weighted-sampling"))
    assert "weighted-loss" in error.value.hint


def test_every_epoch_is_a_line_of_the_log(tmp_path: Path) -> None:
    records = fit(Net(), tune(epochs=3), checkpoint=tmp_path / "training.ckpt")
    with (tmp_path / "training.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["epoch"]) for line in lines] == [0, 1, 2]
    assert [float(line["val_loss"]) for line in lines] == [r.val_loss for r in records]
    assert {line["precision"] for line in lines} == {"float32"}


class Sleeper(nn.Module):
    """Takes its time, but less under autocast."""

    def __init__(self, plain: float, reduced: float) -> None:
        super().__init__()
        self.plain, self.reduced = plain, reduced
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.reduced if torch.is_autocast_enabled("cpu") else self.plain)
        return self.layer(x + torch.rand(1))


@pytest.mark.parametrize(
    ("plain", "reduced", "steps", "gains"),
    [
        (0.05, 0.01, 2000, True),
        (0.05, 0.01, 100, False),
        (0.05, 0.047, 100_000, False),
        (0.01, 0.05, 9999, False),
    ],
)
def test_bf16_is_taken_where_it_saves_much(plain: float, reduced: float, steps: int, gains: bool) -> None:
    module = Sleeper(plain, reduced)
    before = module.layer.weight.clone()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    batch = (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
    assert precision.bf16_gains(module, batch, steps) is gains
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(module.layer.weight, before) and module.layer.weight.grad is None


def test_the_precision_of_the_first_epochs_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_gains", lambda *_: True)
    path = tmp_path / "training.ckpt"

    def kill_in_third(message: str, *, done: int = 0, total: int = 0) -> None:
        if message.startswith("epoch 3/4"):
            raise KilledError

    with pytest.raises(KilledError):
        fit(Net(), tune(), checkpoint=path, progress=kill_in_third)
    monkeypatch.undo()
    seen = set()
    net = Net()
    net.head.register_forward_hook(
        lambda layer, inputs, output: seen.add(output.dtype) if net.training else None
    )
    fit(net, tune(), checkpoint=path)
    assert seen == {torch.bfloat16}
    assert net.head.weight.dtype == torch.float32
    assert "bf16" in (tmp_path / "training.csv").read_text()


def test_features_of_a_wider_teacher_are_followed() -> None:
    teacher = Net(6).eval()
    config = tune(method="distill", teacher=TEACHER, feature_weight=5.0, epochs=6)
    plain = fit(Net(), config.model_copy(update={"feature_weight": 0.0}), teacher=teacher)
    net = Net()
    records = fit(net, config, teacher=teacher, teacher_head="head")
    assert records[0].train_loss > plain[0].train_loss + 0.5, "the distance counts"
    assert records[-1].train_loss < records[0].train_loss / 2, "and it is reduced"
    assert not net.head._forward_pre_hooks and not teacher.head._forward_pre_hooks
    with pytest.raises(ModelError, match="'classifier'"):
        fit(Net(), config, teacher=teacher, teacher_head="classifier")


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="'tpu' is unknown"):
        fit(Net(), tune(), device="tpu")
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(MissingDependencyError, match=absent) as error:
        fit(Net(), tune(), device=absent)
    assert error.value.exit_code == 5


def test_half_an_environment_of_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2"):
        fit(Net(), tune())


def test_predictions_of_token_batches() -> None:
    tokens, y = torch.arange(12, dtype=torch.int32).reshape(4, 3), torch.tensor([0, 1, 0, 1])
    net = nn.Sequential(nn.EmbeddingBag(12, 2)).eval()
    logits, labels = training.predict(net, [(tokens[:3], y[:3]), (tokens[3:], y[3:])])
    assert logits.shape == (4, 2) and labels.tolist() == [0, 1, 0, 1]
    with torch.no_grad():
        assert np.allclose(logits, net(tokens).numpy())


def test_a_checkpoint_of_an_older_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    torch.save({"version": 1, "records": []}, path)
    with pytest.raises(WorkspaceError, match="delete"):
        files.read(path, "")
