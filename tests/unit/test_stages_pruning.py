"""The prune stage by itself: budgets that are measured, steps, rewrites, gradients, and what it refuses."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgeft
from edgeft import extras, measure, pruning, reporting, stages, target
from edgeft import recipe as recipes
from edgeft.errors import BudgetError, ConfigError, DataError, MissingDependencyError, ModelError
from edgeft.recipe import Measure, Prune, Quantize, Recipe
from edgeft.stages import budgeting, weighing
from edgeft.stages.candidates import Trials, quick_program
from edgeft.types import FloatModel

SIZE = 16
ORT = "cpu-onnxruntime"
QUICK = Measure(rounds=2, min_runs=10, min_seconds=0.03)


class Wide(nn.Module):
    """Three convolutions and a head, wide enough that cutting them shows on the clock."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU, width: int = 64) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), activation())
        self.two = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), activation()
        )
        self.three = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, stride=2), nn.BatchNorm2d(width), activation()
        )
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.three(self.two(self.one(x))).mean((2, 3)))


def batches(count: int = 32, *, seed: int = 0) -> DataLoader:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.normal(0, 0.3, (count, 1, SIZE, SIZE)).astype(np.float32)
    images[labels == 0, :, ::2] += 1
    images[labels == 1, :, :, ::2] += 1
    return DataLoader(TensorDataset(torch.from_numpy(images), torch.from_numpy(labels)), batch_size=8)


def model(network: nn.Module | None = None) -> FloatModel:
    torch.manual_seed(0)
    pixels = edgeft.ImagePreprocessing(size=SIZE, resize=SIZE, channels=1, mean=(0.0,), std=(1.0,))
    return FloatModel(module=(network or Wide()).eval(), preprocessing=pixels, labels=("rows", "columns"))


def prune(given: FloatModel, **settings: object) -> FloatModel:
    return stages.prune(
        given, batches(), batches(8, seed=1), epochs=1, augment="none", timing=QUICK, **settings
    )


def results(pruned: FloatModel) -> dict:
    return dict(pruned.history[-1].results)


@pytest.mark.slow
def test_a_latency_budget_is_measured_before_training(tmp_path: Path):
    given = model()
    before = {name: tensor.clone() for name, tensor in given.module.state_dict().items()}
    # A loaded machine may shift a ratio by more than the search's 5 %; the budget leaves room on both sides.
    pruned = prune(given, budget={"latency": 0.6}, target=ORT, checkpoint=tmp_path / "training.ckpt")
    search = results(pruned)["search"]
    chosen = search["candidates"][search["chosen"]]
    assert chosen["value"] <= 0.6 and chosen["low"] <= chosen["value"] <= chosen["high"]
    assert search["exports"] == len(search["candidates"]) + 1 <= 12
    assert 0 < chosen["macs"] < 0.9 and chosen["latency_ms"] < chosen["unpruned_ms"]
    plan = results(pruned)["plan"]
    assert plan["macs_after"] / plan["macs_before"] == pytest.approx(chosen["macs"])
    assert all(torch.equal(tensor, given.module.state_dict()[name]) for name, tensor in before.items())
    # The unpruned file stays for the comparison at the end; the candidates' are gone.
    unpruned = stages.unpruned_file(tmp_path)
    assert unpruned is not None and unpruned.path == tmp_path / "unpruned.onnx"
    assert not list(tmp_path.glob("candidate*"))


@pytest.mark.slow
def test_a_size_budget_counts_the_bytes_of_the_exported_file(tmp_path: Path):
    pruned = prune(
        model(Wide(width=32)), budget={"size": 0.5}, target=ORT, checkpoint=tmp_path / "training.ckpt"
    )
    search = results(pruned)["search"]
    chosen = search["candidates"][search["chosen"]]
    unpruned = stages.unpruned_file(tmp_path)
    assert unpruned is not None
    assert chosen["value"] == chosen["size_bytes"] / unpruned.size_bytes
    assert 0.4 < chosen["value"] <= 0.5
    assert chosen["low"] is None
    program = quick_program(pruned, Quantize(), target.load(ORT), torch.zeros(1, 1, SIZE, SIZE))
    final = stages.export(program, ORT, tmp_path / "final")
    assert final.size_bytes == pytest.approx(chosen["size_bytes"], rel=0.02)


@pytest.mark.slow
def test_a_resumed_stage_does_not_search_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"budget": {"size": 0.5}, "target": ORT, "checkpoint": tmp_path / "training.ckpt"}
    first = prune(model(), **settings)
    monkeypatch.setattr(budgeting, "Trials", None)
    again = prune(model(), **settings)
    assert results(again)["search"] == results(first)["search"]
    # Another budget is another search, whatever lies there.
    others = (
        {"budget": {"size": 0.6}},
        {"quantize": Quantize(scheme="fp16")},
        {"limits": target.PruneLimits(channel_multiple=16, min_channels=8)},
        {"profile": target.load("cpu-openvino")},
        {"embedded": True},
        {"seed": 1},
    )
    for other in others:
        with pytest.raises(TypeError):
            prune(model(), **settings | other)
    torch.manual_seed(1)
    retrained = dataclasses.replace(model(), module=Wide().eval())
    with pytest.raises(TypeError):
        prune(retrained, **settings)


@pytest.mark.slow
def test_memory_is_that_of_the_activations_alive_at_once(tmp_path: Path):
    # Checked by hand on the file: the widest pair of tensors around one operation.
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 4, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.two(self.one(x)).mean((2, 3)))

    given = model(Pair())
    profile = target.load("cpu-litert")
    program = quick_program(given, Quantize(), profile, torch.randn(4, 1, SIZE, SIZE))
    artifact = stages.export(program, profile, tmp_path)
    assert measure.memory.activation_bytes(artifact.path) == SIZE * SIZE * (8 + 4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("ram", "mcu-tflm"), ("latency", "npu-ethos-u55-128")])
def test_devices_that_are_not_here_tell_what_candidates_cost(kind: str, name: str, tmp_path: Path):
    """The arena of the device's runtime, and the cycles of its compiler: exact figures, without an interval."""
    wide, narrow = model(Wide(width=64)), model(Wide(width=16))
    trials = Trials(wide, kind, target.load(name), Quantize(), torch.randn(4, 1, SIZE, SIZE), QUICK, tmp_path)
    cost = trials.cost(narrow.module)
    assert 0 < cost.value < 1 and cost.low is None
    assert trials.cost(wide.module).value == 1
    if kind == "latency":
        assert 0 < cost.figures["latency_ms"] < cost.figures["unpruned_ms"]
    else:
        with measure.Session(trials.unpruned, target.load(name)) as session:
            arena = session.describe().details["arena_bytes"]
        assert cost.figures["ram_bytes"] == pytest.approx(cost.value * arena)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["none", "fp16", "int8-weights"])
def test_candidates_have_the_recipes_scheme(scheme: str, tmp_path: Path):
    given = model(Wide(width=16))
    trials = Trials(
        given,
        "size",
        target.load(ORT),
        Quantize(scheme=scheme),
        torch.zeros(2, 1, SIZE, SIZE),
        QUICK,
        tmp_path,
    )
    assert trials.unpruned.scheme == {"none": "float32", "fp16": "float16"}.get(scheme, scheme)
    assert trials.cost(given.module).value == 1


def test_layers_that_stay_float_stay_float_in_candidates():
    config = Quantize(float_layers=["two.0"])
    program = quick_program(model(Wide(width=16)), config, target.load(ORT), torch.randn(2, 1, SIZE, SIZE))
    assert [layer.name for layer in program.layers] == ["one.0", "three.0", "head"]


def test_steps_end_at_the_same_widths_and_resume(tmp_path: Path):
    once = prune(model(), budget={"macs": 0.3})
    settings = {"budget": {"macs": 0.3}, "steps": 3, "checkpoint": tmp_path / "training.ckpt"}
    little = prune(model(), **settings)
    shapes = [{n: t.shape for n, t in each.module.state_dict().items()} for each in (once, little)]
    assert shapes[0] == shapes[1]
    steps = results(little)["steps"]
    assert len(steps) == 2 and 1 > steps[0]["macs"] > steps[1]["macs"] > 0.3
    plan = results(little)["plan"]
    assert plan["groups"][0]["width_before"] == 64, "the plan is that of the whole way"
    assert plan["macs_after"] / plan["macs_before"] <= 0.3
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [
        "step-1.safetensors",
        "step-2.safetensors",
    ]
    (tmp_path / "training.ckpt").unlink()
    resumed = prune(model(), **settings)
    for name, tensor in little.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[name]), name
    # A step of other settings, another seed or another network is none of this one.
    other_network = model()
    with torch.no_grad():
        other_network.module.head.weight.mul_(1.1)
    for given, other in ((model(), {"seed": 1}), (other_network, {})):
        (tmp_path / "training.ckpt").unlink()
        assert "val_accuracy_before_recovery" in results(prune(given, **settings | other))["steps"][0]
    assert "val_accuracy_before_recovery" not in results(resumed)["steps"][0]


def test_a_rewritten_network_is_pruned_and_follows_the_original():
    given = model(Wide(nn.Hardswish))
    pruned = prune(given, budget={"macs": 0.5}, rewrite="edge-lite")
    assert results(pruned)["rewrite"]["activations"] == ["one.2", "two.2", "three.2"]
    assert not any(isinstance(layer, nn.Hardswish) for layer in pruned.module.modules())
    assert any(isinstance(layer, nn.Hardswish) for layer in given.module.modules())
    alone = prune(given, budget={"macs": 1.0}, rewrite="edge-lite", steps=3)
    plan = results(alone)["plan"]
    assert plan["macs_after"] == plan["macs_before"]
    assert "steps" not in results(alone), "there is nothing to cut little by little"


@pytest.mark.slow
def test_a_rewrite_that_meets_the_budget_by_itself_cuts_nothing():
    # Sizes of the files: hardswish is several operations in the file, ReLU6 none.
    pruned = prune(model(Wide(nn.Hardswish)), budget={"size": 1.0}, rewrite="edge-lite", target=ORT)
    search = results(pruned)["search"]
    assert [candidate["macs"] for candidate in search["candidates"]] == [1.0]
    assert search["candidates"][0]["value"] < 1
    assert results(pruned)["plan"]["macs_after"] == results(pruned)["plan"]["macs_before"]


def test_gradients_are_those_of_the_loss_and_leave_no_trace():
    given = model(Wide(width=8))
    before = {name: tensor.clone() for name, tensor in given.module.state_dict().items()}
    given.module.one[0].weight.requires_grad_(False)
    found = list(weighing.loss_gradients(given.module, batches(), seed=0))
    assert len(found) == 4 and set(found[0]) == {name for name, _ in given.module.named_parameters()}
    x, y = next(iter(batches()))
    nn.functional.cross_entropy(given.module(x), y).backward()
    torch.testing.assert_close(found[0]["head.weight"], given.module.head.weight.grad)
    assert not given.module.one[0].weight.requires_grad
    assert all(torch.equal(tensor, given.module.state_dict()[name]) for name, tensor in before.items())


def test_taylor_keeps_the_channels_that_the_loss_needs():
    given = model(Wide(width=32))
    with torch.no_grad():  # nobody listens to these channels, however large their filters are
        given.module.two[0].weight[:, :16] = 0
        given.module.one[0].weight[:16] *= 10
    limits = target.PruneLimits()
    analyses = {
        criterion: weighing.analyse(given, Prune(criterion=criterion), limits, batches(), seed=0)
        for criterion in ("taylor", "l2")
    }
    first = next(i for i, g in enumerate(analyses["taylor"].groups) if g.layers == ("one.0",))
    assert analyses["taylor"].importances[first][:16].sum() == 0
    assert analyses["l2"].importances[first][:16].min() > analyses["l2"].importances[first][16:].max()


class Counted(list):
    """Batches that count how often they are read."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        return super().__iter__()


def test_statistics_are_not_taken_on_augmented_batches():
    train, plain = Counted(batches()), Counted(batches())
    settings = {"budget": {"macs": 0.5}, "criterion": "taylor", "epochs": 1, "augment": "none"}
    stages.prune(model(Wide(width=16)), train, batches(8, seed=1), statistics=plain, **settings)
    assert plain.reads == 3, "gradients, second moments and batch norms"
    assert train.reads == 1, "one epoch of recovery"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_recovery_trains_on_the_given_device():
    with pytest.raises(MissingDependencyError, match="device 'cuda'"):
        prune(model(Wide(width=16)), budget={"macs": 0.5}, device="cuda")


def test_layers_are_kept_and_held_by_patterns():
    pruned = prune(model(), budget={"macs": 0.5}, keep=["one*"], floor={"*": 0.3, "three.0": 0.75})
    widths = {g["layers"][0]: g["width_after"] for g in results(pruned)["plan"]["groups"]}
    assert widths["one.0"] == 64 and widths["three.0"] >= 48 and widths["two.0"] >= 40


def test_the_plan_says_what_would_be_cut_and_changes_nothing():
    given = model()
    before = {name: tensor.clone() for name, tensor in given.module.state_dict().items()}
    plan = stages.plan_pruning(
        given,
        batches(),
        batches(8, seed=1),
        budget={"macs": 0.5},
        timed=target.load(ORT),
        timing=QUICK,
    )
    assert all(torch.equal(tensor, given.module.state_dict()[name]) for name, tensor in before.items())
    groups = plan["groups"]
    assert [group.layers for group in groups] == [("one.0",), ("two.0",), ("three.0",), ("head",)]
    assert sum(group.macs_share for group in groups) == pytest.approx(1, abs=1e-3)
    matched = sum(group.time_share for group in groups)
    assert 0.2 < matched < 1 and f"{1 - matched:.0%} went to operations" in plan["times"]
    assert max(groups, key=lambda group: group.time_share).layers == ("two.0",), "by far most of the work"
    assert groups[3].limit and groups[3].accuracy is None
    assert [group.tried_width for group in groups[:3]] == [32, 64, 32]
    assert all(group.loss != plan["loss"] for group in groups[:3])
    pruned = pruning.prune(
        given.module, torch.zeros(1, 1, SIZE, SIZE), macs=0.5, channel_multiple=8, min_channels=8
    )
    assert [g.planned_width for g in groups] == [g.width_after for g in pruned.plan.groups]
    assert plan["plan"]["macs_share"] == pytest.approx(pruned.plan.macs_share)
    json.dumps(plan["search"])
    assert plan["missed"] is None


def test_a_plan_out_of_reach_shows_the_groups_and_takes_up_what_was_measured():
    given, asked = model(Wide(width=16)), {"train": batches(), "val": batches(8, seed=1)}
    plan = stages.plan_pruning(given, **asked, budget={"macs": 0.01})
    assert "0.010 cannot be met" in plan["missed"]["message"] and plan["missed"]["hint"]
    assert plan["plan"] is None and all(group.planned_width is None for group in plan["groups"])
    assert plan["groups"][0].accuracy is not None
    known = json.loads(json.dumps(reporting.plain(plan)))
    known["groups"][0]["loss"] = 99.0
    again = stages.plan_pruning(given, **asked, budget={"macs": 0.5}, known=known)
    assert again["groups"][0].loss == 99.0, "taken from there"
    assert again["plan"]["macs_share"] <= 0.5 and again["groups"][0].planned_width <= 16


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        pytest.param(
            {"budget": {"size": 0.01}, "target": ORT}, BudgetError, "the best of", marks=pytest.mark.slow
        ),
        ({"budget": {"macs": 0.01}}, BudgetError, "cannot be met"),
        ({"budget": {"latency": 0.5}}, ConfigError, "no target is named"),
        ({"budget": {"ram": 0.5}, "target": ORT}, ConfigError, ".tflite"),
        ({"budget": {"macs": 0.5, "size": 0.5}}, ConfigError, "given: macs, size"),
        ({"budget": {}}, ConfigError, "given: nothing"),
        ({"budget": {"macs": 1.0}}, ConfigError, "cuts nothing"),
        ({"keep": ["tow*"]}, ConfigError, "no convolution or linear layer is called 'tow*'"),
        ({"floor": {"four": 0.5}}, ConfigError, "prune.floor"),
        ({"rewrite": "edge-lite"}, ModelError, "no module of hardswish"),
    ],
)
def test_what_cannot_be_done_is_one_clear_message(settings: dict, error: type[Exception], told: str):
    with pytest.raises(error) as raised:
        prune(model(Wide(width=16)), **settings)
    assert told in raised.value.message
    assert raised.value.hint or "given" in told or "cuts" in told


def test_channel_multiples_wider_than_the_layers_leave_nothing_to_cut():
    with pytest.raises(BudgetError, match="nothing of this network can be cut"):
        prune(model(), budget={"macs": 0.5}, limits=target.PruneLimits(channel_multiple=256, min_channels=8))


def test_a_network_that_does_not_run_is_told():
    given = model(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)))
    with pytest.raises(ModelError, match="does not run on an input of shape"):
        prune(given, budget={"macs": 0.5})


def test_one_layer_has_nothing_to_cut():
    given = model(nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 2)))
    with pytest.raises(BudgetError, match="nothing of this network can be cut"):
        prune(given, budget={"macs": 0.5})


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"budget": {"ram": 0.5}}, ".tflite"),
        ({"keep": ["stam"]}, "no convolution or linear layer is called 'stam'"),
        ({"rewrite": "edge-lite"}, "no module of hardswish"),
    ],
)
def test_what_cannot_be_done_is_found_before_any_work(section: dict, told: str):
    recipe = Recipe.model_validate(
        {
            "targets": [ORT],
            "task": {"data": "builtin:digits"},
            "model": {"source": "builtin:digitsnet"},
            "prune": section,
        }
    )
    errors = [finding.text for finding in edgeft.check(recipe) if finding.level == "error"]
    assert len(errors) == 1 and told in errors[0]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torchvision = extras.load("torchvision.ops", "tests")
        self.stem, self.gate = nn.Conv2d(1, 16, 3), torchvision.SqueezeExcitation(16, 8)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gate(self.stem(x)).mean((2, 3)))


def test_a_budget_of_macs_is_one_of_the_network_before_its_rewrite():
    given = model(Gated())
    before = pruning.count_macs(given.module, torch.zeros(1, 1, SIZE, SIZE))
    rewritten = before - 2 * 16 * 8
    settings = {"rewrite": "edge-lite", "limits": target.PruneLimits(channel_multiple=1, min_channels=1)}
    share = rewritten / before
    for budget, left in ((share, rewritten), (0.6, None), (1.0, rewritten)):
        plan = results(prune(given, budget={"macs": budget}, **settings))["plan"]
        assert (plan["macs_before"], plan["params_before"]) == (
            before,
            sum(p.numel() for p in given.module.parameters()),
        )
        assert plan["macs_after"] == left if left else 0.5 * before < plan["macs_after"] <= 0.6 * before
    lowest = f"{math.ceil(1000 * rewritten / 4 / before) / 1000:.3f} of the MACs are left"
    with pytest.raises(BudgetError, match=rf"budget of 0\.010 cannot be met: .* {lowest}"):
        prune(given, budget={"macs": 0.01}, **settings)
    config = Prune(budget={"macs": 0.01}, rewrite="edge-lite")
    with pytest.raises(BudgetError, match=lowest):
        stages.check_budget(given, config, settings["limits"])


def test_names_are_those_of_the_rewritten_network():
    stages.check_pruning(Gated(), Prune(keep=["gate.fc1"]))
    with pytest.raises(
        ConfigError, match=r"prune\.keep: no convolution or linear layer is called 'gate.fc1'"
    ):
        stages.check_pruning(Gated(), Prune(keep=["gate.fc1"], rewrite="edge-lite"))


@pytest.mark.parametrize(
    ("network", "settings", "told"),
    [
        (Wide(width=16), {"budget": {"macs": 0.01}}, "of the MACs are left"),
        (Wide(width=4), {"budget": {"latency": 0.9}}, "a latency budget of 0.900 cannot be met: nothing"),
        (nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 2)), {"budget": {"size": 0.9}}, "nothing of"),
        (
            nn.Sequential(nn.Conv2d(1, 32, 3), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(32 * 144, 2)),
            {"criterion": "bn-scale"},
            "nothing of",
        ),
    ],
)
def test_a_budget_out_of_reach_is_told_by_shapes(network: nn.Module, settings: dict, told: str):
    with pytest.raises(BudgetError, match=told):
        stages.check_budget(model(network), Prune(**settings), target.PruneLimits())
    within = Prune(**settings | {"budget": {"macs": 0.9}, "criterion": "taylor"})
    stages.check_budget(model(), within, target.PruneLimits())


def test_validation_batches_are_needed_where_candidates_are_tried():
    settings = {"epochs": 1, "augment": "none", "timing": QUICK}
    with pytest.raises(DataError, match="candidates are tried with inputs of the validation batches"):
        stages.prune(model(Wide(width=16)), batches(), [], budget={"size": 0.5}, target=ORT, **settings)
    with pytest.raises(DataError, match="prediction: the loader yields no batch"):
        stages.prune(model(Wide(width=16)), batches(), [], budget={"macs": 0.5}, **settings)


def test_settings_of_the_api_are_no_file():
    with pytest.raises(ConfigError, match=r"edgeft\.prune: the settings: prune\.budget\.macs = 1\.0 cuts"):
        prune(model(), budget={"macs": 1.0})


def test_the_budgets_target_is_one_of_the_recipes():
    with pytest.raises(ValidationError, match="none of the recipe's targets: cpu-onnxruntime"):
        Recipe.model_validate(
            {
                "targets": [ORT],
                "task": {"data": "builtin:digits"},
                "model": {"source": "builtin:digitsnet"},
                "prune": {"target": "cpu-litert"},
            }
        )


def test_a_recipe_of_patterns_survives_being_written_out(tmp_path: Path):
    recipe = Recipe.model_validate(
        {
            "targets": [ORT],
            "task": {"data": "builtin:digits"},
            "model": {"source": "builtin:digitsnet"},
            "prune": {"floor": {"*": 0.5, "features.1.*": 0.9}, "keep": ["stem*"]},
        }
    )
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert recipes.load(tmp_path / "recipe.toml") == recipe
