"""Surgery on networks whose attribute names nobody knows beforehand."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeft import extras, models, stages
from edgeft.errors import ModelError
from edgeft.models import networks
from edgeft.preprocessing import ImagePreprocessing
from edgeft.types import FloatModel


class Odd(nn.Module):
    """Registers its layers in another order than it runs them, and pools behind its head."""

    def __init__(self) -> None:
        super().__init__()
        self.z_out = nn.Conv2d(8, 5, 1)
        self.second = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.first = nn.Conv2d(3, 4, 3)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.z_out(self.second(self.first(x * self.scale))).mean((2, 3))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.a(x) + self.b(x)


def torchvision_model(name: str, **options):
    return extras.load("torchvision.models", "tests").get_model(name, weights=None, **options).eval()


X = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_the_head_is_what_runs_last() -> None:
    network = Odd()
    assert models.find_head(network, X) == "z_out"
    assert network.training and all(layer.training for layer in network.modules())


def test_a_replaced_head_follows_the_seed_and_nothing_else_changes() -> None:
    first, again, other = (copy.deepcopy(NETWORK) for NETWORK in [Odd()] * 3)
    body = first.second[0].weight.clone()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for network, seed in ((first, 1), (again, 1), (other, 2)):
        assert models.replace_head(network, 9, seed, example=X) == "z_out"
    assert torch.equal(torch.rand(1), expected)
    assert first(X).shape == (2, 9) and torch.equal(first.second[0].weight, body)
    assert torch.equal(first.z_out.weight, again.z_out.weight)
    assert not torch.equal(first.z_out.weight, other.z_out.weight)


def test_two_heads_and_none_are_refused() -> None:
    with pytest.raises(ModelError, match="does not run with a head of 4 classes"):
        models.replace_head(TwoHeads(), 4, 0, example=torch.zeros(1, 6))
    with pytest.raises(ModelError, match="no classification head"):
        models.find_head(nn.Flatten(), X)
    with pytest.raises(ModelError, match="makes 8 values, and its output has 4"):
        models.find_head(nn.Sequential(nn.Linear(3, 8), nn.GLU()), torch.zeros(1, 3))


def test_a_cut_network_is_shallow_and_returns_the_layer() -> None:
    network = Odd().eval()
    extractor = models.cut_after(network, "second.1", X)
    torch.testing.assert_close(extractor(X), network.second[:2](network.first(X)))
    assert not any("z_out" in name for name, _ in extractor.named_parameters())
    extractor(X).sum().backward()
    assert extractor.network.first.weight.grad is not None and network.first.weight.grad is None
    assert set(copy.deepcopy(extractor).state_dict()) == set(extractor.state_dict())
    with pytest.raises(ModelError, match=r"no layer 'secnd' \(did you mean 'second'"):
        models.cut_after(network, "secnd", X)


def test_freezing_follows_the_order_of_running() -> None:
    network = Odd()
    frozen = models.freeze_to(network, "second.0", X)
    assert frozen == ["scale", "second.0.weight", "second.0.bias", "first.weight", "first.bias"]
    open_ = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert open_ == {"z_out.weight", "z_out.bias", "second.1.weight", "second.1.bias"}


@pytest.mark.parametrize(("old", "new"), [(3, 1), (3, 4), (1, 3), (3, 6)])
def test_input_channels_keep_what_the_network_sees(old: int, new: int) -> None:
    network = nn.Sequential(nn.Conv2d(old, 4, 3), nn.Flatten())
    grey = torch.rand(2, 1, 8, 8)
    before = network(grey.expand(2, old, 8, 8))
    assert models.adapt_input_channels(network, new) == "0"
    assert network[0].in_channels == new
    if new % old == 0 or old % new == 0:
        torch.testing.assert_close(network(grey.expand(2, new, 8, 8)), before)
    else:
        assert network(grey.expand(2, new, 8, 8)).std() > 0


@pytest.mark.parametrize(
    ("name", "head", "names"),
    [
        ("mobilenet_v2", "classifier.1", [f"features.{i}" for i in range(19)]),
        ("resnet18", "fc", ["conv1", *(f"layer{i}.{j}" for i in range(1, 5) for j in (0, 1))]),
    ],
)
def test_blocks_of_known_networks(name: str, head: str, names: list[str]) -> None:
    pytest.importorskip("torchvision")
    network = torchvision_model(name)
    blocks = models.blocks(network, head)
    assert [block.name for block in blocks] == names
    covered = [
        [p for p, _ in network.named_parameters() if any(p.startswith(f"{x}.") for x in block.prefixes)]
        for block in blocks
    ]
    flat = [parameter for group in covered for parameter in group]
    assert sorted(flat) == sorted(n for n, _ in network.named_parameters() if not n.startswith(f"{head}."))
    assert len(flat) == len(set(flat)) and all(covered)


def test_blocks_of_the_builtin_networks_and_of_parameters_outside_of_layers() -> None:
    names = [block.name for block in models.blocks(networks.digitsnet(3), "head")]
    assert names == [f"features.{part}" for part in ("stem", "block1", "block2", "block3", "block4", "last")]
    assert models.blocks(networks.MLP(7, 2), "head")[0].prefixes == ("features.0.linear", "features.0.bn")
    odd = models.blocks(Odd(), "z_out")
    assert odd[0].prefixes[-1] == "scale" and {block.name for block in odd} == {"second.0", "first"}


def test_timm_blocks() -> None:
    timm = pytest.importorskip("timm")
    blocks = models.blocks(timm.create_model("mobilenetv3_small_050"), "classifier")
    assert (blocks[0].name, blocks[0].prefixes) == ("conv_stem", ("conv_stem", "bn1"))
    assert [block.name for block in blocks][1:4] == ["blocks.0.0", "blocks.1.0", "blocks.1.1"]
    assert blocks[-1].name == "conv_head"


@pytest.mark.slow
def test_vgg16_at_224_pixels(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    onnxruntime = pytest.importorskip("onnxruntime")
    network, x = torchvision_model("vgg16"), torch.rand(1, 3, 224, 224)
    assert models.replace_head(network, 6, 0, example=x) == "classifier.6"
    assert len(models.freeze_to(network, "features.28", x)) == 26
    assert [block.name for block in models.blocks(network, "classifier.6")][-2:] == [
        "classifier.0",
        "classifier.3",
    ]
    extractor = models.cut_after(network, "features.30", x)
    assert extractor(x).shape == (1, 512, 7, 7) and sum(p.numel() for p in extractor.parameters()) < 15e6
    models.adapt_input_channels(network, 1)
    assert network(x[:, :1]).shape == (1, 6)
    grey = ImagePreprocessing(size=224, resize=224, channels=1, mean=(0.5,), std=(0.5,))
    model = FloatModel(module=network, preprocessing=grey, labels=tuple("abcdef"))
    file = stages.export(model, "cpu-onnxruntime", tmp_path)
    assert file.coverage.mac_ops == 16 and file.size_bytes > 500e6
    session = onnxruntime.InferenceSession(file.path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x[:, :1].numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(logits, network(x[:, :1]), atol=1e-4)
