"""What readers answered in one table: the input of all statistics of a reader study.

A store's answers become one `Scores`: a row a reader, a column an image, NaN where an answer is missing. Agreement
(`pathup.study.agreement`) and discrimination (`pathup.study.discrimination`) read it and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pathup.errors import PathUpError

__all__ = ["HIGHEST", "LOWEST", "Scores"]

LOWEST, HIGHEST = 1.0, 10.0
"""Ends of the scale: "synthetic" and "real"."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a study, R readers by N images.

    Attributes
    ----------
    readers, images
        Their names, R and N of them, each once.
    labels
        The class of each image, N.
    synthetic
        Whether an image is synthetic, (N,) bool.
    values
        Scores of the first showing, (R, N) float, 1 ("synthetic") to 10 ("real"), NaN where there is none.
    repeats
        Scores of the second showing, the same way; NaN for images that are shown once.

    Raises
    ------
    PathUpError
        There is no reader or no image, a name is repeated, shapes do not fit together, or a score is off the scale.
    """

    readers: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[str, ...]
    synthetic: np.ndarray
    values: np.ndarray
    repeats: np.ndarray

    def __post_init__(self) -> None:
        for field in ("readers", "images", "labels"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for field, kind in (("synthetic", bool), ("values", float), ("repeats", float)):
            own = np.array(getattr(self, field), dtype=kind)
            own.flags.writeable = False
            object.__setattr__(self, field, own)
        if not self.readers or not self.images:
            raise PathUpError(
                f"the study has {len(self.readers)} readers and {len(self.images)} images; have at least one reader "
                "score images first"
            )
        for what, names in (("reader", self.readers), ("image", self.images)):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise PathUpError(f"the {what} '{twice[0]}' is there more than once; give each {what} its own name")
        if len(self.labels) != len(self.images) or self.synthetic.shape != (len(self.images),):
            raise PathUpError(
                f"{len(self.images)} images have {len(self.labels)} classes and {self.synthetic.size} arms; "
                "give one of each to every image"
            )
        for what, own in (("scores", self.values), ("repeated scores", self.repeats)):
            if own.shape != (len(self.readers), len(self.images)):
                raise PathUpError(
                    f"{what} are a table of {own.shape}; give a row for each of {len(self.readers)} readers and a "
                    f"column for each of {len(self.images)} images"
                )
            off = own[~np.isnan(own) & ~((own >= LOWEST) & (own <= HIGHEST))]
            if off.size:
                raise PathUpError(
                    f"{what} hold {off[0]:g}; give numbers from {LOWEST:g} to {HIGHEST:g}, or NaN for none"
                )

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order in which images first name them."""
        return tuple(dict.fromkeys(self.labels))

    @property
    def class_indices(self) -> np.ndarray:
        """The place of each image's class in `classes`, (N,) int."""
        places = {label: place for place, label in enumerate(self.classes)}
        return np.array([places[label] for label in self.labels], dtype=int)

    def of_class(self, label: str) -> Scores:
        """The images of one class, with all readers."""
        own = np.array([name == label for name in self.labels], dtype=bool)
        return replace(
            self,
            images=tuple(np.array(self.images, dtype=object)[own]),
            labels=(label,) * int(own.sum()),
            synthetic=self.synthetic[own],
            values=self.values[:, own],
            repeats=self.repeats[:, own],
        )
