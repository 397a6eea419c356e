"""A user's own metric: a function in a Python file of theirs, called with labels and probabilities. No torch."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import numbers
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import ConfigError, nearest
from edgeft.types import IntArray

_KEY = "evaluate.metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMetric:
    """A function of labels (N,) and probabilities (N, K); `sha256` is that of the file's bytes, for cache keys."""

    name: str
    path: Path
    sha256: str
    function: Callable[[IntArray, npt.NDArray[np.float64]], Any]

    def __call__(self, labels: IntArray, probabilities: npt.NDArray[np.float64]) -> dict[str, float]:
        """Return the metric's value under its name, or several under ``name.key`` if it gives a dictionary.

        Raises:
            ConfigError: The function raised, or returned something else than finite numbers.
        """
        with _Blamed(self.path, f"{self.name}(labels, probabilities)"):
            returned = self.function(labels.copy(), probabilities.copy())
        values = returned if isinstance(returned, Mapping) else {"": returned}
        for key, value in values.items():
            if not isinstance(key, str) or not _is_number(value):
                where = f" under {key!r}" if isinstance(returned, Mapping) else ""
                raise ConfigError(
                    f"{_KEY}: {self.path}: {self.name} returned {_shown(value)}{where}; allowed are a finite number "
                    "or a dictionary of texts to such numbers",
                    "return float(...) of what it computes",
                )
        return {f"{self.name}.{key}" if key else self.name: float(value) for key, value in values.items()}


def load_all(specs: Sequence[str], base: Path) -> tuple[UserMetric, ...]:
    """Load every metric of a recipe as `load` does. Raises `ConfigError`, also where two have one name."""
    loaded = tuple(load(spec, base) for spec in specs)
    names = [metric.name for metric in loaded]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"{_KEY}: more than one function is called {twice[0]!r}",
            "rename one: the report lists metrics by name",
        )
    return loaded


def load(spec: str, base: Path) -> UserMetric:
    """Load ``path/to/file.py:function``; a relative path starts at `base`.

    Raises:
        ConfigError: There is no such file or function, or the file cannot be imported.
    """
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name:
        raise ConfigError(f"{_KEY}: got {spec!r}; allowed is path/to/file.py:function")
    path = base / file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{_KEY}: {path}: cannot be read ({error.strerror})",
            "a relative path starts at the recipe's folder",
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    module = _module(path, digest)
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    if name not in functions:
        there = f"; there are: {', '.join(functions)}" if functions else ""
        raise ConfigError(f"{_KEY}: {path} has no function {name!r}{nearest(name, functions)}{there}")
    return UserMetric(name=name, path=path, sha256=digest, function=getattr(module, name))


def _module(path: Path, digest: str) -> ModuleType:
    """Import a file under a name of its own, which dataclasses and pickles in it need to be registered."""
    spec = importlib.util.spec_from_file_location(f"edgeft_user_metric_{digest[:16]}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{_KEY}: {path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with _Blamed(path, "the file"):
        spec.loader.exec_module(module)
    return module


class _Blamed:
    """Turns whatever the user's code raises into a `ConfigError` that names its line.

    A context manager, because that code may raise any exception, and no handler in edgeft catches all of them.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path, self._what = path, what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, Exception):
            return
        if isinstance(error, SyntaxError) and error.filename == str(self._path):
            line, said = error.lineno, error.msg
        else:
            frames = [f.lineno for f in traceback.extract_tb(trace) if f.filename == str(self._path)]
            line, said = (frames[-1] if frames else None), str(error)
        where = f"{self._path}, line {line}" if line else f"{self._path}"
        raise ConfigError(
            f"{_KEY}: {where}: {self._what} raised {type(error).__name__}: {said}",
            "it is called with labels (N,) int64 and probabilities (N, K) float64",
        ) from error


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real | np.number | np.bool_) and math.isfinite(float(value))


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"
