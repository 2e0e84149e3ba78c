"""A part of a region is known again by its landmarks, however it was saved; other tissue is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathup.slides.reader import open_slide
from pathup.tiles.landmarks import AGREEING, agreeing, check_landmarks, region_landmarks
from tests.tiles.made import SHARED, nuclei, save

REGIONS = SHARED / "data" / "regions"
MPP = 1.0
SIDE = 1024


def marks(path: Path, image: Image.Image, mpp: float = MPP) -> tuple[str, str]:
    save(path, np.asarray(image))
    return marks_of(path, mpp)


def marks_of(path: Path, mpp: float) -> tuple[str, str]:
    with open_slide(path, mpp) as reader:
        return region_landmarks(reader, (0, 0, *reader.size), (mpp, mpp))


@pytest.fixture(scope="module")
def regions(tmp_path_factory) -> tuple[list[Image.Image], list[tuple[str, str]]]:
    root = tmp_path_factory.mktemp("regions")
    images = [nuclei(seed, SIDE) for seed in range(4)]
    return images, [marks(root / f"{n}.png", image) for n, image in enumerate(images)]


@pytest.mark.parametrize("turn", range(4))
def test_a_cut_out_that_was_turned_shrunk_and_compressed_is_known_again_at_its_place(regions, tmp_path, turn):
    images, known = regions
    part = images[2].crop((301, 203, 301 + 600, 203 + 600)).rotate(90 * turn).resize((420, 420))
    part.save(tmp_path / "part.jpg", quality=60)
    plain, _ = marks_of(tmp_path / "part.jpg", MPP * 600 / 420)
    found = agreeing([plain], [own for own, _ in known])[0]
    assert found[2] >= 2 * AGREEING
    assert max(np.delete(found, 2)) < AGREEING


def test_scale_need_not_be_told_rightly(regions, tmp_path):
    images, known = regions
    plain, _ = marks(tmp_path / "part.png", images[1].crop((100, 100, 900, 900)).resize((560, 560)))
    assert agreeing([plain], [known[1][0]])[0, 0] >= AGREEING  # at 1.43 times the scale that it is said to have


def test_a_flipped_cut_out_is_known_by_its_mirrored_landmarks(regions, tmp_path):
    images, known = regions
    part = images[0].crop((0, 400, 600, 1000)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    plain, mirrored = marks(tmp_path / "part.png", part)
    assert agreeing([plain], [known[0][0]])[0, 0] < AGREEING <= agreeing([mirrored], [known[0][0]])[0, 0]
    assert agreeing([plain], [known[0][1]])[0, 0] >= AGREEING  # it does not matter which of the two is mirrored


def test_every_part_of_a_region_has_landmarks_and_blocks_know_their_places(regions, tmp_path):
    """A region larger than a block: its lower right corner is known again."""
    image = nuclei(9, 1400)
    whole, _ = marks(tmp_path / "whole.png", image, mpp=2.0)
    part, _ = marks(tmp_path / "part.png", image.crop((1000, 1000, 1400, 1400)), mpp=2.0)
    assert agreeing([part], [whole])[0, 0] >= AGREEING


def test_glass_is_like_no_other_glass_and_blank_or_tiny_regions_have_no_landmarks(tmp_path):
    rng = np.random.default_rng(0)
    glass = [np.clip(240 + rng.normal(size=(256, 256, 3)), 0, 255).astype(np.uint8) for _ in range(2)]
    one, other = (marks(tmp_path / "glass.png", Image.fromarray(pixels), mpp=2.0)[0] for pixels in glass)
    assert agreeing([one], [other])[0, 0] < AGREEING
    for pixels in (np.full((256, 256, 3), 240, np.uint8), glass[0][:20, :20]):
        assert marks(tmp_path / "glass.png", Image.fromarray(pixels), mpp=2.0) == ("", "")


def test_nothing_agrees_with_nothing():
    assert agreeing([], ["", ""]).shape == (0, 2)
    assert agreeing([""], ["", ""]).tolist() == [[0, 0]]


@pytest.mark.parametrize("text", ["no base64!", "AAAA"])
def test_damage_is_told(text):
    with pytest.raises(ValueError, match=r".+"):
        check_landmarks([text])


@pytest.mark.skipif(not REGIONS.is_dir(), reason=f"real regions are not at hand ({REGIONS})")
def test_of_real_fields_none_is_taken_for_another_and_their_cut_outs_are_known(tmp_path):
    """Eight fields of one slide: the hardest to tell apart."""
    files = sorted((REGIONS / "train").rglob("*kidneyoncocytoma*.jpg"))[:8]
    known = [marks_of(file, 0.5) for file in files]
    found = agreeing([own for pair in known for own in pair], [plain for plain, _ in known])
    apart = np.repeat(~np.eye(len(files), dtype=bool), 2, axis=0)
    assert found[apart].max() < AGREEING
    parts = []
    for number, file in enumerate(files):
        with Image.open(file) as image:
            image.crop((700, 500, 1724, 1524)).resize((640, 640)).save(tmp_path / f"{number}.jpg", quality=60)
        parts.append(marks_of(tmp_path / f"{number}.jpg", 0.8)[0])
    assert np.diag(agreeing(parts, [plain for plain, _ in known])).min() >= AGREEING
