"""Images of two arms, made for tests: stripes for real ones, blobs for synthetic ones, in pinks and purples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from pathup.study.folder import StudyFolder, StudyRequest, new_study

LABELS = ("A", "B")


def made_image(seed: int, *, smooth: bool, side: int = 96) -> Image.Image:
    """Noise, which a JPEG of many bytes holds, or the same smoothed, which takes a few."""
    noise = np.random.default_rng(seed).integers(90, 230, (side, side, 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    return image.filter(ImageFilter.GaussianBlur(6)) if smooth else image


def two_arms(root: Path, count: int, *, side: int = 96, labels: tuple[str, ...] = LABELS) -> tuple[Path, Path]:
    """Class folders of real images, and a folder as 'pathup generate' writes it."""
    real, synthetic, rows = root / "real", root / "synthetic", []
    synthetic.mkdir(parents=True)
    for number, label in enumerate(labels):
        (real / "test" / f"{number}_{label}").mkdir(parents=True)
        for index in range(count):
            seed = 1000 * number + index
            made_image(seed, smooth=False, side=side).save(real / "test" / f"{number}_{label}" / f"{label}_{index}.png")
            name = f"{label}_{index:04d}.png"
            made_image(seed + 500, smooth=True, side=side).save(synthetic / name)
            rows.append({"file_name": name, "label": label, "mpp": 0.5})
    (synthetic / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return real, synthetic


def made_study(root: Path, **values: object) -> StudyFolder:
    """A study of 2 classes, 3 images of each arm and class, 2 readers, 2 images for practice."""
    told = {"per_class": 3, "readers": ("anna", "ben"), "practice": 2, "repeats": 0.2, "seed": 1, "mpp": 0.5, **values}
    real, synthetic = two_arms(root / "arms", int(str(told["per_class"])) + 1)
    return new_study(StudyRequest(folder=root / "study", real=real, synthetic=synthetic, **told))


def link_of(study: StudyFolder, whose: int = 0) -> str:
    """The secret part of a reader's or the administrator's link."""
    return next(link for link, owner in study.links().items() if owner == whose)
