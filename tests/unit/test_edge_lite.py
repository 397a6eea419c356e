"""The edge-lite rewrite on the networks that it is for, and what it leaves alone."""

import pytest
import torch
from torch import nn

from edgeft import extras, models
from edgeft.errors import ModelError

SLOW = (nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid)
SIZE = 64


class Gate(nn.Module):
    """Scales each channel by a constant: a squeeze-and-excite gate whose mean is known."""

    def __init__(self, factors: torch.Tensor) -> None:
        super().__init__()
        self.factors = nn.Parameter(factors.view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factors


Gate.__name__ = "SqueezeExcite"


def torchvision_network(name: str) -> nn.Module:
    return getattr(extras.load("torchvision.models", "tests"), name)().eval()


def timm_network(name: str) -> nn.Module:
    return extras.load("timm", "tests").create_model(name).eval()


@pytest.mark.parametrize(
    ("make", "name", "activations", "gates"),
    [
        (torchvision_network, "mobilenet_v3_small", 19, 9),
        (torchvision_network, "efficientnet_b0", 33, 16),
        (timm_network, "mobilenetv3_small_050", 19, 9),
        (timm_network, "efficientnet_lite0", 0, 0),
    ],
)
def test_known_networks(make, name: str, activations: int, gates: int):
    network = make(name)
    found = models.edge_lite_sites(network)
    assert tuple(map(len, found)) == (activations, gates)
    if not activations:
        return
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    rewritten = models.to_edge_lite(network)
    assert (rewritten.activations, rewritten.gates) == found
    assert not any(isinstance(layer, SLOW) for layer in rewritten.module.modules())
    assert models.edge_lite_sites(rewritten.module) == ((), ())
    # What is left keeps its names and values: weights of a rewritten network load into a rewritten network.
    left = rewritten.module.state_dict()
    assert all(torch.equal(tensor, before[key]) for key, tensor in left.items())
    gone = {key for key in before if key not in left}
    assert gone and all(key.startswith(tuple(rewritten.gates)) for key in gone)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    with torch.no_grad():
        assert rewritten.module(torch.randn(2, 3, SIZE, SIZE)).shape == (2, 1000)


def test_a_gate_with_a_constant_mean_is_folded_exactly():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU6(), Gate(torch.linspace(0.1, 1.5, 8)), nn.Conv2d(8, 4, 1), nn.Flatten()
    ).eval()
    inputs = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    rewritten = models.to_edge_lite(network, inputs)
    assert rewritten.folded == ("2",)
    with torch.no_grad():
        for x in (*inputs, torch.randn(2, 3, 8, 8)):
            torch.testing.assert_close(rewritten.module(x), network(x))
        assert not torch.allclose(models.to_edge_lite(network).module(inputs[0]), network(inputs[0]))


class Residual(nn.Module):
    """A gate whose output is added to something before a convolution reads it, as in an SE-ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate(torch.full((3,), 0.5))
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.gate(x) + x)


def test_a_gate_that_no_convolution_reads_alone_is_not_folded():
    rewritten = models.to_edge_lite(Residual().eval(), [torch.randn(1, 3, 4, 4)])
    assert rewritten.gates == ("gate",) and rewritten.folded == ()


def test_a_reader_may_be_called_by_keyword():
    class Keyword(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(input=self.gate(x))

    network, x = Keyword().eval(), torch.randn(2, 3, 4, 4)
    rewritten = models.to_edge_lite(network, [x])
    assert rewritten.folded == ("gate",)
    torch.testing.assert_close(rewritten.module(x), network(x))


def test_folding_brings_a_real_network_closer():
    torch.manual_seed(0)
    network = timm_network("mobilenetv3_small_050")
    inputs = [torch.randn(8, 3, SIZE, SIZE)]
    with torch.no_grad():
        wanted = network(inputs[0])

        def distance(module: nn.Module) -> float:
            return float((module(inputs[0]) - wanted).norm() / wanted.norm())

        folded = models.to_edge_lite(network, inputs)
        assert set(folded.folded) == set(folded.gates)
        assert distance(folded.module) < 0.2 * distance(models.to_edge_lite(network).module)


def test_nothing_to_rewrite_is_said():
    with pytest.raises(ModelError, match="has no module of hardswish, SiLU") as raised:
        models.to_edge_lite(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    assert "leave prune.rewrite out" in raised.value.hint
