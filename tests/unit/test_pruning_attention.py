"""Attention heads: cut whole, in all projections alike, and the module knows how many are left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeft import pruning
from edgeft.errors import ModelError

EXAMPLE = torch.zeros(1, 12, 64)


class Fused(nn.Module):
    """Attention as timm writes it: one projection for queries, keys and values, sizes in attributes."""

    def __init__(self, dim: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, dim // heads, dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(self.head_dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (self.q_norm(q) @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, self.attn_dim))


class Projections(nn.Module):
    def __init__(self, dim: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = heads, dim // heads, dim
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:-1], -1, self.attention_head_size)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-2, -1) * self.attention_head_size**-0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(*x.shape[:-1], -1)


class Separate(nn.Module):
    """Attention as BERT has it: three projections in one module, the output's in its sibling."""

    def __init__(self) -> None:
        super().__init__()
        self.self = Projections()
        self.output = nn.ModuleDict({"dense": nn.Linear(64, 64)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output["dense"](self.self(x))


class Shared(Fused):
    """A table of biases per head: heads cannot go without it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 12, 12))


class Transformer(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.first, self.attention = nn.LayerNorm(64), attention
        self.second = nn.LayerNorm(64)
        self.mlp = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        self.head = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.first(x))
        x = x + self.mlp(self.second(x))
        return self.head(x.mean(1))


def transformer(attention: type[nn.Module], seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(attention())


def analyse(network: nn.Module, **settings: object) -> pruning.Analysis:
    options = {"channel_multiple": 8, "min_channels": 8} | settings
    return pruning.analyse(network, EXAMPLE, **options)


def heads(attention: nn.Module) -> tuple[int, int]:
    """Return the numbers of heads and of their channels that the module believes in."""
    if isinstance(attention, Fused):
        return attention.num_heads, attention.attn_dim
    return attention.self.num_attention_heads, attention.self.all_head_size


@pytest.mark.parametrize("attention", [Fused, Separate])
def test_heads_are_a_group_of_their_own(attention: type[nn.Module]) -> None:
    analysis = analyse(transformer(attention))
    units = {
        g.layers: (g.unit, g.width, g.size, limit)
        for g, limit in zip(analysis.groups, analysis.limits, strict=True)
    }
    projections = (
        ("attention.qkv",)
        if attention is Fused
        else tuple(f"attention.self.{part}" for part in ("query", "key", "value"))
    )
    assert units[projections] == ("head", 4, 16, "")
    assert units[("mlp.0",)] == ("channel", 128, 1, "")
    assert "LayerNorm" in {*analysis.limits}


@pytest.mark.parametrize("attention", [Fused, Separate])
def test_cut_heads_leave_a_module_that_runs_and_restores(attention: type[nn.Module]) -> None:
    network = transformer(attention)
    analysis = analyse(network)
    pruned = analysis.apply([2 if g.unit == "head" else g.width for g in analysis.groups])
    assert heads(pruned.module.attention) == (2, 32)
    assert pruned.plan.macs_after == pruning.count_macs(pruned.module, EXAMPLE)
    x = torch.randn(3, 12, 64)
    restored = pruning.restore(transformer(attention, seed=1), pruned.module.state_dict())
    assert heads(restored.attention) == (2, 32)
    assert torch.equal(restored(x), pruned.module(x))
    again = analyse(restored)
    assert again.apply(again.lowest).plan.macs_after < pruned.plan.macs_after


@pytest.mark.parametrize("attention", [Fused, Separate])
@pytest.mark.parametrize("criterion", ["magnitude", "l1", "taylor"])
def test_a_head_that_nobody_reads_goes_first(attention: type[nn.Module], criterion: str) -> None:
    network = transformer(attention).eval()
    reader = network.attention.proj if attention is Fused else network.attention.output["dense"]
    writers = [network.attention.qkv] if attention is Fused else [*network.attention.self.children()]
    with torch.no_grad():
        reader.weight[:, 16:32] = 0
        for writer in writers:
            writer.weight.unflatten(0, (-1, 4, 16))[:, 1] = 0
    x = torch.randn(3, 12, 64)
    network(x).square().sum().backward()
    gradients = [{name: p.grad for name, p in network.named_parameters()}]
    analysis = analyse(network, criterion=criterion, gradients=gradients)
    pruned = analysis.apply([3 if g.unit == "head" else g.width for g in analysis.groups])
    torch.testing.assert_close(pruned.module(x), network(x))


def test_heads_keep_the_channel_multiple() -> None:
    ladder = {g.unit: ladder for g, ladder in zip(*_of(channel_multiple=32), strict=True)}["head"]
    assert ladder == (2, 4)


def _of(channel_multiple: int) -> tuple[tuple[pruning.ChannelGroup, ...], tuple[tuple[int, ...], ...]]:
    analysis = analyse(transformer(Fused), channel_multiple=channel_multiple)
    return analysis.groups, analysis.ladders


@pytest.mark.parametrize("kept", ["attention.qkv", "mlp.0"])
def test_kept_layers_of_a_transformer_stay(kept: str) -> None:
    analysis = analyse(transformer(Fused), keep=[kept])
    assert analysis.fixed[kept] == "kept"
    assert analysis.apply(analysis.lowest).plan.macs_after < analysis.full_macs


def test_attention_with_a_table_per_head_is_left() -> None:
    analysis = analyse(transformer(Shared))
    assert "attention.qkv" in analysis.fixed
    assert analysis.apply(analysis.lowest).module.attention.num_heads == 4


def test_fused_kernels_are_named() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    analysis = analyse(transformer(Block))
    assert analysis.fixed["attention.attention"] == "attention in one kernel"
    assert analysis.plan(analysis.full, 0).to_dict()["fixed"] == analysis.fixed, "the report can say so"
    assert analysis.apply(analysis.lowest).module.mlp[0].out_features == 32


def test_a_state_of_half_a_head_is_refused() -> None:
    state = transformer(Fused).state_dict()
    state["attention.qkv.weight"] = state["attention.qkv.weight"][:180]
    state["attention.qkv.bias"] = state["attention.qkv.bias"][:180]
    state["attention.proj.weight"] = state["attention.proj.weight"][:, :60]
    with pytest.raises(ModelError, match="no whole heads of 16"):
        pruning.restore(transformer(Fused), state)
