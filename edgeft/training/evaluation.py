"""Forward passes without training: logits of a split, and batch-norm statistics anew."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from edgeft.errors import DataError
from edgeft.types import FloatArray, IntArray

_BatchNorm = nn.modules.batchnorm._BatchNorm


def predict(
    module: nn.Module, loader: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[FloatArray, IntArray]:
    """Return logits (N, K) and labels (N,) over a loader, in its order.

    The module's mode is left alone: bring it into evaluation mode first (an exported graph by its own means).

    Args:
        module: Maps inputs (N, ...) to logits (N, K); on the CPU.
        loader: Yields (x, y), of any kind of inputs.

    Raises:
        DataError: The loader yields nothing.
    """
    logits, labels = [], []
    with torch.inference_mode():
        for x, y in loader:
            logits.append(module(x).numpy())
            labels.append(np.asarray(y, dtype=np.int64))
    if not logits:
        raise DataError("prediction: the loader yields no batch", "give it at least one sample")
    return np.concatenate(logits).astype(np.float32), np.concatenate(labels)


def reestimate_batch_norm(module: nn.Module, loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Replace the running statistics of every batch norm by averages over a loader, in place.

    The moving average that training leaves behind follows its last few augmented batches; before the norms
    are folded into the convolutions they should describe what the deployed model sees. Everything but the
    batch norms runs in evaluation mode meanwhile; modes and momenta are put back afterwards.

    Args:
        module: Changed in place; without batch norms nothing happens.
        loader: Yields (x, y) of unaugmented training samples in batches of at least two.
    """
    norms = [
        layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats
    ]
    if not norms:
        return
    modes = {layer: layer.training for layer in module.modules()}
    momenta = [norm.momentum for norm in norms]
    module.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average instead of exponential
            norm.train()
        with torch.no_grad():
            for x, _ in loader:
                if len(x) > 1:  # one sample has no variance
                    module(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for layer, training in modes.items():
            layer.training = training
