"""Whole networks: everything that can be cut is cut, and what comes out is an ordinary module."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeft import extras, pruning
from edgeft.models import huggingface

IMAGE = torch.zeros(1, 3, 64, 64)
IDS = torch.ones(1, 16, dtype=torch.int32)


def torchvision_model(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(extras.load("torchvision.models", "tests"), name)(num_classes=5)


def timm_model(name: str, **settings: object) -> Callable[[], nn.Module]:
    return lambda: extras.load("timm", "tests").create_model(name, num_classes=5, **settings)


def encoder() -> nn.Module:
    """Return MiniLM's architecture (6 layers, 12 heads of 32) with fresh weights, as text recipes build it."""
    transformers = extras.load("transformers", "tests")
    config = transformers.BertConfig(
        vocab_size=1000,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        attn_implementation="eager",
    )
    network = transformers.AutoModel.from_config(config, attn_implementation="eager")
    network.pooler = None
    return huggingface.PooledTextClassifier(network, 0, 384, 6)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor, float]] = {
    # What it is, an input, and the share of the MACs that can be reached at least.
    "mobilenet_v2": (torchvision_model("mobilenet_v2"), IMAGE, 0.10),
    "mobilenetv3_small": (timm_model("mobilenetv3_small_100"), IMAGE, 0.15),
    "efficientnet_b0": (timm_model("efficientnet_b0"), IMAGE, 0.11),
    "resnet18": (torchvision_model("resnet18"), IMAGE, 0.08),
    "resnet50": (torchvision_model("resnet50"), IMAGE, 0.08),
    "vgg11_bn": (torchvision_model("vgg11_bn"), IMAGE, 0.08),
    "vgg16": (torchvision_model("vgg16"), IMAGE, 0.08),
    "densenet121": (torchvision_model("densenet121"), IMAGE, 0.08),
    "squeezenet1_1": (torchvision_model("squeezenet1_1"), IMAGE, 0.11),
    "shufflenet_v2": (torchvision_model("shufflenet_v2_x1_0"), IMAGE, 0.31),
    "convnext_atto": (timm_model("convnext_atto"), IMAGE, 0.35),
    "vit_tiny": (timm_model("vit_tiny_patch16_224", img_size=64, depth=4), IMAGE, 0.34),
    "minilm": (encoder, IDS, 0.26),
}


def lively(network: nn.Module) -> nn.Module:
    """Give every batch norm statistics and scales of a trained network: those of a fresh one hide mistakes."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return lively(NETWORKS[name][0]())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_network_is_cut_stored_and_cut_again(name: str) -> None:
    network, (_, example, reachable) = build(name), NETWORKS[name]
    analysis = pruning.analyse(network, example, channel_multiple=8, min_channels=8)
    assert analysis.lowest_macs <= reachable * analysis.full_macs
    # `apply` proves that cutting equals not reading, and counts the MACs again.
    share = (1 + reachable) / 2
    pruned = analysis.apply(analysis.widths(macs=share))
    assert 0.9 * share < pruned.plan.macs_share <= share
    assert pruned.plan.params_after == sum(p.numel() for p in pruned.module.parameters())
    x = torch.randn(2, *example.shape[1:]) if example.is_floating_point() else example.repeat(2, 1)
    restored = pruning.restore(build(name, seed=1), pruned.module.state_dict())
    with torch.no_grad():
        assert torch.equal(restored(x), pruned.module(x))
    again = pruning.prune(restored, example, macs=0.9, channel_multiple=8, min_channels=8)
    assert again.plan.macs_after <= 0.9 * pruned.plan.macs_after
    again.module.train()(x).square().mean().backward()
    trainable = [p for p in again.module.parameters() if p.requires_grad]
    assert sum(p.grad is not None for p in trainable) > 0.9 * len(trainable)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small", "vit_tiny", "minilm"])
def test_exported_program_loads_without_edgeft(name: str, tmp_path: Path) -> None:
    network, (_, example, reachable) = build(name), NETWORKS[name]
    pruned = pruning.prune(
        network, example, macs=max(0.5, reachable + 0.05), channel_multiple=8, min_channels=8
    ).module
    x = torch.randn(example.shape) if example.is_floating_point() else example
    torch.export.save(torch.export.export(pruned, (x,)), tmp_path / "pruned.pt2")
    with torch.no_grad():
        torch.save((x, pruned(x)), tmp_path / "expected.pt")
    code = (
        "import sys, torch\n"
        "program = torch.export.load('pruned.pt2').module()\n"
        "x, expected = torch.load('expected.pt')\n"
        "torch.testing.assert_close(program(x), expected, rtol=1e-4, atol=1e-4)\n"
        "sys.exit('edgeft' in sys.modules or 'torch_pruning' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_heads_and_mlp_width_of_minilm_are_halved() -> None:
    network = build("minilm")
    analysis = pruning.analyse(network, IDS, channel_multiple=8, min_channels=8)
    halves = [
        ladder[0] if len(ladder) == 1 else min(ladder, key=lambda w, full=ladder[-1]: abs(w - full / 2))
        for ladder in analysis.ladders
    ]
    module = analysis.apply(halves).module
    for layer in module.network.encoder.layer:
        assert layer.attention.self.num_attention_heads == 6
        assert layer.attention.self.all_head_size == layer.attention.self.query.out_features == 192
        assert layer.attention.output.dense.in_features == 192
        assert layer.intermediate.dense.out_features == layer.output.dense.in_features == 768
