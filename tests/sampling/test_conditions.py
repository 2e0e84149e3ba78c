from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pathup.errors import PathUpError
from pathup.model.pipeline import PathUpPipeline
from pathup.sampling.canvas import canvas_noise
from pathup.sampling.conditions import Conditions
from pathup.sampling.layouts import Layout, plain_layout, read_layout
from pathup.sampling.requests import GenerateRequest
from pathup.sampling.runs import estimate, generate
from pathup.sampling.schedule import WindowSchedule
from pathup.sampling.synthesis import synthesise
from pathup.sampling.tissue import GLASS_RGB
from pathup.sampling.tracking import denoise, last_timesteps
from pathup.slides.provenance import provenance_of

SIZE = (128, 192)


def _square(label: str, left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {
        "type": "Feature",
        "properties": {"objectType": "annotation", "classification": {"name": label}},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }


def _layout(pipeline: PathUpPipeline, tmp_path: Path, background: str, *features: dict[str, Any]) -> Layout:
    path = tmp_path / "layout.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    classes = [dict(spec) for spec in pipeline.config.classes]
    return read_layout(path, classes, size_px=SIZE, mpp=0.5, background=background)


def test_a_window_is_told_the_classes_it_sees_by_area(pipeline: PathUpPipeline, tmp_path: Path) -> None:
    layout = _layout(pipeline, tmp_path, "A", _square("B", 96, 0, 192, 128))
    told = Conditions(pipeline, layout, "patch", 4)
    rows = slice(0, 8)
    windows = [(rows, slice(0, 8)), (rows, slice(40, 48)), (rows, slice(20, 28)), (rows, slice(22, 30))]
    prompted, empty = told.embeddings(windows)
    alpha, beta, nothing = pipeline.encode_prompts([
        "histopathology of alpha tissue, patch", "histopathology of beta tissue, patch", ""
    ])  # fmt: skip
    # the border lies at latent column 24: half of the third window is beyond it, three quarters of the fourth
    for found, share in zip(prompted, (0, 1, 0.5, 0.75), strict=True):
        torch.testing.assert_close(found, (1 - share) * alpha + share * beta, rtol=0, atol=1e-5)
    assert all(one.equal(nothing) for one in empty)


def test_one_class_everywhere_is_that_classes_prompt(pipeline: PathUpPipeline) -> None:
    told = Conditions(pipeline, plain_layout("B", SIZE), "overview", 16)
    prompted, _ = told.embeddings([(slice(0, 8), slice(4, 12))])
    assert prompted[0].equal(pipeline.encode_prompts(["histopathology of beta tissue, overall"])[0])


def test_a_layout_changes_its_own_area_alone(pipeline: PathUpPipeline, tmp_path: Path) -> None:
    # B from column 128 on, latent column 32; windows of 8 that overlap by 4 reach from there to column 28 in one step
    # and to 24 in two
    laid_out = _layout(pipeline, tmp_path, "A", _square("B", 128, 0, 192, 128))
    results = []
    for layout in (plain_layout("A", SIZE), laid_out):
        scheduler = pipeline.make_scheduler("ddim")
        timesteps = last_timesteps(scheduler, 2, 1.0)
        start, schedule = canvas_noise((4, 32, 48), 0), WindowSchedule(32, 48, 8, 4, 2)
        told = Conditions(pipeline, layout, "patch", 4)
        results.append(denoise(pipeline, start, schedule, scheduler, timesteps, conditions=told, guidance=3.0))
    changed = (results[1] - results[0]).abs().amax((0, 1))
    assert changed[:24].max() == 0 and changed[32:].min() > 0


def test_provenance_tells_of_a_layout(pipeline: PathUpPipeline, tmp_path: Path) -> None:
    laid_out = _layout(pipeline, tmp_path, "A", _square("B", 128, 0, 192, 128))
    told = synthesise(pipeline, "A", size_px=SIZE, seed=3, steps=2, layout=laid_out).provenance()
    assert told["layout_sha256"] == laid_out.digest and told["layout_shares"] == {"A": 0.6667, "B": 0.3333}
    assert "layout_sha256" not in synthesise(pipeline, "A", size_px=SIZE, seed=3, steps=2).provenance()


@pytest.mark.parametrize("windows", ["overlapped", "shifted"])
def test_glass_is_empty_and_costs_nothing(pipeline: PathUpPipeline, tmp_path: Path, windows: str) -> None:
    layout = _layout(pipeline, tmp_path, "glass", _square("A", 0, 0, 64, 64))
    result = synthesise(pipeline, "glass", size_px=SIZE, seed=3, steps=5, layout=layout, windows=windows)
    everywhere = synthesise(pipeline, "A", size_px=SIZE, seed=3, steps=5, windows=windows)
    # a sixth of the area is tissue; windows of 8 of 32 x 48 positions reach over its border
    assert result.plan.forwards["canvas"] < 0.45 * everywhere.plan.forwards["canvas"]
    assert result.glass is not None
    mask = torch.from_numpy(layout.glass_mask(0, 0, 32, 48, 4))
    latents = result.latents_CHW[:, :, :]
    assert latents[:, mask].equal(result.glass.latent_C[:, None].expand(-1, int(mask.sum())))
    assert latents[:, ~mask].std() > 0.1
    pixels = result.pixels(pipeline)
    assert (pixels[104:] == GLASS_RGB).all() and (pixels[:, 104:] == GLASS_RGB).all()
    assert pixels[:64, :64].std() > 5
    assert result.overview[20:].min() == GLASS_RGB[0]  # rows 64 px and more from the top


def test_the_verb_takes_a_layout_in_pixels_or_micrometres(pipeline: PathUpPipeline, tmp_path: Path) -> None:
    model = tmp_path / "model"
    pipeline.save_pretrained(model)
    images = []
    for unit, scale in (("px", 1.0), ("um", 0.5)):  # 0.5 micrometres a pixel
        areas = tmp_path / f"{unit}.geojson"
        square = _square("A", 0, 0, int(64 * scale), int(96 * scale))
        areas.write_text(json.dumps({"type": "FeatureCollection", "features": [square]}))
        out = tmp_path / f"{unit}.png"
        request = GenerateRequest(
            model=model, out=out, label="glass", size="192x128", layout=areas, layout_unit=unit, steps=2, threads=1
        )
        assert sum(estimate(request).forwards.values()) == generate(request).forwards
        images.append((provenance_of(out) or {})["layout_sha256"])
    assert images[0] == images[1]
    wide = GenerateRequest(model=model, out=tmp_path / "c.png", label="A", size="32", layout=areas, steps=2)
    with pytest.raises(PathUpError, match="does not fit on the image of 32 x 32 px") as caught:
        generate(wide)
    assert "\n" not in str(caught.value) and not (tmp_path / "c.png").exists()


def test_a_layout_of_another_size_is_refused(pipeline: PathUpPipeline) -> None:
    with pytest.raises(PathUpError, match="layout is of 192 x 128 px, but the image of 64 x 64"):
        synthesise(pipeline, "A", size_px=(64, 64), layout=plain_layout("A", SIZE))


def test_shares_of_a_box_in_glass_are_none(pipeline: PathUpPipeline, tmp_path: Path) -> None:
    layout = _layout(pipeline, tmp_path, "glass", _square("A", 0, 0, 64, 64))
    assert np.array_equal(layout.shares(np.array([[64.0, 64, 128, 128], [0, 0, 32, 32]])), [[0], [1]])
