"""`edgeft inspect`: what stands in a model file or package."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgeft.cli import console
from edgeft.errors import ExitCode

if TYPE_CHECKING:
    from edgeft.inspection import Inspection, Tensor
    from edgeft.package import Package

_METADATA_SHOWN: Final = 100


def inspect(
    file: Annotated[
        Path,
        typer.Argument(help="An .onnx, .xml or .tflite file, whoever made it, or a package.", metavar="FILE"),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> int:
    """Show ops with their precisions, int8 coverage, inputs and outputs, sizes and metadata; runs nothing."""
    from edgeft import inspection
    from edgeft import package as packages

    package = None
    if file.is_dir() or file.suffix.lower() == packages.ARCHIVE_SUFFIX:
        package = packages.read(file)
    found = inspection.inspect(package.artifact.path if package else file)
    if as_json:
        print(json.dumps(_record(found, package), indent=2))
    else:
        _print(found, package)
    return ExitCode.OK


def _record(found: Inspection, package: Package | None) -> dict[str, Any]:
    record = dataclasses.asdict(found)
    record["path"] = str(found.path)
    record["coverage"]["ratio"] = found.coverage.ratio
    for key in ("inputs", "outputs"):
        record[key] = [{**dataclasses.asdict(each), "layout": each.layout} for each in getattr(found, key)]
    if package is not None:
        record["package"] = {
            "path": str(package.source),
            "target": package.profile.id,
            "runtime": package.profile.runtime.name,
            "labels": list(package.labels),
            "metrics": package.manifest["metrics"],
        }
    return record


def _print(found: Inspection, package: Package | None) -> None:
    if package is not None:
        print(f"{package.source}: a package for {package.profile.title}, {len(package.labels)} classes")
    by = f", by {found.producer}" if found.producer else ""
    print(f"{found.path.name}: {found.format}, {found.version}{by}")
    sizes = ", ".join(f"{name} {size:,} bytes" for name, size in found.files.items())
    print(f"size: {sizes}")
    for kind, tensors in (("input", found.inputs), ("output", found.outputs)):
        print("\n".join(f"{kind}: {_tensor(each)}" for each in tensors))
    coverage = found.coverage
    print(f"int8: {coverage.int8_mac_ops} of {coverage.mac_ops} ops that multiply and accumulate")
    if coverage.int8_mac_ops and coverage.float_ops:
        print(f"not int8: {', '.join(coverage.float_ops)}")
    stored = ", ".join(f"{dtype} {size:,} bytes" for dtype, size in found.weights.items())
    print(f"constants: {stored or 'none'}")
    console.print_table(list(_rows(found.ops)))
    for key, value in found.metadata.items():
        text = " ".join(value.split())
        print(f"{key}: {text[:_METADATA_SHOWN]}{'...' if len(text) > _METADATA_SHOWN else ''}")


def _tensor(tensor: Tensor) -> str:
    shape = ", ".join(map(str, tensor.shape))
    quantized = f", scale {tensor.scale:.6g}, zero point {tensor.zero_point}" if tensor.scale else ""
    layout = f" ({tensor.layout})" if tensor.layout else ""
    return f"{tensor.name} {tensor.dtype} [{shape}]{layout}{quantized}"


def _rows(ops: Mapping[str, Mapping[str, int]]) -> Iterable[dict[str, str]]:
    for kind, counts in ops.items():
        precisions = ", ".join(
            f"{count} {precision}" if len(counts) > 1 else precision for precision, count in counts.items()
        )
        yield {"op": kind, "number": str(sum(counts.values())), "precision": precisions}
