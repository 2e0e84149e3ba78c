from __future__ import annotations

import json
from pathlib import Path

import pytest

from pathup.errors import PathUpError
from pathup.recipes import load_recipe
from pathup.slides.reader import RegionImage
from pathup.tiles import slide_sources
from pathup.tiles.sources import find_source
from pathup.tiles.splits import split_regions
from tests.tiles.made import class_tree, feature, rectangle, save, save_geojson, save_slide, save_table, tiny, tissue

BRACS = load_recipe("bracs")
DOT = tissue(4, 4)


def _bracs(root: Path) -> Path:
    """BRACS's published paths with tiny images."""
    for split, folder, name in (
        ("train", "0_N", "BRACS_1286_N_1"), ("train", "0_N", "BRACS_1286_N_2"), ("train", "6_IC", "BRACS_1377_IC_4"),
        ("val", "5_DCIS", "BRACS_1494_DCIS_1"), ("test", "3_FEA", "BRACS_745_FEA_2"),
    ):  # fmt: skip
        save(root / split / folder / f"{name}.png", DOT)
    return root


@pytest.mark.parametrize(
    "inside", ["", "latest_version", "BRACS_RoI/latest_version", "previous_version/Version1/Images"]
)
def test_bracs_tree_from_any_of_its_folders(tmp_path: Path, inside: str) -> None:
    _bracs(tmp_path / inside)
    source = find_source(tmp_path, BRACS)
    assert source.kind == "class folders"
    assert [(r.name, r.label, r.slide, r.patient, r.split) for r in source.regions] == [
        ("BRACS_1286_N_1", "N", "BRACS_1286", "BRACS_1286", "train"),
        ("BRACS_1286_N_2", "N", "BRACS_1286", "BRACS_1286", "train"),
        ("BRACS_1377_IC_4", "IC", "BRACS_1377", "BRACS_1377", "train"),
        ("BRACS_1494_DCIS_1", "DCIS", "BRACS_1494", "BRACS_1494", "val"),
        ("BRACS_745_FEA_2", "FEA", "BRACS_745", "BRACS_745", "test"),
    ]
    assert all(r.assume_mpp == BRACS.tiles.assume_mpp for r in source.regions)


def test_the_latest_version_is_taken_when_both_are_there(tmp_path: Path) -> None:
    _bracs(tmp_path / "latest_version")
    save(tmp_path / "previous_version" / "train" / "0_N" / "BRACS_1_N_1.png", DOT)
    assert len(find_source(tmp_path, BRACS).regions) == 5
    assert len(find_source(tmp_path / "previous_version", BRACS).regions) == 1


def test_two_trees_with_splits_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("one", "two"):
        _bracs(tmp_path / name)
    with pytest.raises(PathUpError, match="several trees with splits"):
        find_source(tmp_path, BRACS)


def test_patients_come_from_a_table(tmp_path: Path) -> None:
    _bracs(tmp_path / "data")
    rows = [{"Slide": s, "Patient": p} for s, p in (("BRACS_1286", "7"), ("1377", "7"), ("1494", "8"), ("745", "9"))]
    table = save_table(tmp_path / "patients.csv", rows)
    found = find_source(tmp_path / "data", BRACS, patients=table)
    assert {r.slide: r.patient for r in found.regions} == {
        "BRACS_1286": "7", "BRACS_1377": "7", "BRACS_1494": "8", "BRACS_745": "9",
    }  # fmt: skip
    save_table(table, rows[:2])
    with pytest.raises(PathUpError, match=r"no patient for slide 'BRACS_1494' \(2 slides"):
        find_source(tmp_path / "data", BRACS, patients=table)
    save_table(table, [*rows, {"Slide": "745", "Patient": "1"}])
    with pytest.raises(PathUpError, match="slide '745' two patients"):
        find_source(tmp_path / "data", BRACS, patients=table)
    save_table(table, [{"slide": "745", "who": "1"}])
    with pytest.raises(PathUpError, match="needs the columns slide and patient"):
        find_source(tmp_path / "data", BRACS, patients=table)


def test_class_folders_without_splits(tmp_path: Path) -> None:
    class_tree(tmp_path, count=2, side=8)
    (tmp_path / "1_B" / "notes.txt").write_text("not an image, passed over")
    (tmp_path / ".hidden").mkdir()
    found = find_source(tmp_path, tiny())
    assert [(r.name, r.label, r.split) for r in found.regions] == [
        ("case0_A", "A", None), ("case0_B", "B", None), ("case1_A", "A", None), ("case1_B", "B", None),
    ]  # fmt: skip


def test_images_beside_the_class_folders_are_told(tmp_path: Path) -> None:
    class_tree(tmp_path / "plain", count=1, side=8)
    for name in ("x.png", "y.tif"):
        save(tmp_path / "plain" / name, DOT)
    found = find_source(tmp_path / "plain", tiny())
    assert [r.name for r in found.regions] == ["case0_A", "case0_B"]
    (warning,) = found.warnings
    assert warning.startswith("2 image(s) directly in ") and "x.png" in warning and "into class folders" in warning
    root = _bracs(tmp_path / "splits" / "latest_version")
    for place in (root / "train", root.parent):
        save(place / "stray.png", DOT)
    told = find_source(root.parent, BRACS).warnings
    assert [w.split(" (")[0] for w in told] == [f"1 image(s) directly in {f}" for f in (root.parent, root / "train")]
    assert find_source(_bracs(tmp_path / "tidy"), BRACS).warnings == []


def test_a_recipe_assumes_a_scale_of_region_images_alone(tmp_path: Path) -> None:
    save(tmp_path / "t" / "A" / "region.png", DOT)
    save(tmp_path / "t" / "A" / "plain.tif", DOT)
    save_slide(tmp_path / "t" / "B" / "whole.tif", tissue(256, 256), mpp=None)
    rows = [{"file": f"{label}/{name}", "label": label} for label, name in (("A", "region.png"), ("B", "whole.tif"))]
    table = save_table(tmp_path / "t" / "t.csv", rows)
    assumed = {r.name: r.assume_mpp for r in find_source(tmp_path / "t", tiny()).regions}
    assert assumed == {"region": 0.5, "plain": 0.5, "whole": None}  # tiny's assume_mpp is 0.5
    assert [r.assume_mpp for r in find_source(table, tiny()).regions] == [0.5, None]
    for source in (tmp_path / "t", table):
        assert {r.assume_mpp for r in find_source(source, tiny(), mpp=0.3).regions} == {0.3}, "--mpp is for all"


@pytest.mark.parametrize("mpp", [float("nan"), float("inf"), 0.0, -0.5])
def test_a_scale_that_is_none(tmp_path: Path, mpp: float) -> None:
    with pytest.raises(PathUpError, match=r"--mpp is .*, but a positive number"):
        find_source(class_tree(tmp_path, count=1, side=8), tiny(), mpp=mpp)


def test_regions_of_one_file_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("A/one", "A/two", "B"):
        save(tmp_path / folder / "roi 1.png", DOT)
    save(tmp_path / "B" / "roi 1.jpg", DOT)
    names = [r.name for r in find_source(tmp_path, tiny()).regions]
    assert len(set(names)) == 4
    assert "A__one__roi-1" in names
    assert all(set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") for name in names)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["A", "C"], r"class in folder .*C: 'C' \(known: A, B"),
        (["train/A", "tests/A"], "unknown split folder 'tests'; did you mean 'test'"),
        ([], "holds no regions"),
    ],
)
def test_wrong_trees(tmp_path: Path, folders: list[str], said: str) -> None:
    for folder in folders:
        save(tmp_path / folder / "x.png", DOT)
    with pytest.raises(PathUpError, match=said):
        find_source(tmp_path, tiny())


def test_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(PathUpError, match="none does not exist"):
        find_source(tmp_path / "none", tiny())


def test_a_region_table(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png"):
        save(tmp_path / name, DOT)
    rows = [
        {"file": "a.png", "label": "A", "split": "train", "slide": "s1", "patient": "p1", "mpp": "0.25", "x": "10",
         "y": "20", "width": "4", "height": "4"},
        {"file": "sub/b.png", "label": "beta tissue", "split": "validation", "slide": "", "patient": "", "mpp": "",
         "x": "", "y": "", "width": "", "height": ""},
    ]  # fmt: skip
    a, b = find_source(save_table(tmp_path / "t.csv", rows), tiny()).regions
    assert (a.label, a.split, a.slide, a.patient, a.stated_mpp, a.box) == (
        "A",
        "train",
        "s1",
        "p1",
        0.25,
        (10, 20, 4, 4),
    )
    assert (b.label, b.split, b.slide, b.patient, b.stated_mpp, b.box) == ("B", "val", "b", "b", None, None)
    assert b.file.is_file()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"file": "none.png", "label": "A"}, "row 1: image .*none.png does not exist"),
        ({"file": "", "label": "A"}, "column 'file' is empty"),
        ({"file": "a.png", "label": "C"}, "class in .*row 1: 'C'"),
        ({"file": "a.png", "class": "A"}, r"no column 'label' \(found: file, class\)"),
        ({"file": "a.png", "label": "A", "split": "trian"}, "'trian'; did you mean 'train'"),
        ({"file": "a.png", "label": "A", "mpp": "fine"}, "'mpp' is 'fine', but a number"),
        ({"file": "a.png", "label": "A", "mpp": "-1"}, "must be positive"),
        ({"file": "a.png", "label": "A", "width": "4"}, "width and height must both"),
        ({"file": "a.png", "label": "A", "mpp": "nan"}, "'mpp' is 'nan', but a number"),
        ({"file": "a.png", "label": "A", "mpp": "inf"}, "'mpp' is 'inf', but a number"),
        ({"file": "a.png", "label": "A", "x": "1.5"}, "'x' is 1.5, but a whole number"),
        ({"file": "a.png", "label": "A", "width": "inf", "height": "4"}, "'width' is 'inf', but a number"),
    ],
)
def test_wrong_tables(tmp_path: Path, row: dict[str, str], said: str) -> None:
    save(tmp_path / "a.png", DOT)
    with pytest.raises(PathUpError, match=said):
        find_source(save_table(tmp_path / "t.csv", [row]), tiny())


def test_tables_that_repeat_or_hold_nothing(tmp_path: Path) -> None:
    save(tmp_path / "a.png", DOT)
    table = save_table(tmp_path / "t.csv", [{"file": "a.png", "label": "A"}] * 2)
    with pytest.raises(PathUpError, match="rows 1 and 2 are the same region"):
        find_source(table, tiny())
    table.write_text("file,label\n")
    with pytest.raises(PathUpError, match="holds no regions"):
        find_source(table, tiny())
    table.write_bytes(b"\xff\xfe\x00\x80 no text")
    with pytest.raises(PathUpError, match="not a readable CSV"):
        find_source(table, tiny())


def test_rectangles_of_one_file_that_overlap_are_one_cluster(tmp_path: Path) -> None:
    save(tmp_path / "a.png", DOT)
    save(tmp_path / "b.png", DOT)

    def cluster(*boxes: tuple[str, str, str]) -> list[int]:
        """Each row's cluster, by its first row; rows of (file, x, width), 4 px high."""
        rows = [
            {"file": f, "label": "A", "x": x, "y": "0", "width": w, "height": "4" if w else ""} for f, x, w in boxes
        ]
        found = find_source(save_table(tmp_path / "t.csv", rows), tiny())
        of_box = {(r.file.name, r.box): found.joined[r.name] for r in found.regions}
        names = [of_box[f, (int(x), 0, int(w), 4) if w else None] for f, x, w in boxes]
        return [names.index(name) for name in names]

    assert cluster(("a.png", "0", "10"), ("a.png", "9", "10"), ("a.png", "18", "10")) == [0, 0, 0]
    assert cluster(("a.png", "0", "10"), ("a.png", "10", "10")) == [0, 1], "they touch, and share no pixel"
    assert cluster(("a.png", "0", "10"), ("b.png", "0", "10")) == [0, 1], "two files"
    assert cluster(("a.png", "0", "10"), ("a.png", "50", "10"), ("a.png", "", "")) == [0, 0, 0], "the last is all of it"


def test_crops_of_one_slide_that_overlap_there_are_one_cluster_and_one_split(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png", tissue(40, 40, seed=ord(name)))
    places = {"a.png": 100, "b.png": 130, "c.png": 140}  # a and b share 10 px on the slide, b and c 30; not a and c

    def table(**splits: str) -> Path:
        rows = [
            {
                "file": f, "label": "A", "slide": "s", "x": str(x), "y": "7", "width": "40", "height": "40",
                "split": splits.get(f[0], ""),
            }
            for f, x in places.items()
        ]  # fmt: skip
        return save_table(tmp_path / "t.csv", rows)

    found = find_source(table(), tiny())
    assert len(set(found.joined.values())) == 1
    found = find_source(table(a="train", b="train", c="test"), tiny())
    with pytest.raises(PathUpError, match=r"a\.png \(train\) and c\.png \(test\) overlap on slide 's', or are joined"):
        split_regions(found.regions, tiny(), found.joined)


def test_annotations_are_not_for_a_table(tmp_path: Path) -> None:
    save(tmp_path / "a.png", DOT)
    table = save_table(tmp_path / "t.csv", [{"file": "a.png", "label": "A"}])
    with pytest.raises(PathUpError, match=r"--annotations was given, but .* is a region table"):
        find_source(table, tiny(), annotations=tmp_path)


def test_annotations_may_end_in_json(tmp_path: Path) -> None:
    save_slide(tmp_path / "s.tif", tissue(256, 256), mpp=0.5)
    save_geojson(tmp_path / "s.json", feature("A", rectangle(0, 0, 99, 99)))
    assert find_source(tmp_path, tiny()).kind == "slides"
    assert [r.name for r in find_source(tmp_path, tiny()).regions] == ["s_1"]


@pytest.fixture
def dicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `case1` of three DICOM files that open as one slide (no real one is at hand)."""
    picture = save(tmp_path / "picture.png", tissue(256, 256))
    folder = tmp_path / "root" / "case1"
    folder.mkdir(parents=True)
    for name in ("a.dcm", "b.dcm", "label.dcm"):
        (folder / name).write_bytes(name.encode())
    series = {"a.dcm": "1.2", "b.dcm": "1.2", "k.dcm": "1.3"}
    monkeypatch.setattr(slide_sources, "slide_identity", lambda path: series.get(path.name))
    monkeypatch.setattr(slide_sources, "open_slide", lambda *_: RegionImage(picture, 0.5))
    return folder


@pytest.mark.parametrize("place", ["case1.geojson", "case1.json", "case1/case1.geojson", "case1/drawn.geojson"])
@pytest.mark.parametrize("source", ["", "case1"])
def test_a_folder_of_dicom_files_is_one_slide(
    dicom: Path, monkeypatch: pytest.MonkeyPatch, source: str, place: str
) -> None:
    root = dicom.parent
    with pytest.raises(PathUpError, match=rf"no annotations: .*{root}/case1\.geojson"):
        find_source(root / source, tiny())
    save_geojson(root / place, feature("A", rectangle(0, 0, 99, 99)))
    (region,) = find_source(root / source, tiny()).regions
    assert (region.name, region.slide, region.file) == ("case1_1", "case1", dicom / "a.dcm")
    if source:
        monkeypatch.chdir(dicom)
        assert [r.name for r in find_source(Path(), tiny()).regions] == ["case1_1"], "named as its folder even from it"


def test_two_dicom_slides_in_a_folder_are_refused(dicom: Path) -> None:
    save_geojson(dicom / "case1.geojson", feature("A", rectangle(0, 0, 99, 99)))
    (dicom / "k.dcm").write_bytes(b"another slide's")
    with pytest.raises(PathUpError, match=r"several DICOM slides \(a.dcm and k.dcm .* a folder of its own"):
        find_source(dicom, tiny())


def test_slides_with_annotations_beside_them_or_in_a_folder(tmp_path: Path) -> None:
    slides, notes = tmp_path / "slides", tmp_path / "notes"
    notes.mkdir()
    for name in ("one", "two"):
        save_slide(slides / f"{name}.tif", tissue(256, 256), mpp=0.5)
        save_geojson(
            notes / f"{name}.geojson",
            feature("A", rectangle(0, 0, 99, 99)),
            feature("B", rectangle(150, 150, 250, 250)),
        )
    with pytest.raises(PathUpError, match=r"no annotations: put a QuPath export \(one.geojson\)"):
        find_source(slides, tiny())
    by_folder = find_source(slides, tiny(), annotations=notes)
    assert [(r.name, r.label, r.slide, r.box) for r in by_folder.regions] == [
        ("one_1", "A", "one", (0, 0, 99, 99)), ("one_2", "B", "one", (150, 150, 100, 100)),
        ("two_1", "A", "two", (0, 0, 99, 99)), ("two_2", "B", "two", (150, 150, 100, 100)),
    ]  # fmt: skip
    one = find_source(slides / "one.tif", tiny(), annotations=notes / "one.geojson")
    assert [r.name for r in one.regions] == ["one_1", "one_2"]
    with pytest.raises(PathUpError, match=r"one file, but .* holds 2 slides"):
        find_source(slides, tiny(), annotations=notes / "one.geojson")
    for path in notes.iterdir():
        path.rename(slides / path.name)
    assert find_source(slides, tiny()).regions == by_folder.regions
    (slides / "two.geojson").unlink()
    with pytest.raises(PathUpError, match=r"two.tif has no annotations"):
        find_source(slides, tiny())
    with pytest.raises(PathUpError, match=r"annotations .*none do not exist"):
        find_source(slides, tiny(), annotations=tmp_path / "none")


def test_a_slide_without_a_scale_is_refused_even_under_a_recipe_that_assumes_one_for_region_images(
    tmp_path: Path,
) -> None:
    slide = save_slide(tmp_path / "s.tif", tissue(256, 256), mpp=None)
    save_geojson(tmp_path / "s.geojson", feature("A", rectangle(0, 0, 99, 99)))
    assert tiny().tiles.assume_mpp is not None
    with pytest.raises(PathUpError, match="records no micrometres per pixel"):
        find_source(slide, tiny())
    assert find_source(slide, tiny(), mpp=0.5).regions[0].assume_mpp == 0.5


def test_annotations_whose_tiles_could_share_tissue_are_one_cluster(tmp_path: Path) -> None:
    slide = save_slide(tmp_path / "s.tif", tissue(768, 256), mpp=0.5)
    # tiny's overview field is 128 px with min_inside 0.5, so a tile reaches 64 px out of its annotation
    save_geojson(
        tmp_path / "s.geojson",
        feature("A", rectangle(0, 0, 100, 100)),
        feature("B", rectangle(220, 0, 320, 100)),
        feature("A", rectangle(460, 0, 560, 100)),
    )
    joined = find_source(slide, tiny()).joined
    assert joined["s_1"] == joined["s_2"], "120 px apart, less than twice 64"
    assert joined["s_3"] != joined["s_1"], "140 px apart"


def test_geojson_beside_but_no_slides(tmp_path: Path) -> None:
    (tmp_path / "s.geojson").write_text(json.dumps([]))
    with pytest.raises(PathUpError, match="annotations but no slides"):
        find_source(tmp_path, tiny())
