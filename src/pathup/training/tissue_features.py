"""A perceptual distance learnt from the tissue itself: features of a small network that tells its classes apart.

The data flow: grey, contrast-normalised crops go to a classifier of class and level, trained for some thousand steps
before the autoencoder is; then it is frozen, and a reconstruction's features are compared with the original's, window
by window. Networks trained on photographs are the usual choice (Zhang et al. 2018), but have to be fetched, and know
nothing of grain.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy, leaky_relu

from pathup import draws, storage
from pathup.training.crops import Crops
from pathup.training.discriminator import FINEST_GAIN, TEXTURE_WINDOW, feature_matching_loss, finest_octave

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
GREY_DEVIATION = 0.45  # of a normalised crop: about that of pixels in [-1, 1]
LEAST_DEVIATION = 0.05  # of a crop before it is normalised: blank glass is not blown up to grain


def normalised_grey(pixels_BCHW: torch.Tensor, like_BCHW: torch.Tensor) -> torch.Tensor:
    """Luminance (B, 1, H, W), with the mean and deviation of `like_BCHW` taken to 0 and `GREY_DEVIATION`.

    Both are colours in [-1, 1]. Stain, brightness and contrast no longer count, so that a classifier has to look at
    form and grain; a picture normalised like another keeps how much fainter it is.
    """
    weights = pixels_BCHW.new_tensor(LUMINANCE)[:, None, None]
    grey, like = (weights * pixels_BCHW).sum(1, keepdim=True), (weights * like_BCHW).sum(1, keepdim=True)
    mean, deviation = like.mean((2, 3), keepdim=True), like.std((2, 3), keepdim=True)
    return (grey - mean) * (GREY_DEVIATION / deviation.clamp_min(LEAST_DEVIATION))


class TissueFeatures(nn.Module):
    """A convolutional classifier of grey crops; its layers' activations are the features.

    Parameters
    ----------
    groups
        Classes x levels.
    channels
        Width of the first layer; doubled at each of the two halvings that follow.
    """

    def __init__(self, groups: int, channels: int = 32) -> None:
        super().__init__()
        self.fold = nn.PixelUnshuffle(2)
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(8, channels, 3, padding=1),
                nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
                nn.Conv2d(2 * channels, 4 * channels, 4, stride=2, padding=1),
            ]
        )
        self.head = nn.Linear(4 * channels, groups)

    def forward(self, grey_B1HW: torch.Tensor) -> list[torch.Tensor]:
        """Each layer's activations, at 1/2, 1/4 and 1/8 of the size."""
        features = []
        hidden = self.fold(torch.cat([grey_B1HW, FINEST_GAIN * finest_octave(grey_B1HW)], 1))
        for layer in self.layers:
            hidden = leaky_relu(layer(hidden), 0.2)
            features.append(hidden)
        return features

    def logits(self, grey_B1HW: torch.Tensor) -> torch.Tensor:
        """Logits of class and level, (B, groups)."""
        return self.head(self(grey_B1HW)[-1].mean((2, 3)))


def perceptual_loss(
    network: TissueFeatures, fake_BCHW: torch.Tensor, real_BCHW: torch.Tensor, window_px: int = TEXTURE_WINDOW
) -> torch.Tensor:
    """`feature_matching_loss` between the features of a reconstruction and of its original, both grey."""
    with torch.no_grad():
        real = network(normalised_grey(real_BCHW, real_BCHW))
    return feature_matching_loss(real, network(normalised_grey(fake_BCHW, real_BCHW)), window_px)


def train_tissue_features(
    batch: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    groups: int,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> TissueFeatures:
    """Train the classifier, and freeze it.

    Parameters
    ----------
    batch
        Crops (B, 3, H, W) in [-1, 1] and their groups (B,), a function of the step.
    groups, steps, seed
        Classes x levels; optimiser steps (AdamW, 0.001, falling to 0); of the weights.
    progress
        Called with steps done and steps in all.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.seed_of(seed, "weights", "tissue features"))
        network = TissueFeatures(groups).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    for step in range(steps):
        pixels, group = (part.to(device) for part in batch(step))
        loss = cross_entropy(network.logits(normalised_grey(pixels, pixels)), group)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameters in optimizer.param_groups:
            parameters["lr"] = 1e-3 * (1 - step / steps)
        optimizer.step()
        if progress is not None:
            progress(step + 1, steps)
    return network.eval().requires_grad_(False)


def kept_tissue_features(
    path: Path, crops: Crops, *, steps: int, seed: int, device: torch.device
) -> tuple[TissueFeatures, float]:
    """The classifier of a run: trained once, kept as a file, and read again by a run that goes on.

    Parameters
    ----------
    path
        The file.
    crops
        What it learns from.
    steps, seed, device
        As of `train_tissue_features`.

    Returns
    -------
    network
        Frozen.
    seconds
        That its training took, whenever that was; 0 where the file does not say.

    Raises
    ------
    PathUpError
        The disk is full.
    """
    if path.is_file():
        network = TissueFeatures(len(crops.groups)).to(device)
        network.load_state_dict(load_file(path))
        with safe_open(path, "pt") as file:
            seconds = float((file.metadata() or {}).get("seconds", 0.0))
        return network.eval().requires_grad_(False), seconds
    started = time.perf_counter()
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("learning tissue features", total=steps)
        network = train_tissue_features(
            lambda step: (crops[step], crops.group(step)),
            len(crops.groups),
            steps=steps,
            seed=seed,
            device=device,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    seconds = time.perf_counter() - started
    with storage.atomic_path(path) as temporary:
        save_file(network.state_dict(), temporary, metadata={"seconds": f"{seconds:.2f}"})
    return network, seconds
