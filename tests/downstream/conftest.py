"""What the tests of classifiers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathup.recipes import Recipe
from tests.downstream import made


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.regions(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory, source: Path, recipe: Recipe) -> Path:
    return made.synthetic(tmp_path_factory.mktemp("drawn") / "synthetic", source, recipe)
