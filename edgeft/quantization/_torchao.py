"""Import torchao once, without what it says about CUDA libraries and enums that nobody here can act on."""

from __future__ import annotations

import logging
import os

# Its compiled kernels are for GPUs and low-bit formats; each one that does not load would be a warning.
os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")

_loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
_levels = [logger.level for logger in _loggers]
for _logger in _loggers:
    _logger.setLevel(logging.ERROR)
try:
    import torchao.quantization.pt2e  # noqa: F401
finally:
    for _logger, _level in zip(_loggers, _levels, strict=True):
        _logger.setLevel(_level)
