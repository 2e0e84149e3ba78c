from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pathup.errors import PathUpError
from pathup.model.pipeline import PathUpPipeline, load_pipeline
from pathup.sampling.settings import check_size, resolve_settings
from pathup.sampling.synthesis import synthesise

SIZE = (64, 96)


def test_a_large_image_from_end_to_end(pipeline: PathUpPipeline) -> None:
    stages: dict[str, tuple[int, int]] = {}
    result = synthesise(
        pipeline, "A", size_px=SIZE, seed=3, progress=lambda stage, done, total: stages.update({stage: (done, total)})
    )
    assert result.latents_CHW.shape == (4, 16, 24)
    assert result.overview.shape == (16, 24, 3)  # four times smaller
    assert result.mpp == 0.5
    pixels = result.pixels(pipeline)
    assert pixels.shape == (64, 96, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.concatenate(list(result.bands(pipeline))))
    assert result.windows == 3 * 5
    # overview: one window, 3 steps; canvas: 15 windows, round(0.6 * 3) = 2 steps; guidance doubles both
    assert result.forwards == 2 * (3 + 15 * 2)
    assert set(result.seconds) == {"overview", "encode", "canvas"}
    assert {"overview", "encode", "canvas"} == set(stages) and all(done == total for done, total in stages.values())
    made = json.loads(json.dumps(result.provenance()))
    assert (made["width_px"], made["height_px"], made["seed"]) == (96, 64, 3)
    assert made["sampling"]["strength"] == 0.6


def test_the_same_seed_gives_the_same_image_for_any_window_batch(pipeline: PathUpPipeline) -> None:
    images = [
        synthesise(pipeline, "B", size_px=SIZE, seed=9, window_batch=batch).pixels(pipeline).astype(int)
        for batch in (1, 3, 64)
    ]
    for other in images[1:]:
        assert np.abs(other - images[0]).max() <= 1  # float rounding may tip one grey value
        assert (other != images[0]).mean() < 0.01
    again = synthesise(pipeline, "B", size_px=SIZE, seed=9, window_batch=64).pixels(pipeline)
    assert np.array_equal(again, images[2])
    other = synthesise(pipeline, "B", size_px=SIZE, seed=10, window_batch=64).pixels(pipeline)
    assert not np.array_equal(other, again)


def test_shifted_windows_cost_one_coverage_a_step_but_the_last(pipeline: PathUpPipeline) -> None:
    result = synthesise(pipeline, "B", size_px=(128, 128), seed=9, steps=10, windows="shifted")
    # 32 x 32 positions: 6 steps on the canvas, of which the last two overlap by 2: 25 windows of 8 x 8
    assert result.plan.canvas.coverage == 4 + 2 * 25 * 64 / 1024
    overlapped = synthesise(pipeline, "B", size_px=(128, 128), seed=9, steps=10)
    assert overlapped.plan.canvas.coverage == 6 * 49 * 64 / 1024
    assert not np.array_equal(result.pixels(pipeline), overlapped.pixels(pipeline))
    lines = result.provenance()["window_lines"]
    assert set(lines) == {"last", "shifted"} and set(overlapped.provenance()["window_lines"]) == {"last"}
    xs, ys = result.plan.canvas[3].lines("hann")
    assert lines["shifted"] == [[4 * x for x in xs], [4 * y for y in ys]]


def test_a_reference_takes_the_place_of_the_overview(pipeline: PathUpPipeline) -> None:
    reference = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    result = synthesise(pipeline, "A", size_px=SIZE, reference=reference)
    assert result.overview is reference and not result.overview_is_drawn
    assert result.forwards == 2 * 15 * 2 and "overview" not in result.seconds
    by_itself = synthesise(pipeline, "A", reference=reference)  # without a size: the reference's, enlarged
    assert by_itself.size_px == SIZE
    assert by_itself.latents_CHW.equal(result.latents_CHW)
    other = synthesise(pipeline, "A", size_px=SIZE, reference=255 - reference)
    assert not torch.allclose(other.latents_CHW, result.latents_CHW, atol=1e-2)
    with pytest.raises(PathUpError, match="24 x 16 px, which is not the shape of 96 x 96"):
        synthesise(pipeline, "A", size_px=(96, 96), reference=reference)
    with pytest.raises(PathUpError, match="8-bit RGB"):
        synthesise(pipeline, "A", size_px=SIZE, reference=reference[..., 0])


def test_little_strength_keeps_more_of_the_reference(pipeline: PathUpPipeline) -> None:
    # noise of the first timestep taken grows with strength, whatever the weights
    reference = np.full((16, 24, 3), 128, np.uint8)
    little = synthesise(pipeline, "A", size_px=SIZE, reference=reference, steps=20, strength=0.1)
    much = synthesise(pipeline, "A", size_px=SIZE, reference=reference, steps=20, strength=1.0)
    assert little.latents_CHW.std() < much.latents_CHW.std()
    assert little.forwards == 2 * 15 * 2 and much.forwards == 2 * 15 * 20


@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "unipc", "euler"])
def test_every_scheduler(pipeline: PathUpPipeline, scheduler: str) -> None:
    result = synthesise(pipeline, "A", size_px=(64, 64), steps=4, scheduler=scheduler, window_weight="hard")
    assert torch.isfinite(result.latents_CHW).all()
    assert result.settings.scheduler == scheduler and result.settings.window_weight == "hard"


def test_sizes_that_cannot_be_sampled_name_the_nearest(pipeline: PathUpPipeline) -> None:
    check_size(pipeline, (64, 84))
    with pytest.raises(PathUpError, match=r"size 99x64: both must be multiples of 4 px.* nearest is 100x64"):
        check_size(pipeline, (64, 99))
    with pytest.raises(PathUpError, match=r"too small: at least 32 px .* try 64x32"):
        check_size(pipeline, (16, 64))
    with pytest.raises(PathUpError, match="nearest is 100x64"):
        synthesise(pipeline, "A", size_px=(64, 99))


def test_a_size_that_the_overview_does_not_divide_is_cut_out_of_the_next_larger(pipeline: PathUpPipeline) -> None:
    # 100 = 25 latent positions; its overview of 25 px is no multiple of the factor 4, so one of 28 px is drawn
    result = synthesise(pipeline, "A", size_px=(64, 100), steps=2, seed=3)
    assert result.overview.shape == (16, 28, 3)
    assert result.pixels(pipeline).shape == (64, 100, 3)
    wide = synthesise(pipeline, "A", size_px=(64, 196), steps=2, seed=3)
    assert wide.overview.shape == (16, 52, 3)  # 49 px would do
    assert wide.pixels(pipeline).shape == (64, 196, 3)


def test_values_out_of_range_and_unknown_names(pipeline: PathUpPipeline) -> None:
    with pytest.raises(PathUpError, match=r"strength 1\.5"):
        resolve_settings(pipeline, strength=1.5)
    with pytest.raises(PathUpError, match="strength 0"):
        resolve_settings(pipeline, strength=0.0)
    with pytest.raises(PathUpError, match="steps 0"):
        resolve_settings(pipeline, steps=0)
    with pytest.raises(PathUpError, match="guidance -1"):
        resolve_settings(pipeline, guidance=-1.0)
    with pytest.raises(PathUpError, match=r"windows 'shift'.*'overlapped' or 'shifted'"):
        resolve_settings(pipeline, windows="shift")
    with pytest.raises(PathUpError, match=r"window_weight 'eq6'.*'equation_6'"):
        resolve_settings(pipeline, window_weight="eq6")
    with pytest.raises(PathUpError, match="overlap_latent 8 is not less than window_latent 8"):
        resolve_settings(pipeline, overlap_latent=8)
    with pytest.raises(PathUpError, match=r"scheduler 'dimm'.*'ddim'"):
        resolve_settings(pipeline, scheduler="dimm")
    with pytest.raises(PathUpError, match="unknown label 'a'; did you mean 'A'"):
        synthesise(pipeline, "a", size_px=SIZE)
    assert resolve_settings(pipeline, steps=None, guidance=2.0).guidance == 2.0


def test_a_model_without_a_reference_level_says_what_it_needs(pipeline: PathUpPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    index["levels"] = [level for level in index["levels"] if level["name"] == "patch"]
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    single = load_pipeline(tmp_path / "model")
    with pytest.raises(PathUpError, match=r"one level \('patch'\).* --reference .* --level") as caught:
        synthesise(single, "A", size_px=(64, 64))
    assert "\n" not in str(caught.value)
    reference = np.full((16, 16, 3), 128, np.uint8)
    assert synthesise(single, "A", size_px=(64, 64), reference=reference).pixels(single).shape == (64, 64, 3)
