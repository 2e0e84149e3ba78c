from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from pathup.training.batches import Batch, loss_weights, training_target

KINDS = ("epsilon", "v_prediction", "sample")


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weighs_every_target_like_the_same_error_of_the_clean_latent(kind):
    # an error d of the clean latent is sqrt(SNR) d of the noise, and sqrt(SNR + 1) d of the velocity
    scheduler = DDIMScheduler(prediction_type=kind)
    steps = torch.tensor([0, 300, 700, 999])
    alpha_bar = scheduler.alphas_cumprod[steps]
    snr = alpha_bar / (1 - alpha_bar)
    factor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(4)}[kind]
    assert torch.allclose(loss_weights(scheduler, steps, 5.0) * factor, snr.clamp(max=5.0), rtol=1e-4)
    assert torch.equal(loss_weights(scheduler, steps, None), torch.ones(4))


def test_with_an_offset_of_one_errors_of_v_count_whole_at_high_noise_and_as_min_snr_at_low():
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    alpha_bar = scheduler.alphas_cumprod
    snr = alpha_bar / (1 - alpha_bar)
    weights = loss_weights(scheduler, torch.arange(1000), 5.0, 1.0)
    assert torch.allclose(weights[snr <= 4], torch.ones(int((snr <= 4).sum())))  # SNR + 1 is under the cap of 5
    assert torch.allclose(weights[snr > 4], 5 / (snr[snr > 4] + 1))
    low = snr >= 5  # both are capped there
    assert torch.allclose(weights[low], loss_weights(scheduler, torch.arange(1000), 5.0)[low])


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_gives_back_the_clean_latent(kind):
    scheduler = DDIMScheduler(prediction_type=kind)
    draw = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(2, 4, 8, 8, generator=draw) for _ in range(2))
    steps = torch.tensor([100, 800])
    batch = Batch(latents, noise, steps, torch.zeros(2), torch.zeros(2, dtype=torch.bool), torch.ones(2))
    noisy, target = scheduler.add_noise(latents, noise, steps), training_target(scheduler, batch)
    alpha_bar = scheduler.alphas_cumprod[steps][:, None, None, None]
    a, b = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    clean = {"epsilon": (noisy - b * target) / a, "v_prediction": a * noisy - b * target, "sample": target}[kind]
    assert torch.allclose(clean, latents, atol=1e-4)
