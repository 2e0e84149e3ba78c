"""Seams of a large image along its window grid, without a reference image.

The grid's lines are compared with random lines of the same image. Two figures come of it: the mean absolute
gradient across the grid's lines over that across others, which is easily understood, and a p-value of a test that is
far more sensitive (`pathup.evaluation.seam_profiles`).

A JPEG image's gradients at the borders of its blocks of 8 (chroma: 16) px differ from those within them, and such
borders are no seams of a generator. Random lines therefore have the grid line's own remainder by 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathup import draws
from pathup.errors import PathUpError, unknown
from pathup.evaluation.seam_grid import SeamGrid
from pathup.evaluation.seam_profiles import CHANNELS, StepProfile, step_profile
from pathup.evaluation.stains import checked

__all__ = ["LEAST_SIDE", "ChannelSeams", "SeamGrid", "SeamReport", "checked_image", "gradient_ratios", "measure_seams"]

LEAST_SIDE = 64
"""Pixels; smaller images hold too few random lines."""

MARGIN = 8
"""No random line this near the rim, where the filter sees a mirrored image. Grid lines stay where they are."""

_MODULI = (16, 8, 4, 2, 1)
_LEAST_OTHERS = 12
_STRETCH = 512


@dataclass(frozen=True)
class ChannelSeams:
    """One channel's figures.

    Attributes
    ----------
    at_lines, elsewhere
        Mean absolute gradient across the grid's lines, and across the other lines that are like them (as a rule, of the
        same stretch of 512 px and the same remainder by 16): intensity from 0 to 1, stains in optical density (natural
        logarithm).
    ratio
        The first over the second; 1 where both are 0.
    score
        How many standard deviations the step energy at the grid's lines lies above what the other lines' mean and
        variance predict; the larger of the two kinds of step (`seam_profiles.KINDS`). Finer than the p-value, and not
        exactly normal.
    p_value
        Share of random grids, the own one among them, that stand out as much.
    """

    at_lines: float
    elsewhere: float
    ratio: float
    score: float
    p_value: float


@dataclass(frozen=True)
class SeamReport:
    """What `measure_seams` found.

    Attributes
    ----------
    channels
        By name.
    score, p_value
        Of the channel with the highest score; the p-value is that of the maximum over channels, so it needs no further
        correction.
    grid
        The lines that were tested.
    modulus
        Random lines share the grid lines' remainder by this: 16 where there are enough of them.
    replicates, seed
        Of the random grids.
    """

    channels: dict[str, ChannelSeams]
    score: float
    p_value: float
    grid: SeamGrid
    modulus: int
    replicates: int
    seed: int

    def as_json(self) -> dict[str, Any]:
        """JSON values; the keys are the attributes' names."""
        return {
            "score": self.score,
            "p_value": self.p_value,
            "channels": {name: dict(vars(found)) for name, found in self.channels.items()},
            "grid": self.grid.as_json(),
            "random_lines": {"modulus": self.modulus, "replicates": self.replicates, "seed": self.seed},
        }


def checked_image(pixels_HWC: np.ndarray) -> np.ndarray:
    """The image, when it is uint8 RGB and large enough.

    Raises
    ------
    PathUpError
        It is of another type or shape, or a side is below `LEAST_SIDE`.
    """
    pixels_HWC = checked(np.asarray(pixels_HWC))
    height, width = pixels_HWC.shape[:2]
    if min(height, width) < LEAST_SIDE:
        raise PathUpError(
            f"an image of {width} x {height} px was found; seams need at least {LEAST_SIDE} px a side to be compared "
            "with other lines, so give a larger one"
        )
    return pixels_HWC


def measure_seams(
    pixels_HWC: np.ndarray,
    grid: SeamGrid,
    *,
    seed: int = 0,
    replicates: int = 999,
    channels: Sequence[str] = CHANNELS,
) -> SeamReport:
    """Gradients across the grid's lines against those elsewhere, and a test against random lines.

    The null: within a stratum, which is a stretch of about 512 px of one axis and one remainder by 16, the grid's lines
    are like the others. A random grid has as many lines in each stratum as the grid, drawn from all of it, the grid's
    own lines included: with these the p-value is exact, and without them it would not be, for the others are too few
    to stand for all. Where a stratum has fewer others than lines, or than 12, the remainder is by a smaller power of 2.
    Energies are summed over a grid's lines (for each channel and each kind of step), standardised by the
    stratum's mean and variance, and the largest is compared with the random grids' largest. All channels and kinds
    share the random grids, so that the p-value of the maximum is that of one test.

    A grid of which one line alone has a seam gets no p-value far below the grid's share of lines in a stratum (1/8 at
    a pitch of 128), since so many random grids hold that line; its score has no such limit.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB, (H, W, 3), the size that `grid` was made for.
    grid
        Where windows meet.
    seed
        Of the random lines.
    replicates
        Random grids; the least p-value is 1 / (1 + replicates).
    channels
        Of `seam_profiles.CHANNELS`.

    Raises
    ------
    PathUpError
        The image is not 8-bit RGB, or too small, or not the grid's; a channel is unknown or none is given; no replicate
        is asked for; or the grid leaves no other lines to compare with.
    """
    for name in channels:
        if name not in CHANNELS:
            raise unknown("channel", name, CHANNELS)
    if not channels:
        raise PathUpError(f"no channel was given; name at least one of {', '.join(CHANNELS)}")
    if replicates < 1:
        raise PathUpError(f"{replicates} random grids were asked for; at least 1 was needed")
    pixels_HWC = checked_image(pixels_HWC)
    axes = _profiles(pixels_HWC, grid)
    order = [CHANNELS.index(name) for name in channels]
    modulus, strata = _strata([(lines, profile.gradient_CL.shape[1] + 1) for lines, profile in axes])
    energies = [profile.energy_CKL[order] for _, profile in axes]
    own_scores, scores_CR = _sums(energies, strata, seed, replicates)
    p_values = [_p_value(scores_R) for scores_R in scores_CR]
    found = {}
    for place, (name, channel) in enumerate(zip(channels, order, strict=True)):
        at_lines, elsewhere = _gradients(axes, strata, channel)
        ratio = _ratio(at_lines, elsewhere)
        found[name] = ChannelSeams(at_lines, elsewhere, ratio, float(own_scores[place].max()), p_values[place])
    return SeamReport(found, float(own_scores.max()), _p_value(scores_CR.max(0)), grid, modulus, replicates, seed)


def gradient_ratios(pixels_HWC: np.ndarray, grid: SeamGrid) -> dict[str, float]:
    """The ratio of `ChannelSeams` for each channel, without the test: quick, for many grids.

    Raises
    ------
    PathUpError
        As `measure_seams`.
    """
    axes = _profiles(checked_image(pixels_HWC), grid)
    _, strata = _strata([(lines, profile.gradient_CL.shape[1] + 1) for lines, profile in axes])
    return {name: _ratio(*_gradients(axes, strata, channel)) for channel, name in enumerate(CHANNELS)}


def _profiles(pixels_HWC: np.ndarray, grid: SeamGrid) -> list[tuple[Sequence[int], StepProfile]]:
    height, width = pixels_HWC.shape[:2]
    if (grid.width, grid.height) != (width, height):
        raise PathUpError(
            f"the grid is of an image of {grid.width} x {grid.height} px, but this one is {width} x {height}; "
            "make the grid for this image"
        )
    return [
        (lines, step_profile(turned, cuts))
        for lines, turned, cuts in (
            (grid.xs, pixels_HWC, grid.ys),
            (grid.ys, pixels_HWC.transpose(1, 0, 2), grid.xs),
        )
        if lines
    ]


def _ratio(at_lines: float, elsewhere: float) -> float:
    return at_lines / elsewhere if elsewhere > 0 else (1.0 if at_lines == 0 else float("inf"))


@dataclass(frozen=True)
class _Stratum:
    """Lines that are alike but for the seam: some of the grid's, and all others of the stratum."""

    axis: int
    own: np.ndarray
    others: np.ndarray


def _strata(axes: Sequence[tuple[Sequence[int], int]]) -> tuple[int, list[_Stratum]]:
    for modulus in _MODULI:
        found = [
            stratum
            for axis, (lines, length) in enumerate(axes)
            for stratum in _axis_strata(axis, np.asarray(lines), length, modulus)
        ]
        if all(len(stratum.others) >= max(_LEAST_OTHERS, len(stratum.own)) for stratum in found):
            return modulus, found
    raise PathUpError(
        f"the grid's {sum(len(lines) for lines, _ in axes)} lines leave too few others to compare with; give a coarser "
        "grid or a larger image"
    )


def _axis_strata(axis: int, lines: np.ndarray, length: int, modulus: int) -> list[_Stratum]:
    others = np.setdiff1d(np.arange(MARGIN, length - MARGIN + 1), lines)
    stretches = max(1, length // _STRETCH)

    def key(at: np.ndarray) -> np.ndarray:
        return at * stretches // length * modulus + at % modulus

    return [_Stratum(axis, lines[key(lines) == k], others[key(others) == k]) for k in np.unique(key(lines))]


def _sums(
    energies: Sequence[np.ndarray], strata: Sequence[_Stratum], seed: int, replicates: int
) -> tuple[np.ndarray, np.ndarray]:
    """The energies' sums over the lines of each grid, standardised: (channels, kinds), and (channels, 1 + replicates).

    The first is of the image's own grid, against the other lines alone. The second, for the p-value, has the own grid
    first and then the random ones, the larger of both kinds of step; it is standardised by all lines, for a standard
    that knew the own grid would favour whichever of several sums that grid has high.
    """
    shape = energies[0].shape[:2]
    total, own_mean, own_variance = np.zeros((*shape, 1 + replicates)), np.zeros(shape), np.zeros(shape)
    mean, variance = np.zeros(shape), np.zeros(shape)
    for number, stratum in enumerate(strata):
        own, others = len(stratum.own), len(stratum.others)
        values = energies[stratum.axis][..., np.concatenate([stratum.own, stratum.others]) - 1]
        order_RL = draws.numpy_generator(seed, "seams", number).random((replicates, own + others)).argsort(1)
        for pick_R in np.concatenate([np.arange(own)[None], order_RL[:, :own]]).T:
            total += values[..., pick_R]
        mean += own * values.mean(-1)
        variance += own * others / (own + others) * values.var(-1, ddof=1)  # drawn without putting back
        own_mean += own * values[..., own:].mean(-1)
        own_variance += (own + own**2 / others) * values[..., own:].var(-1, ddof=1)  # the others' mean is uncertain too
    own_scores = (total[..., 0] - own_mean) / _deviation(own_variance)
    return own_scores, ((total - mean[..., None]) / _deviation(variance)[..., None]).max(1)


def _deviation(variance: np.ndarray) -> np.ndarray:
    return np.sqrt(np.where(variance > 0, variance, 1))


def _p_value(scores_R: np.ndarray) -> float:
    near = 1e-9 * max(1.0, abs(float(scores_R[0])))  # sums of the same terms may differ in the last digit
    return float(np.count_nonzero(scores_R >= scores_R[0] - near) / len(scores_R))


def _gradients(
    axes: Sequence[tuple[Sequence[int], StepProfile]], strata: Sequence[_Stratum], channel: int
) -> tuple[float, float]:
    at, elsewhere, count = 0.0, 0.0, 0
    for stratum in strata:
        gradient_L = axes[stratum.axis][1].gradient_CL[channel]
        at += float(gradient_L[stratum.own - 1].sum())
        elsewhere += len(stratum.own) * float(gradient_L[stratum.others - 1].mean())
        count += len(stratum.own)
    return at / count, elsewhere / count
