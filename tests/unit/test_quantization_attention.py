"""Attention in captured graphs: spelled out without a change of the function, and planned as the kernels want it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional

from edgeft import calibration, quantization
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization import attention, capture, decompositions
from edgeft.types import FloatModel

aten = torch.ops.aten
attend = functional.scaled_dot_product_attention


class Function(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Encoder(nn.Module):
    """One block of self-attention over the rows of an image, masked where a row's first pixel is negative."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, 0]
        keep = x[:, None, :, 0] > 0
        mask = (1.0 - keep.to(x.dtype)) * torch.finfo(x.dtype).min
        query, key, value = self.qkv(x).chunk(3, -1)
        weights = (query @ key.transpose(-1, -2) / 3 + mask).softmax(-1)
        x = self.norm(x + self.dropout(self.out(self.dropout(weights) @ value)))
        logits: torch.Tensor = self.head(x.mean(1))
        return logits


def targets(graph: GraphModule) -> list[object]:
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: attend(x, x, x),
        lambda x: attend(x, x, x, is_causal=True, scale=0.3),
        lambda x: attend(x, x, x, attn_mask=x @ x.transpose(-1, -2)),
        lambda x: attend(x, x, x, attn_mask=(x[..., 0] >= x[..., 0].mean(-1, keepdim=True)).unsqueeze(-2)),
        lambda x: torch.einsum("bhid,bhjd->bhij", x, x),
        lambda x: torch.einsum("bhij,bhjd->bhid", x @ x.mT, x),
        lambda x: torch.bmm(x.flatten(0, 1), x.flatten(0, 1).mT),
        lambda x: torch.baddbmm(x[:, 0] @ x[:, 0].mT, x[:, 1], x[:, 2].mT, beta=0.5, alpha=2),
    ],
)
def test_products_are_spelled_out_without_changing_the_function(
    function: Callable[..., torch.Tensor],
) -> None:
    x = torch.randn(4, 3, 5, 8)
    graph = capture(Function(function), x)
    left = {
        aten.scaled_dot_product_attention.default,
        aten.einsum.default,
        aten.bmm.default,
        aten.baddbmm.default,
    }
    assert not left & set(targets(graph))
    assert aten.matmul.default in targets(graph)
    torch.testing.assert_close(graph(x), function(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "equation", ["bij,bkl->bik", "bii,bij->bij", "bij,bij->b", "bij,bjk->bki", "bij,kj->bik"]
)
def test_sums_that_are_no_matrix_product_are_left(equation: str) -> None:
    assert decompositions._einsum_transposes(equation, 2) is None


def test_heads_that_share_keys_stay_fused() -> None:
    grouped = Function(lambda x: attend(x, x[:, :1], x[:, :1], enable_gqa=True))
    assert aten.scaled_dot_product_attention.default in targets(capture(grouped, torch.zeros(2, 3, 5, 8)))


def test_logits_masks_and_residual_sums_are_float_and_the_products_integer() -> None:
    graph = capture(Encoder(), torch.zeros(2, 1, 6, 8))
    plan = attention.plan(graph)
    assert [n.target for n in graph.graph.nodes if n in plan.products] == [aten.matmul.default] * 2
    (logits,) = plan.logits
    assert logits.users, "the first product, which the softmax reads"
    floats = [n.target for n in graph.graph.nodes if n in plan.floats]
    for target in (aten.softmax.int, aten.rsub.Scalar, aten.layer_norm.default):
        assert target in floats
    assert floats.count(aten.add.Tensor) == 2, "the mask's and the residual one"
    assert aten.mean.dim not in floats
    assert aten.linear.default not in floats


@pytest.mark.parametrize(("keys", "integer_products"), [(64, 2), (65, 1)])
def test_averages_over_more_than_64_keys_stay_float(keys: int, integer_products: int) -> None:
    graph = capture(Encoder(), torch.zeros(2, 1, keys, 8))
    assert len(attention.plan(graph).products) == integer_products


def test_a_residual_sum_without_a_layer_norm_is_quantized() -> None:
    graph = capture(Function(lambda x: x + x.relu()), torch.zeros(2, 3, 5, 8))
    assert not attention.plan(graph).floats


def test_masks_are_not_observed_and_weights_of_a_softmax_have_the_fixed_range() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 1, 8, 8)
    picture = ImagePreprocessing(size=8, resize=8, channels=1, mean=(0.5,), std=(0.5,))
    model = FloatModel(module=Encoder(), preprocessing=picture, labels=tuple("abcd"))
    graph = quantization.prepare(model)
    quantization.calibrate(graph, [x], calibration.load("minmax"))
    program = quantization.convert(graph, model, x)
    assert max(activation.scale for activation in program.activations) < 1
    assert any((a.scale, a.zero_point) == (1 / 256, -128) for a in program.activations)
    assert program.float_ops == ()


def test_dropout_keeps_its_rate_when_a_graph_is_trained() -> None:
    graph = capture(Encoder(), torch.zeros(2, 1, 6, 8))
    dropouts = [n for n in graph.graph.nodes if n.target is aten.dropout.default]
    graph.train()
    assert [n.args[1:] for n in dropouts] == [(0.1, True)] * 2
    x = torch.ones(2, 1, 6, 8)
    assert not torch.equal(graph(x), graph(x))
    graph.eval()
    assert torch.equal(graph(x), graph(x))


class Words(nn.Module):
    """The mean of embedded tokens; the second table is read by a product too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 6)
        self.tied = nn.Embedding(50, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        words = self.table(ids).mean(1) + self.tied(ids).mean(1)
        logits: torch.Tensor = self.head(words) + functional.linear(words, self.tied.weight)[:, :3]
        return logits


def test_embedding_rows_are_rounded_to_int8_unless_another_op_reads_them() -> None:
    from edgeft.quantization.embeddings import bake_embeddings

    torch.manual_seed(0)
    graph = capture(Words(), torch.zeros(2, 5, dtype=torch.int32))
    tables = {name: value.detach().clone() for name, value in graph.named_parameters()}
    bake_embeddings(graph)
    rounded = dict(graph.named_parameters())
    assert torch.equal(rounded["tied.weight"], tables["tied.weight"])
    table = rounded["table.weight"]
    steps = tables["table.weight"].abs().amax(1, keepdim=True) / 127
    torch.testing.assert_close(table / steps, (table / steps).round(), rtol=0, atol=1e-3)
    assert (table - tables["table.weight"]).abs().max() <= steps.max() / 2 * 1.001
