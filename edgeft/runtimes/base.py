"""What every runtime adapter shares: layout and integer I/O conversion, and the loop over samples.

Needs the standard library and numpy only: a worker's zipapp carries this file and one adapter to a device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
InputArray = npt.NDArray[np.float32] | npt.NDArray[np.int32]
Spec = Mapping[str, Any]


def to_native(x: InputArray, spec: Spec) -> npt.NDArray[Any]:
    """Turn real values into what the file's input takes.

    Args:
        x: One sample or more: (N, C, H, W) or (N, F) float32, or token ids (N, T) int32.
        spec: `layout` (``nchw``, ``nhwc``, ``nk``), `dtype` and, for integers, `scale` and `zero_point`.

    Returns:
        A contiguous copy, so that no page of a mapped file is read while the runtime is timed. Integers are
        round-half-even(x / scale) + zero_point, clipped to the dtype.
    """
    if spec["layout"] == "nhwc":
        x = x.transpose(0, 2, 3, 1)
    dtype = np.dtype(spec["dtype"])
    if dtype.kind == "f" or x.dtype.kind == "i":  # token ids are no quantized reals
        return np.array(x, dtype=dtype, order="C")
    limits = np.iinfo(spec["dtype"])
    q = np.rint(x / np.float32(spec["scale"])) + spec["zero_point"]
    return np.ascontiguousarray(np.clip(q, limits.min, limits.max).astype(dtype))


def from_native(y: npt.NDArray[Any], spec: Spec) -> FloatArray:
    """Turn the file's output into real values: (N, ...) float32."""
    if y.dtype.kind == "f":
        return y.astype(np.float32)
    return (y.astype(np.float32) - np.float32(spec["zero_point"])) * np.float32(spec["scale"])


class BaseAdapter(ABC):
    """One model file, loaded and compiled for one sample at a time, as a device runs it.

    A subclass opens the file, then calls `_check_io` with what the runtime says about its tensors.

    Args:
        path: The model file.
        device: The runtime's own name of the device.
        threads: Threads for one inference.
        options: The runtime's own settings, as strings.
        inputs: One dict (name, shape, dtype, scale, zero_point, layout) per input.
        outputs: The same for the outputs.

    Raises:
        RuntimeError: The device, an option or the file is not what was asked for.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str,
        threads: int,
        options: Mapping[str, str],
        inputs: Sequence[Spec],
        outputs: Sequence[Spec],
    ) -> None:
        self.path, self.device, self.threads, self.options = path, device, threads, dict(options)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        if len(inputs) != 1 or len(outputs) != 1:
            raise RuntimeError(
                f"{path}: {len(inputs)} inputs and {len(outputs)} outputs; one of each is supported"
            )
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Load and compile the file."""

    @abstractmethod
    def _place(self, native: npt.NDArray[Any]) -> None:
        """Give the runtime one input of batch 1; the array lives until the next one."""

    @abstractmethod
    def _fetch(self) -> npt.NDArray[Any]:
        """Return the output of the last `invoke`; it may be overwritten by the next."""

    @abstractmethod
    def invoke(self) -> None:
        """Run once on the prepared input. This is what is timed: no conversion happens here."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the runtime says of itself and the compiled file.

        The keys are the fields of `edgeft.types.RuntimeReport`.
        """

    def prepare(self, x: InputArray) -> None:
        """Put one sample in place for `invoke`: (1, C, H, W) or (1, F) float32, or token ids (1, T) int32."""
        # Runtimes may share the array's memory without holding on to it.
        self._native = to_native(x, self.inputs[0])
        self._place(self._native)

    def run(self, x: InputArray) -> FloatArray:
        """Return the real-valued outputs, (N, K), of N samples, one at a time."""
        rows = []
        for i in range(len(x)):
            self.prepare(x[i : i + 1])
            self.invoke()
            rows.append(from_native(self._fetch(), self.outputs[0]))
        return np.concatenate(rows)

    def _check_io(self, kind: str, spec: Spec, shape: Sequence[Any], dtype: Any) -> None:
        """Raise RuntimeError if the file's tensor is not the one of the request.

        Args:
            kind: ``input`` or ``output``, for the message.
            spec: The tensor as the request describes it.
            shape: The file's shape; anything but a positive number is a free dimension.
            dtype: The file's dtype.
        """
        if np.dtype(dtype) != np.dtype(spec["dtype"]):
            raise RuntimeError(f"{self.path}: {kind} is {np.dtype(dtype)}, the artifact says {spec['dtype']}")
        fixed = [d if isinstance(d, int | np.integer) and d > 0 else None for d in shape]
        if fixed[0] not in (1, None):
            raise RuntimeError(f"{self.path}: {kind} has batch size {fixed[0]}; 1 or a free batch is needed")
        wanted = list(spec["shape"])
        if len(fixed) != len(wanted) or any(
            f is not None and f != w for f, w in zip(fixed[1:], wanted[1:], strict=True)
        ):
            raise RuntimeError(f"{self.path}: {kind} is {tuple(shape)}, the artifact says {tuple(wanted)}")


def count(precisions: Sequence[str]) -> dict[str, int]:
    """Return how often each precision occurs, by name."""
    return dict(sorted(Counter(precisions).items()))
