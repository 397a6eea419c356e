"""Attention: its heads are what can be cut, whole, from the projections that write them and the one that reads them.

A head's share of queries, keys and values is useless alone (Michel et al., "Are Sixteen Heads Really Better than
One?", NeurIPS 2019). Channels inside a head stay: the scale of the logits depends on their number, and integer
kernels like them regular.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a kind of attention module names its parts; `output` is found from the module's parent if it has a dot."""

    inputs: tuple[str, ...]
    output: str
    heads: str
    head_size: str
    width: str = ""


LAYOUTS = (
    # timm's transformers: one layer writes queries, keys and values.
    Layout(inputs=("qkv",), output="proj", heads="num_heads", head_size="head_dim", width="attn_dim"),
    # BERT and its kin in transformers; the output projection is in the sibling `output`.
    Layout(
        inputs=("query", "key", "value"),
        output="output.dense",
        heads="num_attention_heads",
        head_size="attention_head_size",
        width="all_head_size",
    ),
    # ViT, DeiT and most newer ones in transformers.
    Layout(
        inputs=("q_proj", "k_proj", "v_proj"),
        output="o_proj",
        heads="num_attention_heads",
        head_size="head_dim",
    ),
    # DistilBERT.
    Layout(
        inputs=("q_lin", "k_lin", "v_lin"),
        output="out_lin",
        heads="n_heads",
        head_size="attention_head_size",
        width="dim",
    ),
)
"""The attention modules whose heads can be cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """An attention module: dotted names of its projections, heads and channels of a head.

    One input projection writes queries, keys and values one after the other, or three write one each.
    """

    name: str
    layout: Layout
    inputs: tuple[str, ...]
    output: str
    heads: int
    head_size: int

    @property
    def parts(self) -> int:
        """How many of queries, keys and values one input projection writes."""
        return 3 // len(self.inputs)


def find_attention(module: nn.Module) -> tuple[Attention, ...]:
    """Return the attention modules of `module` whose heads can be cut.

    One that has parameters beside its projections (a table of relative positions) or shares its keys between heads
    is none of them.
    """
    layers = dict(module.named_modules())
    found = []
    for name, layer in layers.items():
        for layout in LAYOUTS:
            attention = _match(name, layer, layout, layers)
            if attention is not None:
                found.append(attention)
    return tuple(found)


def _match(name: str, layer: nn.Module, layout: Layout, layers: Mapping[str, nn.Module]) -> Attention | None:
    """Return `layer` as an attention of this layout, or None."""
    heads, size = getattr(layer, layout.heads, None), getattr(layer, layout.head_size, None)
    if not (isinstance(heads, int) and isinstance(size, int)):
        return None
    prefix = f"{name}." if name else ""
    owner = prefix.removesuffix(".").rpartition(".")[0] if "." in layout.output else name
    output = f"{owner}.{layout.output}" if owner else layout.output
    inputs = tuple(prefix + part for part in layout.inputs)
    attention = Attention(name=name, layout=layout, inputs=inputs, output=output, heads=heads, head_size=size)
    writers = [layers.get(part) for part in inputs]
    reader = layers.get(output)
    if not isinstance(reader, nn.Linear) or reader.in_features != heads * size:
        return None
    for writer in writers:
        if not isinstance(writer, nn.Linear) or writer.out_features != attention.parts * heads * size:
            return None
    # Norms of a single head's queries and keys know nothing of the number of heads.
    known = (*inputs, output, f"{prefix}q_norm", f"{prefix}k_norm")
    owners = {f"{prefix}{key}".rpartition(".")[0] for key, _ in layer.named_parameters()}
    return attention if owners <= set(known) else None


def update_heads(module: nn.Module, attentions: tuple[Attention, ...]) -> None:
    """Set the number of heads of every attention in `module` to what its projections now write.

    Args:
        module: The network whose projections were cut.
        attentions: What `find_attention` found before.
    """
    for attention in attentions:
        layer = module.get_submodule(attention.name)
        writer: Any = module.get_submodule(attention.inputs[0])
        width = writer.weight.shape[0] // attention.parts
        setattr(layer, attention.layout.heads, width // attention.head_size)
        if hasattr(layer, attention.layout.width):
            setattr(layer, attention.layout.width, width)
