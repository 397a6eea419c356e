"""What stands in a model file, edgeft's own or anybody's: ops, dtypes, int8 coverage, inputs and outputs. No torch.

The file is read, not run, and no runtime is needed: what is said here is what the file asks for. What a runtime makes
of it is known only after it has compiled the file (`edgeft bench`).
"""

from edgeft.inspection.files import FORMATS, inspect
from edgeft.inspection.records import Inspection, Tensor

__all__ = ["FORMATS", "Inspection", "Tensor", "inspect"]
