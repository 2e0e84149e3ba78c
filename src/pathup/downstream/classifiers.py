"""The two classifiers of table 6: what each is shown of a field, and the network that names the class.

A kind has ``prepare(fields)``, which reads what it needs of fields and keeps it in files by the fields' content;
``sample(field, position)``, what is shown of one; ``batch(samples)``; and ``network()``.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pathup import draws, storage
from pathup.downstream.abmil import ABMIL, padded
from pathup.downstream.augmentation import augmented
from pathup.downstream.fields import Field, read_field, read_patches
from pathup.errors import PathUpError, unknown
from pathup.evaluation.encoders import Encoder, load_features
from pathup.evaluation.features import seen
from pathup.recipes import ABMILRecipe, ClassifierTraining, Recipe, ViTRecipe

__all__ = ["CLASSIFIERS", "ABMILClassifier", "Classifier", "ViTClassifier", "classifier"]

Progress = Callable[[int, int], None]
Batch = tuple[torch.Tensor, ...]

ENCODED_AT_ONCE = 64
"""Patches."""

KEPT_BYTES = 2**30
"""Of what was shown and is remembered: each learning rate that is tried comes to the same samples."""


class Classifier(ABC):
    """One kind of classifier.

    Parameters
    ----------
    recipe
        Classes, scale, sizes.
    cache
        The folder where what is read of fields is kept.
    augmentations
        Parts of random augmentation for training; none: fields are shown as they are.
    """

    name: str
    title: str

    def __init__(self, recipe: Recipe, cache: Path, augmentations: Sequence[str] = ()) -> None:
        self.recipe, self.cache, self.augmentations = recipe, cache, tuple(augmentations)
        self._shown: dict[tuple[Any, ...], torch.Tensor] = {}
        self._shown_bytes = 0

    @property
    @abstractmethod
    def spec(self) -> ClassifierTraining:
        """Its section of the recipe."""

    @abstractmethod
    def network(self) -> nn.Module:
        """A new network that gives logits (B, classes) for a batch, with weights by torch's current seed."""

    @abstractmethod
    def prepare(self, fields: Sequence[Field], *, training: bool, progress: Progress | None = None) -> None:
        """Read fields that are not yet kept; for training with what augmentation needs."""

    @abstractmethod
    def sample(self, field: Field, position: int | None = None) -> torch.Tensor:
        """What is shown of a field: augmented by the position in training, or, without one, as it is."""

    @abstractmethod
    def batch(self, samples: list[torch.Tensor]) -> Batch:
        """Samples as the network takes them."""

    def described(self) -> dict[str, Any]:
        """What a result says of it."""
        return {"classifier": self.name}

    def remembered(self, key: tuple[Any, ...], make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `make` gives, and gave when `key` was first asked for, as long as there is room to remember it."""
        if key in self._shown:
            return self._shown[key]
        found = make()
        if self._shown_bytes + found.nbytes <= KEPT_BYTES:
            self._shown[key] = found
            self._shown_bytes += found.nbytes
        return found

    def is_augmented(self, position: int) -> bool:
        """Whether random augmentation changes what stands at a position of training: `augmented_share` of them."""
        rng = draws.numpy_generator(self.spec.seed, "is augmented", position)
        return bool(self.augmentations) and bool(rng.random() < self.recipe.downstream.augmented_share)


class ViTClassifier(Classifier):
    """A vision transformer of timm's on fields resized to its input.

    Parameters
    ----------
    pretrained
        Local weights (safetensors) to start from, of the same model; the last layer may be of other classes.
    """

    name, title = "vit", "ViT"

    def __init__(
        self, recipe: Recipe, cache: Path, augmentations: Sequence[str] = (), *, pretrained: Path | None = None
    ) -> None:
        super().__init__(recipe, cache, augmentations)
        self._pretrained = pretrained

    @property
    def spec(self) -> ViTRecipe:
        """See `Classifier`."""
        return self.recipe.downstream.vit

    def network(self, outputs: int | None = None) -> nn.Module:
        """See `Classifier`; with `outputs` the last layer has so many instead of the classes.

        Raises
        ------
        PathUpError
            timm has no such model, its input does not fit, or the pretrained weights are of another.
        """
        spec, outputs = self.spec, outputs or len(self.recipe.labels)
        sizes = {"depth": spec.depth, "embed_dim": spec.width, "num_heads": spec.heads}
        try:
            network = timm.create_model(
                spec.model, img_size=spec.input_px, num_classes=outputs, drop_path_rate=spec.drop_path,
                **{name: value for name, value in sizes.items() if value is not None},
            )  # fmt: skip
        except (RuntimeError, AssertionError, TypeError) as error:
            raise _no_vit(" ".join(str(error).split()) or type(error).__name__) from error
        patch_px = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        if patch_px is None or spec.input_px % patch_px[0]:
            raise _no_vit("it has no patches" if patch_px is None else f"its patches are of {patch_px[0]} px")
        if self._pretrained is not None:
            _start_from(network, self._pretrained)
        return network

    def prepare(self, fields: Sequence[Field], *, training: bool, progress: Progress | None = None) -> None:
        """See `Classifier`."""
        for done, field in enumerate(fields, start=1):
            self.kept(field, self.spec.input_px)
            if progress is not None:
                progress(done, len(fields))

    def sample(self, field: Field, position: int | None = None) -> torch.Tensor:
        """uint8 (3, H, W)."""

        def make() -> torch.Tensor:
            pixels = self.kept(field, self.spec.input_px)
            if not changed:
                return self.as_seen(pixels)
            return self.as_seen(augmented(pixels, self.augmentations, self.spec.seed, position or 0))

        changed = position is not None and self.is_augmented(position)
        return self.remembered((field.identity(), position if changed else None), make)

    def kept(self, field: Field, side_px: int) -> np.ndarray:
        """A field resized to a square, uint8 (side_px, side_px, 3): from the cache, where it is kept."""
        path = self.cache / "images" / f"{field.identity()}_{side_px}.npy"
        if not path.is_file():
            _save(path, read_field(field, side_px))
        return _load(path)

    def as_seen(self, pixels_HWC: np.ndarray) -> torch.Tensor:
        """An image as the recipe's view has it, uint8 (3, H, W)."""
        return torch.from_numpy(np.array(seen(pixels_HWC, self.recipe.downstream.view))).permute(2, 0, 1)

    def batch(self, samples: list[torch.Tensor]) -> Batch:
        """Pixels (B, 3, H, W) in [-1, 1]."""
        return (torch.stack(samples).float() / 127.5 - 1,)


class ABMILClassifier(Classifier):
    """Attention-based multiple-instance learning on features of a frozen network.

    Parameters
    ----------
    features
        As of ``pathup evaluate --features``.
    device
        Where features are computed.
    """

    name, title = "abmil", "attention MIL"

    def __init__(
        self, recipe: Recipe, cache: Path, augmentations: Sequence[str] = (), *, features: str = "atlas",
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        super().__init__(recipe, cache, augmentations)
        self._encoder: Encoder = load_features(features, device)
        self._features = features
        self._channels: int | None = None
        view = recipe.downstream.view
        told = json.dumps([self._encoder.described(), self.spec.patch_px, recipe.tiles.mpp, view], sort_keys=True)
        self._key = hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def spec(self) -> ABMILRecipe:
        """See `Classifier`."""
        return self.recipe.downstream.abmil

    def network(self) -> nn.Module:
        """See `Classifier`."""
        return ABMIL(self._width(), len(self.recipe.labels), self.spec)

    def prepare(self, fields: Sequence[Field], *, training: bool, progress: Progress | None = None) -> None:
        """See `Classifier`.

        Raises
        ------
        PathUpError
            A field is smaller than a patch, or holds no tissue.
        """
        # processes that prepare the same fields at once share them: each begins elsewhere, and skips what others kept
        order = draws.numpy_generator(os.getpid(), "order of fields").permutation(len(fields))
        for done, place in enumerate(order, start=1):
            variants = range(self.spec.variants) if training and self.augmentations else ()
            self._encode(fields[place], [None, *variants])
            if progress is not None:
                progress(done, len(fields))

    def sample(self, field: Field, position: int | None = None) -> torch.Tensor:
        """Features (N, D)."""
        chosen = None
        if position is not None and self.is_augmented(position):
            chosen = draws.seed_of(self.spec.seed, "variant", position) % self.spec.variants
        key = field.identity(), chosen
        return self.remembered(key, lambda: torch.from_numpy(_load(self._file(field, chosen)).copy()))

    def batch(self, samples: list[torch.Tensor]) -> Batch:
        """Bags (B, N, D) and their mask (B, N)."""
        return padded(samples)

    def places(self, field: Field) -> list[tuple[int, int, int, int]]:
        """Where a field's patches are, in the order of its features: x, y, width, height in level-0 pixels."""
        return read_patches(field, self.spec.patch_px, self.recipe.tiles.mpp, self.recipe.downstream.min_tissue)[1]

    def described(self) -> dict[str, Any]:
        """See `Classifier`."""
        return {**super().described(), "features": {"option": self._features, **self._encoder.described()}}

    def _encode(self, field: Field, variants: Sequence[int | None]) -> None:
        """Keep the features of those variants of a field that are not yet kept."""
        recipe, patches = self.recipe, None
        for variant in variants:
            if self._file(field, variant).is_file():
                continue
            if patches is None:
                patches, _ = read_patches(field, self.spec.patch_px, recipe.tiles.mpp, recipe.downstream.min_tissue)
            shown = patches if variant is None else self._augmented(patches, field, variant)
            prepared = [self._encoder.prepared(seen(patch, recipe.downstream.view)) for patch in shown]
            found = [
                self._encoder.features(torch.stack(prepared[first : first + ENCODED_AT_ONCE]))
                for first in range(0, len(prepared), ENCODED_AT_ONCE)
            ]
            _save(self._file(field, variant), np.concatenate(found))

    def _augmented(self, patches_NHWC: np.ndarray, field: Field, variant: int) -> np.ndarray:
        """Augmented patches: the same ones for every seed of training, so that their features are computed once."""
        return np.stack([
            augmented(patch, self.augmentations, 0, field.identity(), variant, number)
            for number, patch in enumerate(patches_NHWC)
        ])  # fmt: skip

    def _file(self, field: Field, variant: int | None) -> Path:
        how = "plain" if variant is None else f"{'-'.join(self.augmentations)}_{variant}"
        return self.cache / "bags" / f"{field.identity()}_{self._key}_{how}.npy"

    def _width(self) -> int:
        if self._channels is None:
            blank = np.full((self.spec.patch_px, self.spec.patch_px, 3), 255, np.uint8)
            self._channels = self._encoder.features(self._encoder.prepared(blank)[None]).shape[1]
        return self._channels


CLASSIFIERS: dict[str, type[Classifier]] = {kind.name: kind for kind in (ViTClassifier, ABMILClassifier)}


def classifier(name: str) -> type[Classifier]:
    """The kind of that name.

    Raises
    ------
    PathUpError
        There is none; the nearest is named.
    """
    if name not in CLASSIFIERS:
        raise unknown("classifier", name, CLASSIFIERS)
    return CLASSIFIERS[name]


def _no_vit(reason: str) -> PathUpError:
    return PathUpError(
        f"downstream.vit cannot be built ({reason}); a vision transformer of timm, and an input_px that its patches "
        "divide, were needed"
    )


def _start_from(network: nn.Module, path: Path) -> None:
    """Load weights of the same model; those of the last layer stay as they are where classes differ."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PathUpError(f"{path} cannot be read as safetensors ({error}); timm's weights were needed") from error
    own = network.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in own and value.shape == own[name].shape}
    lacking = [name for name in own if name not in fitting and not name.startswith("head")]
    if lacking:
        raise PathUpError(
            f"{path} holds no fitting weights for '{lacking[0]}' (and {len(lacking) - 1} more); weights of the model "
            "and input_px of downstream.vit were needed"
        )
    network.load_state_dict({**own, **fitting})


def _save(path: Path, values: np.ndarray) -> None:
    with storage.atomic_path(path) as temporary:
        np.save(temporary, values)


def _load(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise PathUpError(f"{path} cannot be read ({error}); remove it, and it is made anew") from error
