from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pathup.cli.train import app
from pathup.recipes import load_recipe
from pathup.training import runs


@pytest.mark.parametrize(
    ("flags", "patho_align", "feature_entropy"),
    [
        ([], None, None),
        (["--patho-align", "--feature-entropy"], True, True),
        (["--no-patho-align", "--no-feature-entropy"], False, False),
    ],
)
def test_a_flag_goes_before_the_recipe_and_no_flag_leaves_it(
    flags: list[str], patho_align: bool | None, feature_entropy: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def train(*_: object, changes: dict[str, Any], **__: object) -> Path:
        asked.append(changes)
        return Path("model")

    monkeypatch.setattr(runs, "train_diffusion", train)
    result = CliRunner().invoke(app, ["diffusion", "--tiles", "t", "--output", "o", *flags])
    assert result.exit_code == 0, result.output
    assert (asked[0]["patho_align"], asked[0]["feature_entropy.enabled"]) == (patho_align, feature_entropy)
    recipe = runs.changed_recipe(load_recipe("tiny"), "diffusion", {"patho_align": False, "feature_entropy.beta": 1})
    final = runs.changed_recipe(recipe, "diffusion", asked[0]).diffusion
    assert final.patho_align is bool(patho_align), "the recipe has it off, and only an explicit flag turns it on"
