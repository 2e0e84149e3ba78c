from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pathup.errors import PathUpError
from pathup.sampling.norms import NormStatistics, fixed_norms, measure_norms


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.GroupNorm(4, 4))
    for layer in net:
        if isinstance(layer, nn.GroupNorm):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return net.eval().requires_grad_(False)


def test_statistics_of_one_piece_reproduce_group_norm() -> None:
    net, x = _net(), torch.randn(1, 3, 9, 7)
    statistics = measure_norms(net, lambda: net(x))
    assert set(statistics.groups) == {"1", "4"}
    assert statistics.groups["1"][0].shape == (2,)
    with fixed_norms(net, statistics):
        torch.testing.assert_close(net(x), nn.Module.__call__(_net(), x), atol=1e-5, rtol=1e-5)


def test_pieces_are_one_population() -> None:
    # pointwise layers: where the pieces lie cannot matter, so two halves in a batch equal the whole
    net, x = _net(), torch.randn(1, 3, 8, 8)
    halves = torch.cat([x[..., :4], x[..., 4:]])
    whole, joint = measure_norms(net, lambda: net(x)), measure_norms(net, lambda: net(halves))
    for name, (mean, variance) in whole.groups.items():
        torch.testing.assert_close(joint.groups[name][0], mean)
        torch.testing.assert_close(joint.groups[name][1], variance)
    with fixed_norms(net, joint):
        torch.testing.assert_close(net(x)[..., :4], net(x[..., :4]))


def test_forwards_are_put_back_also_after_an_error_and_over_a_hook() -> None:
    net, x = _net(), torch.randn(2, 3, 4, 4)
    before = net(x)
    hooked = net[1].forward
    calls: list[int] = []

    def hook(value: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return hooked(value)

    net[4].forward_was = None
    net[1].forward = hook  # as accelerate's hooks do
    statistics = measure_norms(net, lambda: net(x))
    with pytest.raises(RuntimeError), fixed_norms(net, statistics):
        raise RuntimeError
    assert net[1].forward is hook
    assert "forward" not in net[4].__dict__
    assert net(x).equal(before)
    assert len(calls) == 1


def test_half_precision_and_three_dimensions() -> None:
    layer = nn.GroupNorm(2, 4).bfloat16()
    x = torch.randn(2, 4, 30).bfloat16()  # attention hands its normalisation (B, C, positions)
    statistics = measure_norms(layer, lambda: layer(x))
    mean, variance = statistics.groups[""]
    assert mean.dtype == variance.dtype == torch.float32
    with fixed_norms(layer, statistics):
        assert layer(x).dtype == torch.bfloat16


def test_only_what_is_asked_for_counts_and_each_piece_by_its_weight() -> None:
    layer, x = nn.GroupNorm(2, 4), torch.randn(3, 4, 6, 6)
    x[..., 0] = 100  # a rim that must not count
    weights = torch.tensor([0.5, 0.25, 0.25])
    mean, variance = measure_norms(layer, lambda: layer(x), counted=lambda y: y[..., 1:], weights_B=weights).groups[""]
    repeated = torch.cat([x[:1], x])[..., 1:]  # weights of a half and two quarters: the first piece twice
    expected_variance, expected_mean = torch.var_mean(repeated.reshape(4, 2, -1), dim=(0, 2), correction=0)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(variance, expected_variance)


def test_statistics_are_read_as_they_were_written(tmp_path: Path) -> None:
    pair = torch.randn(2), torch.rand(2)
    keys = torch.randn(1, 5, 3).bfloat16(), torch.randn(1, 5, 3).bfloat16()
    statistics = NormStatistics({"decoder.norm": pair}, {"decoder.mid_block.attentions.0": keys})
    statistics.save(tmp_path / "a.safetensors")
    found = NormStatistics.load(tmp_path / "a.safetensors")
    for kind in ("groups", "attention"):
        for name, tensors in getattr(statistics, kind).items():
            assert all(a.equal(b) for a, b in zip(getattr(found, kind)[name], tensors, strict=True))


@pytest.mark.parametrize("content", [None, b"not a file of tensors", b""])
def test_damaged_statistics_are_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PathUpError, match=r"a\.safetensors holds no statistics"):
        NormStatistics.load(path)
