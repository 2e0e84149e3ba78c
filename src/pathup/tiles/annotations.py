"""QuPath annotations: GeoJSON of areas, the class of each in ``properties.classification.name``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from shapely import MultiPolygon, Polygon, box, get_coordinates, make_valid, transform
from shapely.affinity import translate
from shapely.errors import ShapelyError
from shapely.geometry import shape

from pathup import storage
from pathup.errors import PathUpError
from pathup.recipes import Recipe
from pathup.tiles.taxonomy import class_list, label_among

_NOT_ANNOTATIONS = ("detection", "cell", "tile", "tma_core", "root")
"""QuPath's other objects, which an export may hold beside annotations; they are passed over."""

RIM_PX = 1.0
"""How far (pixels) an outline may reach over the image's rim: a drawn outline is not rounded to pixels."""


@dataclass(frozen=True)
class Annotation:
    """One annotated area.

    Attributes
    ----------
    number : int
        Its place in the file, from 1.
    label : str
        Class label.
    outline : shapely Polygon or MultiPolygon
        Valid; as `read_annotations` gives it, level-0 pixels of the file, within the slide.
    """

    number: int
    label: str
    outline: Polygon | MultiPolygon

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in whole pixels, around the outline."""
        left, top, right, bottom = self.outline.bounds
        return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def read_annotations(path: Path, recipe: Recipe, bounds: tuple[int, int, int, int]) -> list[Annotation]:
    """Read the annotations of a slide.

    A FeatureCollection, a list of features or a single feature; polygons and multipolygons, with holes. A
    crossed outline is repaired. QuPath's other objects (detections, cells, ...) are passed over.

    Parameters
    ----------
    bounds
        x, y, width, height of the slide's scanned part (`SlideReader.bounds`): QuPath shows this part alone and counts
        from its corner.

    Raises
    ------
    PathUpError
        Broken JSON or no GeoJSON, no annotation in it, an annotation without a class or with one that the recipe
        lacks, one that is no area, or one that reaches outside the slide.
    """
    x, y, width, height = bounds
    return [
        replace(area, outline=translate(_within(area, path, width, height), x, y))
        for area in read_areas(path, class_list(recipe))
    ]


def read_areas(path: Path, classes: Sequence[Mapping[str, str]], *, scale: float = 1.0) -> list[Annotation]:
    """Read the annotations of a GeoJSON, wherever they lie.

    Parameters
    ----------
    path
        The GeoJSON, as `read_annotations` takes it.
    classes
        ``label`` and ``name`` of each class that an annotation may have.
    scale
        Coordinates are multiplied by it.

    Returns
    -------
    list of Annotation
        In the file's order; outlines are valid and enclose an area.

    Raises
    ------
    PathUpError
        Broken JSON or no GeoJSON, no annotation in it, an annotation without a class or with an unknown one, or one
        that is no area.
    """
    content = storage.read_json(path)
    found = [
        Annotation(number, _label(feature, number, path, classes), _outline(feature, number, path, scale))
        for number, feature in enumerate(_features(content, path), start=1)
        if _kind(feature) not in _NOT_ANNOTATIONS
    ]
    if not found:
        raise PathUpError(f"{path} holds no annotations; draw areas with a class in QuPath and export again")
    return found


def _features(content: Any, path: Path) -> Iterator[dict[str, Any]]:
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
    elif isinstance(content, dict) and content.get("type") == "Feature":
        content = [content]
    if not isinstance(content, list) or not all(isinstance(f, dict) and f.get("type") == "Feature" for f in content):
        raise PathUpError(f"{path} is no GeoJSON of features, which a QuPath export is; export the annotations again")
    yield from content


def _properties(feature: dict[str, Any]) -> dict[str, Any]:
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _kind(feature: dict[str, Any]) -> str:
    properties = _properties(feature)
    kind = properties.get("objectType", properties.get("object_type", "annotation"))
    return str(kind).lower().removeprefix("pathobject.").replace("pathdetectionobject", "detection")


def _label(feature: dict[str, Any], number: int, path: Path, classes: Sequence[Mapping[str, str]]) -> str:
    given = _properties(feature).get("classification")
    name = given.get("name") if isinstance(given, dict) else given
    if not isinstance(name, str) or not name.strip():
        title = _properties(feature).get("name")
        which = f"annotation {number}" + (f" ('{title}')" if title else "")
        raise PathUpError(f"{which} in {path} has no class; give it one in QuPath, or remove it")
    return label_among(classes, name, where=f"annotation {number} of {path}")


def _outline(feature: dict[str, Any], number: int, path: Path, scale: float) -> Polygon | MultiPolygon:
    which = f"annotation {number} in {path}"
    given = feature.get("geometry")
    geometry: dict[str, Any] = given if isinstance(given, dict) else {}
    kind = geometry.get("type")
    if kind not in ("Polygon", "MultiPolygon"):
        raise PathUpError(
            f"{which} is a {kind or 'feature without geometry'}, but an area (Polygon or MultiPolygon) was needed"
        )
    if not isinstance(geometry.get("coordinates"), list):
        raise PathUpError(f"{which} has no list of coordinates; draw it again")
    try:
        with np.errstate(invalid="ignore", over="ignore"):  # shapely warns of what is refused with a sentence
            outline = shape(geometry)
            if scale != 1:
                outline = transform(outline, lambda points: points * scale)
            finite = bool(np.isfinite(get_coordinates(outline)).all())
        if finite and not outline.is_valid:
            # 'structure': tissue that an outline goes round twice stays inside, where 'linework' cuts it out
            outline = polygons_of(make_valid(outline, method="structure", keep_collapsed=False))
    except (ShapelyError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise PathUpError(f"{which} has a broken outline ({' '.join(str(error).split())}); draw it again") from None
    if not finite:
        raise PathUpError(f"{which} has a point that is not finite; draw it again")
    if outline.is_empty or not outline.area > 0:
        raise PathUpError(f"{which} encloses no area; draw it again")
    return outline


def _within(area: Annotation, path: Path, width: int, height: int) -> Polygon | MultiPolygon:
    """The outline, cut to the slide that it must lie in."""
    which = f"annotation {area.number} in {path}"
    left, top, right, bottom = area.outline.bounds
    if left < -RIM_PX or top < -RIM_PX or right > width + RIM_PX or bottom > height + RIM_PX:
        raise PathUpError(
            f"{which} spans ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f}), outside the slide of "
            f"{width} x {height} px; check that it belongs to this slide and is in full-resolution pixels"
        )
    inside = polygons_of(area.outline.intersection(box(0, 0, width, height)))
    if inside.is_empty:
        raise PathUpError(f"{which} encloses no area of the slide; draw it again")
    return inside


def polygons_of(geometry: Any) -> Polygon | MultiPolygon:
    """The polygons of a geometry, without the lines and points that repairs leave."""
    if isinstance(geometry, Polygon | MultiPolygon):
        return geometry
    parts: list[Polygon] = []
    for part in getattr(geometry, "geoms", []):
        found = polygons_of(part)
        parts += found.geoms if isinstance(found, MultiPolygon) else [] if found.is_empty else [found]
    return MultiPolygon(parts)
