"""Which regions tiles, models and images are of, and that the same tissue is known again."""

from __future__ import annotations

import io
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from pathup.errors import PathUpError
from pathup.tiles.provenance import (
    ALIKE,
    SOURCES_FILE,
    THUMBNAIL_PX,
    SourceRegion,
    check_apart,
    perceptual_hash,
    read_sources,
    resemblance,
    shared_tissue,
    write_sources,
)
from tests.tiles.made import structured


def hashed(image: Image.Image) -> str:
    return perceptual_hash(np.asarray(image.resize((THUMBNAIL_PX,) * 2, Image.Resampling.BOX)))


def region(name: str, **values: object) -> SourceRegion:
    told = {"label": "A", "slide": "s", "patient": "p", "sha256": name, "area": (0, 0, 512, 512)}
    return SourceRegion(region=name, **{**told, "perceptual_hash": hashed(structured(crc32(name.encode()))), **values})


def test_the_same_tissue_is_known_again_resized_compressed_recoloured_flipped_and_turned():
    image = structured(1)
    squeezed = io.BytesIO()
    image.resize((300, 300)).save(squeezed, "JPEG", quality=40)
    pixels = np.asarray(image)
    others = {
        "as it is": image,
        "small and compressed": Image.open(squeezed),
        "fainter": Image.fromarray((255 - (255 - pixels.astype(float)) * 0.6).astype(np.uint8)),
        **{f"turned by {turn}": Image.fromarray(np.rot90(pixels, turn)) for turn in (1, 2, 3)},
        **{f"flipped, turned by {turn}": Image.fromarray(np.rot90(pixels[:, ::-1], turn)) for turn in range(4)},
    }
    found = resemblance([hashed(image)], [hashed(other) for other in others.values()])[0]
    assert found[0] == 1
    # one sign in ten may differ: those of frequencies that are faint in a picture
    assert dict(zip(others, found, strict=True)) == pytest.approx(dict.fromkeys(others, 1.0), abs=0.2)
    assert found.min() >= ALIKE


def test_other_tissue_and_blank_glass_are_like_nothing():
    hashes = [hashed(structured(seed)) for seed in range(60)]
    found = resemblance(hashes, hashes)
    np.fill_diagonal(found, 0)
    assert found.max() < ALIKE - 0.2
    blank = [perceptual_hash(np.full((THUMBNAIL_PX, THUMBNAIL_PX, 3), grey, np.uint8)) for grey in (240, 243)]
    assert blank == ["", ""]
    assert resemblance(blank, [*blank, hashes[0]]).max() == 0


def test_regions_of_one_file_share_tissue_where_their_areas_overlap():
    one = region("one", sha256="f", perceptual_hash="")
    cases = {(512, 0, 1024, 512): False, (511, 0, 1024, 512): False, (500, 100, 900, 600): True}
    for area, shared in cases.items():
        other = replace(one, region="other", area=area)
        assert bool(shared_tissue([one], [other])) == shared
        assert not shared_tissue([one], [replace(other, sha256="g")])
    assert shared_tissue([], [one]) == shared_tissue([one], []) == []


def test_splits_that_share_tissue_under_another_name_and_encoding_are_refused_by_name():
    image = structured(3)
    squeezed = io.BytesIO()
    image.save(squeezed, "JPEG", quality=60)
    train = [("train", region(f"train{n}", perceptual_hash=hashed(structured(10 + n)))) for n in range(3)]
    own = ("train", region("known", perceptual_hash=hashed(image)))
    again = region("renamed", sha256="another", perceptual_hash=hashed(Image.open(squeezed)))
    check_apart([*train, own, ("train", again)])  # twice in one split leaks nothing
    with pytest.raises(PathUpError, match=r"'known' \(split 'train'\) and region 'renamed' \(split 'test'\)"):
        check_apart([*train, own, ("test", again)])


def test_sources_come_back_as_they_were_written_and_damage_is_told(tmp_path):
    regions = [region("one"), region("glass", perceptual_hash="")]
    assert read_sources(tmp_path) is None
    write_sources(tmp_path, regions)
    assert read_sources(tmp_path) == regions
    for damage in (
        "{",
        '{"region": "one"}',
        (tmp_path / SOURCES_FILE).read_text().replace('"perceptual_hash": "', '"perceptual_hash": "zz'),
    ):
        (tmp_path / SOURCES_FILE).write_text(damage)
        with pytest.raises(PathUpError, match="is damaged"):
            read_sources(tmp_path)
