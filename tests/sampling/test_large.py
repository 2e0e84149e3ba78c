"""One large image into its file: what a kill leaves, what --resume makes of it, and several processes on one canvas."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from pathup import storage
from pathup.errors import PathUpError
from pathup.sampling import large, tissue
from pathup.sampling.requests import GenerateRequest
from pathup.sampling.runs import estimate, generate
from pathup.sampling.workspace import UNFINISHED
from pathup.slides.images import read_image
from pathup.slides.provenance import provenance_of
from tests.processes import PathUpProcess, run_pathup


def _request(model: Path, out: Path, **changed: Any) -> GenerateRequest:
    values: dict[str, Any] = {"label": "A", "size": "64x1104", "steps": 4, "seed": 3, "windows": "shifted"}
    return GenerateRequest(model=model, out=out, device="cpu", threads=1, **{**values, **changed})


def _pixels(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as reader:
        return np.asarray(reader.series[0].asarray())


class _Killed(BaseException):
    """Ends a run as a kill does: nothing catches it but `finally`."""


def _killing(real: Callable[..., Any], at: int) -> Callable[..., Any]:
    calls = []

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise _Killed
        return real(*arguments, **named)

    return call


@pytest.mark.parametrize(
    ("place", "name", "at"),
    [
        ("pathup.sampling.states.FileStates", "commit", 1),  # before the overview has begun
        ("pathup.sampling.states.FileStates", "commit", 3),
        ("pathup.sampling.workspace.Workspace", "keep_overview", 1),
        ("pathup.sampling.states.FileStates", "commit", 7),  # 0 to 4 of the overview, then the canvas
        ("pathup.sampling.tissue.TissueDecoder", "measure", 1),
        ("pathup.sampling.workspace.Workspace", "keep_band", 2),
        ("pathup.sampling.large", "write_image", 1),
    ],
)
@pytest.mark.parametrize("scheduler", ["dpmpp_2m", "euler"])
def test_a_run_broken_anywhere_ends_with_the_same_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: str, at: int, scheduler: str
) -> None:
    whole, broken = tmp_path / "whole.ome.tiff", tmp_path / "broken.ome.tiff"
    generate(_request(model, whole, scheduler=scheduler))
    with monkeypatch.context() as patched:
        target: Any = place
        holder = {"large": large}.get(place.rpartition(".")[2])
        real = getattr(holder or _class(place), name)
        patched.setattr(f"{target}.{name}", _killing(real, at))
        with pytest.raises(_Killed):
            generate(_request(model, broken, scheduler=scheduler))
    assert not broken.exists()
    unfinished = broken.with_name(broken.name + UNFINISHED)
    if unfinished.exists():  # not where nothing worth keeping was done
        with pytest.raises(PathUpError, match=r"begun before and is unfinished .* --resume"):
            generate(_request(model, broken, scheduler=scheduler))
    report = generate(_request(model, broken, scheduler=scheduler, resume=True))
    assert report.kept == 0 and np.array_equal(_pixels(broken), _pixels(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.ome.tiff", "whole.ome.tiff"]


def _class(path: str) -> Any:
    from importlib import import_module

    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def test_a_finished_image_is_found_by_resume_and_another_is_not_taken_for_it(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.ome.tiff"
    generate(_request(model, out))
    before = out.stat().st_mtime_ns
    assert generate(_request(model, out, resume=True)).kept == 1
    assert out.stat().st_mtime_ns == before
    with pytest.raises(PathUpError, match="exists already; add --overwrite"):
        generate(_request(model, out, resume=True, seed=4))
    with pytest.raises(PathUpError, match="exists already; add --overwrite"):
        generate(_request(model, out))
    assert out.stat().st_mtime_ns == before
    generate(_request(model, out, seed=4, overwrite=True))
    assert (provenance_of(out) or {})["seed"] == 4


@pytest.mark.parametrize("ending", [".zst", ".npy"], ids=["a band", "the overview"])
def test_a_full_disk_is_one_sentence_and_what_was_done_is_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    out, replace = tmp_path / "a.ome.tiff", os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(ending):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(storage.os, "replace", full)
        with pytest.raises(PathUpError, match=r"the disk is full: .* --resume") as caught:
            generate(_request(model, out))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [out.name + UNFINISHED]  # nothing that looks finished
    generate(_request(model, out, resume=True))
    assert _pixels(out).shape == (1104, 64, 3)


def test_the_estimate_counts_exactly_what_the_run_takes_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    for windows in ("overlapped", "shifted"):
        request = _request(model, tmp_path / f"{windows}.ome.tiff", windows=windows)
        cost = estimate(request)
        assert list(tmp_path.glob(f"{windows}*")) == []
        report = generate(request)
        assert sum(cost.forwards.values()) == report.forwards
        assert cost.coverage == pytest.approx(report.coverage)
        assert cost.memory_bytes > 0 and cost.disk_bytes > cost.file_bytes > 0
        assert set(cost.seconds) == {"overview", "canvas", "decode"}


def test_a_preview_is_there_while_it_grows_and_kept_when_asked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "a.ome.tiff", []
    real = tissue.decode_band

    def watched(*arguments: Any, **named: Any) -> Any:
        seen.append((out.with_name(out.name + UNFINISHED) / "preview.png").is_file())
        return real(*arguments, **named)

    monkeypatch.setattr(tissue, "decode_band", watched)
    generate(_request(model, out, preview=tmp_path / "preview.png"))
    assert seen and all(seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ome.tiff", "preview.png"]


def _command(model: Path, out: Path, *more: str) -> list[str]:
    asked = ["--label", "A", "--size", "256x1200", "--steps", "6", "--seed", "3", "--windows", "shifted"]
    return ["generate", str(model), str(out), *asked, "--threads", "1", "--device", "cpu", *more]


def test_killed_five_times_in_a_real_process_and_resumed(model: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.ome.tiff", tmp_path / "broken.ome.tiff"
    run_pathup(*_command(model, whole))
    unfinished = broken.with_name(broken.name + UNFINISHED)
    steps_seen = ["overview/step_00002_*", "overview.npy", "canvas/step_00001_*", "canvas/step_00003_*"]
    steps_seen.append("bands/000000.zst")
    killed = 0
    for wanted in steps_seen:
        more = ["--resume"] if unfinished.exists() else []
        with PathUpProcess(*_command(model, broken, *more)) as process:
            killed += process.kill_once_there(unfinished, wanted)
    assert killed == 5 and not broken.exists()
    run_pathup(*_command(model, broken, "--resume"))
    assert np.array_equal(_pixels(broken), _pixels(whole))
    assert not unfinished.exists()


def test_two_processes_draw_the_same_image_as_one(model: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "pathup"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, *launch, *_command(model, two, "--window-batch", "7")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("1 image of 256 x 1200 px") == 1  # said once, not by each
    run_pathup(*_command(model, one))
    # 1e-4 of the range is a fortieth of a grey value: rounding may tip one, seldom
    difference = np.abs(read_image(one).astype(int) - read_image(two).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_two_processes_of_torchrun_share_the_tiles_of_a_folder(model: Path, tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pathup"]
    asked = ["--label", "all", "--level", "patch", "--count", "5", "--window-batch", "2", "--steps", "2", "--seed", "3"]
    line = ["generate", str(model), str(tmp_path / "two"), *asked, "--threads", "1", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, *launch, *line], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("10 images of") == 1
    run_pathup(*[str(tmp_path / "one") if part == str(tmp_path / "two") else part for part in line])
    names = sorted(path.name for path in (tmp_path / "one").glob("*.png"))
    assert names == sorted(path.name for path in (tmp_path / "two").glob("*.png")) and len(names) == 10
    assert all(np.array_equal(read_image(tmp_path / "one" / n), read_image(tmp_path / "two" / n)) for n in names)
    assert (tmp_path / "one/metadata.jsonl").read_text() == (tmp_path / "two/metadata.jsonl").read_text()
