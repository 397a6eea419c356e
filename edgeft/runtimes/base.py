"""What every runtime adapter shares: layout and integer I/O conversion, lanes, and the loop over samples.

Needs the standard library and numpy only: a worker's zipapp carries this file and one adapter to a device.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Spec = Mapping[str, Any]


def to_native(x: Array, spec: Spec) -> Array:
    """Turn values into what the file's input takes.

    Args:
        x: One batch: real values (N, C, H, W) or (N, F), token ids (N, T), or with the layout ``native`` the
            tensor as the file wants it.
        spec: `layout` (``nchw``, ``nhwc``, ``nk``, ``native``), `dtype` and, for quantized integers, `scale` and
            `zero_point`.

    Returns:
        A contiguous copy, so that no page of a mapped file is read while the runtime is timed. Reals for an
        integer tensor are round-half-even(x / scale) + zero_point, clipped to the dtype.
    """
    if spec["layout"] == "nhwc":
        x = x.transpose(0, 2, 3, 1)
    dtype = np.dtype(spec["dtype"])
    if dtype.kind == "f" or x.dtype.kind != "f":  # token ids and masks are no quantized reals
        return np.array(x, dtype=dtype, order="C")
    limits = np.iinfo(spec["dtype"])
    q = np.rint(x / np.float32(spec["scale"])) + spec["zero_point"]
    return np.ascontiguousarray(np.clip(q, limits.min, limits.max).astype(dtype))


def from_native(y: Array, spec: Spec) -> FloatArray:
    """Turn the file's output into real values, (N, ...) float32; integers without a scale stay numbers."""
    if y.dtype.kind == "f" or not spec["scale"]:
        return y.astype(np.float32)
    return (y.astype(np.float32) - np.float32(spec["zero_point"])) * np.float32(spec["scale"])


def batch_of(samples: Sequence[Array], i: int, specs: Sequence[Spec]) -> list[Array]:
    """Return the `i`-th feed: one array per input, each of as many samples as its file takes at once.

    Samples follow each other in turn, over and over. With the layout ``native`` one sample is one whole tensor.
    """
    feed = []
    for x, spec in zip(samples, specs, strict=True):
        if spec["layout"] == "native":
            feed.append(x[i % len(x)])
            continue
        size = max(1, spec["shape"][0])
        start = i * size % len(x)
        whole = start + size <= len(x)  # a slice of a mapped file is read once, by `to_native`
        feed.append(x[start : start + size] if whole else x[np.arange(start, start + size) % len(x)])
    return feed


class MissingDeviceError(RuntimeError):
    """The device that was asked for is not there."""


class Lane(ABC):
    """A place where one inference runs at a time; concurrent streams have one each."""

    @abstractmethod
    def place(self, natives: Sequence[Array]) -> None:
        """Give the runtime its inputs, one array each; they live until the next call."""

    @abstractmethod
    def invoke(self) -> None:
        """Run once on what was placed. No conversion happens here."""

    @abstractmethod
    def fetch(self) -> list[Array]:
        """Return the outputs of the last `invoke`; they may be overwritten by the next."""

    def invoke_ms(self) -> float:
        """Run once and return how long it took, in ms."""
        start = time.perf_counter_ns()
        self.invoke()
        return (time.perf_counter_ns() - start) / 1e6


class BaseAdapter(ABC):
    """One model file, loaded and compiled for a fixed batch size, as a device runs it.

    A subclass opens the file, then calls `_check_io` with what the runtime says about its tensors.

    Args:
        path: The model file.
        device: The runtime's own name of the device.
        threads: Threads for one inference.
        options: The runtime's own settings, as strings.
        inputs: One dict (name, shape, dtype, scale, zero_point, layout) per input, in the file's order; the
            first dimension of a shape is the batch size, unless the layout is ``native``.
        outputs: The same for the outputs.
        streams: Inferences at a time, each with its own `threads`.

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
        streams: int = 1,
    ) -> None:
        self.path, self.device, self.threads, self.options = path, device, threads, dict(options)
        self.inputs, self.outputs, self.streams = tuple(inputs), tuple(outputs), streams
        self.lanes: Sequence[Lane] = self._open()

    @abstractmethod
    def _open(self) -> Sequence[Lane]:
        """Load and compile the file; return one lane per stream."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the runtime says of itself and the compiled file.

        The keys are the fields of `edgeft.types.RuntimeReport`.
        """

    def natives(self, samples: Sequence[Array], i: int) -> list[Array]:
        """Return the `i`-th feed of `samples` (one array (N, ...) per input) as the file wants it."""
        feed = batch_of(samples, i, self.inputs)
        return [to_native(x, spec) for x, spec in zip(feed, self.inputs, strict=True)]

    def run(self, samples: Sequence[Array]) -> list[FloatArray]:
        """Return the real-valued outputs, one array (N, ...) each, of N samples, a batch at a time."""
        lane, n = self.lanes[0], len(samples[0])
        size = max(1, self.inputs[0]["shape"][0]) if self.inputs[0]["layout"] != "native" else 1
        batches: list[list[FloatArray]] = []
        for i in range(-(-n // size)):
            # `batch_of` fills up the last batch with the first samples; what they give is cut off below.
            lane.place(self.natives(samples, i))
            lane.invoke()
            pairs = zip(lane.fetch(), self.outputs, strict=True)
            batches.append([from_native(y, spec) for y, spec in pairs])
        return [np.concatenate(parts)[:n] for parts in zip(*batches, strict=True)]

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
        fixed, wanted = [positive(d) for d in shape], [positive(d) for d in spec["shape"]]
        if fixed[:1] != wanted[:1] and None not in fixed[:1] + wanted[:1]:
            raise RuntimeError(
                f"{self.path}: {kind} has batch size {fixed[0]}; {wanted[0]} or a free batch is needed"
            )
        if len(fixed) != len(wanted) or any(
            f is not None and w is not None and f != w for f, w in zip(fixed, wanted, strict=True)
        ):
            raise RuntimeError(
                f"{self.path}: {kind} is {tuple(shape)}, the artifact says {tuple(spec['shape'])}"
            )

    def _check_quantization(self, kind: str, spec: Spec, found: tuple[float, int]) -> None:
        """Raise RuntimeError if the file itself carries another scale or zero point than the request."""
        if np.dtype(spec["dtype"]).kind == "f":
            return
        if np.float32(found[0]) != np.float32(spec["scale"]) or found[1] != spec["zero_point"]:
            wanted = (spec["scale"], spec["zero_point"])
            raise RuntimeError(
                f"{self.path}: {kind} scale and zero point are {found}, the artifact says {wanted}"
            )

    def _check_count(self, kind: str, found: int, specs: Sequence[Spec]) -> None:
        """Raise RuntimeError if the file has not as many inputs or outputs as the request."""
        if found != len(specs):
            raise RuntimeError(f"{self.path}: {found} {kind}s, the artifact says {len(specs)}")


def positive(dimension: Any) -> int | None:
    """Return a dimension of a shape as a number, or None for a free one (a name, None, 0 or less)."""
    fixed = isinstance(dimension, int | np.integer) and dimension > 0
    return int(dimension) if fixed else None


def tensor(
    name: str, shape: Sequence[Any], dtype: Any, scale: float = 0.0, zero_point: int = 0
) -> dict[str, Any]:
    """Return what a file says of one of its inputs or outputs, for `signature`: None is a free dimension."""
    return {
        "name": name,
        "shape": [positive(dimension) for dimension in shape],
        "dtype": np.dtype(dtype).name,
        "scale": float(scale),
        "zero_point": int(zero_point),
    }


def count(precisions: Sequence[str]) -> dict[str, int]:
    """Return how often each precision occurs, by name."""
    return dict(sorted(Counter(precisions).items()))
