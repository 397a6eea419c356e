"""Fake quantizers: observe a range, and round to the int8 grid with a straight-through gradient.

They differ from torchao's own in three points, each the cure of a failure that was seen: sites that share one
range observe it at its producers only; weights are measured afresh at every step instead of by a moving average;
and once frozen, training graph and converted program read the same stored scale.

Scales may be learned instead. What is learned is the logarithm of a scale's ratio to its calibrated value (Jain et
al. 2020 learn logarithms too): a range then keeps its signs, and so contains 0, and one learning rate suits scales of
any size.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

from edgeft.errors import QuantizationError
from edgeft.quantization import contract
from edgeft.quantization.rounding import lsq_gradient_scale, round_to_grid
from edgeft.target import Numerics

_ZERO = torch.zeros(1, dtype=torch.int32)


class Observer(Protocol):
    """Finds one activation's range while a float network is calibrated."""

    def update(self, x: torch.Tensor) -> None:
        """Take a batch of values into account, any shape."""

    def range(self) -> tuple[float, float]:
        """Return the smallest and the largest value to represent."""


class ActivationFakeQuant(FakeQuantizeBase):  # type: ignore[misc]
    """Per-tensor affine int8 fake quantization at one site of the graph.

    Several sites may share a range (`share_range`): the scale then covers what all *observing* sites of the
    group have seen. A site behind an op that keeps values as they are (max-pool, reshape) does not observe.

    Attributes:
        observes: Whether this site takes part in finding its group's range at all.
        fixed: Whether the range is known beforehand (a sigmoid's output).
        observing: Whether forward passes move the range.
        enabled: Whether values are rounded; off while a float network is calibrated.
        momentum: Weight of a new batch in the moving average of its samples' mean extremes; 1.0 keeps the overall
            extremes instead.
        group: All sites of the common range, this one included.
        symmetric: Whether the zero point is 0.
        stretch: Once learned: log of the ends' ratios to `low` and `high`, (2,), one parameter for the group. It
            learns while `observing`.
        repeats: Whether values come here rounded to this very grid, so that there is nothing to do.
        observer: Finds the range in the moving average's place, while one is set; its owner stores what it found.
        keeps_extremes: Whether the overall extremes count whatever the momentum: logits must not be clipped.
    """

    dtype = torch.int8
    qscheme = torch.per_tensor_affine
    quant_min = contract.ACTIVATION_MIN
    quant_max = contract.ACTIVATION_MAX
    is_dynamic = False
    ch_axis = -1

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor([float("inf")]))
        self.register_buffer("high", torch.tensor([float("-inf")]))
        self.observing = False
        self.observes = True
        self.fixed = False
        self.enabled = True
        self.momentum = 1.0
        self.keeps_extremes = False
        self.symmetric = False
        self.repeats = False
        self.stretch: torch.nn.Parameter | None = None
        self.observer: Observer | None = None
        # A tuple hides the peers from the module registry: they are their own sites' children already.
        self.group: tuple[ActivationFakeQuant, ...] = (self,)
        self._frozen: tuple[torch.Tensor, torch.Tensor] | None = None

    def share_range(self, group: tuple[ActivationFakeQuant, ...]) -> None:
        """Make the observing sites of `group` decide this site's range."""
        self.group = group

    def fix_range(self, low: float, high: float) -> None:
        """Give the site a range that its values cannot leave; it is not observed."""
        self.low.fill_(low)
        self.high.fill_(high)
        self.fixed = True

    def observe(self, x: torch.Tensor) -> None:
        """Move the range by a batch `x`, shape (N, ...).

        A batch's extremes are those of its strangest sample: averaging them leaves the other samples few of the
        256 steps. With the mean of the samples' own extremes, the logits of a calibrated MobileNetV2 differed by 0.013
        between ONNX Runtime and the program instead of 0.018 (mean over 328 photos): every step is finer, and so is
        what a tie that two runtimes round differently does further down.
        """
        samples = x.detach() if x.dim() > 1 else x.detach().reshape(1, -1)
        # Two passes in vector kernels; one aminmax per row, of a copy where channels are last, takes 15 times longer.
        dims = tuple(range(1, samples.dim()))
        lows, highs = samples.amin(dims), samples.amax(dims)
        if self.momentum == 1.0 or self.keeps_extremes:
            self.low.copy_(torch.minimum(self.low, lows.amin()))
            self.high.copy_(torch.maximum(self.high, highs.amax()))
            return
        if bool(self.low > self.high):  # nothing seen yet; an infinity that was seen stays and is refused
            self.low.copy_(lows.mean())
            self.high.copy_(highs.mean())
        else:
            self.low.lerp_(lows.mean(), self.momentum)
            self.high.lerp_(highs.mean(), self.momentum)

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale (1,) float32 and zero point (1,) int32 of the group's range.

        Learned ones come with their gradient, the zero point in float32 for that.

        Raises:
            QuantizationError: The range is not finite, or nothing was observed.
        """
        if self._frozen is not None:
            return self._frozen
        low, high = self._ends()
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise QuantizationError(
                f"an activation range is not finite: [{float(low)}, {float(high)}]",
                "look for infinities or NaN in the weights and inputs, and calibrate before training or converting",
            )
        scale, zero_point = contract.activation_qparams(low, high, symmetric=self.symmetric)
        if self.stretch is None or self.symmetric:
            return scale, zero_point
        exact = contract.ACTIVATION_MIN - low / scale  # the zero point before rounding lends its gradient
        return scale, zero_point + (exact - exact.detach())

    @property
    def learnable(self) -> bool:
        """Whether gradients may move the range: known ranges stay, and logits are not clipped."""
        return not any(site.fixed or site.keeps_extremes for site in self.group)

    def learn_range(self) -> None:
        """Let gradients move the group's range, from what was observed.

        Raises:
            QuantizationError: The range is not finite, or nothing was observed.
        """
        self.calculate_qparams()
        stretch = torch.nn.Parameter(torch.zeros(2, device=self.low.device))
        for site in self.group:
            site.stretch = stretch

    def _ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ends of the group's range, without dimensions."""
        sites = [site for site in self.group if site.observes]
        low = torch.stack([site.low for site in sites]).amin()
        high = torch.stack([site.high for site in sites]).amax()
        if self.stretch is None:
            return low, high
        ratios = (self.stretch if self.observing else self.stretch.detach()).exp()
        return low * ratios[0], high * ratios[1]

    def freeze(self) -> None:
        """Fix scale and zero point; nothing is observed from here on."""
        self.observing = False
        scale, zero_point = self.calculate_qparams()
        self._frozen = scale, zero_point.to(torch.int32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` rounded to the site's grid (same shape)."""
        if self.observing and self.observes and not self.fixed and self.stretch is None:
            (self.observer.update if self.observer is not None else self.observe)(x)
        if not self.enabled or self.repeats:
            return x
        scale, zero_point = self.calculate_qparams()
        pace = lsq_gradient_scale(x[0].numel(), self.quant_max - self.quant_min)
        return round_to_grid(x, scale, zero_point, self.quant_min, self.quant_max, pace)


class WeightFakeQuant(FakeQuantizeBase):  # type: ignore[misc]
    """Symmetric int8 fake quantization of a weight.

    Attributes:
        ch_axis: The weight's axis that counts its output channels.
        numerics: Range of the integers, and whether all channels have one scale (set by `follow`).
        stretch: Once learned: log of the scales' ratios to those at the beginning, (O,), or (1,) per tensor.
        learning: Whether gradients move the learned scales.
        enabled: Whether values are rounded; off while a float network is calibrated.
    """

    dtype = torch.int8
    qscheme = torch.per_channel_symmetric
    quant_min = contract.WEIGHT_MIN
    quant_max = contract.WEIGHT_MAX
    is_dynamic = False

    initial: torch.Tensor | None

    def __init__(self, ch_axis: int = 0, **_: Any) -> None:
        super().__init__()
        self.ch_axis = ch_axis
        self.enabled = True
        self.numerics = contract.USUAL
        self.stretch: torch.nn.Parameter | None = None
        self.register_buffer("initial", None)
        self.learning = False
        self._frozen: torch.Tensor | None = None

    def follow(self, numerics: Numerics) -> None:
        """Take range and granularity of the integers from a target's numerics."""
        self.numerics = numerics
        self.quant_max = contract.weight_limit(numerics)
        self.quant_min = -self.quant_max

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the frozen scale (O,) and zeros (O,). Raises `QuantizationError` before `freeze`."""
        if self._frozen is None:
            raise QuantizationError("a weight's scale was read before it was frozen")
        return self._frozen, torch.zeros_like(self._frozen, dtype=torch.int32)

    def freeze(self, scale: torch.Tensor) -> None:
        """Fix the scales, shape (O,) float32."""
        self._frozen = scale

    def learn_scale(self, weight: torch.Tensor) -> None:
        """Let gradients move the scales, from those of `weight`."""
        self.initial = contract.weight_scale(weight, axis=self.ch_axis, numerics=self.numerics)
        per_tensor = self.numerics.granularity == "per-tensor"
        self.stretch = torch.nn.Parameter(torch.zeros_like(self.initial[:1] if per_tensor else self.initial))

    def share_scale(self, other: WeightFakeQuant) -> None:
        """Take the learned scales of another quantizer of the same weight."""
        self.initial, self.stretch = other.initial, other.stretch

    def scale(
        self,
        weight: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the scales (O,) that `weight` has now; for `bias` see `contract.weight_scale`."""
        learned = None
        if self.stretch is not None and self.initial is not None:
            learned = self.initial * (self.stretch if self.learning else self.stretch.detach()).exp()
        return contract.weight_scale(
            weight,
            bias=bias,
            input_scale=input_scale,
            axis=self.ch_axis,
            numerics=self.numerics,
            learned=learned,
        )

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight` rounded to its channels' grids (same shape)."""
        if not self.enabled:
            return weight
        scale = self.scale(weight) if self._frozen is None else self._frozen
        shape = [1] * weight.dim()
        shape[self.ch_axis] = -1
        pace = lsq_gradient_scale(weight.numel() // len(scale), self.quant_max)
        return round_to_grid(weight, scale.reshape(shape), _ZERO, self.quant_min, self.quant_max, pace)
