"""Whole slides as a source: each with its annotations, each annotation a region."""

from __future__ import annotations

from pathlib import Path

from shapely import Polygon, STRtree, to_wkb

from pathup.errors import PathUpError
from pathup.recipes import Recipe
from pathup.slides.images import REGION_SUFFIXES
from pathup.slides.reader import SLIDE_SUFFIXES, open_slide
from pathup.tiles.annotations import read_annotations
from pathup.tiles.regions import Region, safe_name


def slides_in(folder: Path) -> list[Path]:
    """The slides and images of a folder, sorted. A folder of DICOM files (this or one below) is one slide."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() == ".dcm")[:1]
        elif path.suffix.lower() in (*SLIDE_SUFFIXES, *REGION_SUFFIXES) and path.suffix.lower() != ".dcm":
            found.append(path)
    found += sorted(p for p in folder.iterdir() if p.suffix.lower() == ".dcm")[:1]
    return found


def slide_name(path: Path) -> str:
    """What a slide is called: its file's stem, or the folder's name for DICOM."""
    return path.parent.name if path.suffix.lower() == ".dcm" else path.stem


def slide_regions(
    source: Path, recipe: Recipe, annotations: Path | None, mpp: float | None
) -> tuple[list[Region], dict[str, str]]:
    """The annotated regions of one slide or of a folder of slides.

    Returns
    -------
    tuple
        The regions; and for each region's name the cluster of regions whose tiles may share tissue with it.

    Raises
    ------
    PathUpError
        No slide, a slide that cannot be read or records no mpp, no annotation file, or a wrong annotation.
    """
    slides = [source] if source.is_file() else slides_in(source)
    if not slides:
        raise PathUpError(f"source {source} holds annotations but no slides; put the slides beside them")
    if annotations is not None and annotations.is_file() and len(slides) > 1:
        raise PathUpError(
            f"{annotations} is one file, but {source} holds {len(slides)} slides; "
            "give a folder with one .geojson a slide"
        )
    regions: list[Region] = []
    joined: dict[str, str] = {}
    names: dict[str, Path] = {}
    for path in slides:
        slide = slide_name(path)
        if names.setdefault(safe_name(slide), path) != path:
            raise PathUpError(f"{names[safe_name(slide)]} and {path} have the same name; rename one")
        with open_slide(path, mpp) as reader:
            finest = min(reader.mpp)  # a slide without a scale is refused here, before anything is cut
            found = read_annotations(_annotation_file(path, annotations), recipe, reader.size)
        place = path.relative_to(source).as_posix() if source.is_dir() else path.name
        own = []
        for annotation in found:
            left, top, right, bottom = annotation.box
            own.append(
                Region(
                    name=f"{safe_name(slide)}_{annotation.number}",
                    file=path,
                    place=f"{place}#{annotation.number}",
                    label=annotation.label,
                    slide=slide,
                    patient=slide,
                    box=(left, top, right - left, bottom - top),
                    outline=to_wkb(annotation.outline),
                    assume_mpp=mpp,
                )
            )
        regions += own
        reach = max(level.field_px for level in recipe.tiles.levels) * (1 - recipe.tiles.min_inside)
        reach *= recipe.tiles.mpp / finest
        boxes = [a.outline.envelope.buffer(reach, join_style="mitre") for a in found]
        joined |= _clusters([r.name for r in own], boxes)
    return regions, joined


def _annotation_file(slide: Path, annotations: Path | None) -> Path:
    if annotations is not None and annotations.is_file():
        return annotations
    folder = annotations or (slide.parent.parent if slide.suffix.lower() == ".dcm" else slide.parent)
    folders = [folder, slide.parent] if annotations is None else [folder]
    name = slide_name(slide)
    for place in folders:
        for ending in (".geojson", ".json", f"{slide.suffix}.geojson"):
            if (place / f"{name}{ending}").is_file():
                return place / f"{name}{ending}"
    raise PathUpError(
        f"slide {slide} has no annotations: {folder / f'{name}.geojson'} was needed (a GeoJSON export from QuPath)"
    )


def _clusters(names: list[str], boxes: list[Polygon]) -> dict[str, str]:
    """Name each region's cluster: regions whose boxes, grown by the reach of their tiles, touch."""
    parent = list(range(len(names)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, k in zip(*STRtree(boxes).query(boxes, predicate="intersects"), strict=True):
        a, b = sorted((root(int(i)), root(int(k))))
        parent[b] = a
    return {name: names[root(i)] for i, name in enumerate(names)}
