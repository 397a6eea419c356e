"""The inputs and outputs of a model file that edgeft did not make, and arrays in the form that they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import ConfigError, DataError, nearest
from edgeft.types import TensorSpec

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]
"""None is a free dimension."""
Found = Mapping[str, Any]
"""One input or output as a worker's ``signature`` describes it: name, shape, dtype, scale, zero_point."""


def shown(inputs: Sequence[Found]) -> str:
    """Return the inputs for people: ``x (?, 3, 224, 224) float32``."""
    return ", ".join(f"{one['name']} {_text(one['shape'])} {one['dtype']}" for one in inputs)


def resolve(
    inputs: Sequence[Found],
    *,
    file: str,
    batch: int,
    shapes: Mapping[str, Sequence[int]],
    samples: Sequence[Array] | None = None,
) -> list[tuple[int, ...]]:
    """Return the whole shape, batch included, that every input is run at.

    A free first dimension is the batch; another free one comes from `shapes`, else from the samples.

    Args:
        inputs: What the file says.
        file: Its name, for messages.
        batch: Samples at a time.
        shapes: Input name -> shape that the user gave.
        samples: One array per input, if there are any.

    Raises:
        ConfigError: A name or shape does not fit the file, a dimension is not known, or `batch` is not possible.
    """
    names = [one["name"] for one in inputs]
    if strange := [name for name in shapes if name not in names]:
        raise ConfigError(
            f"--shape {strange[0]}: {file} has no such input{nearest(strange[0], names)}; "
            f"its inputs are {shown(inputs)}"
        )
    resolved = []
    for index, one in enumerate(inputs):
        shape: list[int | None] = list(one["shape"])
        if one["name"] in shapes:
            shape = list(_given(one, shapes[one["name"]], file))
        elif shape and shape[0] is None:
            shape[0] = batch
        if samples is not None:
            shape = _filled(shape, samples[index])
        if None in shape:
            raise ConfigError(
                f"{file}: input {one['name']!r} is {_text(one['shape'])}: a free dimension has no size",
                f"--shape {one['name']}={','.join('N' if d is None else str(d) for d in shape)}, or --inputs with "
                f"arrays that have it (inputs: {shown(inputs)})",
            )
        if batch > 1 and (not shape or shape[0] != batch):
            raise ConfigError(
                f"{file}: input {one['name']!r} is {_text(one['shape'])}; a batch of {batch} does not fit",
                "the first dimension must be free or equal to --batch: export the model so, or leave --batch out",
            )
        resolved.append(tuple(d for d in shape if d is not None))
    return resolved


def specs(inputs: Sequence[Found], shapes: Sequence[tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    """Return the inputs at these shapes, to be fed as the file wants them."""
    return tuple(_spec(one, shape) for one, shape in zip(inputs, shapes, strict=True))


def output_specs(outputs: Sequence[Found]) -> tuple[TensorSpec, ...]:
    """Return the outputs; their free dimensions are -1."""
    return tuple(_spec(one, tuple(-1 if d is None else d for d in one["shape"])) for one in outputs)


def feeds(samples: Array, spec: TensorSpec, *, file: str) -> Array:
    """Return samples as whole input tensors, (M, *spec.shape).

    Args:
        samples: (N, ...) as the tensor's own first axis runs, one sample without that axis, or tensors already.
            Where N is no multiple of what a tensor takes, the first samples are used again.
        spec: The input.
        file: For messages.

    Raises:
        DataError: The shape or the kind of number is another one, or a number is not finite.
    """
    rank, shape = len(spec.shape), spec.shape
    if samples.ndim == rank - 1 and samples.shape == shape[1:]:
        samples = samples[None]
    if samples.ndim == rank + 1 and samples.shape[1:] == shape:
        tensors = samples
    elif rank and samples.ndim == rank and samples.shape[1:] == shape[1:] and len(samples):
        count = -(-len(samples) // shape[0])
        tensors = samples[np.arange(count * shape[0]) % len(samples)].reshape(count, *shape)
    else:
        raise DataError(
            f"{file}: input {spec.name!r} takes {shape}, the samples are {samples.shape}",
            "store them along a first axis of their own, in the layout of the file",
        )
    return _typed(tensors, spec, file)


def _spec(one: Found, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(
        name=one["name"],
        shape=shape,
        dtype=one["dtype"],
        layout="native",
        scale=one["scale"],
        zero_point=one["zero_point"],
    )


def _given(one: Found, given: Sequence[int], file: str) -> Shape:
    """Return a shape from the user, after checking it against the file's."""
    fits = len(given) == len(one["shape"]) and all(
        want is None or want == got for want, got in zip(one["shape"], given, strict=True)
    )
    if not fits or min(given, default=1) < 1:
        raise ConfigError(
            f"--shape {one['name']}={','.join(map(str, given))}: {file} takes {_text(one['shape'])}",
            "only free dimensions (?) can be chosen, and every size is at least 1",
        )
    return tuple(given)


def _filled(shape: Sequence[int | None], samples: Array) -> list[int | None]:
    """Take free dimensions after the first from the samples, aligned at their last axis."""
    filled = list(shape)
    for offset in range(1, min(len(filled), samples.ndim + 1)):
        if filled[-offset] is None:
            filled[-offset] = samples.shape[-offset]
    return filled


def _typed(tensors: Array, spec: TensorSpec, file: str) -> Array:
    """Return tensors of a kind of number that the worker converts without loss of meaning."""
    dtype, kind = np.dtype(spec.dtype), tensors.dtype.kind
    if kind == "f" and not np.isfinite(tensors).all():
        raise DataError(f"{file}: a sample for input {spec.name!r} holds NaN or infinity")
    if kind == "f" and (dtype.kind == "f" or spec.scale):
        return tensors.astype(np.float32 if dtype.kind != "f" else dtype)
    if tensors.dtype == dtype:
        return tensors
    if kind in "iub" and dtype.kind in "iub" and not spec.scale:
        converted = tensors.astype(dtype)
        if np.array_equal(converted, tensors):
            return converted
    raise DataError(
        f"{file}: input {spec.name!r} takes {spec.dtype}"
        + (
            f" (quantized: {spec.scale:.6g} a step; real values as float32 are fine too)"
            if spec.scale
            else ""
        )
        + f", the samples are {tensors.dtype}",
        "convert them as the model's own pipeline does, and store that",
    )


def _text(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("?" if d is None else str(d) for d in shape) + ")"
