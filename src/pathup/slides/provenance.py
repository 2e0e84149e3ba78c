"""What PathUp wrote into an image file of how it was made, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile
from PIL import Image

from pathup.slides.deepzoom import deepzoom_provenance
from pathup.slides.targets import DZI_ENDING
from pathup.slides.writer import OME_TIFF_ENDINGS, PROVENANCE_NAMESPACE

__all__ = ["provenance_of"]


def provenance_of(path: Path) -> dict[str, Any] | None:
    """The provenance of a PNG, OME-TIFF or DeepZoom image that PathUp wrote; None where there is none.

    A file of another's has none. Of an OME-TIFF, the XML is parsed only where it names PathUp's namespace and declares
    no entities.
    """
    try:
        found = _told(path)
    except (OSError, ValueError, SyntaxError, tifffile.TiffFileError, ElementTree.ParseError):
        return None
    return found if isinstance(found, dict) else None


def _told(path: Path) -> Any:
    name, text = path.name.lower(), None
    if name.endswith(DZI_ENDING):
        return deepzoom_provenance(path)
    if name.endswith(".png"):
        with Image.open(path, formats=("PNG",)) as image:
            text = image.info.get("pathup")
    elif name.endswith(OME_TIFF_ENDINGS):
        with tifffile.TiffFile(path) as reader:
            text = _annotation(reader.pages.first.description)
    return None if text is None else json.loads(text)


def _annotation(xml: str) -> str | None:
    if PROVENANCE_NAMESPACE not in xml or "<!ENTITY" in xml or "<!DOCTYPE" in xml:
        return None
    root = ElementTree.fromstring(xml)  # noqa: S314  (no entities: checked above)
    for element in root.iter():
        if element.get("Namespace") == PROVENANCE_NAMESPACE:
            value = next((child for child in element if child.tag.endswith("Value")), None)
            return None if value is None else value.text
    return None
