"""What diffusers' text-to-image example does in training, in our own words, some steps at a time.

Each tile is read, resized, turned and normalised by torchvision in a DataLoader without workers; each step encodes the
batch by the frozen autoencoder and its prompts by the frozen text encoder, draws noise and timesteps, descends the mean
squared error by AdamW with clipped gradients, and moves an average of the weights (the example's ``--use_ema``). It is
without Accelerate, which costs the example a little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pathup.model.components import load_pretrained
from pathup.recipes import load_recipe
from pathup.sampling.device import choose_device
from pathup.tiles.dataset import TileFolder


class LoopTurns:
    """The example's loop on a model, warm once this is made."""

    def __init__(self, asked: argparse.Namespace, precision: str) -> None:
        recipe, parts = load_recipe(asked.recipe), load_pretrained(str(asked.model))
        device = self.device = choose_device(asked.device)
        self.vae = parts.vae.to(device).eval().requires_grad_(False)
        self.text_encoder = parts.text_encoder.to(device).eval().requires_grad_(False)
        self.scheduler = parts.scheduler
        weights = torch.bfloat16 if precision == "bf16" else torch.float32
        self.vae.to(weights)
        self.text_encoder.to(weights)
        self.dtype = weights
        unet = self.unet = parts.unet.to(device).float().train()
        self.average = EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
        self.average.to(device)
        self.optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=1e-2)
        data = _Captioned(TileFolder.load(asked.tiles, "train", recipe), parts.tokenizer, recipe.tiles.tile_px)
        self.loader = DataLoader(data, batch_size=asked.batch_size, shuffle=True, num_workers=0, drop_last=True)
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        self._batches: Iterator[Any] = iter(())
        self.turn(asked.warm_up)

    def turn(self, steps: int) -> float:
        """Seconds a step over so many steps."""
        begun = time.perf_counter()
        for _ in range(steps):
            self._step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begun) / steps

    def _step(self) -> None:
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self.loader)
            batch = next(self._batches)
        with torch.no_grad():
            latents = self.vae.encode(batch["pixels"].to(self.device, self.dtype)).latent_dist.sample()
            latents = latents.float() * self.vae.config.scaling_factor
            prompts = self.text_encoder(batch["ids"].to(self.device), return_dict=False)[0]
        noise = torch.randn_like(latents)
        count = int(self.scheduler.config.num_train_timesteps)
        timesteps = torch.randint(0, count, (len(latents),), device=latents.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        wanted = noise
        if self.scheduler.config.prediction_type == "v_prediction":
            wanted = self.scheduler.get_velocity(latents, noise, timesteps)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            predicted = self.unet(noisy, timesteps, prompts.float(), return_dict=False)[0]
        loss = mse_loss(predicted.float(), wanted.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad()
        self.average.step(self.unet.parameters())
        loss.item()  # the bar of progress shows it at every step


class _Captioned(Dataset[dict[str, torch.Tensor]]):
    """Tiles and the token ids of their prompts, read anew each time."""

    def __init__(self, tiles: TileFolder, tokenizer: Any, side_px: int) -> None:
        self._tiles, self._tokenizer = tiles, tokenizer
        self._transform = transforms.Compose([
            transforms.Resize(side_px, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(side_px),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ])  # fmt: skip
        texts = [tiles.text(index) for index in range(len(tiles))]
        self._ids = tokenizer(
            texts, max_length=tokenizer.model_max_length, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        with Image.open(self._tiles.path(index)) as image:
            return {"pixels": self._transform(image.convert("RGB")), "ids": self._ids[index]}
