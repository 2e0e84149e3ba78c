"""BSRGAN's degradations: each does what its name says, by known answers, and their order is drawn."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest

from pathup.baselines import shuffled_degradations as sd
from pathup.errors import PathUpError


def picture(side: int = 64) -> np.ndarray:
    """Sharp dark discs on pink with fine grain: float32 (side, side, 3) in [0, 1]."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    pixels = np.broadcast_to([0.85, 0.6, 0.75], (side, side, 3)).copy()
    for row, column, radius in ((15, 20, 7), (40, 12, 5), (45, 45, 9), (12, 50, 4)):
        pixels[(y - row) ** 2 + (x - column) ** 2 < radius**2] = [0.35, 0.2, 0.5]
    return np.clip(pixels + draw.normal(0, 0.03, pixels.shape), 0, 1).astype(np.float32)


def detail(pixels_HWC: np.ndarray, axis: int | None = None) -> float:
    """Mean square difference of neighbours, along rows, columns or both."""
    axes = (0, 1) if axis is None else (axis,)
    return float(np.mean([np.square(np.diff(pixels_HWC, axis=way)).mean() for way in axes]))


def draws(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(number) for number in range(count)]


def test_a_kernel_is_the_gaussian_of_its_equation():
    side, axes, angle, shift = 9, (2.5, 0.8), 0.6, 0.5
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(rotation @ np.diag(np.square(axes)) @ rotation.T)
    expected = np.empty((side, side))
    for row in range(side):
        for column in range(side):
            r = np.array([column, row]) - side // 2 - shift
            expected[row, column] = np.exp(-0.5 * r @ inverse @ r)
    np.testing.assert_allclose(sd.gaussian_kernel(side, axes, angle, shift), expected / expected.sum(), rtol=1e-9)


def test_a_kernel_of_hardly_any_width_leaves_an_image_alone():
    pixels = picture()
    np.testing.assert_allclose(sd.filtered(pixels, sd.gaussian_kernel(7, (0.1, 0.1))), pixels, atol=1e-5)


def test_filtering_is_the_correlation_with_a_reflected_border():
    draw = np.random.default_rng(1)
    pixels, kernel = draw.uniform(0, 1, (6, 7, 3)).astype(np.float32), sd.gaussian_kernel(5, (1.2, 0.6), 0.4, 0.3)
    wide = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    expected = np.zeros_like(pixels)
    for row in range(6):
        for column in range(7):
            for channel in range(3):
                window = wide[row : row + 5, column : column + 5, channel]
                expected[row, column, channel] = (window * kernel).sum()
    np.testing.assert_allclose(sd.filtered(pixels, kernel), expected, atol=1e-5)  # float32 by FFT


@pytest.mark.parametrize("blur", [sd.isotropic_blur, sd.anisotropic_blur])
def test_a_blur_takes_detail_and_leaves_the_mean(blur):
    pixels = picture()
    blurred = [blur(pixels, draw) for draw in draws(20)]
    assert all(image.shape == pixels.shape for image in blurred)
    assert all(detail(image) < 1.001 * detail(pixels) for image in blurred)  # a width of 0.1 px changes nothing
    assert np.median([detail(image) for image in blurred]) < 0.3 * detail(pixels)
    for image in blurred:  # the reflected border weighs a little otherwise than the image
        np.testing.assert_allclose(image.mean((0, 1)), pixels.mean((0, 1)), atol=0.02)


def test_an_anisotropic_blur_is_stronger_along_one_direction():
    blurred = sd.filtered(picture(), sd.gaussian_kernel(21, (2.8, 0.1), angle=0.0))
    assert detail(blurred, 1) < 0.3 * detail(blurred, 0)  # horizontally, 2.8 px leave no grain and hardly an edge
    ratios = [detail(image, 1) / detail(image, 0) for image in (sd.anisotropic_blur(picture(), d) for d in draws(30))]
    assert min(ratios) < 0.7 and max(ratios) > 1.4  # both directions occur


def test_noise_has_the_deviation_that_was_drawn_and_its_kind_of_colour():
    flat = np.full((128, 128, 3), 0.5, np.float32)
    covariances = {}
    for kind in sd.NOISE_KINDS:
        found = []
        for draw in draws(12):
            noise = sd.gaussian_noise(flat, draw, kind).astype(np.float64) - 0.5
            found.append(np.cov(noise.reshape(-1, 3).T) * 255**2)
        covariances[kind] = np.array(found)
    levels = np.sqrt(np.diagonal(covariances["independent"], axis1=1, axis2=2))
    assert levels.min() > 0.9 and levels.max() < 26  # 1 to 25 grey levels, and a sample's error
    assert levels[:, 0].max() > 3 * levels[:, 0].min()
    grey, independent = (covariances[kind][:, 0, 1] / covariances[kind][:, 0, 0] for kind in ("grey", "independent"))
    np.testing.assert_allclose(grey, 1, atol=1e-4)
    np.testing.assert_allclose(independent, 0, atol=0.04)  # 5 deviations of a correlation over 128 x 128 pixels
    mixed = covariances["correlated"]
    correlation = mixed[:, 0, 1] / np.sqrt(mixed[:, 0, 0] * mixed[:, 1, 1])
    assert np.ptp(correlation) > 0.5  # of either sign
    assert detail(sd.gaussian_noise(picture(), np.random.default_rng(3))) > detail(picture())


def test_all_kinds_of_noise_are_drawn():
    flat, grey = np.full((16, 16, 3), 0.5, np.float32), 0
    for draw in draws(100):
        noise = sd.gaussian_noise(flat, draw)
        grey += int(np.allclose(noise[..., 0], noise[..., 1]))
    assert 25 <= grey <= 55  # 40 of 100 are expected, with a deviation of 5


def test_jpeg_leaves_steps_at_the_borders_of_blocks(monkeypatch):
    y, x = np.mgrid[:64, :64]
    smooth = np.stack([0.5 + 0.3 * np.sin(x / 9 + y / 13)] * 3, -1).astype(np.float32)
    monkeypatch.setattr(sd, "JPEG_QUALITY", (30, 30))
    bends = np.abs(np.diff(sd.jpeg_compression(smooth, draws(1)[0]), 2, axis=1)).mean((0, 2))  # by the column
    border = np.isin(np.arange(1, 63) % 8, (0, 7))  # the last of a block and the first of the next
    assert bends[border].mean() > 2 * bends[~border].mean()  # the smooth image's own are the same everywhere


def test_jpeg_takes_more_of_some_images_than_of_others():
    pixels = picture()
    lost = [np.abs(sd.jpeg_compression(pixels, draw) - pixels).mean() for draw in draws(20)]
    assert min(lost) > 0.5 / 255  # more than rounding to 8 bits, whose mean error is a quarter of a level
    assert max(lost) > 1.25 * min(lost)  # the grain's colour, which JPEG halves at any quality, is most of it


@pytest.mark.parametrize("factor", [2, 4])
def test_downsampling_kinds_differ_in_detail_and_none_moves_the_image(factor):
    pixels = picture()
    found = {kind: sd.downsampling(pixels, np.random.default_rng(1), factor, kind) for kind in sd._DOWNSAMPLINGS}
    assert {image.shape for image in found.values()} == {(64 // factor, 64 // factor, 3)}
    for one, other in combinations(found, 2):
        assert np.abs(found[one] - found[other]).mean() > 0.25 / 255, (one, other)  # more than rounding does
    assert detail(found["bicubic"]) > detail(found["bilinear"])
    y, x = np.mgrid[:64, :64]
    blob = np.exp(-((x - 30.2) ** 2 + (y - 37.9) ** 2) / (2 * 5**2))[..., None].repeat(3, -1).astype(np.float32)
    for kind in sd._DOWNSAMPLINGS:
        for draw in draws(5):
            small = sd.downsampling(blob, draw, factor, kind)[..., 0]
            rows, columns = np.mgrid[: small.shape[0], : small.shape[1]]
            centre = [(small * place).sum() / small.sum() for place in (columns, rows)]
            expected = [(place + 0.5) / factor - 0.5 for place in (30.2, 37.9)]  # pixels' middles are at halves
            np.testing.assert_allclose(centre, expected, atol=0.12)  # the blob's tails reach the border


def test_nearest_sampling_without_blur_takes_what_lies_in_the_middle_of_a_block(monkeypatch):
    monkeypatch.setattr(sd, "SHIFTED_KERNEL_WIDTH", 0.1 / 4)  # all widths are 0.1 px then
    pixels = picture()
    small = sd.downsampling(pixels, np.random.default_rng(0), 4, "nearest")
    middle = pixels.reshape(16, 4, 16, 4, 3)[:, 1:3, :, 1:3].mean((1, 3))  # 2 x 2 pixels lie equally near
    np.testing.assert_allclose(small, middle, atol=1e-5)


def test_every_order_of_the_steps_occurs():
    orders = {tuple(sd.shuffled_order(draw)) for draw in draws(1500)}
    assert orders == set(permutations(sd.STEPS))  # 120; one is missed with a chance of 4e-4


def test_an_image_goes_through_the_steps_in_the_order_drawn_and_ends_with_jpeg(monkeypatch):
    taken: list[tuple[str, int]] = []

    def recording(name: str):
        step = sd.STEPS[name]
        return lambda pixels, draw, factor: taken.append((name, factor)) or step(pixels, draw, factor)

    compress = sd.jpeg_compression
    monkeypatch.setattr(sd, "jpeg_compression", lambda *image: taken.append(("last", 0)) or compress(*image))
    monkeypatch.setattr(sd, "STEPS", {name: recording(name) for name in sd.STEPS})
    pixels = (picture() * 255).astype(np.uint8)
    firsts, factors, compressed = set(), [], []
    for draw in draws(60):
        taken.clear()
        sd.degraded(pixels, draw)
        steps = [name for name, _ in taken if name != "last"]
        assert sorted(steps) == sorted(sd.STEPS)
        assert taken[-1][0] == "last"
        firsts.add(steps.index("noise") < steps.index("isotropic blur"))
        factors.append(taken[0][1])
        compressed.append(sum(name == "last" for name, _ in taken))
    assert firsts == {True, False}
    assert 5 <= factors.count(2) <= 25  # 15 of 60 are halved first, with a deviation of 3.4
    assert 33 <= compressed.count(2) <= 57  # 45 of 60 are compressed amid, likewise
    assert set(compressed) == {1, 2}


def test_the_same_draw_gives_the_same_image_and_another_draw_another():
    pixels = (picture() * 255).astype(np.uint8)
    before = pixels.copy()
    one, again, other = (sd.degraded(pixels, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    np.testing.assert_array_equal(pixels, before)
    assert one.dtype == np.uint8 and one.shape == (16, 16, 3)
    assert sd.degraded(pixels[:32, :8], np.random.default_rng(0), factor=2).shape == (16, 4, 3)


def test_an_image_keeps_its_colour_and_loses_detail():
    pixels = (picture() * 255).astype(np.uint8)
    small = pixels.reshape(16, 4, 16, 4, 3).mean((1, 3))
    for draw in draws(30):
        worse = sd.degraded(pixels, draw)
        # JPEG's coarse colour and 256 noisy pixels move a mean by some levels
        np.testing.assert_allclose(worse.mean((0, 1)), small.mean((0, 1)), atol=12)
        assert np.abs(worse - small).mean() > 1  # grey level: none of them is a plain mean of blocks


@pytest.mark.parametrize(
    ("size", "factor", "sentence"),
    [((30, 32), 4, "32 x 30 px .* divisible by 4"), ((0, 4), 4, "4 x 0 px"), ((32, 32), 3, "by 2 and by 4")],
)
def test_what_cannot_be_degraded_is_one_sentence(size, factor, sentence):
    with pytest.raises(PathUpError, match=sentence):
        sd.degraded(np.zeros((*size, 3), np.uint8), np.random.default_rng(0), factor=factor)
