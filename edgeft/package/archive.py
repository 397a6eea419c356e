"""A package as one file: a zip without compression, which has one form only and cannot hide anything.

Stored members cannot grow when they are unpacked, and the archive of equal files is equal to the last byte, so that
reading one ends with packing its contents again and comparing: whatever differs, a flipped bit in a header included,
is found.
"""

from __future__ import annotations

import atexit
import io
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from edgeft.errors import PackageError, VerificationError, WorkspaceError

SUFFIX: Final = ".zip"
_DATE: Final = (1980, 1, 1, 0, 0, 0)
_MAX_MEMBERS: Final = 64


def write_archive(folder: Path, path: Path) -> Path:
    """Write the files of `folder` into one archive at `path`, the same bytes every time.

    Raises:
        WorkspaceError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(_pack({file.name: file.read_bytes() for file in folder.iterdir()}))
        partial.replace(path)
    except OSError as error:
        raise WorkspaceError(f"{path}: the archive cannot be written ({error})") from error
    return path


def unpacked(path: Path) -> Path:
    """Unpack an archive into a new temporary folder, removed when this process ends, and return that.

    Raises:
        PackageError: The file is no archive of a package.
        VerificationError: It is damaged, or something other than `write_archive` wrote it.
    """
    members = _read(path)
    folder = Path(tempfile.mkdtemp(prefix="edgeft-package-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, content in members.items():
        (folder / name).write_bytes(content)
    return folder


def _pack(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, date_time=_DATE)
            entry.create_system = 3  # else the host's own: Unix permissions, wherever it was packed
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, members[name])
    return buffer.getvalue()


def _read(path: Path) -> dict[str, bytes]:
    """Return the members of an archive, name -> contents, after checking every name, kind and size."""
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            # golden.npz is a zip as well: of an archive cut off behind it, Python would read that one's list.
            if not entries or entries[0].header_offset:
                raise VerificationError(f"{path}: damaged (its list of members is gone)", "copy it again")
            for entry in entries:
                _check_member(path, entry)
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names) or len(names) > _MAX_MEMBERS:
                raise VerificationError(
                    f"{path}: {len(names)} members of {len(set(names))} names; a package has at most {_MAX_MEMBERS}"
                )
            if sum(entry.file_size for entry in entries) > len(content):
                raise VerificationError(f"{path}: its members claim to be larger than the archive")
            members = {name: archive.read(name) for name in names}
    except zipfile.BadZipFile as error:
        if content[:2] == b"PK":
            raise VerificationError(f"{path}: damaged ({error})", "copy it again") from error
        raise PackageError(
            f"{path}: not a package, neither a folder nor an archive of one",
            "give the folder of one target, e.g. runs/NAME/packages/TARGET, or what `edgeft pack` made of it",
        ) from error
    except (NotImplementedError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise VerificationError(f"{path}: damaged ({error})", "copy it again") from error
    if _pack(members) != content:
        raise VerificationError(
            f"{path}: changed since it was packed, or packed by something other than `edgeft pack`",
            "copy it again, or unpack it and verify the folder",
        )
    return members


def _check_member(path: Path, entry: zipfile.ZipInfo) -> None:
    """Raise `VerificationError` for a member that is not a plain, uncompressed file of the top folder."""
    name, wrong = entry.filename, ""
    if not name or name in (".", "..") or any(mark in name for mark in "/\\:\0"):
        wrong = "leads out of the package"
    elif stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        wrong = "is a link or a folder, not a plain file"
    elif entry.compress_type != zipfile.ZIP_STORED:
        wrong = "is compressed; archives of packages are not"
    if wrong:
        raise VerificationError(
            f"{path}: member {name!r} {wrong}", "do not use this archive unless you know who made it"
        )
