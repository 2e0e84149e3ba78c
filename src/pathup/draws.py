"""Every random draw is a function of (seed, keys), never of a running generator.

An exact resume then needs nothing but the step number, and a result does not depend on batch size, order
or the number of processes.
"""

from __future__ import annotations

import hashlib
import operator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(seed: int, *keys: int | str) -> int:
    """A 63-bit seed from `seed` and any keys (step, index, purpose); the same on every machine."""
    plain = (key if isinstance(key, str) else operator.index(key) for key in keys)  # NumPy's integers print otherwise
    text = repr((int(seed), *plain)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def torch_generator(seed: int, *keys: int | str) -> torch.Generator:
    """A fresh CPU generator for (seed, keys)."""
    import torch  # here, so that stages without a model (tiles) start without it

    return torch.Generator("cpu").manual_seed(seed_of(seed, *keys))


def numpy_generator(seed: int, *keys: int | str) -> np.random.Generator:
    """A fresh NumPy generator for (seed, keys)."""
    return np.random.default_rng(seed_of(seed, *keys))


def normal(shape: tuple[int, ...], seed: int, *keys: int | str) -> torch.Tensor:
    """Standard normal noise of `shape` (float32, CPU) for (seed, keys)."""
    import torch

    return torch.randn(shape, generator=torch_generator(seed, *keys))


def shuffled_index(seed: int, position: int, count: int) -> int:
    """The item at `position` of an endless stream that shuffles `count` items anew each epoch.

    `position` counts samples since the start of training, so the order survives a restart in any epoch.
    """
    epoch, place = divmod(position, count)
    return int(_permutation(seed, epoch, count)[place])


@lru_cache(maxsize=256)  # a batch spans two epochs; class-balanced streams hold one permutation a class and level
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return numpy_generator(seed, "epoch", epoch).permutation(count)
