"""What experiments compare: each arm is a change of the recipe, all with the same budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pathup.errors import unknown
from pathup.recipes import Recipe, recipe_with

__all__ = ["ARMS", "EXPERIMENTS", "Arm", "Experiment", "experiment"]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes
    ----------
    name, title
        In file names, and in tables.
    changes
        Of `Recipe`, dotted names.
    beside
        The arm that it is tested against; None for the first.
    a_model_a_level
        Train one model for each level, each with its share of the steps: without levels in the prompts, one model
        could not be asked for either.
    predicted
        What was expected of it before it was measured.
    """

    name: str
    title: str
    changes: dict[str, Any] = field(default_factory=dict)
    beside: str | None = None
    a_model_a_level: bool = False
    predicted: str = ""

    def changed(self, recipe: Recipe) -> Recipe:
        """The recipe of this arm."""
        return recipe_with(recipe, self.changes, source=f"arm {self.name}")


def _entropy(beta: float, source: str = "prompted") -> dict[str, Any]:
    values = {"enabled": True, "beta": beta, "source": source}
    entropy = {f"diffusion.feature_entropy.{name}": value for name, value in values.items()}
    return {"diffusion.patho_align": True, **entropy}


def _beta(beta: float) -> Arm:
    return Arm(f"beta_{beta:g}", f"patho-align, feature entropy, beta {beta:g}", _entropy(beta), "patho_align")


ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            "none",
            "neither",
            {"diffusion.patho_align": False, "diffusion.feature_entropy.enabled": False},
            a_model_a_level=True,
        ),
        Arm(
            "patho_align",
            "patho-align",
            {"diffusion.patho_align": True, "diffusion.feature_entropy.enabled": False},
            "none",
        ),
        *(_beta(beta) for beta in (0.01, 0.1, 0.5, 1.0)),
        Arm(
            "unprompted_0.1",
            "patho-align, feature entropy, beta 0.1, z without the prompt",
            _entropy(0.1, "unprompted"),
            "patho_align",
        ),
        Arm("recipe", "the recipe"),
        *(
            Arm(name, title, changes, "recipe", predicted=predicted)
            for name, title, changes, predicted in (
                (
                    "noise",
                    "predicts the noise",
                    {"model.noise.prediction": "epsilon"},
                    "worse: in few steps, errors at high noise become errors of colour",
                ),
                (
                    "clean",
                    "predicts the clean latent",
                    {"model.noise.prediction": "sample"},
                    "as good in KID, blurred detail, so less recall",
                ),
                (
                    "unweighted",
                    "no min-SNR weighting",
                    {"diffusion.min_snr_gamma": None},
                    "no difference: min-SNR at 50 takes weight from the lowest noise alone",
                ),
                (
                    "scaled_linear",
                    "Stable Diffusion's noise schedule",
                    {"model.noise.schedule": "scaled_linear"},
                    "worse: its last step still shows the mean colour, which sampling starts without",
                ),
                (
                    "orientations",
                    "tiles as they lie, not in 8 orientations",
                    {"diffusion.orientations": 1},
                    "no difference before tiles are seen many times",
                ),
                (
                    "short_average",
                    "average of weights over 100 steps, not 1000",
                    {"diffusion.ema_decay": 0.99},
                    "a little worse",
                ),
                (
                    "adamw",
                    "AdamW at every level, no Muon",
                    {"diffusion.muon_learning_rate": None},
                    "higher loss in as many steps, prompts with as much say",
                ),
                (
                    "one_scale",
                    "errors of single positions alone",
                    {"diffusion.multiscale_weight": 0.0},
                    "overviews with less varied brightness, patches the same",
                ),
                (
                    "narrow",
                    "32 and 48 channels at the two finest levels, not 80",
                    {"model.unet.block_channels": [32, 48, 96, 128, 192]},
                    "worse by the step, in half the time a step",
                ),
            )
        ),
    )
}
"""Every arm by name, in the order of tables. Beta 0 is `patho_align`."""


@dataclass(frozen=True)
class Experiment:
    """A table or figure, the paper's or our own: the arms that it needs, and what it asks."""

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
    "denoiser": Experiment(
        "denoiser",
        "What limits the denoiser: one factor at a time",
        (
            "recipe",
            "noise",
            "clean",
            "unweighted",
            "scaled_linear",
            "orientations",
            "short_average",
            "adamw",
            "one_scale",
            "narrow",
        ),
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
