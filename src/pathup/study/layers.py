"""A layout to lay over an image: areas with a class each as QuPath exports them, or a picture of class numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from PIL import Image

from pathup import storage
from pathup.errors import PathUpError, unknown
from pathup.study.deep_tiles import DeepImage
from pathup.tiles.annotations import RIM_PX, Annotation, read_areas

__all__ = ["COLOURS", "LABEL_PIXELS", "LayoutLayer", "read_layer"]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#f0e442", "#7a3fa0", "#1c1c1c")
"""Of classes that bring none: apart from each other for those who confuse red and green, and from a stain's pink."""

LABEL_PIXELS = 64_000_000
"""Most pixels of a picture of class numbers, which is in memory as a whole: 8,000 x 8,000."""

_ASPECT = 0.02
"""How far the proportions of a picture of class numbers may be from the image's: a row or column is rounded."""


@dataclass(frozen=True)
class LayoutLayer:
    """What is drawn over an image.

    Attributes
    ----------
    classes : list of tuple of str
        Name and colour (``#rrggbb``) of each class.
    areas : list
        From the lowest to the topmost: the number of its class, and its rings, each a flat list x, y, x, y, ... in
        pixels of the image. A point is inside where it lies in an odd number of rings.
    picture : bytes or None
        In place of areas: a PNG with transparency, to be stretched over the image.
    """

    classes: list[tuple[str, str]]
    areas: list[tuple[int, list[list[float]]]]
    picture: bytes | None = None

    @property
    def content(self) -> dict[str, Any]:
        """The classes and areas as JSON values."""
        return {
            "classes": [{"name": name, "colour": colour} for name, colour in self.classes],
            "areas": self.areas,
            "picture": self.picture is not None,
        }


def read_layer(path: Path, image: DeepImage, unit: str = "px") -> LayoutLayer:
    """Read a layout.

    Parameters
    ----------
    path
        A GeoJSON, as ``pathup generate --layout`` takes it, its classes whatever they are; or a PNG of class numbers
        (8-bit grey or palette) of the image's proportions, in which 0 is nothing.
    image
        What it belongs to.
    unit
        What a GeoJSON's coordinates count: pixels of the image (``px``) or micrometres (``um``).

    Raises
    ------
    PathUpError
        No such file, no layout, or one that does not fit the image.
    """
    if unit not in ("px", "um"):
        raise unknown("--layout-unit", unit, ("px", "um"))
    if path.suffix.lower() == ".png":
        return _read_picture(path, image)
    scale = 1.0
    if unit == "um":
        if image.mpp is None:
            raise PathUpError(
                f"{path} counts micrometres, but {image.path} records no scale; state it with --mpp, or leave out "
                "--layout-unit"
            )
        scale = 1 / image.mpp[0]
    colours: dict[str, str | None] = {}
    for name, colour in _colours(storage.read_json(path)):
        colours[name] = colours.get(name) or colour
    areas = read_areas(path, [{"label": name, "name": name} for name in colours], scale=scale)
    _check_fit(areas, path, image)
    labels = list(dict.fromkeys(area.label for area in areas))
    classes = [(name, colours[name] or COLOURS[number % len(COLOURS)]) for number, name in enumerate(labels)]
    return LayoutLayer(classes, [(labels.index(area.label), _rings(area)) for area in areas])


def _colours(content: Any) -> Iterator[tuple[str, str | None]]:
    """Each class's name and QuPath's colour for it, from what is hoped to be a GeoJSON: `read_areas` checks that."""
    features = content.get("features", [content]) if isinstance(content, dict) else content
    for feature in features if isinstance(features, list) else []:
        properties = feature.get("properties") if isinstance(feature, dict) else None
        given = properties.get("classification") if isinstance(properties, dict) else None
        name = given.get("name") if isinstance(given, dict) else given
        if isinstance(name, str):
            yield name, _colour(given) if isinstance(given, dict) else None


def _colour(given: dict[str, Any]) -> str | None:
    """``color`` is red, green, blue; ``colorRGB``, of older versions, a signed number of 32 bits."""
    colour, packed = given.get("color"), given.get("colorRGB")
    if isinstance(packed, int) and colour is None:
        colour = list((packed & 0xFFFFFF).to_bytes(3, "big"))
    if isinstance(colour, list) and len(colour) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in colour):
        return "#" + bytes(colour).hex()
    return None


def _check_fit(areas: list[Annotation], path: Path, image: DeepImage) -> None:
    left, top, right, bottom = shapely.total_bounds([area.outline for area in areas])
    width, height = image.size
    if min(left, top) < -RIM_PX or right > width + RIM_PX or bottom > height + RIM_PX:
        raise PathUpError(
            f"{path} spans ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f}) px, which does not fit on "
            f"{image.path} of {width} x {height} px; check that it belongs to this image, and --layout-unit"
        )


def _rings(area: Annotation) -> list[list[float]]:
    """Outer and inner outlines, to a hundredth of a pixel."""
    rings = shapely.get_rings(shapely.get_parts(area.outline))
    return [np.round(shapely.get_coordinates(ring), 2).ravel().tolist() for ring in rings]


def _read_picture(path: Path, image: DeepImage) -> LayoutLayer:
    if not path.is_file():
        raise PathUpError(f"{path} does not exist")
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            (width, height), mode = opened.size, opened.mode
            if mode not in ("L", "P"):
                raise PathUpError(
                    f"{path} is a PNG of mode {mode}, but class numbers (8-bit grey or palette) were needed"
                )
            if width * height > LABEL_PIXELS:
                raise PathUpError(f"{path} has {width} x {height} px, more than a layout may have; shrink it")
            numbers_HW = np.asarray(opened)
            palette = np.asarray(opened.getpalette() or [], np.uint8).reshape(-1, 3)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PathUpError(f"{path} is no PNG that can be read ({error}); export it again") from None
    if abs(width / height * image.size[1] / image.size[0] - 1) > _ASPECT:
        raise PathUpError(
            f"{path} is {width} x {height} px, but {image.path} is {image.size[0]} x {image.size[1]} px; check that it "
            "belongs to this image"
        )
    present = [int(number) for number in np.unique(numbers_HW) if number]
    if not present:
        raise PathUpError(f"{path} holds no class number above 0")
    table = np.zeros((256, 4), np.uint8)
    classes = []
    for place, number in enumerate(present):
        own = number < len(palette)
        colour = "#" + palette[number].tobytes().hex() if own else COLOURS[place % len(COLOURS)]
        classes.append((f"class {number}", colour))
        table[number] = [*bytes.fromhex(colour[1:]), 255]
    picture = io.BytesIO()
    Image.fromarray(table[numbers_HW]).save(picture, format="PNG")
    return LayoutLayer(classes, [], picture.getvalue())
