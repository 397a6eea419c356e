"""`edgeft check`: everything that can be found wrong before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeft.cli import console
from edgeft.errors import ExitCode


def check(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.", metavar="RECIPE")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """Validate a recipe with its data, model, targets and packages, before any work."""
    from edgeft import recipe as recipes

    loaded = recipes.load(recipe)
    from edgeft import pipeline  # after the quick look: this takes longer

    findings = pipeline.check(loaded, base=recipe.parent)
    errors = [finding.error for finding in findings if finding.error]
    if as_json:
        records = [{"level": f.level, "topic": f.topic, "text": f.text, "hint": f.hint} for f in findings]
        print(json.dumps({"ok": not errors, "findings": records}, indent=2))
    else:
        console.print_findings([(f.level, f.topic, f.text, f.hint) for f in findings])
    # The code of the first error, as `edgeft run` would end with it.
    return errors[0].exit_code if errors else ExitCode.OK
