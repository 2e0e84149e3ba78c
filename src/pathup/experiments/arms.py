"""What the ablation compares: each arm is a change of the recipe's diffusion section, all with the same budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pathup.errors import unknown

__all__ = ["ARMS", "EXPERIMENTS", "Arm", "Experiment", "experiment"]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes
    ----------
    name, title
        In file names, and in tables.
    changes
        Of `DiffusionRecipe`, dotted names.
    beside
        The arm that it is tested against; None for the first.
    a_model_a_level
        Train one model for each level, each with its share of the steps: without levels in the prompts, one model
        could not be asked for either.
    """

    name: str
    title: str
    changes: dict[str, Any] = field(default_factory=dict)
    beside: str | None = None
    a_model_a_level: bool = False


def _entropy(beta: float, source: str = "prompted") -> dict[str, Any]:
    values = {"feature_entropy.enabled": True, "feature_entropy.beta": beta, "feature_entropy.source": source}
    return {"patho_align": True, **values}


def _beta(beta: float) -> Arm:
    return Arm(f"beta_{beta:g}", f"patho-align, feature entropy, beta {beta:g}", _entropy(beta), "patho_align")


ARMS = {
    arm.name: arm
    for arm in (
        Arm("none", "neither", {"patho_align": False, "feature_entropy.enabled": False}, a_model_a_level=True),
        Arm("patho_align", "patho-align", {"patho_align": True, "feature_entropy.enabled": False}, "none"),
        *(_beta(beta) for beta in (0.01, 0.1, 0.5, 1.0)),
        Arm(
            "unprompted_0.1",
            "patho-align, feature entropy, beta 0.1, z without the prompt",
            _entropy(0.1, "unprompted"),
            "patho_align",
        ),
    )
}
"""Every arm by name, in the order of tables. Beta 0 is `patho_align`."""


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper: the arms that it needs, and what it asks."""

    name: str
    title: str
    arms: tuple[str, ...]


EXPERIMENTS = {
    "table2": Experiment(
        "table2",
        "Table 2: patho-align and the feature entropy loss",
        ("none", "patho_align", "beta_0.1", "unprompted_0.1"),
    ),
    "figure5": Experiment(
        "figure5",
        "Figure 5: the weight of the feature entropy loss",
        ("patho_align", "beta_0.01", "beta_0.1", "beta_0.5", "beta_1"),
    ),
}


def experiment(name: str) -> Experiment:
    """An experiment by name.

    Raises
    ------
    PathUpError
        There is none of that name.
    """
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]
