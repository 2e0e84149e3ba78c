from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pathup.errors import PathUpError
from pathup.sampling.canvas import FileCanvas
from pathup.sampling.states import FileStates, MemoryStates


def _value(step: int, channels: int = 4) -> torch.Tensor:
    return torch.randn(channels, 9, 7, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_the_latest_whole_state_is_what_is_read(kind: str, tmp_path: Path) -> None:
    states: Any = MemoryStates((9, 7)) if kind == "memory" else FileStates(tmp_path / "canvas", (9, 7))
    assert states.latest is None
    for step, channels in ((0, 4), (1, 8), (2, 12), (3, 4)):
        states.begin(step, channels)[:, :, :] = _value(step, channels)
        assert states.latest == (step - 1 if step else None)  # not yet committed
        states.commit(step)
        assert states.latest == step and states.read().shape == (channels, 9, 7)
        assert states.read()[:, 0:9, 0:7].equal(_value(step, channels))
    if kind == "file":
        assert [path.name for path in (tmp_path / "canvas").iterdir()] == ["step_00003_0004.latent"]


def test_another_process_goes_on_from_the_last_whole_state(tmp_path: Path) -> None:
    states = FileStates(tmp_path, (9, 7))
    states.begin(4, 8)[:, :, :] = _value(4, 8)
    states.commit(4)
    states.begin(5, 8)[:, 0:3, :] = _value(5, 8)[:, 0:3]  # killed in the middle
    again = FileStates(tmp_path, (9, 7))
    assert again.latest == 4 and again.read()[:, :, :].equal(_value(4, 8))
    # killed between the new state's name and the old one's removal
    (tmp_path / "step_00003_0008.latent").write_bytes((tmp_path / "step_00004_0008.latent").read_bytes())
    assert FileStates(tmp_path, (9, 7)).latest == 4
    again.begin(5, 4)[:, :, :] = _value(5)
    again.commit(5)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00005_0004.latent"]


def test_a_full_disk_is_found_before_it_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = FileStates(tmp_path, (9, 7))
    states.begin(0, 4)[:, :, :] = _value(0)
    states.commit(0)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PathUpError, match=r"the disk is full: .* --resume"):
        states.begin(1, 8)
    assert states.latest == 0 and states.read()[:, :, :].equal(_value(0))


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "canvas").write_bytes(bytes(100))
    with pytest.raises(PathUpError, match="100 bytes, but 1008 were needed"):
        FileCanvas(tmp_path / "canvas", (4, 9, 7))
