"""Moving averages of weights."""

from __future__ import annotations

import torch
from torch import nn

from pathup.training.averages import Average


def test_an_average_follows_the_recursion_and_copies_counters():
    module = nn.BatchNorm1d(2)
    average, expected = Average(module, 0.5), torch.zeros(2)
    for step in range(4):
        with torch.no_grad():
            module.bias.fill_(step + 1.0)
            module.num_batches_tracked.fill_(step)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1.0)
    assert torch.allclose(average.tensors["bias"], expected)
    assert average.tensors["num_batches_tracked"] == 3


def test_an_average_begins_where_the_module_stood_and_goes_on_from_what_was_kept():
    module = nn.Linear(2, 2)
    average = Average(module, 0.9)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        module.weight.add_(1)
    assert all(torch.equal(average.tensors[name], before[name]) for name in before)
    average.update(0)
    other = Average(module, 0.9)
    other.load(average.tensors)
    average.update(1)
    assert not torch.equal(other.tensors["weight"], average.tensors["weight"])  # what was given is not shared
