"""Operators that a target's profile denies, looked for in the network before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeft.errors import ConfigError, ModelError
from edgeft.preprocessing import Preprocessing
from edgeft.target import TargetProfile
from edgeft.types import example_inputs

if TYPE_CHECKING:
    from torch import nn

_NAMED = 5


def check_operators(
    network: nn.Module, preprocessing: Preprocessing, profiles: Sequence[TargetProfile]
) -> None:
    """Raise what a network has that one of the targets denies in ``ops.deny``.

    Operators are named as torch.export does, without the overload (``softmax``, ``hardswish``, ``conv_transpose2d``).

    Raises:
        ConfigError: A profile denies what is no operator.
        ModelError: The network has a denied operator, or torch.export cannot capture it.
    """
    strict = [profile for profile in profiles if profile.ops.deny]
    if not strict:
        return
    import torch

    for profile in strict:
        for name in profile.ops.deny:
            if not hasattr(torch.ops.aten, name):
                raise ConfigError(
                    f"target {profile.id}: ops.deny: {name!r} is no operator of torch (ATen)",
                    "name operators as torch.export does: conv2d, linear, softmax, layer_norm, hardswish",
                )
    places = _operators(network, preprocessing)
    for profile in strict:
        for name in profile.ops.deny:
            if name in places:
                found = places[name]
                more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
                raise ModelError(
                    f"target {profile.id} denies the operator {name!r}; the network has it in "
                    f"{', '.join(found[:_NAMED])}{more}",
                    'replace these layers (prune.rewrite = "edge-lite" replaces gates and smooth activations), or '
                    "leave the target out",
                )


def _operators(network: nn.Module, preprocessing: Preprocessing) -> dict[str, list[str]]:
    """Return the places of every operator: its name -> dotted paths of modules."""
    from torch._ops import OpOverload

    from edgeft import quantization
    from edgeft.quantization.capture import module_path

    places: dict[str, list[str]] = {}
    for node in quantization.capture(network, example_inputs(preprocessing)).graph.nodes:
        if isinstance(node.target, OpOverload):
            places.setdefault(node.target._schema.name.partition("::")[2], []).append(module_path(node))
    return places
