"""The viewer's app, asked as a browser asks it, and its page in a real one."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openslide
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pathup.errors import PathUpError
from pathup.slides.deepzoom import write_deepzoom
from pathup.slides.writer import write_ome_tiff, write_png
from pathup.study.deep_tiles import DeepImage, FolderTiles, open_tiles
from pathup.study.layers import LayoutLayer, read_layer
from pathup.study.viewer import same_field, view, viewer_app
from tests.study.server import served
from tests.tiles.made import SHARED, needs_slides, save, tissue

WIDTH, HEIGHT, MPP = 1024, 768, 0.5


def picture(width: int, height: int) -> np.ndarray:
    """Blobs of a hundred pixels, nowhere alike: a shift of few pixels is seen, shrinking it is not."""
    small = np.random.default_rng(0).integers(60, 230, (height // 96, width // 96, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A canvas and its overview at a quarter of the size, with their scale and without, and a layout."""
    root, pixels = tmp_path_factory.mktemp("slides"), picture(WIDTH, HEIGHT)
    small = np.asarray(Image.fromarray(pixels).resize((WIDTH // 4, HEIGHT // 4), Image.Resampling.BOX))
    write_ome_tiff(root / "canvas.ome.tiff", [pixels], shape=(HEIGHT, WIDTH), mpp=MPP)
    write_png(root / "overview.png", [small], shape=(HEIGHT // 4, WIDTH // 4), mpp=4 * MPP)
    save(root / "canvas_bare.png", pixels)
    save(root / "overview_bare.png", small)
    area = [[0, 0], [WIDTH / 2, 0], [WIDTH / 2, HEIGHT], [0, HEIGHT], [0, 0]]
    areas = {
        "type": "Feature",
        "properties": {"classification": {"name": "<i>N</i>", "color": [1, 2, 3]}},
        "geometry": {"type": "Polygon", "coordinates": [area]},
    }
    (root / "areas.geojson").write_text(json.dumps(areas))
    return root


def client(
    slides: Sequence[DeepImage], layout: LayoutLayer | None = None, *, host: str = "127.0.0.1:8000", local: bool = True
) -> TestClient:
    app = viewer_app(slides, layout, local=local)
    return TestClient(app, base_url=f"http://{host}", raise_server_exceptions=False)


# -- what is served ------------------------------------------------------------------------------------------


def test_the_page_shows_names_as_text_and_what_is_known_of_the_image(tmp_path: Path) -> None:
    name = '<b onload="x">&amp;.png'
    write_png(tmp_path / name, [tissue(1200, 100)], shape=(100, 1200), mpp=1.25)
    page = client([open_tiles(tmp_path / name)]).get("/")
    assert page.status_code == 200 and name not in page.text
    assert "&lt;b onload=&#34;x&#34;&gt;&amp;amp;.png" in page.text
    assert "1\u202f200 × 100 px · 1.25 µm/px · 1.5 × 0.125 mm" in page.text
    assert 'data-do="sync"' not in page.text and 'data-do="layout"' not in page.text


def test_an_image_without_scale_says_so(folder: Path) -> None:
    page = client([open_tiles(folder / "canvas_bare.png")]).get("/").text
    assert "data-mpp-x" not in page and page.count("disabled") == 6
    assert "state it with --mpp" in page


def test_tiles_and_descriptors_are_served(folder: Path) -> None:
    slides = [open_tiles(folder / "canvas.ome.tiff"), open_tiles(folder / "overview.png")]
    web = client(slides)
    for number, slide in enumerate(slides):
        told = web.get(f"/slides/{number}.dzi")
        assert (told.text, told.headers["content-type"]) == (slide.descriptor(), "application/xml")
        tile = web.get(f"/slides/{number}_files/{len(slide.shapes) - 1}/0_0.jpeg")
        assert tile.content == slide.tile(len(slide.shapes) - 1, 0, 0)
        assert tile.headers["content-type"] == "image/png"
        assert web.head(f"/slides/{number}_files/0/0_0.jpeg").headers["content-type"] == "image/jpeg"


def test_a_deepzoom_images_own_tiles_are_served(tmp_path: Path) -> None:
    write_deepzoom(tmp_path / "a.dzi", [tissue(300, 300)], shape=(300, 300), mpp=MPP)
    web = client([open_tiles(tmp_path / "a.dzi")])
    assert 'TileSize="254"' in web.get("/slides/0.dzi").text
    assert web.get("/slides/0_files/9/1_1.jpeg").content == (tmp_path / "a_files" / "9" / "1_1.jpeg").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/slides/1.dzi",
        "/slides/1_files/10/0_0.jpeg",
        "/slides/-1.dzi",
        "/slides/0_files/11/0_0.jpeg",
        "/slides/0_files/10/3_0.jpeg",
        "/slides/0_files/10/0_2.jpeg",
        "/slides/0_files/10/-1_0.jpeg",
        "/slides/0_files/10/0_0.png",
        "/slides/0_files/10/0_0.jpeg/..%2f..%2fcanvas.ome.tiff",
        "/slides/0_files/10/" + "9" * 400 + "_0.jpeg",
        "/slides/0_files/..%2f..%2fcanvas.ome.tiff",
        "/slides/canvas.ome.tiff",
        "/static/..%2fviewer.py",
        "/static/../viewer.py",
        "/canvas.ome.tiff",
        "/layout.json",
        "/layout.png",
    ],
)
def test_what_is_not_there_is_404(folder: Path, path: str) -> None:
    answer = client([open_tiles(folder / "canvas.ome.tiff")]).get(path)
    assert answer.status_code == 404
    assert "Traceback" not in answer.text and str(folder) not in answer.text


@pytest.mark.parametrize("path", ["/", "/slides/0.dzi", "/slides/0_files/0/0_0.jpeg", "/static/viewer.js", "/none"])
def test_every_answer_has_the_headers_that_keep_a_page_to_itself(folder: Path, path: str) -> None:
    headers = client([open_tiles(folder / "canvas.ome.tiff")]).get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"  # tissue doesn't stay on the browser's disk
    assert "server" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(folder: Path, method: str) -> None:
    web = client([open_tiles(folder / "canvas.ome.tiff")])
    for origin in ({}, {"origin": "http://127.0.0.1:8000"}):
        assert web.request(method, "/", headers=origin).status_code in (403, 405)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_another_hosts_name_is_refused_where_only_this_machine_may_look(folder: Path, host: str) -> None:
    slides = [open_tiles(folder / "canvas.ome.tiff")]
    assert client(slides).get("/", headers={"host": host}).status_code == 403
    assert client(slides, local=False).get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:1", "127.0.0.1", "localhost:8000", "localhost", "[::1]:8000", "[::1]"])
def test_this_machines_names_are_its_own(folder: Path, host: str) -> None:
    assert client([open_tiles(folder / "canvas.ome.tiff")], host=host).get("/").status_code == 200


def test_a_slide_that_is_damaged_or_vanishes_is_told_and_the_server_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tiff"
    write_ome_tiff(path, [tissue(1200, 1200)], shape=(1200, 1200), mpp=MPP)
    whole, web = path.read_bytes(), client([open_tiles(path)])
    tile = "/slides/0_files/11/1_1.jpeg"
    for spoil, status in ((lambda: path.write_bytes(whole[:8]), 500), (path.unlink, 404)):
        spoil()
        answer = web.get(tile)
        assert answer.status_code == status
        assert "A.ome.tiff cannot be read here: it is damaged or gone." in answer.text
        assert "Traceback" not in answer.text and "openslide" not in answer.text.lower()
        assert web.get("/").status_code == 200
    path.write_bytes(whole)
    assert web.get(tile).status_code == 200


def test_a_fault_of_ours_is_one_sentence_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = open_tiles(folder / "canvas.ome.tiff")
    monkeypatch.setattr(slide, "tile", lambda *_: 1 / 0)
    answer = client([slide]).get("/slides/0_files/0/0_0.jpeg")
    assert answer.status_code == 500 and "Something went wrong here." in answer.text
    assert "division" not in answer.text and "Traceback" not in answer.text


def test_many_at_once_get_what_one_gets(folder: Path) -> None:
    slide = open_tiles(folder / "canvas.ome.tiff")
    paths = [f"/slides/0_files/10/{x}_{y}.jpeg" for x in range(3) for y in range(2)] * 4
    web = client([slide])
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(paths, pool.map(lambda path: web.get(path).content, paths), strict=True))
    other = open_tiles(folder / "canvas.ome.tiff")
    assert found == {path: other.tile(10, *map(int, path.split("/")[-1][:3].split("_"))) for path in paths}


# -- a layout, and two images --------------------------------------------------------------------------------


def test_the_layout_lies_over_what_shows_its_field(folder: Path) -> None:
    canvas, overview = open_tiles(folder / "canvas.ome.tiff"), open_tiles(folder / "overview.png")
    layer = read_layer(folder / "areas.geojson", canvas)
    web = client([canvas, overview], layer)
    assert 'data-laid-over="2"' in web.get("/").text
    assert web.get("/layout.json").json() == json.loads(json.dumps(layer.content))
    assert web.get("/layout.png").status_code == 404  # its areas are drawn in the browser
    stated = open_tiles(folder / "overview_bare.png", 3.0)  # another extent
    assert 'data-laid-over="1"' in client([canvas, stated], layer).get("/").text
    assert 'data-laid-over="0"' in client([canvas, overview]).get("/").text


def test_a_layout_of_class_numbers_is_a_picture(folder: Path, tmp_path: Path) -> None:
    canvas = open_tiles(folder / "canvas.ome.tiff")
    save(tmp_path / "labels.png", np.full((96, 128), 2, np.uint8))
    layer = read_layer(tmp_path / "labels.png", canvas)
    assert client([canvas], layer).get("/layout.png").content == layer.picture


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (((1024, 768), 0.5), ((256, 192), 2.0), True),
        (((1024, 768), 0.5), ((256, 190), 2.0), True),  # a rim is missing
        (((1024, 768), 0.5), ((256, 192), 0.5), False),
        (((1024, 768), None), ((256, 192), 0.5), True),  # by proportions
        (((1024, 768), None), ((256, 256), None), False),
    ],
)
def test_the_same_field(one: Any, other: Any, same: bool) -> None:
    images = [FolderTiles(Path("a"), size, mpp and (mpp, mpp)) for size, mpp in (one, other)]
    assert same_field(*images) is same is same_field(*reversed(images))


def test_scales_are_stated_for_all_or_for_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[DeepImage]] = []
    monkeypatch.setattr("pathup.study.viewer.viewer_app", lambda slides, *_, **__: seen.append(slides))
    monkeypatch.setattr("pathup.study.viewer.serve", lambda _, listening: listening.close())
    paths, said = [folder / "canvas_bare.png", folder / "overview_bare.png"], []
    view(paths, say=said.append)
    view(paths, mpp=[0.5], say=said.append)
    view(paths, mpp=[0.5, 2.0], say=said.append)
    assert [[slide.mpp for slide in slides] for slides in seen] == [
        [None, None],
        [(0.5, 0.5), (0.5, 0.5)],
        [(0.5, 0.5), (2.0, 2.0)],
    ]
    assert all(urlsplit(line).hostname == "127.0.0.1" and urlsplit(line).port for line in said)
    with pytest.raises(PathUpError, match="--mpp was given 3 times"):
        view(paths, mpp=[1, 1, 1])


def test_other_machines_are_told_of_only_where_they_can_look(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathup.study.viewer.serve", lambda _, listening: listening.close())
    said: list[str] = []
    view([folder / "overview.png"], host="0.0.0.0", say=said.append)  # noqa: S104
    assert said[0].startswith("http://0.0.0.0:") and "whoever can reach this machine" in said[1]


# -- in a browser --------------------------------------------------------------------------------------------


class Page:
    """The viewer in the browser: what it shows, and what it complained about or asked of others."""

    def __init__(self, browser: Any, address: str, **how: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 720}, **how)
        self.complaints: list[str] = []
        self.asked: set[str] = set()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(urlsplit(request.url).netloc))
        self.page.goto(address)
        self.still()

    def still(self) -> None:
        """Wait until nothing moves or loads."""
        before, end = None, time.monotonic() + 20
        while time.monotonic() < end:
            now = self.page.evaluate(
                """() => [...document.querySelectorAll(".image")].map((element) => {
                  const viewer = OpenSeadragon.getViewer(element), { viewport } = viewer ?? {};
                  if (!viewer?.world.getItemAt(0)?.getFullyLoaded()) return null;
                  return [viewport.getZoom(true), viewport.getCenter(true), viewport.getContainerSize()];
                })"""
            )
            if now == before and all(now):
                return
            before = now
            self.page.wait_for_timeout(120)
        raise TimeoutError("the viewer does not come to rest")

    def views(self) -> list[list[float]]:
        """For each image: x and y of what is in the middle, and what a pixel of the screen shows, by its own pixels."""
        found: list[list[float]] = self.page.evaluate(
            """() => [...document.querySelectorAll(".panel")].map((panel) => {
              const { viewport } = OpenSeadragon.getViewer(panel.querySelector(".image"));
              const center = viewport.getCenter(true), width = Number(panel.dataset.width);
              const across = viewport.getZoom(true) * viewport.getContainerSize().x;
              return [center.x * width, center.y * width, width / across];
            })"""
        )
        return found

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.still()

    def texts(self, selector: str) -> list[str]:
        return [str(text) for text in self.page.locator(selector).all_inner_texts()]

    def middle(self, number: int) -> np.ndarray:
        """The middle of a panel as it is painted, 300 x 300 px."""
        box = self.page.locator(".panel").nth(number).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(640, 20)  # off the images: no cross
        shot = self.page.screenshot(clip={"x": x - 150, "y": y - 150, "width": 300, "height": 300})
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)

    def end(self) -> None:
        self.page.close()
        assert self.complaints == []


@contextmanager
def shown(browser: Any, slides: Sequence[DeepImage], layout: LayoutLayer | None = None, **how: Any) -> Iterator[Page]:
    with served(viewer_app(slides, layout)) as address:
        page = Page(browser, address, **how)
        yield page
        assert page.asked == {urlsplit(address).netloc}  # no other host
        page.end()


def in_register(page: Page, ratio: float = 4.0) -> None:
    """The second image's pixels are `ratio` times as large as the first's."""
    (x, y, scale), (x2, y2, scale2) = page.views()
    assert (x, y, scale) == pytest.approx((x2 * ratio, y2 * ratio, scale2 * ratio), rel=1e-6)


def test_two_images_stay_in_register_and_the_scale_is_right(browser: Any, folder: Path) -> None:
    slides = [open_tiles(folder / "canvas.ome.tiff"), open_tiles(folder / "overview.png")]
    with shown(browser, slides) as page:
        in_register(page)
        x, y, scale = page.views()[0]
        assert (x, y) == pytest.approx((WIDTH / 2, HEIGHT / 2)) and scale == pytest.approx(WIDTH / 639, rel=2e-3)  # fit

        page.press("4")  # 10x is 1 um a pixel of the screen, and a bar of at most 140 px is 100 um long
        assert page.views()[0][2] == pytest.approx(2.0)
        assert page.texts(".length") == ["100 µm"] * 2 and page.texts(".zoom") == ["10×"] * 2
        assert page.page.locator(".rule i").first.evaluate("bar => bar.getBoundingClientRect().width") == 100
        assert page.texts('[data-times][aria-pressed="true"]') == ["10×"]

        page.page.mouse.move(900, 250)  # over the second
        page.page.mouse.wheel(0, -500)
        page.still()
        in_register(page)
        assert page.views()[0][2] < 1.7
        left, right = page.middle(0), page.middle(1)
        assert (
            np.abs(left - right).mean() < 3
        )  # the same tissue in the same place, to what a quarter of its pixels keep
        assert np.abs(left[8:] - right[:-8]).mean() > 3

        page.page.mouse.move(300, 400)  # over the first
        page.page.mouse.down()
        page.page.mouse.move(390, 330, steps=3)
        page.page.mouse.up()
        page.press("ArrowLeft", "+")
        in_register(page)
        page.press("6")
        assert page.texts(".length") == ["20 µm"] * 2 and page.texts(".zoom") == ["40×"] * 2


def test_unlocked_each_moves_by_itself_and_locked_again_they_are_in_register(browser: Any, folder: Path) -> None:
    slides = [open_tiles(folder / "canvas.ome.tiff"), open_tiles(folder / "overview.png")]
    with shown(browser, slides) as page:
        page.press("s")
        second = page.views()[1]
        page.press("5", "ArrowRight")
        assert page.views()[1] == second and page.texts(".zoom")[0] == "20×"
        assert page.page.locator('[data-do="sync"]').get_attribute("aria-pressed") == "false"
        page.press("s")
        in_register(page)
        page.press(*["ArrowRight"] * 12)  # not beyond what is there
        in_register(page)
        assert page.views()[0][0] == pytest.approx(WIDTH, abs=0.5)  # at 1:1 it rests on whole pixels


def test_images_of_other_extents_stay_as_they_stand_to_each_other(browser: Any, folder: Path) -> None:
    slides = [open_tiles(folder / "canvas.ome.tiff"), open_tiles(folder / "overview_bare.png", MPP)]
    with shown(browser, slides) as page:
        (x, y, scale), (x2, y2, scale2) = page.views()
        assert (x, y, x2, y2) == pytest.approx((WIDTH / 2, HEIGHT / 2, WIDTH / 8, HEIGHT / 8)) and scale == scale2
        page.press("s", "5", "ArrowLeft", "s", "4", "ArrowUp")
        (x3, y3, scale), (x4, y4, scale2) = page.views()
        assert (x4 - x3) - (x2 - x) == pytest.approx(0.15 * 639, abs=1)  # what it was moved by alone, at 20x: 1:1
        assert y4 - y3 == pytest.approx(y2 - y, abs=1) and scale == scale2 == pytest.approx(2.0)


def test_without_a_scale_images_are_matched_by_relative_position(browser: Any, folder: Path) -> None:
    slides = [open_tiles(folder / "canvas_bare.png"), open_tiles(folder / "overview.png")]
    with shown(browser, slides) as page:
        page.press("n", "ArrowRight", "ArrowDown")
        in_register(page)
        assert page.texts(".zoom") == ["100 %", "20×"]  # 2 um on four pixels of the screen
        assert page.page.locator(".rule").first.is_hidden() and page.page.locator(".rule").last.is_visible()
        before = page.views()
        page.press("4")  # the first, which leads, has no magnification
        assert page.views() == before


def test_the_layout_is_off_until_it_is_wanted(browser: Any, folder: Path) -> None:
    slides = [open_tiles(folder / "canvas.ome.tiff"), open_tiles(folder / "overview.png")]
    layer = read_layer(folder / "areas.geojson", slides[0])
    with shown(browser, slides, layer, color_scheme="dark") as page:
        assert page.page.locator(".legend").is_hidden()
        page.press("l")
        page.page.wait_for_selector(".legend:visible")
        assert page.texts(".legend li") == ["<i>N</i>"]
        for number in range(2):  # the left half is covered, the right is not
            row = (
                page.page.locator(".fills")
                .nth(number)
                .evaluate(
                    """canvas => [...canvas.getContext("2d").getImageData(canvas.width / 2 - 20, 300, 40, 1).data]"""
                )
            )
            assert row[:4] == [1, 2, 3, 255] and row[-4:] == [0, 0, 0, 0]
        page.page.locator(".legend input").fill("75")
        assert page.page.locator(".fills").first.evaluate("canvas => canvas.style.opacity") == "0.75"
        page.press("l")
        assert page.page.locator(".legend").is_hidden() and page.page.locator(".fills").first.is_hidden()


def the_very_pixels(page: Page, read: Callable[[int, int, int, int], np.ndarray]) -> None:
    """What is painted in the middle of the screen is the file's rectangle there, pixel for pixel."""
    ((x, y, density),) = page.views()
    assert density == pytest.approx(1, rel=1e-9)
    box, side = page.page.locator(".image").first.bounding_box(), 300
    corner = [box[at] + box[length] / 2 - middle for at, length, middle in (("x", "width", x), ("y", "height", y))]
    assert corner == pytest.approx([round(at) for at in corner], abs=1e-6)  # on pixels of the screen, not between
    clip = [int(box[at] + (box[length] - side) / 2) for at, length in (("x", "width"), ("y", "height"))]
    left, top = (round(at - from_) for at, from_ in zip(clip, corner, strict=True))
    page.page.mouse.move(640, 20)
    shot = page.page.screenshot(clip={"x": clip[0], "y": clip[1], "width": side, "height": side})
    assert (np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")) == read(left, top, side, side)).all()


def test_at_one_to_one_the_screen_shows_the_very_pixels_of_the_file(browser: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1501, 2003, 3), np.uint8)  # noise: any blending is seen
    write_ome_tiff(tmp_path / "a.ome.tiff", [pixels], shape=pixels.shape[:2], mpp=MPP, compression="deflate")

    def read(left: int, top: int, width: int, height: int) -> np.ndarray:
        return pixels[top : top + height, left : left + width]

    with shown(browser, [open_tiles(tmp_path / "a.ome.tiff")]) as page:
        page.press("n")
        the_very_pixels(page, read)
        page.press("ArrowLeft", "ArrowUp", "ArrowUp")
        the_very_pixels(page, read)
        page.page.mouse.move(600, 300)
        page.page.mouse.down()
        page.page.mouse.move(517, 361, steps=5)
        page.page.mouse.up()
        page.still()
        the_very_pixels(page, read)
        page.page.set_viewport_size({"width": 1013, "height": 655})
        page.still()
        the_very_pixels(page, read)
        page.press("+", "n")
        the_very_pixels(page, read)


@needs_slides
@pytest.mark.parametrize("name", ["endometrial-polyp.tif", "CMU-1-Small-Region.svs"])
def test_of_a_real_slide_too(browser: Any, name: str) -> None:
    path = SHARED / "data" / "slides" / name
    with openslide.OpenSlide(path) as slide, shown(browser, [open_tiles(path)]) as page:
        page.press("n")
        the_very_pixels(
            page, lambda left, top, *size: np.asarray(slide.read_region((left, top), 0, size).convert("RGB"))
        )


def test_help_opens_with_its_key_and_keys_rest_while_it_is_open(browser: Any, folder: Path) -> None:
    with shown(browser, [open_tiles(folder / "canvas.ome.tiff")]) as page:
        before = page.views()
        page.press("?")
        assert page.page.locator("dialog").is_visible()
        page.press("4")
        assert page.views() == before
        page.press("Escape", "4")
        assert page.page.locator("dialog").is_hidden() and page.views() != before


def test_the_image_fits_again_when_the_window_changes_and_keeps_its_scale_once_it_was_zoomed(
    browser: Any, folder: Path
) -> None:
    with shown(browser, [open_tiles(folder / "canvas.ome.tiff")]) as page:
        page.page.set_viewport_size({"width": 800, "height": 720})
        page.still()
        assert page.views()[0][2] == pytest.approx(WIDTH / 800, rel=1e-3)
        page.press("5")
        page.page.set_viewport_size({"width": 1024, "height": 600})
        page.still()
        assert page.texts(".zoom") == ["20×"]


def test_a_part_that_cannot_be_read_is_told(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tiff"
    write_ome_tiff(path, [tissue(4096, 4096)], shape=(4096, 4096), mpp=MPP)
    with served(viewer_app([open_tiles(path)])) as address:
        page = Page(browser, address)
        assert page.page.locator(".trouble").is_hidden()
        path.write_bytes(path.read_bytes()[:8])
        page.page.keyboard.press("5")
        page.page.wait_for_selector(".trouble:visible", timeout=15_000)
        assert "damaged or gone" in page.texts(".trouble")[0]
        page.page.close()
