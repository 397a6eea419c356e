"""What `build` returns: a network, its head, and where its tensors came from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadAccount:
    """What became of every tensor, by name.

    `loaded` came from the file, `left_out` is in the file but not used (its head), `fresh` is in the network
    but not from the file (the new head). `notes` say what else was done on the way ("softmax dropped").
    """

    loaded: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the account for people, a line per fact."""
        lines = [f"{len(self.loaded)} tensors loaded"]
        for word, names in (("left out", self.left_out), ("fresh", self.fresh)):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"{len(names)} {word}: {', '.join(names[:_SHOWN])}{more}")
        return [*lines, *self.notes]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A network in evaluation mode, the dotted prefix of its head, and where its tensors came from.

    `not_trainable` and `not_prunable` hold the reason where the network cannot be; else they are empty.
    """

    module: nn.Module
    head: str
    account: LoadAccount
    not_trainable: str = ""
    not_prunable: str = ""

    @property
    def trainable(self) -> bool:
        """Whether a training stage may change this network."""
        return not self.not_trainable

    @property
    def prunable(self) -> bool:
        """Whether channels may be removed from this network."""
        return not self.not_prunable
