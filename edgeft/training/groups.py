"""Who learns when and how fast: parameter groups, frozen blocks, batch norms, dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from edgeft import recipe
from edgeft.errors import ConfigError, ModelError

Blocks = Sequence[Sequence[str]]
"""Dotted prefixes of every block of a network, from input to output, without the head."""

BatchNorm = nn.modules.batchnorm._BatchNorm
_Dropout = nn.modules.dropout._DropoutNd
_NEVER = 1 << 30
_NO_PACES: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class LearningGroup:
    """Parameters that learn from epoch `start` on at `multiplier` times the base rate, and decay or not."""

    multiplier: float
    decayed: bool
    start: int
    parameters: list[nn.Parameter]


class LearningPlan:
    """The pace of every trainable parameter, by its distance from the head.

    The head is at distance 0, the block before it at 1. Layers outside of all blocks (class tokens, position
    tables) belong to the first block. Norms and biases (parameters of at most one dimension) are not decayed.

    Args:
        module: What is trained. Parameters that need no gradient are left alone.
        config: A `recipe.Finetune` says how paces differ; other trainings have one pace.
        head: Dotted prefix of the head; empty where all weights are fresh.
        blocks: Needed by `train_blocks`, `block_lr_decay` and `unfreeze_every`.
        paces: Multiples of the base rate for single parameters, by name, whatever their distance.

    Raises:
        ModelError: Nothing is trainable, or nothing is called `head`.
        ConfigError: The config asks for more blocks than there are, or none are known.
    """

    def __init__(
        self,
        module: nn.Module,
        config: recipe.Training,
        head: str = "",
        blocks: Blocks = (),
        paces: Mapping[str, float] = _NO_PACES,
    ) -> None:
        self._module, self._head, self._blocks, self._paces = module, head, blocks, paces
        self._config = config if isinstance(config, recipe.Finetune) else recipe.Finetune()
        self._check()
        self._trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not self._trainable:
            raise ModelError("training: the network has no trainable parameter")
        boost = self._config.head_lr_multiplier
        if head and boost != 1.0 and not any(_covers(head, name) for name, _ in self._trainable):
            raise ModelError(f"training: no trainable parameter is called {head!r} or lies below it")
        self.groups = self._grouped()

    def enter_epoch(self, epoch: int) -> None:
        """Freeze what does not learn in `epoch`; call it after the network has entered training mode."""
        for name, parameter in self._trainable:
            parameter.requires_grad_(self._start(name) <= epoch)
        for name, layer in self._module.named_modules():
            # A frozen block computes what it was pretrained to compute, so its statistics stand still too.
            if isinstance(layer, BatchNorm) and (self._config.freeze_batch_norm or self._start(name) > epoch):
                layer.eval()

    def release(self) -> None:
        """Let every parameter be trainable that was so at the beginning."""
        for _, parameter in self._trainable:
            parameter.requires_grad_(True)

    def _grouped(self) -> list[LearningGroup]:
        groups: dict[tuple[float, bool, int], LearningGroup] = {}
        for name, parameter in self._trainable:
            start = self._start(name)
            if start < _NEVER:
                key = (self._multiplier(name), parameter.ndim > 1, start)
                groups.setdefault(key, LearningGroup(*key, [])).parameters.append(parameter)
        return list(groups.values())

    def _distance(self, name: str) -> int:
        if self._head and _covers(self._head, name):
            return 0
        inside = [
            (len(prefix), index)
            for index, prefixes in enumerate(self._blocks)
            for prefix in prefixes
            if _covers(prefix, name)
        ]
        return max(len(self._blocks), 1) - (max(inside)[1] if inside else 0)

    def _multiplier(self, name: str) -> float:
        if name in self._paces:
            return self._paces[name]
        distance = self._distance(name)
        if distance == 0 and self._head:
            return self._config.head_lr_multiplier
        return self._config.block_lr_decay ** max(distance - 1, 0)

    def _start(self, name: str) -> int:
        """Return the first epoch in which a parameter or layer of this name learns."""
        distance = self._distance(name)
        if self._config.train_blocks is not None and distance > self._config.train_blocks:
            return _NEVER
        return distance * (self._config.unfreeze_every or 0)

    def _check(self) -> None:
        ours = self._config
        wanted = {
            "train_blocks": ours.train_blocks is not None,
            "block_lr_decay": ours.block_lr_decay != 1.0,
            "unfreeze_every": ours.unfreeze_every is not None,
        }
        for key in (key for key, given in wanted.items() if given):
            if not (self._blocks and self._head):
                raise ConfigError(
                    f"finetune.{key}: needs a network with a head and blocks before it, and none are known here",
                    f"leave {key} out",
                )
        if ours.train_blocks is not None and ours.train_blocks > len(self._blocks):
            raise ConfigError(
                f"finetune.train_blocks = {ours.train_blocks}: the network has {len(self._blocks)} blocks",
                "give a smaller number, or leave it out to train all",
            )


@contextlib.contextmanager
def dropout_rate(module: nn.Module, rate: float | None) -> Iterator[None]:
    """Set the rate of all dropout layers to `rate` for a while; None leaves them alone.

    Besides layers this reaches timm's `drop_rate`, which its networks hand to the functional dropout before
    their head.

    Raises:
        ConfigError: There is no dropout to set.
    """
    if rate is None:
        yield
        return
    found: list[tuple[nn.Module, str]] = [
        (layer, "p") for layer in module.modules() if isinstance(layer, _Dropout)
    ]
    found += [(m, "drop_rate") for m in module.modules() if isinstance(getattr(m, "drop_rate", None), float)]
    if not found:
        raise ConfigError("finetune.dropout: the network has no dropout layer", "leave it out")
    before = [getattr(layer, name) for layer, name in found]
    for layer, name in found:
        setattr(layer, name, rate)
    try:
        yield
    finally:
        for (layer, name), value in zip(found, before, strict=True):
            setattr(layer, name, value)


def _covers(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
