"""`edgeft predict`: try a package on samples of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeft.errors import ExitCode


def predict(
    package: Annotated[Path, typer.Argument(help="A package: its folder or archive.", metavar="PACKAGE")],
    samples: Annotated[
        list[str],
        typer.Argument(
            help="Pictures or folders of them; texts or .txt files; rows as column=cell,... or tables.",
            metavar="INPUT...",
        ),
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to print.", metavar="K")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the predictions as JSON.")] = False,
) -> int:
    """Classify samples with a package, through its own preprocessing and runtime."""
    from edgeft import package as packages

    opened = packages.read(package)
    found = packages.predict(opened, samples, top=top)
    if as_json:
        records = [
            {
                "input": each.sample,
                "classes": [
                    {"label": label, "probability": chance}
                    for label, chance in zip(each.labels, each.probabilities, strict=True)
                ],
            }
            for each in found
        ]
        print(
            json.dumps(
                {"package": str(package), "target": opened.profile.id, "predictions": records}, indent=2
            )
        )
        return ExitCode.OK
    for each in found:
        classes = zip(each.labels, each.probabilities, strict=True)
        print(f"{each.sample}: {', '.join(f'{label} {chance:.1%}' for label, chance in classes)}", flush=True)
    return ExitCode.OK
