"""Networks: builtin, timm and torchvision, with local weights and a head for new classes. Imports torch."""

from edgeft.models.building import BuiltModel, build, check_input
from edgeft.models.sources import default_preprocessing
from edgeft.models.weight_files import LoadAccount

__all__ = ["BuiltModel", "LoadAccount", "build", "check_input", "default_preprocessing"]
