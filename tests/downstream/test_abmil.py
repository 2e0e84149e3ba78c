"""Attention MIL: attention adds up to one, order and filling do not count, gradients are right, lesions are found."""

from __future__ import annotations

import pytest
import torch

from pathup.downstream.abmil import ABMIL, padded
from pathup.recipes import ABMILRecipe

SPEC = ABMILRecipe(embedding=16, attention=8, dropout=0.0)


def network(classes: int = 3, seed: int = 0) -> ABMIL:
    torch.manual_seed(seed)
    return ABMIL(6, classes, SPEC).eval()


def bags(*sizes: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 6, generator=generator) for size in sizes]


def test_logits_are_the_equations_on_a_bag():
    own, (bag,) = network(), bags(5)
    x = torch.relu(own.embed[0](own.normalise(bag)))
    scores = own.pool.fc2(torch.tanh(own.pool.fc1(x)) * torch.sigmoid(own.pool.fc_gated(x)))[:, 0]
    z = scores.softmax(0) @ x
    assert torch.allclose(own(*padded([bag]))[0], own.head(z), atol=1e-6)
    assert torch.allclose(own.attention(*padded([bag]))[0], scores.softmax(0), atol=1e-6)


def test_attention_adds_up_to_one_over_the_patches_of_each_bag():
    attention = network().attention(*padded(bags(3, 7, 1)))
    assert attention.shape == (3, 7)
    assert torch.allclose(attention.sum(1), torch.ones(3))
    assert attention[0, 3:].eq(0).all() and attention[2, 1:].eq(0).all()
    assert (attention[1] > 0).all()


def test_neither_the_order_of_patches_nor_what_a_bag_is_filled_up_with_counts():
    own, (bag, longer) = network(), bags(6, 11)
    alone = own(*padded([bag]))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(own(*padded([bag[order]])), alone, atol=1e-6)
    attention = own.attention(*padded([bag]))[0]
    assert torch.allclose(own.attention(*padded([bag[order]]))[0], attention[order], atol=1e-6)
    filled, mask = padded([bag, longer])
    assert torch.allclose(own(filled, mask)[:1], alone, atol=1e-6)
    filled[0, 6:] = 99.0
    assert torch.allclose(own(filled, mask)[:1], alone, atol=1e-6)


def test_gradients_of_several_classes_are_those_of_finite_differences():
    own = network(classes=4).double()
    filled, mask = padded([bag.double() for bag in bags(3, 5)])
    wanted = torch.tensor([3, 1])

    def loss(weight: torch.Tensor, bias: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        replaced = {"pool.fc1.module.weight": weight, "head.bias": bias}
        logits = torch.func.functional_call(own, replaced, (values, mask.double()))
        return torch.nn.functional.cross_entropy(logits, wanted)

    inputs = (own.pool.fc1.module.weight.detach().requires_grad_(), own.head.bias.detach().requires_grad_(),
              filled.requires_grad_())  # fmt: skip
    assert torch.autograd.gradcheck(loss, inputs)


def test_planted_lesion_patches_get_the_attention():
    """Bags of tissue with two patches of the class's own kind among twenty; the class is learnt from bags alone."""
    kinds = torch.randn(3, 6, generator=torch.Generator().manual_seed(5)) * 3

    def bag(label: int, seed: int) -> torch.Tensor:
        patches = torch.randn(20, 6, generator=torch.Generator().manual_seed(seed))
        patches[:2] = kinds[label] + 0.3 * patches[:2]
        return patches

    own = network().train()
    optimizer = torch.optim.Adam(own.parameters(), lr=0.01)
    for step in range(150):
        labels = [step % 3, (step + 1) % 3, (step + 2) % 3]
        filled, mask = padded([bag(label, 10 * step + label) for label in labels])
        loss = torch.nn.functional.cross_entropy(own(filled, mask), torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    own.eval()
    unseen = [(label, bag(label, 100_000 + 7 * number + label)) for number in range(20) for label in range(3)]
    filled, mask = padded([patches for _, patches in unseen])
    named = own(filled, mask).argmax(1)
    assert (named == torch.tensor([label for label, _ in unseen])).float().mean() > 0.9
    # by chance two of twenty patches get a tenth of the attention
    assert own.attention(filled, mask)[:, :2].sum(1).mean() > 0.6


@pytest.mark.parametrize("size", [1, 2])
def test_a_bag_of_one_patch_is_a_bag(size):
    assert network()(*padded(bags(size))).isfinite().all()
