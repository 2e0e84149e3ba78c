"""Nuclei of an H&E tile, segmented classically from haematoxylin, and their shapes in micrometres.

The data flow: haematoxylin is separated, smoothed, and what lies around the nuclei is taken off (`_contrast`). From
components at several levels those are kept that look most like ellipses (`pathup.evaluation.nested`), touching ones
are split where they are narrow, each is cut at half of its own contrast, and what is too small, too faint or too red
for a nucleus is dropped (`_nuclear`). No step was learned from counts; the limits were chosen by looking at outlines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.filters import threshold_otsu
from skimage.measure import label as equal_areas
from skimage.segmentation import watershed

from pathup.errors import PathUpError
from pathup.evaluation.nested import Moments, fill_holes, moments, most_elliptic
from pathup.evaluation.stains import GLASS_DENSITY, checked, optical_density, stain_channels

__all__ = ["COARSEST_MPP", "WORKING_MPP", "Nuclei", "nuclei_properties", "segment_nuclei"]

COARSEST_MPP = 1.0
"""Beyond it a nucleus of 6 micrometres has less than 6 pixels across, and neighbours cannot be told apart."""
WORKING_MPP = 0.5
"""Finer images are reduced and coarser ones enlarged to this scale before they are segmented."""

_SMOOTHING_UM = 0.4
_SURROUNDINGS_UM = 10.0
"""Deviation of the window over which the tissue around nuclei is averaged: more than a nucleus, less than a gland."""
_LEAST_CONTRAST = 0.12
"""Haematoxylin density over the surroundings at which an outline may begin."""
_OUTLINE = 0.6
"""Of the field's Otsu threshold, so that pale nuclei beside dark ones are found as well."""
_LEVELS = 8
_DARKNESS = 0.5
"""Exponent of the contrast by which the distance to the outline is weighted: neighbours are paler where they touch."""
_SADDLES = (0.75, 0.95)
_WHOLE_ELLIPTICITY = 0.92
"""Two parts are one nucleus where the neck is at least so high, of the lower peak: the first where both together are as
elliptic as this, the second elsewhere."""
_AREA_UM2 = (4.5, 250.0)
_LEAST_WIDTH_UM = 1.6
_LEAST_ELLIPTICITY = 0.75
_FAINT = 0.25
"""Contrast below which an object must have the shape of a nucleus to be one: fibres and folds are faint and ragged."""
_FAINT_ELLIPTICITY, _FAINT_WIDTH_UM = 0.88, 2.0
_LEAST_RED_OVER_BLUE = 0.66
"""Absorption of red over blue: red blood cells have less."""
_BLUER = 1.12
"""Red over blue of a nucleus, at least, over that of the tissue around, which is taken as `_MOST_AROUND` at most."""
_MOST_AROUND = 0.85
_LEAST_EXCESS = 0.04
_OF_TYPICAL_EXCESS, _OF_TYPICAL_CONTRAST = 0.40, 0.42
"""Of what the field's clear nuclei have; see `_typical`."""
_OF_TYPICAL_AREA = 0.25
"""Of the area that half of the field's nuclear area lies in smaller nuclei than; only dark ones may be smaller."""
_LEAST_STANDING_OUT = 0.40
"""Excess over the unrest of the surroundings, times short over long axis: fibres lie among fibres, and are long."""
_CLEAR_ELLIPTICITY, _CLEAR_ROUNDNESS = 0.94, 0.50
"""An object of this shape need not stand out: among crowded nuclei the surroundings are other nuclei."""
_TISSUE_DENSITIES = np.array([0.37, 0.95, 0.47])
"""Optical density of eosin-stained tissue, for a field in which none is left beside nuclei."""


@dataclass(frozen=True)
class Nuclei:
    """What is known of each nucleus of a field; arrays of the same length, in the order of the labels.

    Attributes
    ----------
    area_um2
        Of the visible part.
    eccentricity
        Of the ellipse with the same second moments: 0 a circle, towards 1 a line.
    orientation
        Of its long axis, radians in [0, pi), from the x axis towards the bottom.
    x_um, y_um
        Centre of the visible part, from the field's corner.
    whole
        Not cut by the field's border. Areas and shapes are to be taken of these alone.
    counted
        Its centre lies in the field; see `nuclei_properties`.
    """

    area_um2: np.ndarray
    eccentricity: np.ndarray
    orientation: np.ndarray
    x_um: np.ndarray
    y_um: np.ndarray
    whole: np.ndarray
    counted: np.ndarray

    @property
    def count(self) -> int:
        """Nuclei whose centre lies in the field."""
        return int(self.counted.sum())

    def orientation_order(self, least: int = 5) -> float:
        """How parallel the nuclei lie: the square of ``|<exp(2 i theta)>|``, freed of its bias for few nuclei.

        ``(|sum exp(2 i theta)|^2 - n) / (n (n - 1))``: 1 all parallel, 0 on average for random directions, so it may be
        a little below 0. Of whole nuclei with an eccentricity of at least 0.6 (axes 4 to 5), as rounder ones have no
        direction; NaN where there are fewer than `least`.
        """
        angles = self.orientation[self.whole & (self.eccentricity >= 0.6)]
        if (n := len(angles)) < max(least, 2):
            return np.nan
        return float((abs(np.exp(2j * angles).sum()) ** 2 - n) / (n * (n - 1)))

    def neighbour_distance_um(self, least: int = 3) -> float:
        """Median distance of counted nuclei to the nearest other, centre to centre; NaN for fewer than `least`."""
        places = np.stack([self.x_um, self.y_um], 1)[self.counted]
        if len(places) < max(least, 2):
            return np.nan
        return float(np.median(KDTree(places).query(places, k=2)[0][:, 1]))


def segment_nuclei(pixels_HWC: np.ndarray, mpp: float) -> np.ndarray:
    """Outline the nuclei of a tile.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB, (H, W, 3).
    mpp
        Micrometres per pixel, at most `COARSEST_MPP`.

    Returns
    -------
    numpy.ndarray
        int32, (H, W): 0 outside, 1 to n the nuclei, those cut by the border as well.

    Raises
    ------
    PathUpError
        See `stains.checked`; or `mpp` is no positive number or too coarse for nuclei.
    """
    checked(pixels_HWC)
    if not 0 < mpp <= COARSEST_MPP:
        raise PathUpError(
            f"an image of {mpp:g} micrometres per pixel does not show single nuclei; at most {COARSEST_MPP:g} was "
            "needed, so take tiles of a finer level"
        )
    height, width = pixels_HWC.shape[:2]
    size = (max(1, round(width * mpp / WORKING_MPP)), max(1, round(height * mpp / WORKING_MPP)))
    if size == (width, height):
        return _segmented(pixels_HWC)
    resized = np.asarray(Image.fromarray(pixels_HWC).resize(size, Image.Resampling.BILINEAR))  # antialiased
    labels = Image.fromarray(_segmented(resized)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(labels, np.int32)


def nuclei_properties(labels_HW: np.ndarray, mpp: float) -> Nuclei:
    """Shapes and places of nuclei, and which of them the field is to count.

    Unbiased counting takes a nucleus where its centre lies in the field. Of one cut by the border only a part is seen;
    its centre is that of an ellipse through the part: squared widths parallel to the border are a parabola of the
    depth, whichever way the ellipse lies, and its vertex is at the centre (least squares over the part's rows).

    Parameters
    ----------
    labels_HW
        As `segment_nuclei` gives them.
    mpp
        Micrometres per pixel.
    """
    count = int(labels_HW.max(initial=0))
    shape = moments(labels_HW, count)
    small, large = shape.axes()
    whole, counted = np.ones(count, bool), np.ones(count, bool)
    for turned in (labels_HW, labels_HW[::-1], labels_HW.T, labels_HW.T[::-1]):
        for number in np.unique(turned[0][turned[0] > 0]):
            rows = np.nonzero(turned == number)[0]
            whole[number - 1] = False
            counted[number - 1] &= _reaches_its_centre(np.bincount(rows))
    return Nuclei(
        area_um2=shape.area * mpp**2,
        eccentricity=np.sqrt(np.clip(1 - (small / large) ** 2, 0, 1)),
        orientation=np.mod(0.5 * np.arctan2(2 * shape.xy, shape.xx - shape.yy), np.pi),
        x_um=(shape.x + 0.5) * mpp,
        y_um=(shape.y + 0.5) * mpp,
        whole=whole,
        counted=counted,
    )


def _reaches_its_centre(widths: np.ndarray) -> bool:
    """Whether a part's widths, row by row from the border, are widest beyond the first; see `nuclei_properties`."""
    if len(widths) < 3:
        return False
    square, linear, _ = np.polyfit(np.arange(len(widths)), widths.astype(np.float64) ** 2, 2)
    return bool(square < 0 and linear > 0)


def _segmented(pixels_HWC: np.ndarray) -> np.ndarray:
    """Nuclei at `WORKING_MPP`."""
    none = np.zeros(pixels_HWC.shape[:2], np.int32)
    density_HWC = optical_density(pixels_HWC)
    tissue = density_HWC.sum(-1) > GLASS_DENSITY
    if tissue.sum() < _AREA_UM2[0] / WORKING_MPP**2:
        return none
    contrast = _contrast(stain_channels(pixels_HWC)[..., 0], tissue)
    otsu = threshold_otsu(contrast[tissue])
    lowest = max(_OUTLINE * otsu, _LEAST_CONTRAST)
    highest = np.percentile(contrast[tissue], 99)
    if highest <= lowest:
        return none
    least = _AREA_UM2[0] / WORKING_MPP**2
    outline = _opened(fill_holes(contrast > lowest))
    levels = np.linspace(lowest, lowest + 0.8 * (highest - lowest), _LEVELS)
    cores = most_elliptic(contrast, outline, levels[1:].tolist(), least)
    parts = _split(cores, contrast)
    grown = watershed(-contrast, parts, mask=outline)
    labels = _cut(grown, parts, contrast, least)
    around = tissue & (contrast < 0.5 * max(otsu, 0.15))
    return _nuclear(labels, contrast, density_HWC, around)


def _opened(mask: np.ndarray) -> np.ndarray:
    """Without bridges and tails one pixel wide; what the border cuts keeps its width there."""
    return ndimage.binary_opening(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]


def _contrast(haematoxylin: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Smoothed haematoxylin less the local mean of tissue that is not nuclear (below Otsu's threshold)."""
    smooth = ndimage.gaussian_filter(haematoxylin, _SMOOTHING_UM / WORKING_MPP)
    plain = (tissue & (smooth <= threshold_otsu(smooth[tissue]))).astype(np.float32)
    mean = float((smooth * plain).sum() / max(plain.sum(), 1))
    weight, total = plain, smooth * plain
    width = round(2 * _SURROUNDINGS_UM / WORKING_MPP)  # three boxes of twice the deviation: nearly a Gaussian, faster
    for _ in range(3):
        weight, total = ndimage.uniform_filter(weight, width), ndimage.uniform_filter(total, width)
    return smooth - (total + 0.05 * mean) / (weight + 0.05)  # far from plain tissue: the field's mean


def _split(cores: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """Part touching nuclei at necks: watershed of the distance to the outline, parts of one nucleus joined again.

    Two parts are joined, widest neck first, where the neck is wide and both together look like an ellipse, or where
    there is hardly a neck (`_SADDLES`, of the smaller part's half-width).
    """
    mask = cores > 0
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask).astype(np.float32), 0.6)
    depth *= np.maximum(contrast, 0) ** _DARKNESS
    peaks, _ = ndimage.label((ndimage.maximum_filter(depth, size=5) == depth) & mask, np.ones((3, 3)))
    parts = watershed(-depth, peaks, mask=mask)
    count = int(parts.max(initial=0))
    height = np.zeros(count + 1)
    order = np.argsort(depth[mask])
    height[parts[mask][order]] = depth[mask][order]  # the highest is written last
    necks: dict[tuple[int, int], float] = {}
    for one, other in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        a, b = parts[one], parts[other]
        meet = (a != b) & (a > 0) & (b > 0)
        pairs = np.sort(np.stack([a[meet], b[meet]]), 0)
        for low, high, width in zip(*pairs.tolist(), np.minimum(depth[one], depth[other])[meet].tolist(), strict=True):
            necks[low, high] = max(necks.get((low, high), 0.0), width)
    shapes = dict(enumerate(moments(parts, count).each(), start=1))
    owner = list(range(count + 1))

    def root(number: int) -> int:
        while owner[number] != number:
            number = owner[number]
        return number

    for (low, high), width in sorted(necks.items(), key=lambda item: -item[1]):
        first, second = sorted((root(low), root(high)), key=lambda number: -height[number])
        if first == second:
            continue
        both = shapes[first].joined(shapes[second])
        saddle = _SADDLES[0] if both.ellipticity() > _WHOLE_ELLIPTICITY else _SADDLES[1]
        if width > saddle * height[second]:
            owner[second], shapes[first] = first, both
    return np.array([root(number) for number in range(count + 1)])[parts]


def _cut(grown: np.ndarray, cores: np.ndarray, contrast: np.ndarray, least: float) -> np.ndarray:
    """Each nucleus down to half of its core's mean contrast; its largest piece, without holes."""
    count = int(grown.max(initial=0))
    sizes = np.bincount(cores.ravel(), minlength=count + 1)
    means = np.bincount(cores.ravel(), contrast.ravel(), count + 1) / np.maximum(sizes, 1)
    grown = np.where(_opened((grown > 0) & (contrast >= 0.5 * means[grown])), grown, 0)
    pieces, number = equal_areas(grown, connectivity=1, return_num=True)
    sizes = np.bincount(pieces.ravel(), minlength=number + 1)
    owner = np.zeros(number + 1, int)
    owner[pieces.ravel()] = grown.ravel()
    order = np.argsort(sizes, kind="stable")
    largest = np.zeros(count + 1, int)
    largest[owner[order]] = order
    keep = (largest[owner] == np.arange(number + 1)) & (owner > 0) & (sizes >= least)
    labels = np.where(keep[pieces], grown, 0)
    holes = fill_holes(labels > 0) & (labels == 0)
    for place in ndimage.find_objects(ndimage.label(holes)[0]):
        wide = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in place)
        labels[place][holes[place]] = labels[wide].max()
    return labels


def _nuclear(labels: np.ndarray, contrast: np.ndarray, density_HWC: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Drop what is no nucleus by size, shape, contrast and colour, and number the rest."""
    count = int(labels.max(initial=0))
    shape = moments(labels, count)
    means = [np.bincount(labels.ravel(), v.ravel(), count + 1)[1:] for v in (contrast, *np.moveaxis(density_HWC, 2, 0))]
    contrasts, red, _, blue = (values / np.maximum(shape.area, 1) for values in means)
    plain = density_HWC[around].mean(0) if around.sum() > 200 else _TISSUE_DENSITIES
    rest = min(float(plain[0] / max(plain[2], 1e-3)), _MOST_AROUND)
    excess = red - rest * blue  # red absorption that tissue of the surroundings' colour would not have
    ratio = red / np.maximum(blue, 1e-3)
    area_um2 = shape.area * WORKING_MPP**2
    width_um = 4 * shape.axes()[0] * WORKING_MPP
    ellipticity = shape.ellipticity()
    keep = (area_um2 >= _AREA_UM2[0]) & (area_um2 <= _AREA_UM2[1])
    keep &= (width_um > _LEAST_WIDTH_UM) & (ellipticity > _LEAST_ELLIPTICITY)
    keep &= (contrasts > _FAINT) | ((ellipticity > _FAINT_ELLIPTICITY) & (width_um > _FAINT_WIDTH_UM))
    keep &= (ratio > _LEAST_RED_OVER_BLUE) & (ratio > _BLUER * rest)
    keep &= excess > max(_LEAST_EXCESS, _OF_TYPICAL_EXCESS * _typical(excess, shape))
    short, long = shape.axes()
    standing_out = excess / _unrest(labels, contrast, count) * short / long > _LEAST_STANDING_OUT
    keep &= standing_out | ((ellipticity > _CLEAR_ELLIPTICITY) & (short / long > _CLEAR_ROUNDNESS))
    clear = _typical(contrasts, shape)
    keep &= (contrasts > 0.8 * clear) | (shape.area > _OF_TYPICAL_AREA * _typical(shape.area, shape, 0.5))
    keep &= contrasts > _OF_TYPICAL_CONTRAST * clear
    numbers = np.concatenate([[0], np.where(keep, np.cumsum(keep), 0)])
    return numbers.astype(np.int32)[labels]


def _unrest(labels: np.ndarray, contrast: np.ndarray, count: int) -> np.ndarray:
    """Standard deviation of the contrast in a ring around each object, 1 to 3 pixels off it, less other objects."""
    near, far = ndimage.grey_dilation(labels, size=3), ndimage.grey_dilation(labels, size=7)
    ring = np.where(near == 0, far, 0)
    own, values = ring[ring > 0], contrast[ring > 0]
    sums = [np.bincount(own, power, count + 1)[1:] for power in (np.ones_like(values), values, values * values)]
    size = np.maximum(sums[0], 1)
    return np.sqrt(np.maximum(sums[2] / size - (sums[1] / size) ** 2, 0)) + 0.02  # of noise, whatever the ring shows


def _typical(values: np.ndarray, shape: Moments, share: float = 0.8) -> float:
    """The value that this share of the segmented area stays below; 0.8 of it: that of clear nuclei."""
    if not shape.area.any():
        return 0.0
    order = np.argsort(values, kind="stable")
    areas = np.cumsum(shape.area[order])
    return float(values[order][np.searchsorted(areas, share * areas[-1])])
