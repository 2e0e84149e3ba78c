from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from pathup.training.batches import Batch, loss_weights, multiscale_error, shifted_timesteps, training_target

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


def test_without_weight_the_multiscale_error_is_the_mean_square():
    error = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(multiscale_error(error, 0.0), error.square().mean((1, 2, 3)))


def test_multiscale_error_equals_a_slow_loop_over_the_scales():
    error = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    wanted = error.square().mean((1, 2, 3))
    for scale in (2, 4):  # 8 would leave 2 x 3 averages, fewer than 4 a side
        rows, columns = 16 // scale, 24 // scale
        averages = torch.empty(2, 3, rows, columns)
        for row in range(rows):
            for column in range(columns):
                part = error[:, :, scale * row : scale * (row + 1), scale * column : scale * (column + 1)]
                averages[:, :, row, column] = part.mean((2, 3))
        wanted = wanted + 0.25 * scale * averages.square().mean((1, 2, 3))
    assert torch.allclose(multiscale_error(error, 0.25), wanted, rtol=1e-5)


def test_a_multiscale_error_is_least_at_the_mean_of_what_is_possible():
    # else the model would learn another prediction than the one that the sampler needs
    possible = torch.randn(5, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    guess = torch.zeros(1, 2, 16, 16, requires_grad=True)
    optimizer = torch.optim.LBFGS([guess], max_iter=200, tolerance_grad=1e-9)

    def loss():
        optimizer.zero_grad()
        value = multiscale_error(guess - possible, 1.0).sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert torch.allclose(guess.detach(), possible.mean(0, keepdim=True), atol=1e-4)


def test_a_shift_moves_every_timestep_to_that_much_stronger_noise():
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    sigma = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    assert torch.equal(shifted_timesteps(scheduler, 1.0), torch.arange(1000))
    moved = shifted_timesteps(scheduler, 2.0)
    inner = torch.arange(20, 950)  # below, a timestep is a tenth of the noise; above, the schedule ends
    assert torch.allclose(sigma[moved][inner], 2 * sigma[inner], rtol=0.05)
    assert moved[-1] == 999
    assert (moved.diff() >= 0).all()


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
