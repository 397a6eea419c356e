"""``path/to/file.py:build``: a network that the user's own code makes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import nn

from edgeft import user_code
from edgeft.errors import ModelError
from edgeft.preprocessing import Preprocessing
from edgeft.user_code import UserFunction

_KEY = "model.source"


def load(source: str, base: Path) -> UserFunction:
    """Import the file and return its function. Raises `ModelError`."""
    return user_code.load(source, base, key=_KEY, error=ModelError)


def call(builder: UserFunction, classes: int, preprocessing: Preprocessing) -> nn.Module:
    """Call ``build(classes)``; `input_shape` and `preprocessing` are passed if its signature names them.

    Raises:
        ModelError: It fails, or returns no `nn.Module`.
    """
    hints = {"input_shape": preprocessing.input_shape, "preprocessing": preprocessing}
    what = f"{builder.name}({classes})"
    with user_code.Blamed(
        builder.path, what, key=_KEY, error=ModelError, hint="it is called with the number of classes"
    ):
        wanted = inspect.signature(builder.function).parameters
        made: Any = builder.function(classes, **{name: hints[name] for name in hints if name in wanted})
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"{_KEY}: {builder.path}: {builder.name} returned a {type(made).__name__}; allowed is a torch.nn.Module"
        )
    return made
