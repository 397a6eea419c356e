"""Quantization-aware training: gradients, learned scales, phases, checkpoints, the best epoch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from edgeft import calibration, quantization, recipe, training
from edgeft.errors import QuantizationError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization.fake_quant import ActivationFakeQuant, WeightFakeQuant
from edgeft.quantization.prepare import activation_sites, weight_sites
from edgeft.quantization.program import freeze
from edgeft.quantization.rounding import lsq_gradient_scale, round_to_grid
from edgeft.target import Numerics
from edgeft.training.groups import LearningPlan
from edgeft.types import FloatModel

SIZE = 8
ZERO = torch.zeros(1, dtype=torch.int32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Small(nn.Module):
    """A stem with a batch norm, two branches that are concatenated, a sigmoid, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU6())
        self.left, self.right = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(self.drop(torch.sigmoid(x).mean([2, 3])))


def model(module: nn.Module | None = None) -> FloatModel:
    torch.manual_seed(0)
    picture = ImagePreprocessing(size=SIZE, resize=SIZE, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    return FloatModel(module=(module or Small()).eval(), preprocessing=picture, labels=("a", "b", "c"))


def images(count: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=generator(seed)) * 2 - 1


def labels(count: int = 12) -> torch.Tensor:
    return torch.arange(count) % 3


def calibrated(source: FloatModel, numerics: Numerics | None = None) -> GraphModule:
    graph = quantization.prepare(source, numerics=numerics)
    quantization.calibrate(graph, [images()], calibration.load("minmax"))
    return graph


def take_steps(graph: GraphModule, optimizer: torch.optim.Optimizer, count: int) -> None:
    for step in range(count):
        torch.manual_seed(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(graph(images()), labels()).backward()
        optimizer.step()


def learned_parameters(graph: GraphModule) -> list[nn.Parameter]:
    return [q.stretch for q in (*activation_sites(graph), *weight_sites(graph)) if q.stretch is not None]


# --- rounding and its gradients ---


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("scale", "zero_point"), [(0.02, -128), (0.0117, 3), (0.25, 127), (1e-5, 0)])
def test_rounding_gives_the_numbers_of_torchs_fake_quantizer(
    layout: torch.memory_format, scale: float, zero_point: int
) -> None:
    x = (torch.randn(4, 6, 9, 7, generator=generator()) * 100 * scale).to(memory_format=layout)
    halves = (torch.arange(-600, 600).reshape(4, 6, 10, 5) / 2 * scale).to(memory_format=layout)
    for values in (x, halves):
        s, z = torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32)
        expected = torch.fake_quantize_per_tensor_affine(values, s, z, -128, 127)
        got = round_to_grid(values, s, z, -128, 127)
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


def test_rounding_weights_gives_the_numbers_of_torchs_fake_quantizer() -> None:
    weight = torch.randn(5, 4, 3, 3, generator=generator())
    scale = weight.abs().amax((1, 2, 3)) / 100  # some are clipped at 63
    zeros = torch.zeros(5, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -63, 63)
    assert torch.equal(round_to_grid(weight, scale.reshape(-1, 1, 1, 1), ZERO, -63, 63), expected)


def test_learned_activation_gradients_are_the_papers() -> None:
    """Esser et al. 2020, equation 3, shifted by the zero point; Bhalgat et al. 2020 for that one."""
    x = (torch.randn(6, 5, 4, generator=generator()) * 3).requires_grad_()
    incoming = torch.randn(6, 5, 4, generator=generator(1))
    scale = torch.tensor([0.02], requires_grad=True)
    zero_point = torch.tensor([-20.0], requires_grad=True)
    round_to_grid(x, scale, zero_point, -128, 127, 0.1).backward(incoming)
    v = (x / scale).detach()
    below, above = v.round() - 20 < -128, v.round() - 20 > 127
    assert bool(below.any() and above.any())
    inside = ~(below | above)
    change = torch.where(below, -108.0, torch.where(above, 147.0, v.round() - v))
    assert scale.grad is not None
    assert zero_point.grad is not None
    torch.testing.assert_close(x.grad, torch.where(inside, incoming, 0.0))
    torch.testing.assert_close(scale.grad, 0.1 * (change * incoming).sum().reshape(1), rtol=1e-4, atol=1e-4)
    expected = -0.1 * 0.02 * incoming[~inside].sum().reshape(1)
    torch.testing.assert_close(zero_point.grad, expected, rtol=1e-3, atol=1e-5)


def test_learned_weight_gradients_are_the_papers() -> None:
    """Esser et al. 2020, equation 3: the rounding error inside, an end of the grid where clipped."""
    weight = torch.randn(3, 7, generator=generator(), requires_grad=True)
    scale = (torch.tensor([[0.5], [1.0], [2.0]]) / 127).requires_grad_()
    incoming = torch.randn(3, 7, generator=generator(1))
    round_to_grid(weight, scale, ZERO, -127, 127, 0.5).backward(incoming)
    v = (weight / scale).detach()
    inside = v.abs() < 127.5
    expected = torch.where(inside, v.round() - v, v.sign() * 127) * incoming
    assert 0 < int(inside.sum()) < v.numel(), "both cases occur"
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, 0.5 * expected.sum(1, keepdim=True), rtol=1e-4, atol=1e-4)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.where(inside, incoming, 0.0))


def learning_site(low: float, high: float, *, symmetric: bool = False) -> ActivationFakeQuant:
    site = ActivationFakeQuant()
    site.low.fill_(low)
    site.high.fill_(high)
    site.symmetric = symmetric
    site.learn_range()
    site.observing = True
    return site


@pytest.mark.parametrize(
    ("low", "high", "symmetric"), [(-1.3, 2.1, False), (0.0, 2.1, False), (-1.7, 2.1, True)]
)
def test_a_range_learns_by_the_straight_through_gradient(low: float, high: float, symmetric: bool) -> None:
    """The reference rounds straight through by autograd alone, from the ends of the range on."""
    x = torch.randn(4, 50, generator=generator(), dtype=torch.float64) * 1.5
    incoming = torch.randn(4, 50, generator=generator(1), dtype=torch.float64)
    site = learning_site(low, high, symmetric=symmetric)
    site(x.float()).backward(incoming.float())

    stretch = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([low, high], dtype=torch.float64) * stretch.exp()
    straight = lambda value: value + (value.round() - value).detach()  # noqa: E731
    if symmetric:
        scale, zero_point = torch.maximum(-ends[0], ends[1]) / 127, torch.zeros(())
    else:
        scale = (ends[1] - ends[0]) / 255
        zero_point = -128 - straight(ends[0] / scale)
    y = (torch.clamp(straight(x / scale) + zero_point, -128, 127) - zero_point) * scale
    y.backward(incoming)
    assert site.stretch is not None
    assert site.stretch.grad is not None
    assert stretch.grad is not None
    expected = stretch.grad.float() * lsq_gradient_scale(50, 255)
    torch.testing.assert_close(site.stretch.grad, expected, rtol=1e-3, atol=1e-5)


def test_a_range_grows_where_clipping_hurts_and_keeps_its_zero() -> None:
    site = learning_site(0.0, 1.0)
    assert site.stretch is not None
    optimizer = torch.optim.Adam([site.stretch], lr=0.05)
    x = torch.linspace(0, 3, 300).reshape(3, 100)
    errors = []
    for _ in range(80):
        optimizer.zero_grad()
        error = (site(x) - x).square().mean()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[0] > 0.5
    assert errors[-1] < 1e-4
    assert float(site.calculate_qparams()[1].detach()) == -128


# --- what learns ---


def test_a_group_has_one_range_to_learn_and_known_ranges_stay() -> None:
    graph = calibrated(model())
    phases = quantization.QatPhases(graph, observe_epochs=1, learned=True)
    sites = activation_sites(graph)
    group = next(site.group for site in sites if sum(peer.observes for peer in site.group) > 1)
    assert len({id(site.stretch) for site in group}) == 1
    assert group[0].stretch is not None
    assert all(site.stretch is None for site in sites if site.fixed or site.keeps_extremes)
    assert any(site.fixed for site in sites)
    assert any(site.keeps_extremes for site in sites)
    names = [name for name, _ in graph.named_parameters() if name in phases.paces]
    assert len(names) == len(phases.paces) == len({id(p) for p in learned_parameters(graph)})
    config = recipe.Quantize(learning_rate=1e-3, weight_decay=0.1)
    groups = LearningPlan(graph, config, paces=phases.paces).groups
    assert {(g.multiplier, g.decayed) for g in groups} == {(1.0, True), (1.0, False), (10.0, False)}
    assert sum(len(g.parameters) for g in groups if g.multiplier == 10.0) == len(names)


def test_learning_starts_at_the_calibrated_numbers() -> None:
    graph = calibrated(model())
    before = graph(images())
    quantization.QatPhases(graph, observe_epochs=1, learned=True)
    assert torch.equal(graph(images()), before)


def test_scales_cannot_be_learned_before_calibration() -> None:
    with pytest.raises(QuantizationError, match="calibrate"):
        quantization.QatPhases(quantization.prepare(model()), observe_epochs=1, learned=True)


def test_learned_scales_stand_still_in_evaluation_and_after_their_epochs() -> None:
    graph = calibrated(model())
    phases = quantization.QatPhases(graph, observe_epochs=1, learned=True)
    for enter, moves in (
        (lambda: phases.enter_training(0), True),
        (phases.enter_evaluation, False),
        (lambda: phases.enter_training(1), False),
    ):
        enter()
        graph.zero_grad()
        nn.functional.cross_entropy(graph(images()), labels()).backward()
        assert [p.grad is not None for p in learned_parameters(graph)] == [moves] * len(
            learned_parameters(graph)
        )


def test_biases_left_behind_by_batch_norms_learn() -> None:
    graph = calibrated(model())
    phases = quantization.QatPhases(graph, observe_epochs=1)
    phases.enter_training(0)
    nn.functional.cross_entropy(graph(images()), labels()).backward()
    biases = {name: p.grad for name, p in graph.named_parameters() if name.endswith("bias")}
    assert len(biases) == 4
    assert all(gradient is not None and bool(gradient.any()) for gradient in biases.values())


def test_what_dropout_made_larger_is_not_clipped_in_training() -> None:
    graph = calibrated(model(nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 3))))
    phases = quantization.QatPhases(graph, observe_epochs=0)
    seen: list[torch.Tensor] = []
    linear_input = [site for site in activation_sites(graph) if not site.observes][-1]
    linear_input.register_forward_hook(lambda module, args, result: seen.append(result))
    phases.enter_training(0)
    graph(images())
    phases.enter_evaluation()
    graph(images())
    trained, evaluated = seen
    high = float(evaluated.max())
    assert float(trained.max()) == pytest.approx(2 * high)


# --- the program ---


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    "numerics",
    [
        Numerics(),
        Numerics(granularity="per-tensor"),
        Numerics(symmetric_activations=True),
        Numerics(weight_range="half"),
    ],
    ids=["usual", "per-tensor", "symmetric", "half-range"],
)
def test_the_program_is_the_trained_graph_bit_for_bit(learned: bool, numerics: Numerics) -> None:
    source = model()
    graph = calibrated(source, numerics)
    phases = quantization.QatPhases(graph, observe_epochs=1, learned=learned)
    phases.enter_training(0)
    take_steps(graph, torch.optim.AdamW(graph.parameters(), lr=0.02), 6)
    phases.enter_evaluation()
    moved = [float(p.detach().abs().max()) for p in learned_parameters(graph)]
    assert all(moved) == learned or not moved
    program = quantization.convert(graph, source, images())  # compares bit for bit itself
    assert torch.equal(program.program(images(6, seed=2)), frozen(graph)(images(6, seed=2)))


def frozen(graph: GraphModule) -> GraphModule:
    graph = quantization.copy_graph(graph)
    freeze(graph)
    return graph


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(self.a(x)).mean([2, 3])


def test_a_layer_that_is_called_twice_learns_one_scale() -> None:
    source = model(Twice())
    graph = calibrated(source)
    phases = quantization.QatPhases(graph, observe_epochs=1, learned=True)
    phases.enter_training(0)
    take_steps(graph, torch.optim.AdamW(graph.parameters(), lr=0.05), 4)
    phases.enter_evaluation()
    first, second = quantization.convert(graph, source, images()).layers
    assert (first.weight == second.weight).all()
    assert (first.weight_scale == second.weight_scale).all()


def test_a_learned_weight_scale_may_clip_and_a_dead_channel_stays_finite() -> None:
    weight = torch.tensor([[0.5, -1.0], [0.0, 0.0]])
    quantizer = WeightFakeQuant()
    quantizer.learn_scale(weight)
    assert quantizer.stretch is not None
    with torch.no_grad():
        quantizer.stretch.fill_(-0.6931472)  # half the scale
    assert quantizer(weight)[0].tolist() == pytest.approx([0.5, -0.5], abs=0.01)
    assert quantizer(weight)[1].tolist() == [0.0, 0.0]
    scale = quantizer.scale(weight, bias=torch.tensor([0.0, 1e6]), input_scale=torch.tensor([0.1]))
    assert float(scale[1]) >= 1e6 / (0.1 * 2**30)


# --- interruption and the best epoch ---


@pytest.mark.parametrize("learned", [False, True])
def test_a_rebuilt_graph_goes_on_from_a_state(learned: bool) -> None:
    def build() -> tuple[GraphModule, quantization.QatPhases, torch.optim.Optimizer]:
        graph = calibrated(model())
        phases = quantization.QatPhases(graph, observe_epochs=2, learned=learned)
        phases.enter_training(0)
        return graph, phases, torch.optim.AdamW(graph.parameters(), lr=0.02)

    graph, phases, optimizer = build()
    take_steps(graph, optimizer, 3)
    state, optimizer_state = copy.deepcopy(graph.state_dict()), copy.deepcopy(optimizer.state_dict())
    take_steps(graph, optimizer, 3)
    phases.enter_evaluation()

    again, phases, optimizer = build()
    again.load_state_dict(state)
    optimizer.load_state_dict(optimizer_state)
    take_steps(again, optimizer, 3)
    phases.enter_evaluation()
    assert torch.equal(graph(images()), again(images()))


@pytest.mark.parametrize("learned", [False, True])
def test_the_best_epoch_comes_back_with_its_ranges_after_an_early_stop(learned: bool) -> None:
    graph = calibrated(model())
    phases = quantization.QatPhases(graph, observe_epochs=9, learned=learned)
    data = [(images(), labels())]
    config = recipe.Quantize(epochs=9, learning_rate=0.3, early_stopping=2, schedule="constant")
    records = training.fit(graph, data, data, config, seed=0, phases=phases, paces=phases.paces)
    best = max(records, key=lambda record: (record.val_accuracy, -record.val_loss))
    assert len(records) < 9, "the early stop did not happen"
    assert best.epoch < records[-1].epoch
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(graph(images()), labels()))
    assert loss == pytest.approx(best.val_loss, rel=1e-6)
    assert not any(site.observing for site in activation_sites(graph))
