"""Train, evaluate and re-estimate networks. Imports torch; the loop itself is Lightning's."""

from edgeft.training.batches import Batches
from edgeft.training.checks import check
from edgeft.training.evaluation import predict, reestimate_batch_norm
from edgeft.training.features import fit_head
from edgeft.training.fitting import fit
from edgeft.training.groups import Blocks
from edgeft.training.loading import Augmentation, Imbalance, loader
from edgeft.training.placement import require_device

__all__ = [
    "Augmentation",
    "Batches",
    "Blocks",
    "Imbalance",
    "check",
    "fit",
    "fit_head",
    "loader",
    "predict",
    "reestimate_batch_norm",
    "require_device",
]
