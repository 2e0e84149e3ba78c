"""The codebook: gradients and losses of the quantiser, perplexity, new places of dead codes."""

from __future__ import annotations

import pytest
import torch

from pathup.baselines.codebook import build_autoencoder, codes_of, images_of, perplexity, quantise, reseeds


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn((2, 8, 3, 3), generator=torch.Generator().manual_seed(0))


def test_gradients_go_straight_through_the_quantiser(recipe, latents):
    autoencoder = build_autoencoder(recipe)
    latents.requires_grad_()
    found = quantise(autoencoder, latents)
    found.latents_BCHW.retain_grad()
    weights = torch.arange(latents.numel()).reshape(latents.shape)  # another gradient at every place
    (weights * found.latents_BCHW.square()).sum().backward()
    assert torch.equal(latents.grad, found.latents_BCHW.grad)
    assert autoencoder.quantize.embedding.weight.grad is None, "the codebook learns by its own loss alone"


def test_each_latent_gets_its_nearest_code_and_the_losses_are_those_of_the_paper(recipe, latents):
    autoencoder = build_autoencoder(recipe)
    book = autoencoder.quantize.embedding.weight
    with torch.no_grad():
        book.copy_(torch.randn(book.shape, generator=torch.Generator().manual_seed(1)))
    latents.requires_grad_()
    found = quantise(autoencoder, latents)
    flat = latents.detach().permute(0, 2, 3, 1).reshape(-1, 8)
    nearest = [min(range(16), key=lambda k: float((flat[n] - book[k].detach()).square().sum())) for n in range(18)]
    assert found.codes_BL.flatten().tolist() == nearest
    error = book[nearest].detach() - flat
    assert float(found.loss.detach()) == pytest.approx(
        1.25 * float(error.square().mean())
    )  # 1 + the recipe's beta, 0.25
    found.loss.backward()
    # of (e - sg(z))^2 the whole gradient to the book, of beta (z - sg(e))^2 to the encoder; means over 18 x 8 numbers
    own = torch.zeros_like(book).index_add_(0, torch.tensor(nearest), 2 * error / error.numel())
    assert torch.allclose(book.grad, own, atol=1e-7)  # rounding of sums of some hundredths
    back = latents.grad.permute(0, 2, 3, 1).reshape(-1, 8)
    assert torch.allclose(back, -0.25 * 2 * error / error.numel(), atol=1e-7)


def test_perplexity_is_how_many_codes_are_in_use():
    assert float(perplexity(torch.full((64,), 5))) == pytest.approx(64)
    assert float(perplexity(torch.tensor([0, 7, 0, 0]))) == 1
    assert float(perplexity(torch.tensor([3, 3, 0, 0]))) == pytest.approx(2)
    assert float(perplexity(torch.tensor([1, 3]))) == pytest.approx(4 / 3**0.75)  # exp(H) of shares 1/4 and 3/4


def test_images_come_back_from_codes_as_the_autoencoder_decodes_them(recipe):
    autoencoder = build_autoencoder(recipe).eval()
    pixels = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        whole = autoencoder(pixels).sample
    codes = codes_of(autoencoder, pixels)
    assert codes.shape == (2, 64)  # 32 px of factor 4
    # the straight-through sum z + (e - z) rounds in the last place of float32
    assert torch.allclose(images_of(autoencoder, codes), whole, atol=1e-5)


def test_new_places_of_codes_are_latents_of_the_batch_and_none_twice_before_all(latents):
    flat = {tuple(row) for row in latents.permute(0, 2, 3, 1).reshape(-1, 8).tolist()}
    places = reseeds(latents, 18, 0, 5)
    assert {tuple(row) for row in places.tolist()} == flat  # 2 x 3 x 3 latents
    assert {tuple(row) for row in reseeds(latents, 40, 0, 5).tolist()} == flat
    assert torch.equal(places, reseeds(latents, 18, 0, 5))
    assert not torch.equal(places, reseeds(latents, 18, 0, 6))
    assert reseeds(latents, 0, 0, 5).shape == (0, 8)
