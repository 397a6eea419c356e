"""The stages as plain functions: each takes records and returns new ones, and knows nothing of the workspace.

`edgeft.finetune`, `edgeft.prune`, `edgeft.quantize`, `edgeft.export` and `edgeft.benchmark` are these functions;
the pipeline calls the same ones. None of them changes the caller's model.
"""

from edgeft.stages.deploying import benchmark, export, predict_program
from edgeft.stages.finetuning import finetune
from edgeft.stages.pruning import prune
from edgeft.stages.quantizing import measure_sensitivity, quantize

__all__ = [
    "benchmark",
    "export",
    "finetune",
    "measure_sensitivity",
    "predict_program",
    "prune",
    "quantize",
]
