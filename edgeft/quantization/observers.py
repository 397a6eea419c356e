"""Observers that look at how values are distributed, not at their extremes alone, in memory of a fixed size."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from edgeft.errors import QuantizationError
from edgeft.quantization import contract

# At least 2,048 of them span the values seen, eight to each of the 256 steps of an int8 grid.
_BINS = 4096
# A width of 2^-24: no scale is below 2^-16, and finer than 256 parts of a step makes no difference to a range.
_SMALLEST_EXPONENT = -24
# Values that are counted at once; their 64-bit bin numbers are the largest thing an observer ever holds.
_CHUNK = 1 << 20

# Shares of the extremes that a clipped range is tried at: 1 down to 1/250, 6 % apart.
_SHARES = tuple(2.0 ** (-step / 12) for step in range(96))
# Directions in which the squared error is searched in turn: both ends at once, the upper one, the lower one.
_DIRECTIONS = ((1, 1), (0, 1), (1, 0))


class Histogram:
    """Counts of values in bins whose width is a power of two and doubles whenever the values outgrow them.

    Bins begin at multiples of their width, so that two of them make exactly one of the next width: the counts
    depend neither on the order of the batches nor on how the samples were cut into batches. Zero is always
    covered, as it is by every quantized range.

    Attributes:
        tensor: What the values are called in errors.
        low: Smallest value seen; infinity before any.
        high: Largest value seen; minus infinity before any.
    """

    def __init__(self, tensor: str) -> None:
        self.tensor = tensor
        self.low, self.high = math.inf, -math.inf
        self._exponent, self._first = _SMALLEST_EXPONENT, 0
        self._counts = torch.zeros(_BINS, dtype=torch.int64)

    def update(self, x: torch.Tensor) -> None:
        """Count the values of `x`, any shape. Raises `QuantizationError` where one is not finite."""
        x = x.detach().flatten()
        low, high = (float(bound) for bound in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise not_finite(self.tensor, low, high)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(min(self.low, 0.0), max(self.high, 0.0))
        for part in torch.split(x, _CHUNK):
            # Exact: a power of two only moves the exponent.
            bins = torch.floor(part.float() * 2.0**-self._exponent).long() - self._first
            self._counts += torch.bincount(bins, minlength=_BINS)

    def seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return lower edges (B,) and counts (B,), both float64, of the bins that hold values.

        Raises:
            QuantizationError: Nothing was seen.
        """
        (bins,) = torch.nonzero(self._counts, as_tuple=True)
        if not len(bins):
            raise QuantizationError(
                f"nothing was observed at {self.tensor!r}", "calibrate with at least one batch"
            )
        return (bins + self._first).double() * self.width, self._counts[bins].double()

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0**self._exponent

    def _cover(self, low: float, high: float) -> None:
        """Widen the bins until they reach from `low` to `high`, and move what was counted."""
        exponent = self._exponent
        while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= _BINS:
            exponent += 1
        first = math.floor(math.ldexp(low, -exponent))
        if (exponent, first) == (self._exponent, self._first):
            return
        (old,) = torch.nonzero(self._counts, as_tuple=True)
        moved = ((old + self._first) >> (exponent - self._exponent)) - first
        self._counts = torch.zeros_like(self._counts).index_add_(0, moved, self._counts[old])
        self._exponent, self._first = exponent, first


class PercentileObserver:
    """Keeps a share of the values and clips the rest at either end (`fake_quant.Observer`).

    Args:
        tensor: What the values are called in errors.
        percentile: Of the values that lie below the upper end, and above the lower one; above 50, at most 100.
    """

    def __init__(self, tensor: str, percentile: float) -> None:
        self._histogram = Histogram(tensor)
        self._percentile = percentile

    def update(self, x: torch.Tensor) -> None:
        """Take a batch of values into account, any shape. Raises `QuantizationError` where one is not finite."""
        self._histogram.update(x)

    def range(self) -> tuple[float, float]:
        """Return the two percentiles. Raises `QuantizationError` before any value was seen."""
        edges, counts = self._histogram.seen()
        cumulated = counts.cumsum(0)
        total = float(cumulated[-1])

        def at(rank: float) -> float:
            """Return the value of a rank, 0..total, as if the values of one bin were spread evenly over it."""
            index = min(int(torch.searchsorted(cumulated, rank)), len(counts) - 1)
            inside = 1.0 - float((cumulated[index] - rank) / counts[index])
            value = float(edges[index]) + inside * self._histogram.width
            return min(max(value, self._histogram.low), self._histogram.high)

        clipped = total * (1.0 - self._percentile / 100.0)
        return at(clipped), at(total - clipped)


class SquaredErrorObserver:
    """Finds the range whose int8 grid represents the values with the least mean squared error (`fake_quant.Observer`).

    Clipping a few large values makes the steps of all others finer. Searched are shares of the extremes, both
    together and then each end by itself until nothing improves; the grids are the contract's own.

    Args:
        tensor: What the values are called in errors.
        symmetric: Whether the grid's zero point is 0.
    """

    def __init__(self, tensor: str, *, symmetric: bool = False) -> None:
        self._histogram = Histogram(tensor)
        self._symmetric = symmetric

    def update(self, x: torch.Tensor) -> None:
        """Take a batch of values into account, any shape. Raises `QuantizationError` where one is not finite."""
        self._histogram.update(x)

    def range(self) -> tuple[float, float]:
        """Return the range of the least error. Raises `QuantizationError` before any value was seen."""
        edges, counts = self._histogram.seen()
        # A bin stands for its middle. The many exact zeros behind a ReLU err by the same half bin on every grid.
        values = (edges + self._histogram.width / 2).float()
        low, high = min(self._histogram.low, 0.0), max(self._histogram.high, 0.0)

        def error(shares: tuple[int, int]) -> float:
            ends = low * _SHARES[shares[0]], high * _SHARES[shares[1]]
            return _squared_error(values, counts, *ends, symmetric=self._symmetric)

        # An end at zero, as behind a ReLU, has no share to search.
        directions = _DIRECTIONS if low < 0.0 < high else (((0, 1),) if high else ((1, 0),))
        best, least = (0, 0), error((0, 0))
        improved = True
        while improved:
            improved = False
            for direction in directions:
                for candidate in _along(best, direction):
                    found = error(candidate)
                    if found < least:
                        best, least, improved = candidate, found, True
        return low * _SHARES[best[0]], high * _SHARES[best[1]]


def not_finite(tensor: str, low: float, high: float) -> QuantizationError:
    """Return the error for values that are not finite at the tensor of that name."""
    return QuantizationError(
        f"values of {tensor!r} are not finite: [{low}, {high}]",
        "look for infinities or NaN in the weights and inputs, and for a mask that is added as -inf",
    )


def _along(start: tuple[int, int], direction: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the candidates on the line through `start`, as indices of the two ends' shares."""
    for step in range(-len(_SHARES), len(_SHARES)):
        low, high = start[0] + step * direction[0], start[1] + step * direction[1]
        if step and 0 <= low < len(_SHARES) and 0 <= high < len(_SHARES):
            yield low, high


def _squared_error(
    values: torch.Tensor, counts: torch.Tensor, low: float, high: float, *, symmetric: bool
) -> float:
    """Return the summed squared error of `values` (B,), each met `counts` (B,) times, on a range's int8 grid."""
    scale, zero_point = contract.activation_qparams(
        torch.tensor(low), torch.tensor(high), symmetric=symmetric
    )
    rounded = torch.fake_quantize_per_tensor_affine(
        values, scale, zero_point, contract.ACTIVATION_MIN, contract.ACTIVATION_MAX
    )
    return float((rounded - values).double().square() @ counts)
