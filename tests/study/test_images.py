from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathup.errors import PathUpError
from pathup.study.images import Candidate, Look, candidates, common_look, drawn_images, write_images
from tests.study.made import made_image, two_arms


def written(images: list[Candidate], folder: Path, look: Look, seed: int = 0) -> list[Path]:
    files = [folder / f"{number:04d}.jpg" for number in range(len(images))]
    folder.mkdir()
    write_images(images, files, look, seed=seed, progress=lambda done, total: None)
    return files


def test_both_kinds_of_folders_are_read_with_class_and_scale(tmp_path):
    real, synthetic = two_arms(tmp_path, 2)
    found = [candidates(real, mpp=0.5), candidates(synthetic)]
    for images in found:
        assert [image.label for image in images] == ["A", "A", "B", "B"]
        assert {(image.mpp, image.size) for image in images} == {(0.5, (96, 96))}


def test_as_many_of_every_class_and_arm_are_drawn_by_seed(tmp_path):
    real, synthetic = (candidates(arm, mpp=0.5) for arm in two_arms(tmp_path, 5))
    first, again, other = (drawn_images(real, synthetic, 2, seed) for seed in (0, 0, 1))
    assert first == again != other
    cells = [(one.image.label, one.synthetic) for one in first]
    assert {cell: cells.count(cell) for cell in cells} == dict.fromkeys(
        [("A", False), ("A", True), ("B", False), ("B", True)], 2
    )
    assert len({one.image.file for one in first}) == len(first)


def test_files_tell_nothing_but_pixels(tmp_path):
    """A sharp and a smooth image, one of them with metadata: as many bytes, the same segments, nothing left."""
    noted = Image.Exif()
    noted[0x010E] = "made by a machine"
    made_image(0, smooth=False).save(tmp_path / "sharp.jpg", exif=noted, comment=b"secret", quality=99)
    made_image(1, smooth=True).save(tmp_path / "smooth.png")
    images = [Candidate(tmp_path / name, "A", 0.5, (96, 96)) for name in ("sharp.jpg", "smooth.png")]
    contents = [file.read_bytes() for file in written(images, tmp_path / "out", Look(96, 0.5))]
    assert len(contents[0]) == len(contents[1])
    ends = [content.rfind(b"\xff\xd9") for content in contents]
    assert ends[0] > 1.5 * ends[1]  # without the zeros their lengths would tell
    heads = [content[: content.index(b"\xff\xda")] for content in contents]
    assert heads[0] == heads[1]  # quantisation and Huffman tables, size, sampling: byte by byte the same
    for content in contents:
        assert b"secret" not in content and b"machine" not in content
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert image.size == (96, 96) and "exif" not in image.info and "comment" not in image.info


def test_an_image_of_the_wanted_size_and_scale_is_shown_whole(tmp_path):
    made_image(0, smooth=True).save(tmp_path / "a.png")
    (file,) = written([Candidate(tmp_path / "a.png", "A", 0.5, (96, 96))], tmp_path / "out", Look(96, 0.5))
    gap = np.asarray(Image.open(file), int) - np.asarray(Image.open(tmp_path / "a.png"), int)
    assert np.abs(gap).max() <= 6  # JPEG of quality 95 on smooth tissue


def test_scales_are_brought_to_the_coarsest_and_fields_to_the_smallest(tmp_path):
    made_image(0, smooth=True, side=200).save(tmp_path / "fine.png")
    made_image(0, smooth=True, side=96).save(tmp_path / "coarse.png")
    told = (("fine.png", 0.25, 200), ("coarse.png", 0.5, 96))
    images = [Candidate(tmp_path / name, "A", mpp, (side, side)) for name, mpp, side in told]
    look = common_look(images)
    assert look == Look(96, 0.5)  # 48 um: of the fine one, 192 px of 200, shrunk to 96
    for file in written(images, tmp_path / "out", look):
        assert Image.open(file).size == (96, 96)
    with pytest.raises(PathUpError, match="a coarser --mpp was needed"):
        common_look(images, mpp=0.25)
    with pytest.raises(PathUpError, match="at most --size 96 was needed"):
        common_look(images, side_px=97)


def test_what_is_wrong_with_an_arm_is_one_sentence(tmp_path):
    real, synthetic = two_arms(tmp_path, 2)
    with pytest.raises(PathUpError, match="records no micrometres per pixel"):
        candidates(real)
    with pytest.raises(PathUpError, match="no folder 'val'; it holds test"):
        candidates(real, split="val", mpp=0.5)
    with pytest.raises(PathUpError, match="is no folder"):
        candidates(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PathUpError, match="holds no images of classes"):
        candidates(tmp_path / "empty")
    (synthetic / "A_0000.png").unlink()
    with pytest.raises(PathUpError, match="is listed but not there"):
        candidates(synthetic)
    (synthetic / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(PathUpError, match="is damaged"):
        candidates(synthetic)
    images = candidates(real, mpp=0.5)
    with pytest.raises(PathUpError, match="class A has 2 real images, but 3 were needed"):
        drawn_images(images, images, 3, 0)
    with pytest.raises(PathUpError, match="only real images are of B"):
        drawn_images(images, images[:2], 1, 0)
