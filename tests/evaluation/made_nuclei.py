"""Painted nuclei for tests: ellipses of haematoxylin on eosin, of known places, areas and directions."""

from __future__ import annotations

import numpy as np

from pathup.evaluation.stains import RUIFROK_JOHNSTON

UNIT = RUIFROK_JOHNSTON / np.linalg.norm(RUIFROK_JOHNSTON, axis=1, keepdims=True)


def painted(
    side_um: float,
    nuclei: np.ndarray,
    mpp: float = 0.5,
    *,
    haematoxylin: float = 0.9,
    eosin: float = 0.45,
    noise: float = 3.0,
    seed: int = 0,
) -> np.ndarray:
    """A square field of ellipses, each 4 x 4 times supersampled.

    `nuclei` has rows x, y, half-length, half-width (um), direction (radians). uint8 RGB.
    """
    count, fine = round(side_um / mpp), 4
    place = (np.arange(count * fine) + 0.5) * mpp / fine
    inside = np.zeros((count * fine, count * fine), bool)
    for x, y, length, width, direction in nuclei:
        near = [slice(*np.searchsorted(place, (at - length, at + length))) for at in (y, x)]
        dx, dy = place[None, near[1]] - x, place[near[0], None] - y
        cosine, sine = np.cos(direction), np.sin(direction)
        along, across = dx * cosine + dy * sine, dy * cosine - dx * sine
        inside[near[0], near[1]] |= (along / length) ** 2 + (across / width) ** 2 <= 1
    share = inside.reshape(count, fine, count, fine).mean((1, 3))[..., None]
    plain, nuclear = 256 * np.exp(-eosin * UNIT[1]), 256 * np.exp(-haematoxylin * UNIT[0] - 0.2 * UNIT[1])
    light = plain * (1 - share) + nuclear * share
    light = light + np.random.default_rng(seed).normal(0, noise, light.shape)
    return np.clip(light - 1, 0, 255).round().astype(np.uint8)


def grid(side_um: float, spacing_um: float, length: float, width: float, direction: float | None = 0.0) -> np.ndarray:
    """Nuclei on a square grid, none cut by the border; `direction` None: random."""
    at = np.arange(spacing_um / 2 + (side_um % spacing_um) / 2, side_um - spacing_um / 4, spacing_um)
    x, y = (values.ravel() for values in np.meshgrid(at, at))
    turned = np.random.default_rng(1).uniform(0, np.pi, len(x)) if direction is None else np.full(len(x), direction)
    return np.stack([x, y, np.full(len(x), length), np.full(len(x), width), turned], 1)


def scattered(
    side_um: float, count: int, length: float, width: float, seed: int = 0, beyond: float = 0.0
) -> np.ndarray:
    """Nuclei at random places at least a length apart, in the field and `beyond` um around it."""
    draws = np.random.default_rng(seed)
    places = np.empty((0, 2))
    for new in draws.uniform(-beyond, side_um + beyond, (200 * count, 2)):
        if len(places) < count and (np.hypot(*(places - new).T) > 2 * length + 1.5).all():
            places = np.concatenate([places, new[None]])
    turned = draws.uniform(0, np.pi, len(places))
    return np.column_stack([places, np.full(len(places), length), np.full(len(places), width), turned])
