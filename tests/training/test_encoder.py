from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pathup.errors import PathUpError
from pathup.evaluation.encoders import load_features
from pathup.model.encoder import TissueEncoder, save_encoder
from pathup.recipes import Recipe
from pathup.tiles.dataset import TileFolder
from pathup.training.encoder import KINDS, RANKING_MARGIN, TileExamples, ranking_loss
from pathup.training.runs import train_encoder
from tests.training.trained import QUIET


def test_the_ranking_loss_is_0_when_the_worse_lies_further_by_the_margin() -> None:
    whole = torch.zeros(1, 4)
    step = torch.tensor([0.5])

    def loss(near: float, far: float) -> float:
        return float(ranking_loss(torch.stack([whole, whole + near, whole + far], 1), step))

    assert loss(1, 2) == 0  # log 4 = 1.39 apart, 0.25 was asked for
    assert loss(2, 2) == pytest.approx(RANKING_MARGIN * 0.5)
    assert loss(2, 1) == pytest.approx(RANKING_MARGIN * 0.5 + torch.tensor(4.0).log().item())
    assert loss(20, 10) == pytest.approx(loss(2, 1))  # larger features are no way out


def test_examples_are_of_the_step_alone_and_ranked_tiles_get_worse(tiny_tiles: Path, recipe: Recipe) -> None:
    spec = recipe.encoder.model_copy(update={"batch_size": 16, "ranking_share": 0.5})
    examples = TileExamples(TileFolder.load(tiny_tiles, "train", recipe), spec)
    one, again, other = examples[3], examples[3], examples[4]
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True)) and not torch.equal(one.pixels, other.pixels)
    assert one.pixels.shape == (16, 3, 32, 32) and one.ranked.shape == (8, 3, 3, 32, 32) and one.step.shape == (8,)
    assert one.pixels.abs().max() <= 1 and one.severity.shape == (16, len(KINDS)) and (one.step > 0).all()
    ranked = torch.cat([examples[step].ranked for step in range(20)])
    whole, milder, worse = ranked.unbind(1)
    change = [(copy - whole).abs().mean((1, 2, 3)) for copy in (milder, worse)]
    # shuffled noise differs from what was there by as much, whatever the blocks' size; the rest gets worse
    assert (change[1] >= change[0] - 0.02).float().mean() > 0.9
    none = TileExamples(TileFolder.load(tiny_tiles, "train", recipe), spec.model_copy(update={"ranking_share": 0.0}))
    assert torch.equal(none[3].pixels, one.pixels) and none[3].ranked.shape == (0, 3, 3, 32, 32)


def test_an_encoder_can_start_from_another_of_its_shape(tmp_path: Path, tiny_tiles: Path) -> None:
    changes = {"steps": 2}
    first = train_encoder(tiny_tiles, tmp_path / "first", "tiny", pretrained=None, changes=changes, **QUIET)
    second = train_encoder(tiny_tiles, tmp_path / "second", "tiny", pretrained=str(first), changes=changes, **QUIET)
    assert load_features(str(second)).sha256 != load_features(str(first)).sha256
    save_encoder(TissueEncoder([8, 8, 16, 24], 32), tmp_path / "other", {})
    with pytest.raises(PathUpError, match=r"has channels \[8, 8, 16, 24\], but the recipe \[8, 8, 16, 16\]"):
        train_encoder(
            tiny_tiles, tmp_path / "third", "tiny", pretrained=str(tmp_path / "other"), changes=changes, **QUIET
        )
    assert not (tmp_path / "third").exists()
