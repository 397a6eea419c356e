"""Defaults of a recipe that depend on what it is for."""

import pytest

from edgeft import schema
from edgeft.recipe import Recipe


def rate(kind: str, **finetune: object) -> float:
    data = {
        "targets": ["cpu-litert"],
        "task": {"kind": kind, "data": "d"},
        "model": {"source": "builtin:resnet8"},
        "finetune": finetune,
    }
    recipe = schema.validate(data, Recipe, "test")
    assert schema.validate(recipe.model_dump(by_alias=True, exclude_none=True), Recipe, "again") == recipe
    assert recipe.finetune is not None
    return recipe.finetune.learning_rate


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("image-classification", {}, 3e-4),
        ("image-classification", {"method": "retrain"}, 1e-3),
        ("image-classification", {"method": "feature-extraction"}, 1e-3),
        ("text-classification", {}, 1e-4),
        ("tabular-classification", {"method": "retrain"}, 1e-3),
        ("text-classification", {"learning_rate": 5e-5}, 5e-5),
    ],
)
def test_the_learning_rate_suits_the_task(kind, settings, expected):
    assert rate(kind, **settings) == expected
