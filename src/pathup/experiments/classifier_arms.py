"""What table 6 and its curves compare: classifiers trained with and without synthetic tissue."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CURVE", "TABLE6", "ClassifierArm", "Job", "jobs_of", "sweep"]

FEW = (1, 2, 4, 8)
"""Real training regions a class, of the curve; the last point is all of them."""


@dataclass(frozen=True)
class ClassifierArm:
    """One way to train a classifier.

    Attributes
    ----------
    name, title
        In file names, and in tables.
    augment
        Whether training images are augmented at random.
    per_class
        Synthetic images a class, on the average; 0: none; None: as many as are drawn.
    real_per_class
        Real training regions a class; None: all.
    mixing
        Instead of the recipe's.
    beside
        The arm that it is tested against.
    """

    name: str
    title: str
    augment: bool = False
    per_class: int | None = 0
    real_per_class: int | None = None
    mixing: str | None = None
    beside: str | None = None


TABLE6 = (
    ClassifierArm("real", "real"),
    ClassifierArm("random", "+ random augmentation", augment=True, beside="real"),
    ClassifierArm("synthetic", "+ synthetic", per_class=None, beside="real"),
    ClassifierArm("both", "+ both", augment=True, per_class=None, beside="random"),
    ClassifierArm(
        "rare_first", "+ synthetic, rare classes first", per_class=None, mixing="rare_first", beside="synthetic"
    ),
)
"""The rows of the table: the paper's three, both together, and the other way to mix."""


def sweep(images: int) -> tuple[ClassifierArm, ...]:
    """Fewer synthetic images: a quarter and a half of those that are drawn."""
    numbers = sorted({max(1, images // 4), max(1, images // 2)} - {images})
    return tuple(
        ClassifierArm(f"synthetic_{count}", f"+ {count} synthetic a class", per_class=count, beside="real")
        for count in numbers
    )


CURVE = tuple(
    ClassifierArm(
        f"{kind}_of_{count}", f"{count} real a class{', + synthetic' if synthetic else ''}",
        per_class=None if synthetic else 0, real_per_class=count, beside=f"real_of_{count}" if synthetic else None,
    )
    for count in FEW
    for kind, synthetic in (("real", False), ("synthetic", True))
)  # fmt: skip
"""F-score against the number of real regions, without and with synthetic images."""


@dataclass(frozen=True)
class Job:
    """One arm of one classifier from one seed."""

    classifier: str
    arm: ClassifierArm
    seed: int

    @property
    def name(self) -> str:
        """In the names of its files."""
        return f"{self.classifier}_{self.arm.name}_{self.seed}"


def jobs_of(classifiers: tuple[str, ...], images: int, seeds: int) -> list[Job]:
    """All jobs: the table's first, seed by seed, then the sweep's and the curve's."""
    parts = (TABLE6, sweep(images), CURVE)
    return [Job(kind, arm, seed) for arms in parts for seed in range(seeds) for kind in classifiers for arm in arms]
