"""Train, evaluate and re-estimate networks. Imports torch; the loop itself is Lightning's."""

from edgeft.training.evaluation import predict, reestimate_batch_norm
from edgeft.training.fitting import Batches, fit
from edgeft.training.loading import Augmentation, loader

__all__ = ["Augmentation", "Batches", "fit", "loader", "predict", "reestimate_batch_norm"]
