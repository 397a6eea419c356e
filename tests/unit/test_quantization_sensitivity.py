"""Sensitivity: one layer at a time, against what full runs of the graph say."""

import pytest
import torch
from torch import nn

from edgeft import calibration, quantization
from edgeft.errors import DataError, QuantizationError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization.mixed import quantized_layers
from edgeft.types import FloatModel

SIZE = 8


class Net(nn.Module):
    """A residual sum, in-place activations and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.twice(torch.relu(self.twice(x)))
        return self.head(torch.flatten(nn.functional.max_pool2d(x, 2), 1))


@pytest.fixture(scope="module")
def graph() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    picture = ImagePreprocessing(size=SIZE, resize=SIZE, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    model = FloatModel(module=Net().eval(), preprocessing=picture, labels=("a", "b", "c"))
    graph = quantization.prepare(model)
    quantization.calibrate(graph, [inputs()], calibration.load("minmax"))
    return graph


def inputs(count: int = 12) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_it_is_what_a_whole_run_with_one_layer_quantized_gives(graph):
    found = {each.layer: each for each in quantization.sensitivities(graph, [inputs()])}
    x = inputs()
    copy = quantization.copy_graph(graph)
    quantizers = [m for m in copy.modules() if hasattr(m, "enabled")]
    for quantizer in quantizers:
        quantizer.enabled = False
    with torch.inference_mode():
        reference = copy(x)
        for name, macs in quantized_layers(copy).items():
            users = [u for mac in macs for n in (mac, *mac.users) for u in n.users]
            nodes = {n for mac in macs for n in mac.all_input_nodes} | set(users)
            own = [copy.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"]
            for quantizer in own:
                quantizer.enabled = True
            logits = copy(x)
            for quantizer in own:
                quantizer.enabled = False
            assert found[name].mse == pytest.approx(float((logits - reference).square().mean()), rel=1e-4)
            log_p, log_q = (x.double().log_softmax(1) for x in (reference, logits))
            kl = float((log_p.exp() * (log_p - log_q)).sum(1).mean())
            assert found[name].kl == pytest.approx(kl, rel=1e-3, abs=1e-9)


def test_batches_do_not_matter(graph):
    whole = quantization.sensitivities(graph, [inputs()])
    parts = quantization.sensitivities(graph, [inputs()[:5], inputs()[5:]])
    for one, other in zip(whole, parts, strict=True):
        assert one.layer == other.layer
        for figure in ("kl", "mse", "sqnr_db", "mac_share", "range_use"):
            assert getattr(one, figure) == pytest.approx(getattr(other, figure), rel=1e-3)


def test_multiply_accumulates_are_counted_per_call(graph):
    found = {each.layer: each.mac_share for each in quantization.sensitivities(graph, [inputs()])}
    stem, twice, head = 8 * 64 * 27, 2 * 8 * 64 * 72, 3 * 128
    total = stem + twice + head
    expected = {"stem.0": stem / total, "twice": twice / total, "head": head / total}
    assert found == {name: pytest.approx(share) for name, share in expected.items()}


def test_a_stretched_range_shows_as_unused(graph):
    before = {each.layer: each for each in quantization.sensitivities(graph, [inputs()])}
    copy = quantization.copy_graph(graph)
    site = next(m for m in copy.modules() if hasattr(m, "keeps_extremes"))  # the input's
    site.high.mul_(20)
    after = {each.layer: each for each in quantization.sensitivities(copy, [inputs()])}
    assert before["stem.0"].range_use > 0.9
    assert after["stem.0"].range_use < 0.2
    assert after["stem.0"].kl > 10 * before["stem.0"].kl
    assert after["head"].kl == pytest.approx(before["head"].kl)


def test_the_graph_is_left_as_it_was(graph):
    x = inputs()
    with torch.inference_mode():
        expected = graph(x)
        quantization.sensitivities(graph, [x[:3]])
        assert torch.equal(graph(x), expected)


def test_nothing_to_measure_is_an_error(graph):
    with pytest.raises(DataError, match="at least one batch"):
        quantization.sensitivities(graph, [])
    with pytest.raises(QuantizationError, match="no quantized layer"):
        quantization.sensitivities(torch.fx.symbolic_trace(nn.ReLU()), [inputs()])
