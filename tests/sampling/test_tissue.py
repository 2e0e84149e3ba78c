from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathup.model.pipeline import PathUpPipeline
from pathup.sampling.decoding import decode_image
from pathup.sampling.layouts import Layout, plain_layout, read_layout
from pathup.sampling.tissue import GLASS_RGB, TissueDecoder, TissueEncoder, TissuePlaces

SIZE = (384, 640)  # 96 x 160 latent positions
CLASSES = [{"label": "A", "name": "alpha tissue"}, {"label": "B", "name": "beta tissue"}]


def _square(label: str, left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {
        "type": "Feature",
        "properties": {"objectType": "annotation", "classification": {"name": label}},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Layout]:
    path = tmp_path_factory.mktemp("layouts") / "areas.geojson"

    def made(background: str, *areas: dict[str, Any]) -> Layout:
        path.write_text(json.dumps({"type": "FeatureCollection", "features": list(areas)}))
        return read_layout(path, CLASSES, size_px=SIZE, mpp=0.5, background=background)

    return {
        "halves": made("A", _square("B", 320, 0, 640, 384)),
        "glass": made("glass", _square("A", 40, 40, 300, 300), _square("B", 200, 100, 420, 300)),
    }


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_weights_sum_to_one_and_are_those_of_the_whole(layouts: dict[str, Layout], data: st.DataObject) -> None:
    name, scale = data.draw(st.sampled_from(["halves", "glass"])), data.draw(st.sampled_from([1, 4]))
    places = TissuePlaces(layouts[name], (96, 160), 4)
    rows, columns = (
        slice(*sorted(data.draw(st.lists(st.integers(0, side), min_size=2, max_size=2, unique=True))))
        for side in (96, 160)
    )
    part = places.weights(rows, columns, scale)
    total = part.sum(0)
    assert (np.isclose(total, 1, atol=1e-5) | (total == 0)).all() and part.min() >= 0
    assert name == "glass" or total.min() > 0
    whole = places.weights(slice(0, 96), slice(0, 160), scale)
    cut = whole[:, rows.start * scale : rows.stop * scale, columns.start * scale : columns.stop * scale]
    assert np.allclose(part, cut, atol=1e-5)


def test_weights_change_smoothly_across_a_border(layouts: dict[str, Layout]) -> None:
    places = TissuePlaces(layouts["halves"], (96, 160), 4)
    alpha = places.weights(slice(40, 41), slice(0, 160), 4)[0, 0]
    assert (alpha[: 4 * 68] == 1).all() and (alpha[4 * 92 :] == 0).all()  # 8 positions of blend, 4 of interpolation
    assert alpha[4 * 80] == pytest.approx(0.5, abs=0.01)
    assert np.abs(np.diff(alpha)).max() < 0.02  # of 16 positions of 4 px, a 64th each


@pytest.mark.parametrize("name", ["halves", "glass"])
def test_bands_do_not_depend_on_their_size_and_glass_is_plain(
    pipeline: PathUpPipeline, layouts: dict[str, Layout], name: str
) -> None:
    latents = torch.randn(4, 96, 160, generator=torch.Generator().manual_seed(0))
    places = TissuePlaces(layouts[name], (96, 160), 4)
    images = []
    for tile in (32, 128):
        decoder = TissueDecoder(pipeline, latents, places)
        decoder.tile = tile
        decoder.measure()
        images.append(np.concatenate(list(decoder.bands())).astype(int))
    assert images[0].shape == (384, 640, 3)
    assert np.abs(images[0] - images[1]).max() <= 2
    if name == "glass":
        assert (images[0][360:] == GLASS_RGB).all() and (images[0][:, 480:] == GLASS_RGB).all()


def test_each_class_has_the_tone_that_it_has_alone(pipeline: PathUpPipeline, layouts: dict[str, Layout]) -> None:
    # A quiet, B wild: with common statistics, A's contrast falls
    latents = torch.randn(4, 96, 160, generator=torch.Generator().manual_seed(1)) * 0.5
    latents[:, :, 80:] *= 6
    alone = decode_image(pipeline, latents[:, :, :80]).astype(float)
    apart = np.concatenate(
        list(TissueDecoder(pipeline, latents, TissuePlaces(layouts["halves"], (96, 160), 4)).bands())
    )
    common = TissueDecoder(pipeline, latents, TissuePlaces(plain_layout("A", SIZE), (96, 160), 4))
    together = np.concatenate(list(common.bands()))
    part = (slice(0, 384), slice(0, 4 * 56))  # beyond the reach of the border
    assert np.abs(apart[part] - alone[part]).mean() < 0.2 * np.abs(together[part] - alone[part]).mean()


@pytest.mark.parametrize("name", ["halves", "glass"])
def test_encoding_adds_up_to_every_position(pipeline: PathUpPipeline, layouts: dict[str, Layout], name: str) -> None:
    image = torch.rand(3, 384, 640, generator=torch.Generator().manual_seed(2)) * 2 - 1
    places = TissuePlaces(layouts[name], (96, 160), 4)
    encoder = TissueEncoder(pipeline, lambda t, x, h, w: image[:, t : t + h, x : x + w], places)
    total = torch.zeros(4, 96, 160)

    def take(rows: slice, columns: slice, latents: torch.Tensor) -> None:
        total[:, rows, columns] += latents

    encoder.encode(take)
    tissue = ~torch.from_numpy(places.layout.glass_mask(0, 0, 96, 160, 4))
    plain = pipeline.encode_pixels(image[None])[0]
    # the same noise everywhere, so that every class has the statistics of the whole; what is left comes of sampling
    # them
    difference = (total - plain)[:, tissue].abs().mean() / plain.abs().mean()
    assert difference < 0.1


def test_pieces_hold_what_they_are_asked_for(layouts: dict[str, Layout]) -> None:
    places = TissuePlaces(layouts["glass"], (96, 160), 4)
    for label in ("A", "B"):
        pieces = places.pieces(label)
        assert 1 <= len(pieces) <= 16
        assert len({(b - t, r - x) for t, x, b, r in pieces}) == 1
        shares = layouts["glass"].shares(places.boxes(pieces))
        assert (shares[:, layouts["glass"].labels.index(label)] > 0.5).all()


def test_statistics_are_kept_and_found(pipeline: PathUpPipeline, layouts: dict[str, Layout], tmp_path: Path) -> None:
    latents = torch.randn(4, 96, 160, generator=torch.Generator().manual_seed(3))
    places = TissuePlaces(layouts["halves"], (96, 160), 4)
    decoder, again = TissueDecoder(pipeline, latents, places), TissueDecoder(pipeline, latents, places)
    assert not again.find(tmp_path)
    decoder.measure()
    decoder.keep(tmp_path)
    assert again.find(tmp_path)
    assert np.array_equal(again.band(0), decoder.band(0))
