from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from PIL import Image

from pathup import storage
from pathup.errors import PathUpError
from pathup.recipes import load_recipe
from pathup.slides.reader import RESIZE_FILTER
from pathup.storage import sha256_file
from pathup.tiles import cutting, making
from pathup.tiles.making import make_tiles
from pathup.tiles.provenance import read_sources
from tests.tiles.made import (
    SHARED,
    all_rows,
    class_tree,
    contents,
    feature,
    needs_slides,
    rectangle,
    rows_of,
    save,
    save_geojson,
    save_slide,
    save_table,
    structured,
    tiny,
    tissue,
)

KEYS = ["file_name", "text", "label", "level", "patient", "slide", "region", "x", "y", "mpp", "source_sha256"]


def test_what_is_written(tmp_path: Path) -> None:
    source, out = class_tree(tmp_path / "source", count=4), tmp_path / "out"
    summary = make_tiles(source, out, tiny())
    assert sorted(p.name for p in out.iterdir()) == [
        "pathup.run.json", "recipe.yaml", "summary.json", "test", "train", "val",
    ]  # fmt: skip
    assert load_recipe(out / "recipe.yaml") == tiny()
    assert json.loads((out / "summary.json").read_text()) == summary
    rows = all_rows(out)
    assert Counter((r["split"], r["level"], r["label"]) for r in rows) == {
        (s, v, c): n
        for s, levels in summary["tiles"].items()
        for v, counts in levels.items()
        for c, n in counts.items()
    }
    regions = {p.stem: p for p in source.rglob("*.png")}
    for row in rows:
        assert list(row) == [*KEYS, "split"]
        assert row["file_name"] == f"{row['level']}/{row['label']}/{row['region']}_{row['x']}_{row['y']}.png"
        assert row["source_sha256"] == sha256_file(regions[row["region"]])
        assert row["text"] == f"histopathology of {'alpha' if row['label'] == 'A' else 'beta'} tissue, " + (
            "overall" if row["level"] == "overview" else "patch"
        )
    images = {p.relative_to(out).as_posix() for p in out.rglob("*.png")}
    assert images == {f"{r['split']}/{r['file_name']}" for r in rows}, (
        "every image is listed, and nothing else is there"
    )
    for split in ("train", "val", "test"):
        found = {s.region: s for s in read_sources(out / split) or []}
        assert set(found) == {r["region"] for r in rows if r["split"] == split}
        for row in (r for r in rows if r["split"] == split):
            own = found[row["region"]]
            assert (own.label, own.slide, own.patient, own.sha256) == (
                row["label"], row["slide"], row["patient"], row["source_sha256"],
            )  # fmt: skip
            assert own.area == (0, 0, *Image.open(regions[row["region"]]).size)


def test_tiles_are_the_sources_pixels(tmp_path: Path) -> None:
    source, out = class_tree(tmp_path / "source"), tmp_path / "out"
    make_tiles(source, out, tiny())
    regions = {p.stem: np.asarray(Image.open(p)) for p in source.rglob("*.png")}
    for row in all_rows(out):
        side = 128 if row["level"] == "overview" else 32
        part = Image.fromarray(regions[row["region"]][row["y"] : row["y"] + side, row["x"] : row["x"] + side])
        tile = np.asarray(Image.open(out / row["split"] / row["file_name"]))
        assert np.array_equal(tile, np.asarray(part if side == 32 else part.resize((32, 32), RESIZE_FILTER)))


def test_datasets_imagefolder_reads_it_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "out"
    make_tiles(class_tree(tmp_path / "source"), out, tiny())
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))
    for name, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        rows = rows_of(out, split)
        assert len(loaded[name]) == len(rows) > 0
        by_place = {(r["region"], r["level"], r["x"], r["y"]): r for r in rows}
        for item in loaded[name]:
            row = by_place[item["region"], item["level"], item["x"], item["y"]]
            assert item["text"] == row["text"]
            assert np.array_equal(np.asarray(item["image"]), np.asarray(Image.open(out / split / row["file_name"])))


def test_the_same_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    source = class_tree(tmp_path / "source")
    make_tiles(source, tmp_path / "one", tiny())
    make_tiles(source, tmp_path / "three", tiny(), workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_a_classs_allowance_is_drawn_from_all_of_its_tiles(tmp_path: Path) -> None:
    source = class_tree(tmp_path / "source", count=6)
    levels = [level.model_dump() for level in tiny().tiles.levels]
    levels[1]["max_per_class"] = 20

    def kept(seed: int) -> list[dict[str, Any]]:
        out = tmp_path / f"out{seed}"
        summary = make_tiles(source, out, tiny(levels=levels, seed=seed))
        # 6 regions of 25 patches a class: 4 regions in train, 1 in val, 1 in test, each cut down to 20
        assert summary["left_out"]["patch"]["more than max_per_class"] == 2 * (100 - 20 + 2 * (25 - 20))
        return [r for r in rows_of(out, "train") if r["level"] == "patch"]

    rows = kept(0)
    assert Counter(r["label"] for r in rows) == {"A": 20, "B": 20}
    assert len({r["region"] for r in rows}) >= 6, (
        "not the first that came: 20 of 100 fall on nearly all 4 regions a class"
    )
    assert {r["file_name"] for r in rows} != {r["file_name"] for r in kept(1)}


def test_a_sources_own_splits_are_kept(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        save(tmp_path / "source" / split / "0_A" / f"{split}1.png", tissue(64, 64, seed))
    make_tiles(tmp_path / "source", tmp_path / "out", tiny())
    assert {(r["region"], r["split"]) for r in all_rows(tmp_path / "out")} == {
        (f"{s}1", s) for s in ("train", "val", "test")
    }


@pytest.mark.parametrize("names", [("case1", "case1"), ("case1", "another")])
def test_the_same_tissue_in_two_splits_is_refused_whatever_it_is_called(tmp_path: Path, names: tuple[str, str]) -> None:
    for split, name in zip(("train", "test"), names, strict=True):
        save(tmp_path / "source" / split / "A" / f"{name}.png", tissue(64, 64))
    with pytest.raises(PathUpError, match="hold the same tissue") as raised:
        make_tiles(tmp_path / "source", tmp_path / "out", tiny(split_by="region"))
    assert all(f"{s}/A/{n}.png" in str(raised.value) for s, n in zip(("train", "test"), names, strict=True))
    assert not (tmp_path / "out").exists()


def test_the_same_tissue_saved_anew_in_another_split_is_refused(tmp_path: Path) -> None:
    image = structured(seed=0)
    save(tmp_path / "source" / "train" / "A" / "known.png", np.asarray(image))
    folder = tmp_path / "source" / "test" / "A"
    folder.mkdir(parents=True)
    image.resize((400, 400)).save(folder / "another.jpg", quality=70)
    with pytest.raises(PathUpError, match=r"'known' \(split 'train'\) and region 'another' \(split 'test'\)"):
        make_tiles(tmp_path / "source", tmp_path / "out", tiny(split_by="region"))
    assert not (tmp_path / "out").exists()


def test_overlapping_rectangles_of_a_table_land_in_one_split(tmp_path: Path) -> None:
    save_slide(tmp_path / "s.tif", tissue(512, 64), mpp=0.5)
    rows = [
        {"file": "s.tif", "label": "A", "x": x, "y": 0, "width": 64, "height": 64}
        for x in (0, 32, 64, 200, 264, 300, 400)
    ]
    make_tiles(save_table(tmp_path / "t.csv", rows), tmp_path / "out", tiny(split_by="region"))
    split_of: dict[int, str] = {}
    for row in all_rows(tmp_path / "out"):
        for x in range(row["x"], row["x"] + 32):
            assert split_of.setdefault(x, row["split"]) == row["split"], "no column of pixels is in two splits"
    assert len(set(split_of.values())) == 3, "there are four clusters to deal out"


def test_a_slide_is_hashed_once_for_all_its_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = save_slide(tmp_path / "s.tif", tissue(512, 128), mpp=0.5)
    places = [rectangle(160 * i, 0, 160 * i + 120, 120) for i in range(3)]
    save_geojson(tmp_path / "s.geojson", *(feature("A", place) for place in places))
    hashed: list[Path] = []
    monkeypatch.setattr(cutting, "source_sha256", lambda path: hashed.append(path) or sha256_file(path))
    make_tiles(slide, tmp_path / "out", tiny())
    assert hashed == [slide]
    rows = all_rows(tmp_path / "out")
    assert len({row["region"] for row in rows}) == 3
    assert {row["source_sha256"] for row in rows} == {sha256_file(slide)}


def _stop_after(monkeypatch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    real, count = getattr(making, name), Counter[str]()

    def stopping(*args: Any) -> Any:
        count["calls"] += 1
        if count["calls"] > calls:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(making, name, stopping)


@pytest.mark.parametrize("where", ["_scan_one", "_cut_one"])
def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    source, out = class_tree(tmp_path / "source"), tmp_path / "out"
    make_tiles(source, tmp_path / "straight", tiny())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _stop_after(patch, where, 4)
        make_tiles(source, out, tiny())
    assert not list(out.rglob("metadata.jsonl")), "nothing looks finished"
    with pytest.raises(PathUpError, match="add --resume"):
        make_tiles(source, out, tiny())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _stop_after(patch, where, 2)  # had it begun again, 2 of 6 would not be enough
        _stop_after(patch, "_finish", 0)
        make_tiles(source, out, tiny(), resume=True)
    make_tiles(source, out, tiny(), resume=True)
    assert contents(out) == contents(tmp_path / "straight")


def test_kill_9_at_any_moment_then_resume_gives_the_same_bytes(tmp_path: Path) -> None:
    source, out = class_tree(tmp_path / "source", count=4, side=400), tmp_path / "out"
    make_tiles(source, tmp_path / "straight", tiny())
    command = [
        sys.executable,
        "-m",
        "pathup",
        "tiles",
        str(source),
        str(out),
        "--recipe",
        "tiny",
        "--resume",
        "--workers",
        "2",
    ]
    killed = 0
    for pause in (0.0, 0.15, 0.4, 0.8):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        begun = time.monotonic()
        while process.poll() is None and not out.exists() and time.monotonic() - begun < 60:
            time.sleep(0.01)
        time.sleep(pause)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)  # the parent alone: its workers must notice and end
            killed += 1
            assert not (out / "summary.json").exists() or rows_of(out, "train")
        process.wait()
        assert _ended(process.pid), "no worker writes on behind the next run"
    assert killed >= 2, "the run was too quick for this test to mean anything"
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert contents(out) == contents(tmp_path / "straight")


def _ended(session: int) -> bool:
    """Whether every process of a session ends within 10 seconds."""
    for _ in range(200):
        alive = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            if int(of) == session and state != "Z":
                alive.append(stat.parent.name)
        if not alive:
            return True
        time.sleep(0.05)
    return False


def test_a_finished_run_is_found_finished(tmp_path: Path) -> None:
    source, out = class_tree(tmp_path / "source"), tmp_path / "out"
    summary = make_tiles(source, out, tiny())
    before = contents(out)
    assert make_tiles(source, out, tiny(), resume=True) == summary
    assert contents(out) == before


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    source, out = class_tree(tmp_path / "source"), tmp_path / "out"
    make_tiles(source, out, tiny())
    before = contents(out)
    for resume in (False, True):
        with pytest.raises(PathUpError, match=r"holds another run .*recipe"):
            make_tiles(source, out, tiny(seed=1), resume=resume)
    save(source / "0_A" / "new.png", tissue(64, 64))
    with pytest.raises(PathUpError, match=r"holds another run .*source"):
        make_tiles(source, out, tiny(), resume=True)
    assert contents(out) == before
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(PathUpError, match="not empty and was not made by"):
        make_tiles(source, other, tiny(), resume=True)
    assert contents(other) == {"thesis.txt": b"precious"}


def test_a_source_changed_between_stop_and_resume_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = class_tree(tmp_path / "source"), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _stop_after(patch, "_cut_one", 1)
        make_tiles(source, out, tiny())
    os.utime(source / "0_A" / "case0_A.png", ns=(1, 1))
    with pytest.raises(PathUpError, match=r"case0_A.png has changed since"):
        make_tiles(source, out, tiny(), resume=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_image_leaves_nothing_behind_and_its_repair_works(tmp_path: Path, workers: int) -> None:
    source, out = class_tree(tmp_path / "source"), tmp_path / "out"
    victim = source / "1_B" / "case1_B.png"
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PathUpError, match=r"case1_B.png is truncated or damaged"):
        make_tiles(source, out, tiny(), workers=workers)
    assert not out.exists()
    victim.write_bytes(whole)
    assert make_tiles(source, out, tiny(), workers=workers)["tiles"]["train"]["patch"]["B"] > 0


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = class_tree(tmp_path / "source"), tmp_path / "out"
    make_tiles(source, tmp_path / "straight", tiny())
    real, count = cutting._write_tile, Counter[str]()

    def full(pixels: Any, name: Path) -> None:
        count["tiles"] += 1
        if count["tiles"] > 9:
            raise storage.disk_error(OSError(errno.ENOSPC, "full"), name)
        real(pixels, name)

    with monkeypatch.context() as patch, pytest.raises(PathUpError, match="the disk is full"):
        patch.setattr(cutting, "_write_tile", full)
        make_tiles(source, out, tiny())
    notes = len(list((out / ".work").glob("*.scan.json")))
    assert notes  # the first regions' tiles lie beside them
    with monkeypatch.context() as patch:
        looked = Counter[str]()
        scan = making._scan_one
        patch.setattr(making, "_scan_one", lambda *job: (looked.update(["at"]), scan(*job))[1])
        make_tiles(source, out, tiny(), resume=True)
    assert looked["at"] == len(list(source.rglob("*.png"))) - notes
    assert contents(out) == contents(tmp_path / "straight")


def test_a_region_is_decoded_once_where_no_level_has_an_allowance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = class_tree(tmp_path / "source")
    recipe = tiny(levels=[{**level.model_dump(), "max_per_class": None} for level in tiny().tiles.levels])
    opened, real = Counter[str](), cutting.open_slide

    def counted(file: Path, *arguments: Any) -> Any:
        opened[file.name] += 1
        return real(file, *arguments)

    monkeypatch.setattr(cutting, "open_slide", counted)
    make_tiles(source, tmp_path / "out", recipe)
    assert len(opened) == len(list(source.rglob("*.png"))) and set(opened.values()) == {1}


def test_a_fault_of_ours_leaves_nothing_behind_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = class_tree(tmp_path / "source", count=1), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(TypeError, match="Missing dimensions"):
        patch.setattr(cutting, "tissue_fraction", lambda _: (_ for _ in ()).throw(TypeError("Missing dimensions")))
        make_tiles(source, out, tiny())
    assert not out.exists()


def test_no_tissue_anywhere_is_told_with_the_reasons(tmp_path: Path) -> None:
    save(tmp_path / "source" / "A" / "r.png", np.full((64, 64, 3), 244, np.uint8))
    with pytest.raises(
        PathUpError, match=r"gives no tiles \(overview: 1 region smaller than a field; patch: 4 background\)"
    ):
        make_tiles(tmp_path / "source", tmp_path / "out", tiny())
    assert not (tmp_path / "out").exists()


def test_mixed_scales_in_one_table_give_one_physical_size(tmp_path: Path) -> None:
    coarse = tissue(160, 160)
    save(tmp_path / "c.png", coarse)
    save(tmp_path / "f.png", np.repeat(np.repeat(coarse, 2, axis=0), 2, axis=1))
    rows = [
        {"file": "c.png", "label": "A", "mpp": 0.5, "split": "train"},
        {"file": "f.png", "label": "A", "mpp": 0.25, "split": "train"},
    ]
    levels = [level.model_dump() | {"max_per_class": None} for level in tiny().tiles.levels]
    make_tiles(save_table(tmp_path / "t.csv", rows), tmp_path / "out", tiny(levels=levels))
    places: dict[str, set] = {"c": set(), "f": set()}
    for row in rows_of(tmp_path / "out", "train"):
        scale = 1 if row["region"] == "c" else 2
        places[row["region"]].add((row["level"], row["x"] / scale, row["y"] / scale, row["mpp"]))
    assert places["f"] == places["c"]


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = class_tree(tmp_path / "source"), tmp_path / "out"
    real, written = Path.write_bytes, Counter[str]()

    def filling(path: Path, content: bytes) -> int:
        written["files"] += 1
        if written["files"] > 20:
            real(path, content[: len(content) // 2])  # a full disk takes part of a file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, content)

    with monkeypatch.context() as patch, pytest.raises(PathUpError, match=r"the disk is full: .* could not be written"):
        patch.setattr(cutting.Path, "write_bytes", filling)
        make_tiles(source, out, tiny())
    assert not list(out.rglob("metadata.jsonl"))
    assert not (out / "summary.json").exists()
    for tile in out.rglob("*.png"):
        Image.open(tile).load()
    make_tiles(source, out, tiny(), resume=True)
    make_tiles(source, tmp_path / "straight", tiny())
    assert contents(out) == contents(tmp_path / "straight")


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(tmp_path: Path, small_disk: Path) -> None:
    source, out = class_tree(tmp_path / "source"), small_disk / "out"
    result = subprocess.run(
        [sys.executable, "-m", "pathup", "tiles", str(source), str(out), "--recipe", "tiny", "--workers", "2"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("pathup: the disk is full: ")
    assert "Traceback" not in result.stderr
    assert not list(out.rglob("metadata.jsonl"))


@needs_slides
def test_real_slides_give_openslides_own_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("CMU-1-Small-Region.svs", "endometrial-polyp.tif"):
        (folder / name).symlink_to(SHARED / "data" / "slides" / name)
    save_geojson(folder / "CMU-1-Small-Region.geojson", feature("keloid scar", rectangle(100, 1600, 1900, 2900)))
    holed = feature("POL", rectangle(500, 500, 3500, 3000), rectangle(1500, 1500, 2500, 2500))
    save_geojson(folder / "endometrial-polyp.geojson", holed, feature("TA", rectangle(5000, 5000, 6100, 6000)))
    summary = make_tiles(folder, tmp_path / "out", load_recipe("atlas"))
    assert {label for label, n in summary["tiles"]["train"]["overview"].items() if n} == {"KEL", "POL", "TA"}
    rows = all_rows(tmp_path / "out")
    assert len(rows) > 200
    for name in ("CMU-1-Small-Region.svs", "endometrial-polyp.tif"):
        with openslide.OpenSlide(folder / name) as slide:
            for row in (r for r in rows if r["slide"] == Path(name).stem):
                side = round(row["mpp"] * 128 / float(slide.properties["openslide.mpp-x"]))
                level = slide.get_best_level_for_downsample(side / 128 * 1.001)
                read = round(side / slide.level_downsamples[level])
                expected = slide.read_region((row["x"], row["y"]), level, (read, read)).convert("RGB")
                if read != 128:
                    expected = expected.resize((128, 128), RESIZE_FILTER)
                tile = np.asarray(Image.open(tmp_path / "out" / row["split"] / row["file_name"]))
                assert np.array_equal(tile, np.asarray(expected)), row
    in_hole = [
        r
        for r in rows
        if r["label"] == "POL" and r["level"] == "patch" and 1500 < r["x"] < 2372 and 1500 < r["y"] < 2372
    ]
    assert not in_hole, "fields wholly inside the annotation's hole are left out"
