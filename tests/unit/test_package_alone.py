"""A package on its own: an environment with numpy, Pillow and the one runtime gives edgeft's very answers."""

import dataclasses
import subprocess
import venv
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_packages import any_host, target_result, write

from edgeft import measure, package, target
from edgeft.preprocessing import ImagePreprocessing

PICTURES = 100
RUNTIMES = {
    "cpu-onnxruntime": "onnxruntime",
    "cpu-openvino": "openvino",
    "cpu-litert": "ai-edge-litert",
}
PREPROCESSING = ImagePreprocessing(
    size=32, resize=36, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
CLASSIFY = """
import sys
from pathlib import Path
import numpy as np
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
from example import Model, load_sample
folder = Path(sys.argv[1])
model = Model(folder)
pictures = sorted(Path(sys.argv[2]).iterdir())
np.save(sys.argv[3], np.concatenate([model(load_sample(str(path), folder)) for path in pictures]))
print(sorted(name for name in ("edgeft", "torch", "onnx", "scipy", "pydantic") if name in sys.modules))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Pictures of many sizes, with edges and gradients; some turned by a flag, some grey."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(PICTURES):
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        size = tuple(int(edge) for edge in generator.integers(20, 90, 2))
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        exif = picture.getexif()
        exif[0x0112] = 6 if index % 7 == 0 else 1
        picture = picture.convert("L") if index % 5 == 0 else picture
        picture.save(folder / f"{index:03}.jpg", exif=exif)
    return folder


def _package(folder: Path, name: str, inputs: np.ndarray) -> Path:
    """Quantize a small network with weights as they fall, and package its file for a target."""
    import torch

    from edgeft import calibration, exporters, quantization
    from edgeft.types import FloatModel

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 3, 2, 1),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    )  # fmt: skip
    labels = tuple("abcde")
    model = FloatModel(module=network.eval(), preprocessing=PREPROCESSING, labels=labels)
    graph, x = quantization.prepare(model), torch.from_numpy(inputs)
    quantization.calibrate(graph, [x], calibration.load("minmax"))
    program = quantization.convert(graph, model, x)
    profile = target.load(name).model_copy(update={"isa_floor": any_host().isa_floor})
    folder.mkdir()
    artifact = exporters.export(program, profile, folder)
    logits, _ = measure.predict(artifact, profile, inputs[:8])
    with torch.inference_mode():
        reference = program.program(x[:8]).numpy()
    result = dataclasses.replace(target_result(profile.runtime.name, list(artifact.files)), artifact=artifact)
    return write(
        folder / name,
        result,
        profile,
        preprocessing=PREPROCESSING,
        labels=labels,
        golden_inputs=inputs[:8],
        golden_outputs=logits,
        reference_outputs=reference,
        lsb=program.output.scale,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
def test_answers_are_edgefts_own(name: str, pictures: Path, tmp_path: Path):
    inputs = PREPROCESSING.normalize(np.stack([PREPROCESSING.decode(p) for p in sorted(pictures.iterdir())]))
    folder = _package(tmp_path / "made", name, inputs)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    wanted = [f"{each}=={metadata.version(each)}" for each in ("numpy", "pillow", RUNTIMES[name])]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    installed = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr

    arguments = [str(folder), str(pictures), str(tmp_path / "logits.npy")]
    done = subprocess.run(
        [str(python), "-c", CLASSIFY, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    read = package.read(folder)
    expected, _ = measure.predict(read.artifact, read.profile, inputs)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), expected)
    assert len(set(expected.argmax(1))) > 1

    for program, text in (("verify.py", "OK: files unchanged"), ("example.py", "%")):
        done = subprocess.run(
            [str(python), str(folder / program)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and text in done.stdout, done.stdout + done.stderr
