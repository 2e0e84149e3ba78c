from __future__ import annotations

import stat

import pytest

from pathup import storage
from pathup.errors import PathUpError
from pathup.study.folder import ADMINISTRATOR, StudyFolder, StudyRequest, new_study
from tests.study.made import made_study, two_arms


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> StudyFolder:
    return made_study(tmp_path_factory.mktemp("made"))


def test_a_study_has_as_many_images_of_every_class_and_arm(study):
    cells = [(image.label, image.synthetic) for image in study.images]
    assert {cell: cells.count(cell) for cell in cells} == {
        ("A", False): 3, ("A", True): 3, ("B", False): 3, ("B", True): 3
    }  # fmt: skip
    assert sorted(image.synthetic for image in study.practice) == [False, True]
    assert not {image.sha256 for image in study.practice} & {image.sha256 for image in study.images}
    assert len(study.orders) == 2 and study.orders[0] != study.orders[1]
    assert study.count("study") == 12 + 2  # a fifth of 12 twice, rounded
    assert study.count("practice") == 2


def test_what_a_reader_may_know_names_no_arm(study):
    told = (study.path / "study.json").read_text()
    assert "synthetic" not in told.lower() and "real" not in told.lower()
    for image in (*study.images, *study.practice):
        assert image.source not in told
    assert len({file.stat().st_size for file in study.path.glob("*/*.jpg")}) == 1
    names = sorted(file.name for file in (study.path / "images").iterdir())
    assert names == [f"{number:04d}.jpg" for number in range(12)]


def test_names_are_in_no_order_that_tells_the_arm(tmp_path):
    arms = {tuple(image.synthetic for image in made_study(tmp_path / str(seed), seed=seed).images) for seed in range(3)}
    assert len(arms) == 3


def test_key_and_links_are_for_the_server_alone(study):
    assert stat.S_IMODE(study.path.stat().st_mode) == 0o700
    links = study.links()
    assert sorted(links.values()) == [ADMINISTRATOR, 0, 1]
    assert all(len(link) == 32 for link in links)  # 24 bytes of chance
    for link, whose in links.items():
        assert study.owner(link) == whose
        assert study.owner(link[:-1]) is None and study.owner(link.swapcase()) is None
    assert study.owner("") is None and study.owner("\ud800") is None


def test_the_same_seed_shows_the_same_images_behind_other_links(tmp_path):
    first, second = (made_study(tmp_path / name) for name in ("a", "b"))
    assert first.images == second.images and first.orders == second.orders
    assert not set(first.links()) & set(second.links())
    for file in first.path.glob("*/*.jpg"):
        assert file.read_bytes() == (second.path / file.relative_to(first.path)).read_bytes()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"per_class": 0}, "at least 1"),
        ({"repeats": 0.6}, "from 0 to 0.5"),
        ({"practice": -1}, "0 or more"),
        ({"readers": ()}, "needs readers"),
        ({"readers": ("anna", " ")}, "needs readers"),
        ({"readers": ("anna", "anna")}, "two readers are called 'anna'"),
    ],
)
def test_a_senseless_study_is_one_sentence(tmp_path, values, said):
    told = {"folder": tmp_path / "s", "real": tmp_path, "synthetic": tmp_path, "readers": ("anna",), **values}
    with pytest.raises(PathUpError, match=said):
        StudyRequest(**told)


def test_a_folder_that_is_there_is_left_alone_and_a_failed_study_leaves_none(tmp_path, monkeypatch):
    real, synthetic = two_arms(tmp_path, 3)
    request = StudyRequest(folder=tmp_path / "s", real=real, synthetic=synthetic, readers=("a",), per_class=2, mpp=0.5)
    monkeypatch.setattr(storage, "write_json", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(PathUpError, match="the disk is full"):
        new_study(request)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["real", "synthetic"]
    monkeypatch.undo()
    new_study(request)
    with pytest.raises(PathUpError, match="exists already"):
        new_study(request)


def test_what_is_no_study_is_told(tmp_path):
    with pytest.raises(PathUpError, match="holds no study"):
        StudyFolder(tmp_path)
    study = made_study(tmp_path / "made")
    (study.path / "key.json").write_text('{"images": [{}], "practice": []}')
    with pytest.raises(PathUpError, match="damaged study"):
        StudyFolder(study.path)
