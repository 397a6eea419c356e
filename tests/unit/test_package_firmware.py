"""The C++ sources of packages for microcontrollers, read by a compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import tiny_tflite

from edgeft import benchmarking, compilers, measure, target
from edgeft.package import firmware
from edgeft.types import ExportedArtifact, TensorSpec

LABELS = ("cat", 'a "dog"', "élan", "owl")
# What example.cc uses of TensorFlow Lite Micro, with the types of its headers.
STAND_INS = {
    "tensorflow/lite/micro/micro_mutable_op_resolver.h": """
        #pragma once
        enum TfLiteStatus { kTfLiteOk, kTfLiteError };
        namespace tflite {
        class MicroOpResolver {};
        template <unsigned int tOpCount> class MicroMutableOpResolver : public MicroOpResolver {
         public:
          TfLiteStatus AddEthosU() { return kTfLiteOk; }
          TfLiteStatus AddFullyConnected() { return kTfLiteOk; }
        };
        }""",
    "tensorflow/lite/micro/micro_interpreter.h": """
        #pragma once
        #include <cstddef>
        #include <cstdint>
        #include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
        #include "tensorflow/lite/schema/schema_generated.h"
        struct TfLiteTensor { union { void* data; std::int8_t* int8; } data; };
        namespace tflite {
        class MicroInterpreter {
         public:
          MicroInterpreter(const Model* model, const MicroOpResolver& resolver, std::uint8_t* arena, std::size_t size);
          TfLiteStatus AllocateTensors();
          TfLiteStatus Invoke();
          TfLiteTensor* input(std::size_t index);
          TfLiteTensor* output(std::size_t index);
        };
        }""",
    "tensorflow/lite/schema/schema_generated.h": """
        #pragma once
        namespace tflite { struct Model; const Model* GetModel(const void* buffer); }""",
}


def artifact_of(path: Path) -> ExportedArtifact:
    def spec(name: str, size: int, scale: float) -> TensorSpec:
        return TensorSpec(name=name, shape=(1, size), dtype="int8", layout="nk", scale=scale)

    found = benchmarking.subject(path, inputs="random").artifact
    changes = {"inputs": (spec("input", 8, 0.5),), "outputs": (spec("logits", 4, 4.0),)}
    return ExportedArtifact(**{**{name: getattr(found, name) for name in found.__slots__}, **changes})


@pytest.fixture(scope="module", params=["mcu-tflm", "npu-ethos-u55-128", "npu-ethos-u65-256"])
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sources of one target."""
    profile = target.load(request.param)
    made, folder = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp(request.param)
    file = tiny_tflite.write_tflite(made / "model.tflite")
    artifact, estimate = artifact_of(file), None
    if profile.compiler:
        estimate = compilers.compile_for(profile, file, made)
        needs = measure.memory.estimated(artifact, estimate)
    else:
        needs = benchmarking.device_cost(file, profile).memory
    written = firmware.write_firmware(
        folder, profile=profile, artifact=artifact, memory_result=needs, estimate=estimate, labels=LABELS
    )
    assert written["sources"] == ["model_data.h", "example.cc"]
    assert written["compiled"] == ("model_vela.tflite" if estimate else None)
    device_runs = folder / "model_vela.tflite" if estimate else file
    (folder / "expected").write_bytes(device_runs.read_bytes())
    return folder


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_program_sees_the_model_as_it_is(sources: Path):
    """The header alone, compiled and run: bytes, alignment, numbers and labels."""
    program = """
        #include <cstdio>
        #include "model_data.h"
        struct Resolver {
          void AddEthosU() { std::printf("EthosU "); }
          void AddFullyConnected() { std::printf("FullyConnected "); }
        };
        int main() {
          using namespace edgeft;
          static_assert(sizeof(InputValue) == 1 && kInputValues == 8 && kOutputValues == 4, "");
          Resolver resolver;
          AddOperators(resolver);
          std::printf("%u %g %g %d %s %zu %d\\n", kOperators, kInputScale, kOutputScale, kInputZeroPoint, kLabels[1],
                      kTensorArenaBytes, static_cast<int>(reinterpret_cast<std::size_t>(kModel) % 16));
          std::FILE* file = std::fopen("model.bin", "wb");
          return std::fwrite(kModel, 1, kModelBytes, file) == kModelBytes && std::fclose(file) == 0 ? 0 : 1;
        }"""
    (sources / "main.cc").write_text(program)
    build = ["g++", "-std=c++14", "-Wall", "-Wextra", "-Werror", "main.cc", "-o", "main"]
    subprocess.run(build, cwd=sources, check=True)
    said = subprocess.run(["./main"], cwd=sources, check=True, capture_output=True, text=True).stdout
    compiled = (sources / "model_vela.tflite").exists()
    kernel, arena = said.split()[0], int(said.split()[-2])
    assert kernel == ("EthosU" if compiled else "FullyConnected")
    assert (
        said.split(maxsplit=5)[1:5] == ["1", "0.5", "4", "0"] and 'a "dog"' in said and said.endswith(" 0\n")
    )
    assert arena % 1024 == 0 and (arena > 16_384 if compiled else arena < 4096)
    assert (sources / "model.bin").read_bytes() == (sources / "expected").read_bytes()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_program_is_cpp_that_compiles(sources: Path, tmp_path: Path):
    for name, text in STAND_INS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    check = [
        "g++",
        "-std=c++14",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsyntax-only",
        f"-I{tmp_path}",
        "example.cc",
    ]
    subprocess.run(check, cwd=sources, check=True)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("CONV_2D", "Conv2D"),
        ("DEPTHWISE_CONV_2D", "DepthwiseConv2D"),
        ("MAX_POOL_2D", "MaxPool2D"),
        ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighbor"),
        ("RELU6", "Relu6"),
        ("PADV2", "PadV2"),
        ("BATCH_MATMUL", "BatchMatMul"),
        ("CUSTOM", "EthosU"),
    ],
)
def test_operators_are_called_as_the_resolver_calls_them(kind: str, method: str):
    assert firmware._method(kind) == method
