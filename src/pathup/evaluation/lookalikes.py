"""Which training tile looks most like a given tile, over flips, rotations and small shifts; no network needed.

Each tile becomes a thumbnail of luminance whose local contrast is set to one, so that neither stain nor one dark
nucleus on glass decides. Its Fourier magnitudes hardly change when the tile is shifted, and sorting those that a flip
or a quarter turn exchanges makes them the same for all eight orientations: the few training tiles with the nearest
magnitudes are candidates. Each candidate is then laid over the tile in every orientation and shift, and the best
correlation of their common part is the similarity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from pathup.errors import PathUpError
from pathup.slides.images import image_size, read_image

__all__ = ["Descriptors", "Nearest", "describe", "nearest", "turned"]

SIDE = 32
"""Side of a thumbnail: 4 px of a 128-px tile, 16 px of a 512-px one, each."""
SMOOTHING = 0.6
"""Standard deviation of the Gaussian that thumbnails are sampled with, in thumbnail pixels: wide enough that a shift by
half a thumbnail pixel leaves the correlation of copies above 0.83 (0.60 without interpolation between shifts)."""
NEIGHBOURHOOD = 1.5
"""Standard deviation, in thumbnail pixels, of the surroundings that brightness and contrast are measured in."""
NOISE = 3.0
"""Contrast, in levels of 255, at which a surrounding counts half: fainter ones are noise of camera and JPEG."""
LEAST_TEXTURE = 0.1
"""Least `Descriptors.texture` of a tile that can be judged: glass with a noise of half a level has 0.03, and of 38,000
real tiles with at least 25 % of tissue one had less than 0.2."""
LARGEST_SHIFT = SIDE // 8
"""Largest shift in thumbnail pixels, each way: an eighth of the side (16 of 128 px)."""
FREQUENCY = 10
"""Highest spatial frequency of the magnitudes, cycles a tile."""
CANDIDATES = 4
"""Training tiles that are laid over each tile. Of 12,600 planted copies of real tiles, shifts by half a thumbnail pixel
in both directions included, all had their original among the first four of 24,668 (patch) or 4,951 (overview)."""
ORIENTATIONS = 8
_FINE = 4  # steps between shifts of one thumbnail pixel when the correlation's peak is sought
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of ITU-R BT.601, as JPEG's


@dataclass(frozen=True)
class Descriptors:
    """What is kept of each of N tiles.

    Attributes
    ----------
    files
        Where they came from.
    size_px
        Side of every tile; 0 when there are none.
    thumbnails
        (N, 32, 32) float32, contrast-normalised luminance: mean about 0, within about +-3.
    magnitudes
        (N, D) float32, square roots of the sorted Fourier magnitudes.
    texture
        (N,) float32 in [0, 1): mean squared thumbnail, the share of the tile that has contrast.
    """

    files: tuple[Path, ...]
    size_px: int
    thumbnails: torch.Tensor
    magnitudes: torch.Tensor
    texture: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    @property
    def judged(self) -> np.ndarray:
        """(N,) bool: which tiles have enough contrast to be compared at all."""
        return self.texture >= LEAST_TEXTURE

    def at(self, places: Sequence[int] | np.ndarray) -> Descriptors:
        """Some of the tiles, in the order asked for."""
        index = np.asarray(places, np.int64)
        rows = torch.from_numpy(index)
        files = tuple(self.files[i] for i in index)
        return Descriptors(files, self.size_px, self.thumbnails[rows], self.magnitudes[rows], self.texture[index])


@dataclass(frozen=True)
class Nearest:
    """The nearest training tile of each of N tiles.

    Attributes
    ----------
    index
        (N,) int64, its place; -1 where the tile was not judged or no training tile was left to compare with.
    orientation
        (N,) int64: `turned` by it, the training tile lies as the tile does.
    shift_px
        (N, 2) float32, (x, y): what the tile shows at p, the turned training tile shows at p + shift.
    similarity
        (N,) float32, correlation in [-1, 1]: 1 for a copy; NaN where `index` is -1.
    """

    index: np.ndarray
    orientation: np.ndarray
    shift_px: np.ndarray
    similarity: np.ndarray


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """One of the eight orientations of a square image, (H, W) or (H, W, C).

    ``orientation % 4`` quarter turns counter-clockwise, after mirroring left to right when it is 4 or more.
    """
    return np.rot90(pixels[:, ::-1] if orientation >= 4 else pixels, orientation % 4)


def describe(files: Sequence[Path], *, progress: Callable[[int, int], None] | None = None) -> Descriptors:
    """Read tiles and keep what `nearest` compares.

    Parameters
    ----------
    files
        Square RGB images of one size, at least 32 px wide.
    progress
        Called as ``progress(done, total)``.

    Raises
    ------
    PathUpError
        A file cannot be read, is not square, is smaller than 32 px, or differs in size from the first.
    """
    files = [Path(file) for file in files]
    side = _side(files[0]) if files else 0
    small = torch.zeros(len(files), SIDE, SIDE)
    with ThreadPoolExecutor(2) as pool:
        for place, one in enumerate(pool.map(lambda file: _shrunk(file, side, files[0]), files)):
            small[place] = one
            if progress is not None and (place % 256 == 255 or place == len(files) - 1):
                progress(place + 1, len(files))
    return _described(tuple(files), side, small)


def _described(files: tuple[Path, ...], side: int, small_NHW: torch.Tensor) -> Descriptors:
    thumbnails = torch.cat([_contrast(block) for block in small_NHW.split(1024)])
    blocks = thumbnails.split(1024) if len(files) else ()  # MKL transforms no empty batch
    magnitudes = torch.cat([torch.zeros(0, sum(map(len, _orbits()))), *map(_magnitudes, blocks)])
    return Descriptors(files, side, thumbnails, magnitudes, thumbnails.square().mean((1, 2)).numpy())


def nearest(
    tiles: Descriptors,
    training: Descriptors,
    *,
    groups: tuple[Sequence[str], Sequence[str]] | None = None,
    candidates: int = CANDIDATES,
    progress: Callable[[int, int], None] | None = None,
) -> Nearest:
    """The training tile most like each tile, over eight orientations and shifts of up to an eighth of the side.

    For a tile q and a candidate t, the similarity is the largest of the correlation coefficients of q's middle (3/4 of
    its side) in orientation o with the part of t at shift d, over all o and d: normalised cross-correlation (Lewis,
    1995, "Fast Normalized Cross-Correlation"), interpolated between thumbnail pixels.

    Parameters
    ----------
    tiles, training
        Of one tile size and level: levels show other things and are never compared.
    groups
        Region or slide of each tile and of each training tile; a tile is then not compared with its own group.
    candidates
        Training tiles to lay over each tile: those with the nearest magnitudes.
    progress
        Called as ``progress(done, total)``.

    Raises
    ------
    PathUpError
        The tiles differ in size from the training tiles.
    """
    if len(tiles) and len(training) and tiles.size_px != training.size_px:
        raise PathUpError(
            f"the tiles are {tiles.size_px} px wide, but the training tiles {training.size_px}; only tiles of one size "
            "can be compared"
        )
    found = Nearest(
        np.full(len(tiles), -1),
        np.zeros(len(tiles), np.int64),
        np.zeros((len(tiles), 2), np.float32),
        np.full(len(tiles), np.nan, np.float32),
    )
    asked, known = np.flatnonzero(tiles.judged), np.flatnonzero(training.judged)
    if not len(asked) or not len(known):
        return found
    mean, deviation = _moments(training.magnitudes[known])
    base = _standardised(training.magnitudes[known], mean, deviation)
    codes = None if groups is None else _codes(*groups)
    for first in range(0, len(asked), 256):  # a block of products with 25,000 training tiles is 26 MB
        places = asked[first : first + 256]
        closeness = _standardised(tiles.magnitudes[places], mean, deviation) @ base.T
        if codes is not None:
            closeness.masked_fill_(codes[0][places][:, None] == codes[1][known][None], -torch.inf)
        top = closeness.topk(min(candidates, len(known)))
        for part in range(0, len(places), 64):
            rows = slice(part, part + 64)
            _overlay(found, tiles, training, places[rows], known[top.indices[rows].numpy()], top.values[rows])
        if progress is not None:
            progress(min(first + 256, len(asked)), len(asked))
    return found


def _overlay(
    found: Nearest,
    tiles: Descriptors,
    training: Descriptors,
    places: np.ndarray,
    others: np.ndarray,
    close: torch.Tensor,
) -> None:
    """Lay candidates `others` (B, K) over the tiles at `places` (B,), and note the best of each in `found`."""
    laid = training.thumbnails[torch.from_numpy(others)]
    surfaces = correlations(tiles.thumbnails[torch.from_numpy(places)], laid)  # B, K, 8, shifts, shifts
    surfaces.masked_fill_(torch.isinf(close)[:, :, None, None, None], -2)  # of the tile's own group
    best = surfaces.flatten(3).amax(3).flatten(1).argmax(1)
    peaks = surfaces.flatten(1, 2)[torch.arange(len(best)), best]
    steps = 2 * LARGEST_SHIFT * _FINE + 1
    fine = functional.interpolate(peaks[:, None], (steps, steps), mode="bicubic", align_corners=True).flatten(1)
    value, place = fine.max(1)
    y, x = (axis.numpy() / _FINE - LARGEST_SHIFT for axis in (place // steps, place % steps))
    candidate, orientation = (best // ORIENTATIONS).numpy(), (best % ORIENTATIONS).numpy()
    back = np.where(orientation >= 4, orientation, -orientation % 4)  # mirrored orientations undo themselves
    valid = torch.isfinite(close).any(1).numpy()
    at = places[valid]
    found.index[at] = others[np.arange(len(places)), candidate][valid]
    found.orientation[at] = back[valid]
    found.shift_px[at] = (_turned_vectors(x, y, back) * (tiles.size_px / SIDE))[valid]
    found.similarity[at] = value.clamp(-1, 1).numpy()[valid]


def correlations(tiles_BHW: torch.Tensor, others_BKHW: torch.Tensor) -> torch.Tensor:
    """Correlation of each tile's middle, in eight orientations, with every part of its candidates.

    Parameters
    ----------
    tiles_BHW
        (B, n, n) thumbnails.
    others_BKHW
        (B, K, n, n) candidates of each.

    Returns
    -------
    torch.Tensor
        (B, K, 8, 2m + 1, 2m + 1) in [-1, 1], m = `LARGEST_SHIFT`: [..., o, m + dy, m + dx] is the correlation of the
        middle of `turned(tile, o)` with the part of the candidate that lies (dx, dy) off its middle.
    """
    side, margin = tiles_BHW.shape[-1], LARGEST_SHIFT
    inner = side - 2 * margin
    middle = tiles_BHW[:, margin:-margin, margin:-margin]
    both = (middle, middle.flip(-1))
    all_turns = torch.stack([torch.rot90(image, turns, (1, 2)) for image in both for turns in range(4)], 1)
    all_turns = all_turns - all_turns.mean((2, 3), keepdim=True)
    all_turns = all_turns / all_turns.square().sum((2, 3), keepdim=True).sqrt().clamp_min(1e-6)
    # The middle is smaller than the candidate by all shifts, so a circular correlation wraps nothing into them
    spectra = torch.fft.rfft2(all_turns, s=(side, side)).conj()
    products = torch.fft.rfft2(others_BKHW)[:, :, None] * spectra[:, None]
    raw = torch.fft.irfft2(products, s=(side, side))[..., : 2 * margin + 1, : 2 * margin + 1]
    sums, squares = (functional.avg_pool2d(x, inner, 1) * inner**2 for x in (others_BKHW, others_BKHW.square()))
    norms = (squares - sums.square() / inner**2).clamp_min(1e-4).sqrt()
    return raw / norms[:, :, None]


def _side(file: Path) -> int:
    width, height = image_size(file)
    if height != width or height < SIDE:
        raise PathUpError(
            f"{file} is {width} x {height} px, but square tiles of at least {SIDE} x {SIDE} were needed; cut them anew"
        )
    return height


def _shrunk(file: Path, side: int, first: Path) -> torch.Tensor:
    """Luminance of a tile, (32, 32) float32 in 0 to 255."""
    pixels = read_image(file)
    if pixels.shape[:2] != (side, side):
        raise PathUpError(
            f"{file} is {pixels.shape[1]} x {pixels.shape[0]} px and {first} {side} x {side}; tiles of one size were "
            "needed, so cut them anew"
        )
    shrink = _gaussian(side, SMOOTHING)
    return shrink @ torch.from_numpy(pixels.astype(np.float32) @ _LUMINANCE) @ shrink.T


def _contrast(small_BHW: torch.Tensor) -> torch.Tensor:
    """Thumbnails: less the surroundings' mean, over the surroundings' deviation."""
    around = _gaussian(SIDE, NEIGHBOURHOOD)
    contrast = small_BHW - around @ small_BHW @ around.T
    return contrast / (around @ contrast.square() @ around.T + NOISE**2).sqrt()


@cache
def _gaussian(side: int, deviation: float) -> torch.Tensor:
    """(32, side): each row a Gaussian about a thumbnail pixel, `deviation` in thumbnail pixels, of sum 1."""
    centres = (torch.arange(SIDE) + 0.5) * side / SIDE
    distance = (torch.arange(side) + 0.5 - centres[:, None]) / (deviation * side / SIDE)
    weight = torch.exp(-distance.square() / 2)
    return weight / weight.sum(1, keepdim=True)


def _magnitudes(thumbnails_BHW: torch.Tensor) -> torch.Tensor:
    """(B, D) square roots of Fourier magnitudes, sorted within each set that orientations exchange."""
    window = _window()
    centred = thumbnails_BHW - thumbnails_BHW.mean((1, 2), keepdim=True)
    spectrum = torch.fft.fft2(centred * window[:, None] * window).abs().sqrt()
    return torch.cat([torch.stack([spectrum[:, y, x] for y, x in o], 1).sort(1).values for o in _orbits()], 1)


@cache
def _orbits() -> list[list[tuple[int, int]]]:
    """Sets of frequencies (y, x), one of each pair f and -f, that quarter turns and flips exchange."""
    return [
        sorted({(y, x), (-y if x else y, x), (x, y), (-x, y)})
        for y in range(1, FREQUENCY + 1)
        for x in range(y + 1)
        if y * y + x * x <= FREQUENCY**2 + 1
    ]


@cache
def _window() -> torch.Tensor:
    """Cosine tapers over the outer quarters: what leaves over the rim by a shift counts little."""
    place = (torch.arange(SIDE) + 0.5) / SIDE
    rim = torch.minimum(place, 1 - place)
    return torch.where(rim < 0.25, torch.sin(2 * torch.pi * rim).square(), torch.ones(SIDE))


def _moments(magnitudes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return magnitudes.mean(0), magnitudes.std(0, correction=0).clamp_min(1e-6)


def _standardised(magnitudes: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    return functional.normalize((magnitudes - mean) / deviation, dim=1)


def _codes(*groups: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    number = {name: code for code, name in enumerate(dict.fromkeys(name for names in groups for name in names))}
    first, second = (torch.tensor([number[name] for name in names]) for names in groups)
    return first, second


def _turned_vectors(x: np.ndarray, y: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """(N, 2): where displacements (x, y) point after `turned`."""
    x = np.where(orientation >= 4, -x, x)
    for turn in range(1, 4):
        turns = orientation % 4 >= turn
        x, y = np.where(turns, y, x), np.where(turns, -x, y)
    return np.stack([x, y], 1)
