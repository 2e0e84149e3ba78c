"""Parts of the autoencoder's training: folding the latents' scale, orientations, losses."""

from __future__ import annotations

import pytest
import torch

from pathup.model.components import build_autoencoder
from pathup.recipes import load_recipe
from pathup.training.autoencoder import normalise_latents
from pathup.training.crops import oriented
from pathup.training.discriminator import PatchDiscriminator, discriminator_loss, feature_matching_loss, gradient_loss


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_normalised_latents_are_principal_components_the_strongest_of_deviation_1_and_reconstructions_stay(whitening):
    vae = build_autoencoder(load_recipe("tiny").autoencoder).eval()
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        image = vae.decode(before.mode()).sample
        normalise_latents(vae, before.mean, before.var, whitening)
        after = vae.encode(pixels).latent_dist
        flat = after.mode().permute(0, 2, 3, 1).reshape(-1, 4)
        covariance, own = torch.cov(flat.T), torch.cov(before.mode().permute(0, 2, 3, 1).reshape(-1, 4).T)
        variance = torch.linalg.eigvalsh(own).flip(0)
        expected = (variance / variance[0]) ** (1 - whitening)
    # float32 through a 1 x 1 convolution: a few units in the sixth digit, more where a faint component is brought up
    assert torch.allclose(flat.mean(0), torch.zeros(4), atol=1e-3)
    assert torch.allclose(covariance, torch.diag(expected), atol=2e-3)
    assert torch.allclose(vae.decode(after.mode()).sample, image, atol=1e-4)


def test_the_posteriors_variance_follows_the_normalised_latents():
    """Draws from the posterior, turned as the means are, have the variance that it then claims, in the mean."""
    vae = build_autoencoder(load_recipe("tiny").autoencoder).eval()
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        spread = before.std * torch.randn(before.mean.shape, generator=torch.Generator().manual_seed(1))
        quant = vae.quant_conv.weight[:4].clone()
        normalise_latents(vae, before.mean, before.var, 0.5)
        after = vae.encode(pixels).latent_dist
        turn = vae.quant_conv.weight[:4, :, 0, 0] @ torch.linalg.pinv(quant[:, :, 0, 0])
        drawn = torch.einsum("dc,nchw->ndhw", turn, spread)
    # 1024 draws a channel: the deviation of a variance so estimated is about 4 %
    assert torch.allclose(after.var.mean((0, 2, 3)), drawn.var((0, 2, 3)), rtol=0.2)


def test_the_eight_orientations_are_distinct_and_the_first_is_the_image():
    image = torch.arange(27).reshape(3, 3, 3)
    turned = [oriented(image, number) for number in range(8)]
    assert torch.equal(turned[0], image)
    assert len({tuple(t.flatten().tolist()) for t in turned}) == 8


def test_the_discriminator_learns_to_tell_and_its_losses_point_the_right_way():
    torch.manual_seed(0)
    judge = PatchDiscriminator(8)
    real, fake = torch.full((4, 3, 32, 32), 0.5), torch.full((4, 3, 32, 32), -0.5)
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = discriminator_loss(judge(real)[0], judge(fake)[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert judge(real)[0].mean() > judge(fake)[0].mean()
    assert judge(real)[0].shape == (4, 1, 4, 4)  # a verdict for every 8 px


def test_feature_matching_and_gradients_are_0_for_the_same_image_and_grow_with_blur():
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    blurred = [torch.nn.functional.avg_pool2d(image, size, 1, size // 2) for size in (3, 5)]
    losses = [gradient_loss(other, image) for other in (image, *blurred)]
    assert losses[0] == 0
    assert losses[0] < losses[1] < losses[2]
    features = [torch.rand(1, 2, 4, 4)]
    assert feature_matching_loss(features, features) == 0
    assert feature_matching_loss(features, [features[0] * 1.5]).item() == pytest.approx(0.5)
