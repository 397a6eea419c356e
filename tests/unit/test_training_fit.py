"""The loop: resuming bit for bit, the best epoch, modes, the teacher, the optimizer's groups, errors."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from edgeft import recipe, training
from edgeft.errors import DataError, ModelError, WorkspaceError
from edgeft.training import optimization, schedules
from edgeft.training.groups import LearningPlan


class Net(nn.Module):
    """Has what a resume could get wrong: batch norm statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.body(x)).flatten(1))


def batches(shuffle: bool = False, samples: int = 24) -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(samples) % 2
    x = torch.randn(samples, 1, 6, 6, generator=generator) + y[:, None, None, None] * 1.5
    return DataLoader(TensorDataset(x, y), batch_size=8, shuffle=shuffle)


CONFIG = recipe.Finetune(epochs=4, learning_rate=0.05, warmup_epochs=1.0)


def fit(net: nn.Module, config: recipe.Training = CONFIG, **options):
    # Shuffled by torch's own sampler: a resume has to repeat the order of a loader that edgeft did not make.
    return training.fit(net, batches(shuffle=True), batches(), config, seed=1, **options)


def rates(net: nn.Module, config: recipe.Training, **places) -> dict[str, tuple[float, float]]:
    """Return learning rate and weight decay of every parameter that ever learns, by name."""
    groups = optimization.optimizer(LearningPlan(net, config, **places), config).param_groups
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


class KilledError(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_training_ends_bit_for_bit_as_an_undisturbed_one(tmp_path: Path, optimizer: str) -> None:
    config = CONFIG.model_copy(update={"optimizer": optimizer})
    undisturbed, killed = Net(), Net()
    records = fit(undisturbed, config)
    checkpoint = tmp_path / "stage" / "training.ckpt"

    def kill_in_third(message: str, *, done: int = 0, total: int = 0) -> None:
        if message.startswith("epoch 3/4") and done < 9:
            raise KilledError

    with pytest.raises(KilledError):
        fit(killed, config, checkpoint=checkpoint, progress=kill_in_third)
    torch.manual_seed(99)  # another process, another state of the generator
    resumed = Net()
    resumed_records = fit(resumed, config, checkpoint=checkpoint)

    assert [r.epoch for r in resumed_records] == [0, 1, 2, 3]
    assert [(r.train_loss, r.val_loss) for r in resumed_records] == [
        (r.train_loss, r.val_loss) for r in records
    ]
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_finished_training_is_read_back_without_training(tmp_path: Path) -> None:
    first, second = Net(), Net()
    records = fit(first, checkpoint=tmp_path / "c")

    def never(message: str, *, done: int = 0, total: int = 0) -> None:
        raise AssertionError("trained again")

    assert fit(second, checkpoint=tmp_path / "c", progress=never) == records
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_an_unreadable_or_foreign_checkpoint_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    path = tmp_path / "c"
    fit(Net(), checkpoint=path)
    with pytest.raises(WorkspaceError, match="another config or seed"):
        fit(Net(), CONFIG.model_copy(update={"learning_rate": 0.1}), checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WorkspaceError, match="cannot be read") as error:
        fit(Net(), checkpoint=path)
    assert "delete" in error.value.hint


def test_the_network_of_the_best_epoch_remains() -> None:
    # A rate this large makes the accuracy jump about, so that the last epoch is not always the best.
    net = Net()
    config = recipe.Training(epochs=6, learning_rate=1.0, optimizer="sgd", gradient_clip=None)
    records = fit(net, config)
    best = max(records, key=lambda r: (r.val_accuracy, -r.val_loss))
    logits, labels = training.predict(net, batches())
    loss = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    assert (logits.argmax(1) == labels).mean() == best.val_accuracy
    assert loss == pytest.approx(best.val_loss, rel=1e-4)
    assert len({r.val_loss for r in records}) > 1


def test_phases_are_called_at_every_change_and_modes_are_left_to_them() -> None:
    net = Net()
    calls: list[str] = []

    class Phases:
        def enter_training(self, epoch: int) -> None:
            calls.append(f"train {epoch}")
            net.train()
            net.body[3].eval()  # a mode of the network's own

        def enter_evaluation(self) -> None:
            calls.append("eval")
            net.eval()

    seen = []
    net.body[3].register_forward_hook(lambda layer, *_: seen.append((net.training, layer.training)))
    fit(net, CONFIG.model_copy(update={"epochs": 2}), phases=Phases())
    while calls[0] == "eval":
        calls.pop(0)
    assert calls == ["train 0", "eval", "train 1", "eval", "eval"]
    assert (True, False) in seen
    assert (True, True) not in seen  # Lightning did not restore the flag


def test_dropout_is_on_in_the_second_epoch() -> None:
    net, modes = Net(), []
    net.body[3].register_forward_hook(lambda layer, *_: modes.append(layer.training))
    fit(net, CONFIG.model_copy(update={"epochs": 2}))
    assert modes.count(True) == 2 * 3
    assert not net.training


def test_a_teacher_is_followed_in_evaluation_mode_and_without_gradients() -> None:
    teacher = Net().train()
    net = Net()
    with torch.no_grad():
        teacher.head.weight.copy_(torch.tensor([[5.0, -5, 5, -5], [-5, 5, -5, 5]]))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    config = recipe.Distilled(epochs=15, learning_rate=0.05, distill_weight=1.0)
    fit(net, config, teacher=teacher)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    ours, _ = training.predict(net, batches())
    theirs, _ = training.predict(teacher.eval(), batches())
    assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 0.9


def test_distillation_loss_is_the_mixture_of_hinton() -> None:
    student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    y = torch.tensor([2])
    config = recipe.Distilled(distill_weight=0.25, temperature=2.0)
    p = np.exp(teacher.numpy() / 2) / np.exp(teacher.numpy() / 2).sum()
    q = np.exp(student.numpy() / 2) / np.exp(student.numpy() / 2).sum()
    hard = -np.log(np.exp(-1) / np.exp([1, 0, -1]).sum())
    expected = 0.75 * hard + 0.25 * 4 * (p * np.log(p / q)).sum()
    assert optimization.loss(student, y, config, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert optimization.loss(student, y, config).item() == pytest.approx(hard, rel=1e-5)


def test_norms_and_biases_do_not_decay_and_the_head_learns_faster() -> None:
    net = Net()
    config = recipe.Finetune(learning_rate=1e-3, weight_decay=0.1)
    found = rates(net, config, head="head")
    assert found["body.0.weight"] == pytest.approx((1e-3, 0.1))
    assert found["body.0.bias"] == found["body.1.weight"] == pytest.approx((1e-3, 0.0))
    assert found["head.weight"] == pytest.approx((1e-2, 0.1))
    assert found["head.bias"] == pytest.approx((1e-2, 0.0))
    with pytest.raises(ModelError, match="'classifier'"):
        rates(net, recipe.Finetune(), head="classifier")


def test_the_schedule_warms_up_and_decays_to_zero() -> None:
    config = recipe.Training(epochs=10, warmup_epochs=2)
    factors = [schedules.factor(config, 5, step) for step in range(50)]
    assert factors[:10] == sorted(factors[:10]) and factors[0] > 0
    assert factors[10] == 1.0 and factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.01


def test_the_callers_generator_and_the_log_are_left_alone(caplog: pytest.LogCaptureFixture, capfd) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    net = Net()
    torch.manual_seed(5)
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        fit(net)
    assert torch.equal(torch.rand(3), expected)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_diverging_training_says_where() -> None:
    net = Net()
    with torch.no_grad():
        net.head.bias.fill_(float("nan"))
    with pytest.raises(DataError, match="epoch 1, batch 1"):
        fit(net)


def test_plain_lists_of_batches_are_loaders_too() -> None:
    assert training.fit(Net(), list(batches()), list(batches()), CONFIG, seed=0)[-1].epoch == 3


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(DataError, match="val has no batch"):
        training.fit(Net(), batches(), [], CONFIG, seed=0)


def test_ctrl_c_arrives_as_ctrl_c() -> None:
    import signal

    def interrupt(message: str, *, done: int = 0, total: int = 0) -> None:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(Net(), progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler


def test_progress_counts_batches_over_all_epochs() -> None:
    calls = []
    fit(Net(), progress=lambda message, *, done=0, total=0: calls.append((message, done, total)))
    assert calls[-1][1:] == (12, 12)
    assert calls[-1][0].startswith("epoch 4/4  loss ") and " val " in calls[-1][0]
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_a_network_that_views_its_feature_map_trains_too() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3, padding=1)
            self.head = nn.Linear(3 * 36, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).view(len(x), -1))

    assert len(fit(Viewing())) == 4


def test_an_exported_graph_trains_with_its_own_phases() -> None:
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e import (
        allow_exported_model_train_eval,
        move_exported_model_to_eval,
        move_exported_model_to_train,
    )

    net = Net().train()
    dynamic = ({0: torch.export.Dim("n", min=2)},)
    graph = torch.export.export(net, (torch.randn(4, 1, 6, 6),), dynamic_shapes=dynamic).module()
    allow_exported_model_train_eval(graph)

    class Phases:
        def enter_training(self, epoch: int) -> None:
            move_exported_model_to_train(graph)

        def enter_evaluation(self) -> None:
            move_exported_model_to_eval(graph)

    before = graph.state_dict()["head.weight"].clone()
    records = training.fit(
        graph, batches(), batches(), recipe.Quantize(epochs=2, learning_rate=0.01), seed=0, phases=Phases()
    )
    assert records[-1].train_loss < records[0].train_loss
    assert not torch.equal(before, graph.state_dict()["head.weight"])


def test_batch_norm_statistics_become_those_of_the_loader() -> None:
    net = Net().train()
    loader = batches()
    training.reestimate_batch_norm(net, loader)
    with torch.no_grad():
        features = [net.body[0](x) for x, _ in loader]
    mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    var = torch.stack([f.var((0, 2, 3)) for f in features]).mean(0)
    assert torch.allclose(net.body[1].running_mean, mean, atol=1e-5)
    assert torch.allclose(net.body[1].running_var, var, atol=1e-5)
    assert net.body[1].momentum == 0.1 and net.training and net.body[1].training


def test_predict_leaves_the_mode_alone() -> None:
    net = Net().train()
    logits, labels = training.predict(net, batches())
    assert logits.shape == (24, 2) and logits.dtype == np.float32 and labels.dtype == np.int64
    assert net.training
