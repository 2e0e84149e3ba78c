from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from pathup.errors import PathUpError
from pathup.sampling import single_tiles
from pathup.sampling.runs import GenerateReport, GenerateRequest, generate
from pathup.sampling.shards import is_whole
from tests.processes import PathUpProcess, run_pathup


def _run(model: Path, out: Path, **changed: Any) -> GenerateReport:
    asked: dict[str, Any] = {
        "label": "all", "level": "patch", "count": 7, "seed": 2, "steps": 2, "window_batch": 3, "shard_size": 6,
        "threads": 1, "device": "cpu",
    }  # fmt: skip
    return generate(GenerateRequest(model=model, out=out, **{**asked, **changed}))


def _shards(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.tar"))}


def _rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def test_shards_open_with_webdataset_and_hold_what_a_folder_does(model: Path, tmp_path: Path) -> None:
    shards, folder = tmp_path / "shards", tmp_path / "folder"
    report = _run(model, shards)
    _run(model, folder, shard_size=None)
    # 7 of each of two labels in batches of 3, 3, 1; a shard takes batches up to 6 tiles
    names = [f"shard-{number:06d}.tar" for number in range(3)]
    assert [path.name for path in report.files] == [*names, "metadata.jsonl"] and report.images == 14
    assert {path.name for path in shards.iterdir()} == {
        *names,
        "metadata.jsonl",
        "pathup.run.json",
        "pathup.batch.json",
    }
    opened = webdataset.WebDataset([str(shards / name) for name in names], shardshuffle=False).decode("pil")
    samples = list(opened)
    assert [sample["__key__"] for sample in samples] == [f"{label}_{i:04d}" for label in "AB" for i in range(7)]
    for sample, row in zip(samples, _rows(shards), strict=True):
        with Image.open(folder / row["file_name"]) as image:
            assert np.array_equal(np.asarray(sample["png"]), np.asarray(image))
        assert sample["json"] == row and sample["txt"] == row["text"]
    without = [{key: value for key, value in row.items() if key != "shard"} for row in _rows(shards)]
    assert without == _rows(folder)


def test_equal_runs_make_equal_shards_and_a_whole_one_is_kept(model: Path, tmp_path: Path) -> None:
    _run(model, tmp_path / "one")
    _run(model, tmp_path / "two")
    before = _shards(tmp_path / "two")
    assert _shards(tmp_path / "one") == before
    first, second, _ = sorted((tmp_path / "two").glob("*.tar"))
    first.write_bytes(first.read_bytes()[:-5000])  # cut short by somebody
    second.unlink()
    report = _run(model, tmp_path / "two", resume=True)
    assert _shards(tmp_path / "two") == before and report.kept == 14 - 6 - 4
    with pytest.raises(PathUpError, match=r"another run .* count"):  # where a tile lies depends on how many there are
        _run(model, tmp_path / "two", count=8, resume=True)
    with pytest.raises(PathUpError, match="begun with 3 tiles at once"):
        _run(model, tmp_path / "two", window_batch=2, resume=True)


def test_a_failed_write_keeps_what_was_drawn(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real = tmp_path / "out", single_tiles.write_image

    def full(target: Any, *arguments: Any, **named: Any) -> None:
        if target.path.name == "B_0001.png":
            raise PathUpError("the disk is full")
        real(target, *arguments, **named)

    monkeypatch.setattr(single_tiles, "write_image", full)
    with pytest.raises(PathUpError, match="the disk is full"):
        _run(model, out)
    assert [path.name for path in out.glob("*.tar")] == ["shard-000000.tar"]
    monkeypatch.undo()
    report = _run(model, out, resume=True)
    assert report.kept >= 6 + 2  # the shard, and what was written beside the tile that was not
    _run(model, tmp_path / "whole")
    assert _shards(out) == _shards(tmp_path / "whole")


def test_a_shard_is_whole_when_all_its_samples_are_there(tmp_path: Path) -> None:
    shard, rows = tmp_path / "shard-000000.tar", [{"file_name": "a.png"}]
    assert not is_whole(shard, rows)
    shard.write_bytes(b"no tar file")
    assert not is_whole(shard, rows)
    with tarfile.open(shard, "w") as tar:
        tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    assert is_whole(shard, rows) and not is_whole(shard, [*rows, {"file_name": "b.png"}])


@pytest.mark.parametrize("shard_size", [None, 8])
def test_a_run_killed_three_times_ends_with_every_tile_once_as_an_unbroken_one(
    model: Path, tmp_path: Path, shard_size: int | None
) -> None:
    def command(out: Path, *more: str) -> list[object]:
        line = ["generate", model, out, "--label", "all", "--level", "patch", "--count", "12", "--window-batch", "2"]
        line += ["--steps", "30", "--threads", "1", "--device", "cpu", *more]
        return line + (["--shard-size", str(shard_size)] if shard_size else [])

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_pathup(*command(whole))
    # within the first batches, in the middle, and near the end, where shards are already packed
    waits = ["A_0001.png", "B_0000.png", "B_0007.png"]
    if shard_size:
        waits = ["shard-000000.unfinished/A_0001.png", "shard-000001.tar", "shard-000002.unfinished/B_0007.png"]
    killed = 0
    for number, wait in enumerate(waits):
        with PathUpProcess(*command(broken, *(["--resume"] if number else []))) as process:
            killed += process.kill_once_there(broken, wait)
    assert killed == 3 and not (broken / "metadata.jsonl").exists()
    run_pathup(*command(broken, "--resume"))
    files = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file() and path.suffix != ".lock"}
    assert {path.name: path.read_bytes() for path in broken.iterdir() if path.suffix != ".lock"} == files
    keys = [(row["label"], row["index"]) for row in _rows(broken)]
    assert keys == [(label, index) for label in "AB" for index in range(12)]


def test_shards_are_of_single_tiles(tmp_path: Path) -> None:
    with pytest.raises(PathUpError, match="--level was needed"):
        GenerateRequest(model=tmp_path, out=tmp_path, label="A", shard_size=10)
    with pytest.raises(PathUpError, match="at least 1 tile a shard"):
        GenerateRequest(model=tmp_path, out=tmp_path, label="A", level="patch", shard_size=0)
