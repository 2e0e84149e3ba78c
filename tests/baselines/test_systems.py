"""Which baselines there are, and what is refused before anything is trained."""

from __future__ import annotations

import importlib

import pytest

from pathup.baselines.systems import BASELINES, TrainRequest, baseline, train_baseline
from pathup.errors import PathUpError


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_baseline_has_a_module_that_trains_and_loads_it(name):
    module = importlib.import_module(f"pathup.baselines.{BASELINES[name].module}")
    assert callable(module.check)
    assert callable(module.train)
    assert callable(module.load)


def test_an_unknown_baseline_is_named_with_the_nearest():
    with pytest.raises(PathUpError, match="unknown baseline 'stylegan'; did you mean 'stylegan2'"):
        baseline("stylegan")


@pytest.mark.parametrize(
    ("name", "autoencoder", "said"),
    [("ldm", None, "--autoencoder was needed"), ("stylegan2", "models/atlas", "takes no autoencoder")],
)
def test_an_autoencoder_is_given_where_it_is_needed_and_nowhere_else(recipe, tmp_path, name, autoencoder, said):
    request = TrainRequest(
        tiles=tmp_path, output=tmp_path / "run", recipe=recipe, changes={}, autoencoder=autoencoder, cpu=True
    )
    with pytest.raises(PathUpError, match=said):
        train_baseline(name, request)
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher sets it
    request = TrainRequest(tiles=tmp_path, output=tmp_path / "run", recipe=recipe, changes={}, cpu=True)
    with pytest.raises(PathUpError, match="a baseline is trained by one process, but 2 were launched"):
        train_baseline("stylegan2", request)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"baselines.stylegan2.chanels": 1}, "did you mean 'channels'"),
        ({"baselines.stylegan.steps": 1}, "unknown section in command line, baselines.stylegan.steps: 'stylegan'"),
        ({"baselines.stylegan2.steps": "many"}, "baselines.stylegan2.steps"),
    ],
)
def test_a_change_that_the_recipe_has_no_place_for_is_one_sentence(recipe, tmp_path, changes, said):
    request = TrainRequest(tiles=tmp_path, output=tmp_path / "run", recipe=recipe, changes=changes, cpu=True)
    with pytest.raises(PathUpError, match=said):
        train_baseline("stylegan2", request)
