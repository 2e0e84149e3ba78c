from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pathup.slides.deepzoom import write_deepzoom
from pathup.slides.provenance import provenance_of
from pathup.slides.writer import write_ome_tiff, write_png
from tests.tiles.made import tissue

PROVENANCE = {"seed": 7, "label": "IC", "prompt": 'tissue <a> & "b" µ', "sampling": {"steps": 30}}


@pytest.mark.parametrize(
    ("name", "write"), [("a.png", write_png), ("a.ome.tiff", write_ome_tiff), ("a.dzi", write_deepzoom)]
)
def test_what_was_written_is_read_back(tmp_path: Path, name: str, write: Callable[..., None]) -> None:
    write(tmp_path / name, [tissue(300, 280)], shape=(280, 300), mpp=0.5, provenance=PROVENANCE)
    assert provenance_of(tmp_path / name) == PROVENANCE


def test_files_of_others_have_none(tmp_path: Path) -> None:
    Image.fromarray(tissue(16, 16)).save(tmp_path / "a.png")
    Image.fromarray(tissue(16, 16)).save(tmp_path / "a.jpg")
    tifffile.imwrite(tmp_path / "a.ome.tiff", np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    (tmp_path / "broken.png").write_bytes(b"no")
    (tmp_path / "broken.ome.tiff").write_bytes(b"no")
    (tmp_path / "theirs.dzi").write_text("<Image/>")
    for name in ("broken", "list"):
        (tmp_path / f"{name}.dzi").write_text("<Image/>")
        (tmp_path / f"{name}_files").mkdir()
        (tmp_path / f"{name}_files/provenance.json").write_text("[1]" if name == "list" else "{")
    for path in sorted(tmp_path.iterdir()):
        assert provenance_of(path) is None
    assert provenance_of(tmp_path / "gone.png") is None


def test_xml_that_declares_entities_is_not_parsed(tmp_path: Path) -> None:
    bomb = (
        '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "{}">]><OME><CommentAnnotation Namespace="pathup/provenance">'
        "<Value>&b;</Value></CommentAnnotation></OME>"
    )
    pixels = np.zeros((16, 16, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", description=bomb, metadata=None)
    assert provenance_of(tmp_path / "a.tif") is None
