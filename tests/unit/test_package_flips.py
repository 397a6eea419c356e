"""One flipped bit, anywhere in a package, is found: by edgeft, and by the package's own program."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_packages import run, write_tiny

from edgeft import package
from edgeft.errors import VerificationError
from edgeft.package import verification

FILES = (
    "model.onnx",
    "manifest.json",
    "SHA256SUMS",
    "labels.txt",
    "preprocess.json",
    "golden.npz",
    "model_card.md",
    "example.py",
    "verify.py",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("packages") / "cpu-onnxruntime")


@contextmanager
def flipped(path: Path, place: int, bit: int) -> Iterator[None]:
    content = path.read_bytes()
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(content)


def test_these_are_all_files(folder: Path):
    assert {path.name for path in folder.iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_found_by_edgeft(folder: Path, name: str):
    generator = random.Random(name)
    for _ in range(12):
        place = generator.randrange((folder / name).stat().st_size)
        with flipped(folder / name, place, generator.randrange(8)):
            failed, problems = verification.check_contents(folder)
            assert failed == "files" and problems, f"{name}, byte {place}"
    with flipped(folder / name, place, 0):
        result = package.verify(folder)
        assert result.failed == "files" and not result.figures
        with pytest.raises(VerificationError, match=r"changed|missing|not in the form|no line for"):
            result.require()


def test_every_line_of_the_sums_counts(folder: Path):
    """Among them those that change no line as Python sees lines: a newline becomes a vertical tab."""
    sums = folder / "SHA256SUMS"
    for place in range(0, sums.stat().st_size, 5):
        with flipped(sums, place, place % 8):
            assert verification.check_contents(folder)[0] == "files", f"byte {place}, bit {place % 8}"
    place = sums.read_bytes().index(b"\n")
    with flipped(sums, place, 0):
        assert sums.read_bytes()[place] == 0x0B
        assert "not in the form in which it was written" in verification.check_contents(folder)[1][0]


@pytest.mark.parametrize("name", FILES)
def test_found_by_the_package_itself(folder: Path, name: str):
    generator = random.Random(name)
    for _ in range(4 if name == "verify.py" else 1):
        place = generator.randrange((folder / name).stat().st_size)
        with flipped(folder / name, place, generator.randrange(8)):
            done = run(folder / "verify.py")
        assert done.returncode != 0 and "OK" not in done.stdout, f"{name}, byte {place}: {done.stdout}"
