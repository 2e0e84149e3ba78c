"""Recorded passes on a CPU: a recorder that runs the passes again stands for a CUDA graph, which there is none of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pathup.errors import PathUpError
from pathup.training import patho_align
from pathup.training.batches import Batch
from pathup.training.recording import Passed, Recorded
from tests.training.test_runs import diffusion, same_tensors


def batch(count: int, value: float) -> Batch:
    whole = torch.full((count,), int(value))
    return Batch(torch.full((count, 2), value), torch.zeros(count, 2), whole, whole, whole > 0, torch.ones(count))


def test_a_recording_is_made_once_and_replayed_on_the_values_of_each_call() -> None:
    recorded, cleared = [], []

    def passes(given: Batch, share: torch.Tensor) -> Passed:
        return Passed(*(given.latents_BCHW.sum(1) * share for _ in Passed._fields))

    def recorder(run: Callable[[], Passed], clear: Callable[[], None]) -> Callable[[], Passed]:
        recorded.append(run)
        clear()
        return run

    replayed = Recorded(passes, lambda: cleared.append(1), recorder)
    for value, share in ((1.0, 0.5), (3.0, 2.0)):
        passed = replayed(batch(4, value), torch.tensor(share))
        assert passed.error_B.tolist() == [2 * value * share] * 4
    assert len(recorded) == len(cleared) == 1
    with pytest.raises(ValueError, match="recorded"):
        replayed(batch(3, 1.0), torch.tensor(1.0))


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_run_of_recorded_passes_ends_bit_for_bit_like_one_of_passes(
    tmp_path: Path, tiny_tiles: Path, tiny_autoencoder: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    changes = {"steps": 4, "checkpoint_every": 4, "gradient_accumulation": rounds}
    plain = diffusion(tiny_tiles, tmp_path / "plain", tiny_autoencoder, **changes)

    def as_a_graph(run: Callable[[], Passed], clear: Callable[[], None]) -> Callable[[], Passed]:
        run()  # a warm-up, whose gradients must not count
        clear()
        kept = run()  # where a graph leaves its results, at every replay
        clear()

        def replay() -> Passed:
            for own, new in zip(kept, run(), strict=True):
                own.copy_(new)
            return kept

        return replay

    monkeypatch.setattr(patho_align, "cuda_graph", as_a_graph)
    monkeypatch.setattr(patho_align, "check_recording", lambda *given, **named: None)
    again = diffusion(tiny_tiles, tmp_path / "recorded", tiny_autoencoder, recorded=True, **changes)
    assert same_tensors(plain / "unet", again / "unet") == ["diffusion_pytorch_model.safetensors"]
    assert same_tensors(plain, again) == ["feature_memory.safetensors"]


def test_what_cannot_be_recorded_is_one_sentence(tmp_path: Path, tiny_tiles: Path, tiny_autoencoder: Path) -> None:
    with pytest.raises(PathUpError, match=r"--record needs one process on a GPU, .* this run has the CPU"):
        diffusion(tiny_tiles, tmp_path / "run", tiny_autoencoder, recorded=True)
    assert not (tmp_path / "run").exists()
