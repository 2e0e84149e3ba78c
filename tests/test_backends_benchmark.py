"""The benchmark of backends: what it tells follows from the turns, and PyTorch can win."""

from __future__ import annotations

import pytest

import benchmarks.backends as bench


def test_each_backend_is_beside_pytorch_of_its_own_precision() -> None:
    seconds = {
        "PyTorch fp32": [0.04, 0.05, 0.04], "OpenVINO fp32": [0.02, 0.05, 0.08],
        "PyTorch bf16": [0.02, 0.02, 0.02], "OpenVINO bf16": [0.03, 0.03, 0.03],
    }  # fmt: skip
    over = bench.over_pytorch(seconds)
    assert over == {"OpenVINO fp32": [1.0, 0.5, 2.0], "OpenVINO bf16": pytest.approx([1.5, 1.5, 1.5])}
    apart = dict.fromkeys(seconds, 0.0)
    told = bench.table({"batch": 8, "seconds_a_window": seconds, "difference": apart, "over_pytorch": over})
    assert "| OpenVINO bf16 | 30.0 | 1.50 (1.50 to 1.50) |" in told
    assert "| PyTorch fp32 | 40.0 |  |" in told
