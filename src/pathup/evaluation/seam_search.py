"""The window grid of a large image, where it is unknown: the strongest periodic lines, and what chance would give.

How much the image jumps at each column and row (`pathup.evaluation.seam_profiles`) is summed over the lines of every
pitch and phase. The same is done with the columns shuffled among their like (`pathup.evaluation.seams`), and the
p-value is the share of shuffles whose strongest set stands out as much, so that it allows for the whole search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pathup import draws
from pathup.errors import PathUpError
from pathup.evaluation.seam_grid import SeamGrid
from pathup.evaluation.seam_profiles import KINDS, StepProfile, step_profile
from pathup.evaluation.seams import MARGIN, checked_image

__all__ = ["GridSearch", "search_grid"]

_BAND = 64
"""Pixels of a line's segments: where windows meet along it isn't known."""
_MODULUS = 16
_STRETCH = 512
_LEAST, _LARGEST = -2.0, 5.0
"""Of one line, in standard deviations: one sharp border of tissue is no period."""
_BESIDE, _AS_GOOD = 2, 0.7
_SETS = ("x", "y", "both")


@dataclass(frozen=True)
class GridSearch:
    """What `search_grid` found.

    Attributes
    ----------
    grid
        The strongest lines: of both axes at one pitch, or of one axis alone.
    pitch
        Their distance, in pixels.
    p_value
        Share of shuffled images, the own one among them, in which some set of lines stands out as much as this one.
    score
        How many standard deviations the set's sum lies above what the shuffled images' best phase of this pitch has.
    pitches
        The least and the largest that were tried.
    replicates, seed
        Of the shuffles.
    """

    grid: SeamGrid
    pitch: int
    p_value: float
    score: float
    pitches: tuple[int, int]
    replicates: int
    seed: int

    def as_json(self) -> dict[str, Any]:
        """JSON values; the keys are the attributes' names."""
        return {**vars(self), "grid": self.grid.as_json(), "pitches": list(self.pitches)}


def search_grid(
    pixels_HWC: np.ndarray,
    *,
    min_pitch: int = 32,
    max_pitch: int | None = None,
    seed: int = 0,
    replicates: int = 199,
) -> GridSearch:
    """Find the pitch and phase at which an image has most seams.

    At each pitch the best phase of the vertical lines, of the horizontal lines, and of both together are compared with
    the same of shuffled images. Lines trade places only within about 512 px and one remainder by 16, so that neither
    JPEG's blocks nor the difference between tissue and background counts as a grid.

    The p-value answers whether there is a grid at all. That of `measure_seams` on the grid found here is too small,
    since the same image chose the grid.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB, (H, W, 3).
    min_pitch, max_pitch
        In pixels; by default up to a third of the shorter side. At most half of it.
    seed
        Of the shuffles.
    replicates
        Shuffled images; the least p-value is 1 / (1 + replicates).

    Raises
    ------
    PathUpError
        The image is not 8-bit RGB; it is smaller than two periods of the largest or three of the least pitch; the
        pitches are no range; or fewer than two shuffles are asked for.
    """
    pixels_HWC = checked_image(pixels_HWC)
    height, width = pixels_HWC.shape[:2]
    side = min(height, width)
    largest = side // 3 if max_pitch is None else max_pitch
    if not 2 <= min_pitch <= largest or 2 * largest > side:
        raise PathUpError(
            f"pitches from {min_pitch} to {largest} px were to be tried in an image of {width} x {height} px; they "
            f"must ascend from at least 2 to at most half the shorter side ({side // 2}), so give others or a larger "
            "image"
        )
    if replicates < 2:
        raise PathUpError(f"{replicates} shuffled images were asked for; at least 2 were needed")
    pitches = range(min_pitch, largest + 1)
    best_APR = np.empty((2, len(pitches), 1 + replicates))
    phases_AP = np.empty((2, len(pitches)), int)
    for axis, turned in enumerate((pixels_HWC, pixels_HWC.transpose(1, 0, 2))):
        profile = _profile(turned)
        jumps_L = _jumps(profile)
        jumps_RL = _shuffled(jumps_L, draws.numpy_generator(seed, "seam-search", axis), replicates)
        for place, pitch in enumerate(pitches):
            sums_RF = _sums(jumps_RL, pitch)
            best_APR[axis, place] = sums_RF.max(1)
            phases_AP[axis, place] = _phase(sums_RF[0], profile.gradient_CL, pitch)
    found_SPR = np.stack([*best_APR, best_APR.sum(0)])
    own = (found_SPR[..., 0] - found_SPR[..., 1:].mean(-1)) / _deviation(found_SPR[..., 1:])
    strongest, place = np.unravel_index(own.argmax(), own.shape)
    # for the p-value by a standard that doesn't know which of the images is the own one
    standard = (found_SPR - found_SPR.mean(-1, keepdims=True)) / _deviation(found_SPR)[..., None]
    largest_R = standard.max((0, 1))
    p_value = np.count_nonzero(largest_R >= largest_R[0] - 1e-9) / len(largest_R)
    pitch = pitches[int(place)]
    xs, ys = (
        tuple(line for line in range(int(phases_AP[axis, place]), length, pitch) if line > 0)
        if _SETS[strongest] in (_SETS[axis], "both")
        else ()
        for axis, length in enumerate((width, height))
    )
    grid = SeamGrid(width, height, xs, ys)
    return GridSearch(
        grid, pitch, p_value, float(own[strongest, place]), (pitches[0], pitches[-1]), replicates, seed
    )


def _deviation(values: np.ndarray) -> np.ndarray:
    found = values.std(-1)
    return np.where(found > 0, found, 1)


def _classes(length: int) -> np.ndarray:
    """Of each line from 1 to length - 1: which others it may trade places with."""
    at = np.arange(1, length)
    stretches = max(1, length // _STRETCH)
    return at * stretches // length * _MODULUS + at % _MODULUS


def _profile(pixels_HWC: np.ndarray) -> StepProfile:
    height = pixels_HWC.shape[0]
    bands = max(1, round(height / _BAND))
    return step_profile(pixels_HWC, np.linspace(0, height, bands + 1).astype(int)[1:-1].tolist())


def _jumps(profile: StepProfile) -> np.ndarray:
    """How much each line stands out among its class, mean over channels; mean 0 in each class, (length - 1,)."""
    energy_CL = profile.energy_CKL[:, KINDS.index("segments")].copy()
    length = energy_CL.shape[1] + 1
    classes = _classes(length)
    for own in np.unique(classes):
        values = energy_CL[:, classes == own]
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=1)
        spread = np.where(high > low, (high - low) / 1.349, 1)  # a normal distribution's deviation
        energy_CL[:, classes == own] = (values - middle[:, None]) / spread[:, None]
    jumps_L = np.clip(energy_CL, _LEAST, _LARGEST).mean(0)
    for own in np.unique(classes):
        jumps_L[classes == own] -= jumps_L[classes == own].mean()
    jumps_L[: MARGIN - 1] = jumps_L[len(jumps_L) - MARGIN + 1 :] = 0  # the filter sees a mirrored image there
    return jumps_L


def _shuffled(jumps_L: np.ndarray, generator: np.random.Generator, replicates: int) -> np.ndarray:
    """The jumps as they are, then shuffled: (1 + replicates, length), at index x; float32."""
    length = len(jumps_L) + 1
    found = np.zeros((1 + replicates, length), np.float32)
    found[:, 1:] = jumps_L
    classes = np.concatenate([[-1], _classes(length)])
    classes[:MARGIN] = classes[length - MARGIN + 1 :] = -1
    for own in np.unique(classes[classes >= 0]):
        at = np.flatnonzero(classes == own)
        found[1:, at] = generator.permuted(found[1:, at], axis=1)
    return found


def _sums(jumps_RL: np.ndarray, pitch: int) -> np.ndarray:
    """Sum over the lines of each phase, over the root of their number: (images, pitch)."""
    length = jumps_RL.shape[1]
    whole = length // pitch * pitch
    sums_RF = jumps_RL[:, :whole].reshape(len(jumps_RL), -1, pitch).sum(1)
    sums_RF[:, : length - whole] += jumps_RL[:, whole:]
    lines = np.full(pitch, whole // pitch, np.float32)
    lines[: length - whole] += 1
    lines[0] -= 1  # no line at 0
    return sums_RF / np.sqrt(np.maximum(lines, 1))


def _phase(sums_F: np.ndarray, gradient_CL: np.ndarray, pitch: int) -> int:
    """The best phase; where a plain seam makes the lines beside it stand out too, that with the most gradient."""
    best = int(sums_F.argmax())
    beside = (best + np.arange(-_BESIDE, _BESIDE + 1)) % pitch
    near = beside[sums_F[beside] >= _AS_GOOD * sums_F[best]]
    relative_L = (gradient_CL / np.maximum(gradient_CL.mean(1, keepdims=True), 1e-12)).sum(0)
    gradients = [relative_L[(phase or pitch) - 1 :: pitch].mean() for phase in near]
    return int(near[int(np.argmax(gradients))])
