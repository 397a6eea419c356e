"""Networks for a task: sources, weights with an account, heads, and surgery on any module. Imports torch."""

from edgeft.models.account import BuiltModel, LoadAccount
from edgeft.models.building import build, check_input
from edgeft.models.edge_lite import EdgeLite, edge_lite_sites, to_edge_lite
from edgeft.models.inputs import example_input
from edgeft.models.sources import default_preprocessing, files
from edgeft.models.surgery import (
    Block,
    adapt_input_channels,
    blocks,
    cut_after,
    find_head,
    freeze_to,
    replace_head,
)

__all__ = [
    "Block",
    "BuiltModel",
    "EdgeLite",
    "LoadAccount",
    "adapt_input_channels",
    "blocks",
    "build",
    "check_input",
    "cut_after",
    "default_preprocessing",
    "edge_lite_sites",
    "example_input",
    "files",
    "find_head",
    "freeze_to",
    "replace_head",
    "to_edge_lite",
]
