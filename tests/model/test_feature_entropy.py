"""Eq. 3 and its memory: hand-computed values, where the gradient goes, what moves, and several processes."""

from __future__ import annotations

import math
import socket

import pytest
import torch
import torch.multiprocessing as processes
from torch.nn.functional import normalize

from pathup.model.aligned import UNetWithFeatures
from pathup.model.components import build_unet
from pathup.model.feature_entropy import FeatureEntropyLoss, pooled
from pathup.peers import leave
from pathup.recipes import load_recipe


def loss_of(prompts: int = 3, width: int = 2, **settings) -> FeatureEntropyLoss:
    return FeatureEntropyLoss(prompts, width, **{"temperature": 0.5, "momentum": 0.9, "seed": 0, **settings})


def test_it_equals_a_value_computed_by_hand():
    entropy = loss_of()
    entropy.memory_KD.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    z = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    # z.k = (0.6, 0.8, -0.6) and (1, 0, -1); over tau = 0.5: (1.2, 1.6, -1.2) and (2, 0, -2)
    first = -1.6 + math.log(math.exp(1.2) + math.exp(1.6) + math.exp(-1.2))
    second = -2.0 + math.log(math.exp(2.0) + 1.0 + math.exp(-2.0))
    assert entropy(z, torch.tensor([1, 0])).item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_anchors_start_as_random_directions_of_length_1_and_are_saved_with_the_module():
    entropy = loss_of(prompts=14, width=64)
    assert torch.allclose(entropy.memory_KD.norm(dim=1), torch.ones(14), atol=1e-6)
    assert (entropy.memory_KD @ entropy.memory_KD.T - torch.eye(14)).abs().max() < 0.6  # 64-d: |cos| rarely over 0.5
    assert list(entropy.state_dict()) == ["memory_KD"]


def test_the_memory_moves_only_for_prompts_in_the_batch_and_by_the_stated_rule():
    entropy = loss_of(prompts=4, width=3)
    before = entropy.memory_KD.clone()
    z = normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    entropy.update(z, torch.tensor([2, 0, 2, 2, 0]))
    assert torch.equal(entropy.memory_KD[[1, 3]], before[[1, 3]])
    expected = normalize(0.9 * before[2] + 0.1 * z[[0, 2, 3]].mean(0), dim=0)
    assert torch.allclose(entropy.memory_KD[2], expected, atol=1e-7)
    assert not torch.equal(entropy.memory_KD[0], before[0])


@pytest.mark.parametrize("source", ["prompted", "unprompted"])
def test_its_gradient_reaches_the_unets_encoder_and_stops_before_the_decoder(source):
    recipe = load_recipe("tiny")
    unet = build_unet(recipe, 4, 16)
    model = UNetWithFeatures(unet)
    generator = torch.Generator().manual_seed(0)
    noisy, prompts = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 16, 16, generator=generator)
    empty = torch.zeros_like(prompts) if source == "unprompted" else None
    _, z = model(noisy, torch.tensor([10, 500]), prompts, empty)
    loss_of(prompts=4, width=z.shape[1])(z, torch.tensor([0, 3])).backward()
    assert unet.conv_in.weight.grad.abs().max() > 0
    assert unet.down_blocks[0].resnets[0].conv1.weight.grad.abs().max() > 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in unet.up_blocks.parameters())


def test_unprompted_features_do_not_know_the_prompt_and_prompted_ones_do():
    model = UNetWithFeatures(build_unet(load_recipe("tiny"), 4, 16)).eval()
    generator = torch.Generator().manual_seed(0)
    noisy, prompts = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(2, 16, 16, generator=generator)
    pair, time = noisy.expand(2, -1, -1, -1), torch.tensor([100, 100])
    with torch.no_grad():
        _, prompted = model(pair, time, prompts, None)
        _, unprompted = model(pair, time, prompts, torch.zeros_like(prompts))
    assert (prompted[0] - prompted[1]).abs().max() > 1e-4
    assert torch.allclose(unprompted[0], unprompted[1], atol=1e-6)


def test_pooled_is_the_mean_over_space_of_length_1():
    features = torch.arange(12.0).reshape(1, 3, 2, 2)
    expected = torch.tensor([[1.5, 5.5, 9.5]])
    assert torch.allclose(pooled(features), expected / expected.norm())


def _worker(rank: int, world: int, port: int, batch: tuple[torch.Tensor, torch.Tensor], results) -> None:
    import os

    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
    }
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    z, prompt = (column[rank::world].contiguous() for column in batch)
    entropy = loss_of(prompts=4, width=3)
    for _ in range(3):
        entropy.update(*accelerator.gather((z, prompt)))
    results[rank] = entropy.memory_KD.tolist()
    leave(0)  # as `pathup` does: threads of Gloo must not outlive Python


def test_two_processes_hold_the_memory_that_one_holds_on_the_joint_batch():
    z = normalize(torch.randn(8, 3, generator=torch.Generator().manual_seed(3)), dim=1)
    prompt = torch.tensor([0, 1, 2, 0, 1, 1, 0, 2])
    joint = loss_of(prompts=4, width=3)
    for _ in range(3):
        joint.update(z, prompt)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with processes.Manager() as manager:
        results = manager.dict()
        processes.spawn(_worker, args=(2, port, (z, prompt), results), nprocs=2)
        memories = [torch.tensor(results[rank]) for rank in range(2)]
    assert torch.equal(memories[0], memories[1])
    assert torch.allclose(memories[0], joint.memory_KD, atol=1e-6)  # the mean's order of summation differs
