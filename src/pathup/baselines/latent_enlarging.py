"""Drawing with a latent super-resolution model: images of any size, by windows of one training tile.

The data flow: the image, enlarged to the latent's resolution, lies beside a canvas of noise; at every timestep the
model predicts from each window of both, predictions are fused with weights that fall to the windows' rims (as PathUp
fuses its own), and the sampler steps the whole canvas. Then the autoencoder decodes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DModel
from torch.nn.functional import interpolate

from pathup import draws
from pathup.baselines.pairs import FACTOR
from pathup.errors import PathUpError
from pathup.model.components import check_finite
from pathup.model.schedulers import build_scheduler, make_scheduler, set_steps
from pathup.recipes import Recipe
from pathup.sampling.decoding import decode_image
from pathup.sampling.fusion import BandFusion
from pathup.sampling.windows import WindowGrid

__all__ = ["LatentUpscaler", "beside_latents", "latent_factor"]

WINDOW_BATCH = 16
"""Windows that the model is given at once."""


class LatentUpscaler:
    """Enlarges images by `FACTOR` with a diffusion model of latents (Rombach et al. 2022, section 4.4).

    Parameters
    ----------
    unet
        Predicts, from noised latents and the image beside them, what the recipe's `model.noise.prediction` says.
    vae
        The autoencoder whose latents those are.
    recipe
        Whose `baselines.ldm_sr` says how to sample, and whose tiles are as large as a window.
    device
        Where both networks are.

    Attributes
    ----------
    factor
        How many times wider and higher images get.

    Raises
    ------
    PathUpError
        There is no such sampler, or it cannot take that many steps; tiles are not whole latents.
    """

    factor = FACTOR

    def __init__(self, unet: UNet2DModel, vae: AutoencoderKL, recipe: Recipe, device: torch.device) -> None:
        self._unet, self._vae, self._device = unet, vae, device
        self._spec, self._config = recipe.baselines.ldm_sr, build_scheduler(recipe).config
        self._latent_factor = latent_factor(vae)
        tile = recipe.tiles.tile_px
        self._side, self._low = tile // self._latent_factor, tile // FACTOR
        halvings = len(self._spec.block_channels) - 1
        if tile % self._latent_factor or self._side % 2**halvings:
            raise PathUpError(
                f"tiles of {tile} px are {tile / self._latent_factor:g} latent positions wide for this autoencoder, "
                f"but baselines.ldm_sr.block_channels halves them {halvings} times; fewer blocks were needed, or "
                "another autoencoder"
            )
        self._sampler()

    @torch.no_grad()
    def enlarge(self, pixels_HWC: np.ndarray, seed: int, index: int) -> np.ndarray:
        """An image, uint8 RGB (H, W, 3), enlarged to (4 H, 4 W, 3): a function of it, `seed` and `index`.

        An image of a quarter of the tile's side is one window, as in training. A smaller one is continued to that by
        its mirror image, which is cut off again.

        Raises
        ------
        PathUpError
            The model's predictions are not finite.
        """
        height, width, _ = pixels_HWC.shape
        low = torch.from_numpy(self._padded(pixels_HWC)).permute(2, 0, 1)[None].float() / 127.5 - 1
        shape = [FACTOR * side // self._latent_factor for side in low.shape[2:]]
        latents_CHW = self.draw(beside_latents(low, (shape[0], shape[1]))[0], seed, index)
        decoder = _Decoder(self._vae, self._latent_factor, self._device)
        return decode_image(decoder, latents_CHW)[: FACTOR * height, : FACTOR * width]

    @torch.no_grad()
    def draw(self, condition_3HW: torch.Tensor, seed: int, index: int) -> torch.Tensor:
        """Latents (C, H, W), on the CPU, of an image in [-1, 1] that is already as large as they are."""
        shape = (int(self._vae.config.latent_channels), *condition_3HW.shape[1:])
        grid = WindowGrid(shape[1], shape[2], self._side, self._side // 2)
        sampler = self._sampler()
        latents = draws.normal(shape, seed, "enlarge", index) * sampler.init_noise_sigma
        for timestep in sampler.timesteps:
            scaled = sampler.scale_model_input(latents[None], timestep)[0]
            prediction = self._fused(grid, torch.cat([scaled, condition_3HW]), timestep, shape[0])
            latents = sampler.step(prediction[None], timestep, latents[None], return_dict=False)[0][0]
        check_finite(latents, torch.float32)
        return latents

    def _fused(self, grid: WindowGrid, inputs_CHW: torch.Tensor, timestep: torch.Tensor, channels: int) -> torch.Tensor:
        """The model's prediction of a canvas: the weighted mean of its windows' ones, in the precision it learnt in."""
        fusion = BandFusion(grid, channels, "hann")
        for first in range(0, len(grid), WINDOW_BATCH):
            indices = range(len(grid))[first : first + WINDOW_BATCH]
            windows = torch.stack([inputs_CHW[:, rows, columns] for rows, columns in (grid[i] for i in indices)])
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._spec.precision == "bf16"):
                values = self._unet(windows.to(self._device), timestep, return_dict=False)[0].float().cpu()
            for index, value_CHW in zip(indices, values, strict=True):
                fusion.add(index, value_CHW)
        return fusion.take(grid.height)

    def _sampler(self) -> Any:
        sampler = make_scheduler(self._spec.scheduler, self._config)
        set_steps(sampler, self._spec.sampling_steps)
        return sampler

    def _padded(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """An image continued at the right and the bottom to a window at least, and to whole latent positions."""
        unit = max(1, self._latent_factor // FACTOR)
        wanted = [max(self._low, -(-side // unit) * unit) for side in pixels_HWC.shape[:2]]
        more = [(0, want - side) for want, side in zip(wanted, pixels_HWC.shape[:2], strict=True)]
        return np.pad(pixels_HWC, [*more, (0, 0)], mode="symmetric")


def beside_latents(low_B3HW: torch.Tensor, shape_HW: tuple[int, int]) -> torch.Tensor:
    """Low-resolution images brought to the latent's resolution, bilinearly, to be concatenated to latents."""
    smaller = shape_HW[0] < low_B3HW.shape[2]  # of an autoencoder that shrinks by more than `FACTOR`
    return interpolate(low_B3HW, size=shape_HW, mode="bilinear", align_corners=False, antialias=smaller)


def latent_factor(vae: AutoencoderKL) -> int:
    """Image pixels a latent position, in each direction."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


@dataclass(frozen=True)
class _Decoder:
    """A `LatentDecoder` without the rest of a pipeline."""

    vae: AutoencoderKL
    factor: int
    device: torch.device

    def decode_latents(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Pixels in [-1, 1], not clipped."""
        latents = latents_BCHW.to(self.device, self.vae.dtype)
        return cast(torch.Tensor, self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0])
