"""C++ sources of packages for microcontrollers: the model as an array with everything about it, and a program."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from edgeft.errors import ExportError
from edgeft.measure import memory
from edgeft.package.layout import DEVICE_FILES, sha256
from edgeft.target import TargetProfile
from edgeft.types import CompilerEstimate, ExportedArtifact, MemoryResult, TensorSpec

HEADER: Final = "model_data.h"
PROGRAM: Final = "example.cc"
_CPP_TYPES: Final = {
    "int8": "std::int8_t",
    "uint8": "std::uint8_t",
    "float32": "float",
    "int32": "std::int32_t",
}
# Methods of tflite::MicroMutableOpResolver that are not called like their operator.
_METHODS: Final = {"PADV2": "PadV2", "CUMSUM": "CumSum", "BATCH_MATMUL": "BatchMatMul"}
_BESIDE_TENSORS: Final = 16 * 1024
"""For what the interpreter keeps beside tensors when the compiler has counted those only."""
_PER_LINE: Final = 20


def write_firmware(
    folder: Path,
    *,
    profile: TargetProfile,
    artifact: ExportedArtifact,
    memory_result: MemoryResult,
    estimate: CompilerEstimate | None,
    labels: Sequence[str],
) -> dict[str, Any]:
    """Write what a microcontroller needs into a package: the compiled file, and C++ sources.

    Args:
        folder: The package.
        profile: The target.
        artifact: The file that was exported, for its inputs and outputs.
        memory_result: What it needs on the device.
        estimate: Of the target's compiler, with the file that it has made.
        labels: Class names in the order of the outputs.

    Returns:
        For the manifest: ``compiled``, the name of the file that the device runs or None, and ``sources``.

    Raises:
        ExportError: The file has operators that TensorFlow Lite Micro does not come with.
    """
    compiled = estimate.file if estimate else None
    if compiled is not None:
        shutil.copyfile(compiled, folder / compiled.name)
    model = compiled or artifact.path
    text = "\n".join(_header(model, profile, artifact, memory_result, estimate, labels))
    (folder / HEADER).write_text(text, encoding="utf-8", newline="")
    shutil.copyfile(DEVICE_FILES / PROGRAM, folder / PROGRAM)
    return {"compiled": compiled.name if compiled else None, "sources": [HEADER, PROGRAM]}


def _header(
    model: Path,
    profile: TargetProfile,
    artifact: ExportedArtifact,
    memory_result: MemoryResult,
    estimate: CompilerEstimate | None,
    labels: Sequence[str],
) -> Iterator[str]:
    yield from (
        f"// The model for {profile.id}, and what a program needs to know of it. Made by edgeft: do not edit.",
        "// Include it in one source file only: every inclusion is a copy.",
        f"// {model.name}, sha256 {sha256(model)}",
        f"// Memory as found out by {memory_result.source}",
        "#ifndef EDGEFT_MODEL_DATA_H_",
        "#define EDGEFT_MODEL_DATA_H_",
        "",
        "#include <cstddef>",
        "#include <cstdint>",
        "",
        "namespace edgeft {",
        "",
    )
    yield from _arena(memory_result, estimate)
    yield from _tensor("Input", artifact.inputs[0])
    yield from _tensor("Output", artifact.outputs[0])
    yield f"constexpr const char* kLabels[] = {{{', '.join(map(_literal, labels))}}};"
    yield ""
    yield from _operators(model, compiled=estimate is not None)
    yield from (
        "",
        f"constexpr std::size_t kModelBytes = {model.stat().st_size};",
        "alignas(16) constexpr unsigned char kModel[kModelBytes] = {",
    )
    content = model.read_bytes()
    for start in range(0, len(content), _PER_LINE):
        yield "".join(f"{byte}," for byte in content[start : start + _PER_LINE])
    yield from ("};", "", "}  // namespace edgeft", "", "#endif  // EDGEFT_MODEL_DATA_H_", "")


def _arena(memory_result: MemoryResult, estimate: CompilerEstimate | None) -> Iterator[str]:
    """Say how large the interpreter's arena must be; a compiler counts the tensors in it only."""
    size = memory_result.ram_bytes
    if estimate is not None:
        # With DRAM the arena is there, and the figure holds the weights as well; the fast memory is a cache.
        size = (estimate.dram_bytes or estimate.sram_bytes) + _BESIDE_TENSORS
        if estimate.dram_bytes:
            yield "// In DRAM, and an upper bound: the compiler counts tensors and weights there together."
            yield f"// The NPU's cache in fast memory takes {estimate.sram_bytes} bytes."
    yield "// interpreter.arena_used_bytes() tells what it takes on the device, to the byte."
    yield f"constexpr std::size_t kTensorArenaBytes = {math.ceil(size / 1024) * 1024};"
    yield ""


def _tensor(name: str, spec: TensorSpec) -> Iterator[str]:
    """Say of a tensor what numbers it holds: real value = (stored - zero point) * scale; a scale of 0 is none."""
    yield f"// {spec.name}: {list(spec.shape)}"
    yield f"using {name}Value = {_CPP_TYPES[spec.dtype]};"
    yield f"constexpr std::size_t k{name}Values = {math.prod(spec.shape)};"
    yield f"constexpr float k{name}Scale = {_float(spec.scale)};"
    yield f"constexpr int k{name}ZeroPoint = {spec.zero_point};"


def _operators(model: Path, *, compiled: bool) -> Iterator[str]:
    """Register the operators of the file, and no others: each kernel takes flash."""
    kinds = sorted({operator.kind for operator in memory.operators(model)})
    if "CUSTOM" in kinds and not compiled:
        raise ExportError(
            f"{model.name}: it has custom operators, whose kernels TensorFlow Lite Micro does not come with",
            "replace them by operators of TensorFlow Lite's own",
        )
    yield "// Registers what the model is made of with a tflite::MicroMutableOpResolver<kOperators>."
    yield f"constexpr unsigned int kOperators = {len(kinds)};"
    yield "template <typename Resolver>"
    yield "void AddOperators(Resolver& resolver) {"
    yield from (f"  resolver.Add{_method(kind)}();" for kind in kinds)
    yield "}"


def _method(kind: str) -> str:
    """Return what the resolver calls an operator: CONV_2D is Conv2D."""
    if kind == "CUSTOM":
        return "EthosU"
    return _METHODS.get(kind) or "".join(
        part if part[0].isdigit() else part.capitalize() for part in kind.split("_")
    )


def _float(value: float) -> str:
    text = f"{value:.9g}"
    return f"{text}f" if set(text) & set(".e") else f"{text}.0f"


def _literal(text: str) -> str:
    """Return a text as a C string; JSON escapes control characters and quotes the same way."""
    return json.dumps(text, ensure_ascii=False)
