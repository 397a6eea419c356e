"""A package as one file: the same bytes every time, and nothing in it that does not belong there."""

import io
import random
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from tiny_packages import write_tiny

from edgeft import package
from edgeft.errors import PackageError, VerificationError
from edgeft.package.archive import write_archive


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("packages") / "cpu-onnxruntime")


@pytest.fixture
def archive(folder: Path, tmp_path: Path) -> Path:
    return package.pack(folder, tmp_path / "cpu-onnxruntime.zip")


def test_the_same_bytes_every_time_and_the_same_package(folder: Path, archive: Path, tmp_path: Path):
    elsewhere = tmp_path / "copy"
    shutil.copytree(folder, elsewhere, copy_function=shutil.copyfile)  # other dates and rights
    assert package.pack(elsewhere, tmp_path / "again.zip").read_bytes() == archive.read_bytes()
    found, original = package.read(archive), package.read(folder)
    assert found.source == archive and found.manifest == original.manifest
    assert {p.name: p.read_bytes() for p in found.folder.iterdir()} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }
    assert package.verify(archive).passed


def test_a_flipped_bit_anywhere_in_the_archive_is_found(archive: Path):
    content = archive.read_bytes()
    generator = random.Random(0)
    central = content.rindex(b"PK\x05\x06") - 700
    places = [generator.randrange(len(content)) for _ in range(60)]
    places += [generator.randrange(central, len(content)) for _ in range(60)]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        archive.write_bytes(flipped)
        with pytest.raises(VerificationError):
            package.read(archive)


def test_half_an_archive_is_one_clear_error(archive: Path):
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(VerificationError, match="damaged"):
        package.read(archive)


def _zip(path: Path, name: str, *, mode: int = 0o644 | stat.S_IFREG, deflated: bool = False) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        entry.compress_type = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
        made.writestr(entry, b"\0" * 1000)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "C:x", "a\\..\\b"])
def test_members_that_lead_out_are_refused(tmp_path: Path, name: str):
    with pytest.raises(VerificationError, match="leads out of the package"):
        package.read(_zip(tmp_path / "p.zip", name))


def test_links_and_compressed_members_are_refused(tmp_path: Path):
    with pytest.raises(VerificationError, match="is a link"):
        package.read(_zip(tmp_path / "p.zip", "model.onnx", mode=stat.S_IFLNK | 0o777))
    with pytest.raises(VerificationError, match="is compressed"):
        package.read(_zip(tmp_path / "p.zip", "model.onnx", deflated=True))


def test_a_member_twice_is_refused(archive: Path):
    with zipfile.ZipFile(archive, "a") as made, pytest.warns(UserWarning, match="Duplicate"):
        made.writestr("labels.txt", "another\n")
    with pytest.raises(VerificationError, match="members of"):
        package.read(archive)


def test_an_archive_that_another_program_packed_is_refused(folder: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as made:
        for file in sorted(folder.iterdir()):
            made.write(file, file.name)
    with pytest.raises(VerificationError, match="other than `edgeft pack`"):
        package.read(tmp_path / "p.zip")


def test_an_archive_of_something_else_is_not_a_package(tmp_path: Path):
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / "picture.txt").write_text("sea")
    with pytest.raises(PackageError, match="not a package"):
        package.read(write_archive(folder, tmp_path / "holiday.zip"))


def test_only_whole_packages_are_packed(folder: Path, archive: Path, tmp_path: Path):
    with pytest.raises(PackageError, match="only the folder"):
        package.pack(archive)
    with pytest.raises(PackageError, match="inside of the package"):
        package.pack(folder, folder / "p.zip")
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "labels.txt").write_text("x\n")
    with pytest.raises(VerificationError, match=r"labels\.txt: changed"):
        package.pack(damaged)
    assert not (tmp_path / "damaged.zip").exists()
