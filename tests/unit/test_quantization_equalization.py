"""Cross-layer equalization, SmoothQuant and bias correction: the function stays, the numbers get better."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from edgeft import calibration, quantization
from edgeft.calibration import CalibrationRecipe
from edgeft.errors import QuantizationError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization.capture import capture
from edgeft.quantization.equalization import equalize_layers
from edgeft.quantization.ranges import named_sites
from edgeft.quantization.smoothing import smooth_activations
from edgeft.types import FloatModel

SIZE = 8


def images(count: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def source(module: nn.Module) -> FloatModel:
    picture = ImagePreprocessing(size=SIZE, resize=SIZE, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    return FloatModel(module=module.eval(), preprocessing=picture, labels=("a", "b", "c"))


def wanted(**settings: Any) -> CalibrationRecipe:
    return calibration.load("minmax").model_copy(update=settings)


def same_function(module: nn.Module, rewrite: Callable[[GraphModule], object]) -> GraphModule:
    graph = capture(module, images(1))
    x = images(16, seed=9)
    with torch.inference_mode():
        expected = graph(x)
        rewrite(graph)
        got = graph(x)
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    return graph


def uneven(module: nn.Module, seed: int = 0) -> nn.Module:
    """Spread the layers' channels over three orders of magnitude without changing what they can express."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            factor = 10 ** (torch.rand(len(layer.weight), generator=generator) * 3 - 1.5)
            layer.weight.data *= factor.reshape(-1, *[1] * (layer.weight.dim() - 1))
            if layer.bias is not None:
                layer.bias.data *= factor
    return module.eval()


def bottleneck(activation: Callable[[], nn.Module] = nn.ReLU, *, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 1, bias=bias), activation(), nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=bias),
        activation(), nn.Conv2d(12, 8, 1, bias=bias), activation(), nn.Conv2d(8, 4, 3, groups=2, bias=bias),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 16), activation(), nn.Linear(16, 3),
    )  # fmt: skip


def noise(module: nn.Module, recipe: CalibrationRecipe, batches: list[torch.Tensor]) -> float:
    """Return the program's mean squared error over the variance of the float network's outputs."""
    float_model = source(module)
    rewrites = quantization.calibration_rewrites(recipe, lambda: iter(batches))
    graph = quantization.prepare(float_model, rewrites=rewrites)
    quantization.calibrate(graph, batches, recipe)
    if recipe.bias_correction:
        quantization.correct_biases(graph, batches)
    program = quantization.convert(graph, float_model, batches[0]).program
    with torch.inference_mode():
        expected, got = module(torch.cat(batches)), program(torch.cat(batches))
    return float((got - expected).square().mean() / expected.var())


# --- cross-layer equalization ---


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity, nn.LeakyReLU, lambda: nn.ReLU(inplace=True)])
@pytest.mark.parametrize("bias", [True, False])
def test_equalizing_keeps_the_function_and_levels_the_channels(activation: Any, bias: bool) -> None:
    module = uneven(bottleneck(activation, bias=bias))
    graph = same_function(module, equalize_layers)
    weights = dict(graph.named_parameters())
    for first, second, groups in (("0", "2", 12), ("2", "4", 1), ("4", "6", 2), ("9", "11", 1)):
        ours = weights[f"{first}.weight"].flatten(1).abs().amax(1)
        weight = weights[f"{second}.weight"]
        theirs = (
            weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).abs().amax((1, 3)).flatten()
        )
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0)


def test_uneven_channels_lose_their_noise() -> None:
    module, batches = uneven(bottleneck()), [images(32, seed) for seed in range(2)]
    assert noise(module, wanted(cross_layer_equalization=True), batches) < 0.5 * noise(
        module, wanted(), batches
    )


def test_the_number_of_pairs_is_told() -> None:
    told: list[str] = []
    rewrites = quantization.calibration_rewrites(
        wanted(cross_layer_equalization=True), lambda: [], progress=lambda message, **_: told.append(message)
    )
    quantization.prepare(source(bottleneck()), rewrites=rewrites)
    assert told == ["4 pairs of layers equalized"]


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.Hardswish, nn.Sigmoid])
def test_functions_that_cannot_be_scaled_are_left_alone(activation: Callable[[], nn.Module]) -> None:
    graph = capture(
        nn.Sequential(nn.Conv2d(3, 4, 1), activation(), nn.Conv2d(4, 3, 8), nn.Flatten()), images(1)
    )
    with pytest.raises(QuantizationError, match="no two layers"):
        equalize_layers(graph)


class Twice(nn.Module):
    """A layer that is called twice, and a value that two read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(torch.relu(self.a(x))))  # a is read twice: neither pair counts
        y = torch.relu(self.b(x))  # read by c and by the sum
        return (self.c(y) + y).mean([2, 3])


def test_weights_and_values_that_two_read_are_not_touched() -> None:
    with pytest.raises(QuantizationError, match="no two layers"):
        equalize_layers(capture(Twice(), images(1)))


def test_tied_weights_are_not_touched() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.Flatten())
    net[2].weight = net[0].weight
    with pytest.raises(QuantizationError, match="no two layers"):
        equalize_layers(capture(net, images(1)))


def test_dead_channels_stay_as_they_are() -> None:
    module = bottleneck()
    module[0].weight.data[3] = 0
    module[4].weight.data[:, 5] = 0
    graph = same_function(module, equalize_layers)
    assert all(bool(torch.isfinite(value).all()) for value in graph.parameters())


# --- SmoothQuant ---


class Encoder(nn.Module):
    """One transformer block over 16 patches, norms first (as in ViT) or last (as in BERT)."""

    def __init__(self, *, post_norm: bool, affine: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = 24
        self.post_norm = post_norm
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=affine) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.up, self.down, self.head = nn.Linear(width, 48), nn.Linear(48, width), nn.Linear(width, 3)
        if affine:
            for norm in self.norms:  # a few channels far larger than the rest
                norm.weight.data[::8] *= 40
                norm.bias.data[1::8] += 10

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x)) * 0.1

    def feed(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.gelu(self.up(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        first, second, last = self.norms
        if self.post_norm:
            x = first(x)
            x = second(x + self.attend(x))
            x = last(x + self.feed(x))
        else:
            x = x + self.attend(first(x))
            x = last(x + self.feed(second(x)))
        return self.head(x.mean(1))


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_smoothing_keeps_the_function(post_norm: bool, affine: bool) -> None:
    net = Encoder(post_norm=post_norm, affine=affine)
    found: list[int] = []
    graph = same_function(net, lambda graph: found.append(smooth_activations(graph, [images()], 0.5)))
    assert found == [2]  # the last norm is averaged over the patches before its layer
    norms = [node for node in graph.graph.nodes if node.target is torch.ops.aten.layer_norm.default]
    # Behind a post-norm the residual keeps the old one.
    assert len(norms) == (5 if post_norm else 3)


@pytest.mark.parametrize("post_norm", [False, True])
def test_outliers_move_into_the_weights_as_the_paper_says(post_norm: bool) -> None:
    net = Encoder(post_norm=post_norm).eval()
    graph = capture(net, images(1))
    seen: list[torch.Tensor] = []
    net.norms[0].register_forward_hook(lambda *call: seen.append(call[2]))
    net(images())
    largest = seen[0].abs().flatten(0, 1).amax(0)
    weights = torch.cat([net.query.weight, net.key.weight, net.value.weight]).abs().amax(0)
    smooth_activations(graph, [images()[:4], images()[4:]], 0.7)
    factor = largest**0.7 / weights**0.3
    torch.testing.assert_close(graph.get_parameter("query.weight"), net.query.weight * factor)


def test_outliers_lose_their_noise() -> None:
    net, batches = Encoder(post_norm=False).eval(), [images(32, seed) for seed in range(2)]
    plain, smooth = noise(net, wanted(), batches), noise(net, wanted(smooth_quant=0.5), batches)
    assert smooth < 0.5 * plain


def test_a_network_without_norms_cannot_be_smoothed() -> None:
    with pytest.raises(QuantizationError, match="no LayerNorm"):
        smooth_activations(capture(bottleneck(), images(1)), [images()], 0.5)


def test_smoothing_needs_a_batch_of_finite_values() -> None:
    graph = capture(Encoder(post_norm=False), images(1))
    with pytest.raises(QuantizationError, match="no batch"):
        smooth_activations(graph, [], 0.5)
    with pytest.raises(QuantizationError, match="not finite"):
        smooth_activations(graph, [images() * float("inf")], 0.5)


# --- bias correction ---


@pytest.mark.parametrize("bias", [True, False])
def test_the_mean_error_of_the_weights_is_gone(bias: bool) -> None:
    torch.manual_seed(0)
    # Linear throughout, so that nothing but the weights' rounding shifts the mean.
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=bias),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3, bias=bias),
    )
    float_model, batches = source(net), [images(32, seed) + 1 for seed in range(4)]
    graph = quantization.prepare(float_model)
    quantization.calibrate(graph, batches, wanted())

    def shift() -> float:
        """Return the largest mean error of a logit, with exact activations."""
        sites = [site for _, site in named_sites(graph)]
        for site in sites:
            site.enabled = False
        with torch.inference_mode():
            error = graph(torch.cat(batches)) - net(torch.cat(batches))
        for site in sites:
            site.enabled = True
        return float(error.mean(0).abs().max())

    before = shift()
    quantization.correct_biases(graph, iter(batches))
    assert shift() < 0.02 * before
    program = quantization.convert(graph, float_model, batches[0])
    assert all(layer.bias is not None for layer in program.layers)


def test_a_bias_that_two_calls_read_is_parted() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(self.a(x) + 2).mean([2, 3])

    float_model = source(Net())
    graph = quantization.prepare(float_model)
    quantization.calibrate(graph, [images()], wanted())
    quantization.correct_biases(graph, [images()])
    first, second = (layer for layer in quantization.convert(graph, float_model, images()).layers)
    assert first.bias is not None
    assert second.bias is not None
    reals = [layer.bias * layer.input.scale * layer.weight_scale for layer in (first, second)]
    assert abs(reals[0] - reals[1]).max() > 1e-5


def test_linear_layers_over_tokens_are_corrected() -> None:
    net, batches = Encoder(post_norm=False).eval(), [images(32, seed) + 1 for seed in range(2)]
    assert noise(net, wanted(bias_correction=True), batches) < 1.05 * noise(net, wanted(), batches)


def test_correction_needs_a_batch() -> None:
    graph = quantization.prepare(source(bottleneck()))
    quantization.calibrate(graph, [images()], wanted())
    with pytest.raises(QuantizationError, match="no batch"):
        quantization.correct_biases(graph, [])


def test_inputs_are_read_once_per_step() -> None:
    opened: list[int] = []

    def batches() -> Iterator[torch.Tensor]:
        opened.append(1)
        yield images()

    rewrites = quantization.calibration_rewrites(wanted(smooth_quant=0.5), batches)
    quantization.prepare(source(Encoder(post_norm=True)), rewrites=rewrites)
    assert len(opened) == 1
    assert quantization.calibration_rewrites(wanted(), batches) == ()
