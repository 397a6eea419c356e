"""Where training runs: the device, and the processes that torchrun started."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from edgeft.errors import ConfigError, MissingDependencyError


@dataclass(frozen=True, slots=True)
class World:
    """This process among those of one training; `local` counts are those of this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def part(self, count: int) -> slice:
        """Return which of `count` samples of a batch are this process's: an even share, in order."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)


def world() -> World:
    """Return what torchrun says in the environment; a single process without it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    try:
        return World(*(int(os.environ[name]) for name in names))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(names)} are not all set to numbers",
            "start several processes by torchrun, or unset WORLD_SIZE",
        ) from error


def require_device(name: str) -> None:
    """Raise, as `find_device` does, unless this process can train on the device called `name`."""
    find_device(name, world())


def find_device(name: str, world: World) -> torch.device:
    """Return the device called `name`: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: The name is not one of these, or names one GPU for several processes.
        MissingDependencyError: There is no such GPU here.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"device {name!r} is unknown; allowed are cpu, cuda and cuda:N")
    if name == "cpu":
        return torch.device("cpu")
    if world.size > 1 and ":" in name:
        raise ConfigError(
            f"device {name!r} is one GPU, for {world.size} processes", "give cuda: one GPU each"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(name.partition(":")[2] or world.local_rank)
    if index >= count:
        raise MissingDependencyError(
            f"device {name!r}: this torch ({torch.__version__}) sees {count} CUDA devices here",
            "give --device cpu, or install a CUDA build of torch on a machine with such a GPU",
        )
    return torch.device("cuda", index)


def choose_memory_format(networks: Sequence[nn.Module], x: torch.Tensor) -> torch.memory_format:
    """Lay out the first network channels-last if all of them can take such inputs.

    MobileNetV2 at 160 px trains in half the time like this on a CPU. A network that reshapes a map with
    `view` cannot; trying one sample tells.
    """
    if x.ndim == 4:
        networks[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        try:
            with torch.no_grad():
                for network in networks:
                    network(x.to(memory_format=torch.channels_last))
        except RuntimeError:
            networks[0].to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        else:
            return torch.channels_last
    return torch.contiguous_format


def trainer_options(device: torch.device, world: World, *, unfreezes: bool) -> dict[str, Any]:
    """Return what Lightning's Trainer has to know about device, processes, and parameters that join in later."""
    cuda = device.type == "cuda"
    options: dict[str, Any] = {"accelerator": "gpu" if cuda else "cpu"}
    if world.size == 1:
        return options | {"devices": [device.index] if cuda else 1}
    return options | {
        "devices": world.local_size,
        "num_nodes": world.size // world.local_size,
        # DDP waits for the gradient of every parameter that it was told of, also of a still frozen block's.
        "strategy": "ddp_find_unused_parameters_true" if unfreezes else "ddp",
    }


@contextlib.contextmanager
def sharded(batches: Iterable[Any], world: World) -> Iterator[None]:
    """Let a loader that can be shared out yield this process's part of every batch, for a while."""
    set_shard = getattr(getattr(batches, "sampler", None), "set_shard", None)
    if set_shard is None:
        yield
        return
    set_shard(world)
    try:
        yield
    finally:
        set_shard(World())


def total(values: Sequence[float], world: World, device: torch.device) -> list[float]:
    """Return the sums of `values` over all processes."""
    if world.size == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return [float(value) for value in sums]


def average(tensors: Iterable[torch.Tensor], world: World) -> None:
    """Replace tensors by their averages over all processes."""
    if world.size > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= world.size
