"""The stages as plain functions: each takes records and returns new ones, and knows nothing of the workspace.

`edgeft.finetune`, `edgeft.prune`, `edgeft.quantize` and `edgeft.export` are these functions; the pipeline calls the
same ones. None of them changes the caller's model.
"""

from edgeft.stages.budgeting import unpruned_file
from edgeft.stages.candidates import amount
from edgeft.stages.common import own_tensors
from edgeft.stages.deploying import export, predict_program
from edgeft.stages.finetuning import finetune
from edgeft.stages.prune_planning import plan_pruning
from edgeft.stages.pruning import prune
from edgeft.stages.quantizing import measure_sensitivity, quantize
from edgeft.stages.weighing import check_budget, check_pruning

__all__ = [
    "amount",
    "check_budget",
    "check_pruning",
    "export",
    "finetune",
    "measure_sensitivity",
    "own_tensors",
    "plan_pruning",
    "predict_program",
    "prune",
    "quantize",
    "unpruned_file",
]
