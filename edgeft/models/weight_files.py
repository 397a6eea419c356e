"""Weight files: read without running any code in them, and matched to a network by name and shape."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from edgeft import extras
from edgeft.errors import ModelError
from edgeft.models.account import LoadAccount

Tensors = dict[str, torch.Tensor]

_SUFFIXES = (".safetensors", ".pth", ".pt")
_COPY_AGAIN = "copy or download the file again"
# What torch's unpickler stumbles over in a damaged file.
_BROKEN = (OSError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, struct.error)


def read(path: Path) -> Tensors:
    """Return the tensors of a .safetensors file, or of a .pth or .pt with nothing else in it.

    A dictionary with the tensors under ``state_dict`` is unpacked.

    Raises:
        ModelError: No such file, another format, a broken file, or a pickle that holds more than tensors.
    """
    if path.name.endswith(".weights.h5"):
        raise ModelError(
            f"model.weights: {path.name} belongs to a Keras model, and model.source is none",
            "give the Keras model too, as model.source = 'keras:FILE'",
        )
    if path.suffix not in _SUFFIXES:
        raise ModelError(f"model.weights: {path} is no weights file; allowed are {', '.join(_SUFFIXES)}")
    if not path.is_file():
        raise ModelError(
            f"model.weights: {path} does not exist",
            "give a file; its path is relative to the recipe's folder",
        )
    if path.suffix == ".safetensors":
        extras.require("safetensors", "model.weights")
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            loaded: Tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"model.weights: {path} is not a whole safetensors file ({error})", _COPY_AGAIN
            ) from error
        return loaded
    with path.open("rb") as file:
        # torch.save writes a zip archive, before 1.6 a pickle of protocol 2.
        if file.read(4)[:2] not in (b"PK", b"\x80\x02"):
            raise ModelError(f"model.weights: {path} is no PyTorch file, whatever its name says", _COPY_AGAIN)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"model.weights: {path} holds more than tensors: such a pickle can run code and is refused",
            "save the tensors alone: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')",
        ) from error
    except _BROKEN as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"model.weights: {path} cannot be read ({reason})", _COPY_AGAIN) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise ModelError(
            f"model.weights: {path} does not hold named tensors",
            "save a state dict: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')",
        )
    return dict(content)


def load(module: nn.Module, tensors: Tensors, head: str, *, keep_head: bool, label: str) -> LoadAccount:
    """Copy `tensors` into `module`: the backbone completely, the head only if asked.

    Args:
        module: Changed in place.
        tensors: By dotted name.
        head: Dotted prefix of the head.
        keep_head: Whether the head comes from the tensors as well, instead of staying as it is.
        label: Of the file, for errors.

    Raises:
        ModelError: A tensor is missing, has another shape or has no place: the file belongs to another
            architecture or, with `keep_head`, to another number of classes.
    """
    state = module.state_dict()
    tensors = _without_wrapper(tensors, state)
    wanted = [name for name in state if keep_head or not _below(name, head)]
    offered = [name for name in tensors if keep_head or not _below(name, head)]
    clashes = []
    for name in wanted:
        if name not in tensors:
            # A counter that only matters without momentum; old files and converters leave it out.
            if not name.endswith("num_batches_tracked"):
                clashes.append(f"{name}: not in the file")
        elif tensors[name].shape != state[name].shape:
            clashes.append(
                f"{name}: {_shape(tensors[name])} in the file, {_shape(state[name])} in the network"
            )
    clashes += [f"{name}: not in the network" for name in offered if name not in state]
    if clashes:
        raise ModelError(
            f"{label} does not fit this network; {len(clashes)} tensors clash, the first ones are\n"
            + "\n".join(f"  {clash}" for clash in clashes[:4]),
            "give the weights of the same architecture and width as model.source",
        )
    usable = {name: tensors[name] for name in wanted if name in tensors}
    module.load_state_dict(usable, strict=False)
    return LoadAccount(
        loaded=tuple(usable),
        left_out=tuple(name for name in tensors if name not in usable),
        fresh=_parameters(state, usable),
    )


def _without_wrapper(tensors: Tensors, state: Tensors) -> Tensors:
    """Return the tensors under the network's names where only a common first part differs.

    Wrappers add one to every name ("module." in data-parallel training, "network." around transformers).
    """
    if any(name in state for name in tensors):
        return tensors
    ours, theirs = ({name.partition(".")[0] for name in names} for names in (state, tensors))
    candidates = []
    if len(theirs) == 1:
        candidates.append({name.partition(".")[2]: tensor for name, tensor in tensors.items()})
    if len(ours) == 1:
        candidates.append({f"{next(iter(ours))}.{name}": tensor for name, tensor in tensors.items()})
    return next((c for c in candidates if any(name in state for name in c)), tensors)


def _parameters(state: Tensors, loaded: Iterable[str]) -> tuple[str, ...]:
    known = set(loaded)
    return tuple(name for name in state if name not in known and not name.endswith("num_batches_tracked"))


def _below(name: str, prefix: str) -> bool:
    return name.startswith(f"{prefix}.")


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
