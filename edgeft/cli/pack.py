"""`edgeft pack`: one file of a package, also of a model file that edgeft did not make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeft.cli import console
from edgeft.errors import ConfigError, ExitCode


def pack(
    package: Annotated[
        Path, typer.Argument(help="A package's folder, or a model file.", metavar="PACKAGE_OR_FILE")
    ],
    target: Annotated[
        str | None,
        typer.Option("--target", help="Target of a model file; also the path of a profile.", metavar="NAME"),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs",
            help="Samples for a file's golden vectors (.npy, .npz); else random.",
            metavar="FOLDER",
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Names of a file's outputs, one per line.", metavar="FILE")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The archive; by default PACKAGE.zip.", metavar="FILE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print path, size and SHA-256 as JSON.")] = False,
) -> int:
    """Make one archive of a package, the same bytes every time; `verify`, `predict` and `bench` read it.

    With --target it is that of a model file made elsewhere: the file, compiled where the target has a compiler, golden
    vectors through the target's runtime, and what it costs on the device.
    """
    from edgeft import package as packages

    if target is None:
        if inputs is not None or labels is not None:
            raise ConfigError("--inputs and --labels are for model files", "name their target with --target")
        path = packages.pack(package, output)
    else:
        from edgeft import benchmarking
        from edgeft import target as profiles

        profile = profiles.load(target)
        archive = output or package.with_name(f"{package.stem}-{profile.id}{packages.ARCHIVE_SUFFIX}")
        path = benchmarking.pack_file(package, profile, archive, inputs=inputs or "random", labels=labels)
    record = {"archive": str(path), "size_bytes": path.stat().st_size, "sha256": packages.sha256(path)}
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        print(f"{console.shown(path)}  {record['size_bytes']:,} bytes, sha256 {record['sha256']}")
    return ExitCode.OK
