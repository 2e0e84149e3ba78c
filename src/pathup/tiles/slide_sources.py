"""Whole slides as a source: each with its annotations, each annotation a region."""

from __future__ import annotations

from pathlib import Path

from shapely import Polygon, STRtree, to_wkb

from pathup.errors import PathUpError
from pathup.recipes import Recipe
from pathup.slides.images import REGION_SUFFIXES
from pathup.slides.reader import SLIDE_SUFFIXES, open_slide, slide_identity
from pathup.tiles.annotations import read_annotations
from pathup.tiles.regions import Region, safe_name

_IMAGES = {*REGION_SUFFIXES, *SLIDE_SUFFIXES} - {".dcm"}


def images_in(folder: Path) -> list[Path]:
    """The slides and images that lie in a folder itself, sorted; DICOM aside."""
    return sorted(p for p in folder.iterdir() if is_image(p))


def is_image(path: Path) -> bool:
    """Whether a path is a file that its ending makes a slide (of one file, so not DICOM) or a region image."""
    return path.suffix.lower() in _IMAGES and not path.name.startswith(".") and not path.is_dir()


def slides_in(folder: Path) -> list[Path]:
    """The slides and images of a folder, sorted. A folder of DICOM files (this or one below) is one slide."""
    below = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    return sorted([*images_in(folder), *(file for f in (folder, *below) for file in _dicom_files(f)[:1])])


def _dicom_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == ".dcm" and not p.name.startswith("."))


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() == ".dcm"


def _dicom_folder(file: Path) -> Path:
    """A DICOM file's folder, by its own name even where it is the current folder or one above."""
    return file.parent if file.parent.name not in ("", "..") else file.parent.resolve()


def slide_name(path: Path) -> str:
    """What a slide is called: its file's stem, or the folder's name for DICOM."""
    return _dicom_folder(path).name if _is_dicom(path) else path.stem


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
        if _is_dicom(path):
            _check_one_series(path)
        if names.setdefault(safe_name(slide), path) != path:
            raise PathUpError(f"{names[safe_name(slide)]} and {path} have the same name; rename one")
        with open_slide(path, mpp) as reader:
            finest = min(reader.mpp)  # a slide without a scale is refused here, before anything is cut
            found = read_annotations(_annotation_file(path, annotations), recipe, reader.bounds)
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
        joined |= clusters([r.name for r in own], boxes)
    return regions, joined


def _check_one_series(file: Path) -> None:
    """Refuse a folder that holds several DICOM slides: only the first would be cut, under the folder's name."""
    first: tuple[str, Path] | None = None
    for path in _dicom_files(file.parent):
        series = slide_identity(path)
        if series is None:
            continue  # not a slide's: OpenSlide passes it over as well
        first = first or (series, path)
        if series != first[0]:
            raise PathUpError(
                f"{file.parent} holds several DICOM slides ({first[1].name} and {path.name} are of different ones), "
                "but a folder is taken for one; give each slide a folder of its own"
            )


def is_annotated(slide: Path) -> bool:
    """Whether a slide has annotations beside it."""
    return _found_annotations(slide, None) is not None


def wanted_annotations(slide: Path) -> Path:
    """Where a slide's annotations are looked for first: beside its file, or beside its folder for DICOM."""
    return _places(slide, None)[0] / f"{slide_name(slide)}.geojson"


def _places(slide: Path, annotations: Path | None) -> list[Path]:
    if annotations is not None:
        return [annotations]
    if _is_dicom(slide):
        return [_dicom_folder(slide).parent, slide.parent]
    return [slide.parent]


def _found_annotations(slide: Path, annotations: Path | None) -> Path | None:
    for place in _places(slide, annotations):
        for ending in (".geojson", ".json", f"{slide.suffix}.geojson"):
            if (path := place / f"{slide_name(slide)}{ending}").is_file():
                return path
    if annotations is None and _is_dicom(slide):  # whatever it is called, it lies among the slide's own files
        inside = [p for p in slide.parent.iterdir() if p.suffix.lower() == ".geojson"]
        return inside[0] if len(inside) == 1 else None
    return None


def _annotation_file(slide: Path, annotations: Path | None) -> Path:
    if annotations is not None and annotations.is_file():
        return annotations
    found = _found_annotations(slide, annotations)
    if found is None:
        wanted = wanted_annotations(slide) if annotations is None else annotations / f"{slide_name(slide)}.geojson"
        raise PathUpError(f"slide {slide} has no annotations: {wanted} was needed (a GeoJSON export from QuPath)")
    return found


def clusters(names: list[str], boxes: list[Polygon]) -> dict[str, str]:
    """Name each region's cluster: regions whose boxes (grown by the reach of their tiles) touch."""
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
