"""Write targets/operators.md: what each runtime does with each operator, as it says itself (`make operator-table`).

Every operator stands alone between two integer layers, goes through quantization and export, and is run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deployment import RUNTIMES, SIZE, Deployed, deploy_network
from operator_networks import OPERATORS
from torch import nn

from edgeft.errors import EdgeftError

TABLE = Path(__file__).parents[2] / "targets" / "operators.md"
HEADER = """# Operators

What each runtime executes where an int8 model has the operator between integer layers, as read back from the runtime
after it compiled the file. `int8`: an integer kernel, or integers moved. `float`: computed in float between a
dequantization and a quantization, with the program's numbers at both ends. `unsupported`: the converter refuses it.
Written by `make operator-table`; do not edit.

"""


def _bare() -> nn.Module:
    return nn.Identity()


def deploy(name: str, make: Callable[[], nn.Module], runtime: str) -> Deployed:
    """Deploy one operator between a convolution and a linear layer."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), make(), nn.Flatten(), nn.LazyLinear(8))
    network(torch.zeros(2, 3, SIZE, SIZE))  # the linear layer finds its width
    return deploy_network(network, name, runtimes=(runtime,))


def verdict(report: dict[str, Any], bare: dict[str, Any]) -> str:
    """Return what a runtime did, given its report on the operator's network and on that without the operator."""
    macs_in_float = set(report["mac_precision"]) - {"int8"}
    return "float" if macs_in_float or _float_ops(report) > _float_ops(bare) else "int8"


def _float_ops(report: dict[str, Any]) -> int:
    """Return how many ops compute in float; ONNX Runtime needs a dequantization for each of them."""
    details = report["details"]
    if report["runtime"] == "onnxruntime":
        return int(details["other_ops"].get("DequantizeLinear", 0))
    return int(details["float_other_ops"])


def rows() -> tuple[list[str], list[list[str]]]:
    """Return the runtimes with their versions, and for each operator its name and a verdict by runtime."""
    bare = {runtime: deploy("bare", _bare, runtime).reports[runtime] for runtime in RUNTIMES}
    titles = [f"{bare[runtime]['runtime']} {bare[runtime]['version']}" for runtime in RUNTIMES]
    found = []
    for name, make in OPERATORS.items():
        row = [name]
        for runtime in RUNTIMES:
            try:
                row.append(verdict(deploy(name, make, runtime).reports[runtime], bare[runtime]))
            except EdgeftError:
                row.append("unsupported")
        found.append(row)
    return titles, found


def main() -> None:
    """Write the table."""
    titles, found = rows()
    lines = [["operator", *titles], ["---"] * (len(titles) + 1), *found]
    TABLE.write_text(HEADER + "".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
