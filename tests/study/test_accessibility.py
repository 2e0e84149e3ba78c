"""axe-core, the accessibility checker, on every page in both themes: nothing serious is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pathup.slides.writer import write_ome_tiff, write_png
from pathup.study.answers import Answers
from pathup.study.app import study_app
from pathup.study.deep_tiles import open_tiles
from pathup.study.folder import ADMINISTRATOR
from pathup.study.layers import read_layer
from pathup.study.report import write_report
from pathup.study.viewer import viewer_app
from tests.study.made import link_of, made_study
from tests.study.server import served

checker = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
SERIOUS = ("serious", "critical")


def found_in(page: Any) -> list[str]:
    """The serious findings of a page as it stands, with the first element of each."""
    violations = checker.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:120]} ({one['nodes'][0].get('failureSummary', '')[:200]})"
            for one in violations if one["impact"] in SERIOUS]  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_pages_of_a_study(browser: Any, tmp_path: Path, theme: str) -> None:
    study = made_study(tmp_path, per_class=1, readers=("anna",), repeats=0.0, practice=2)
    answers = Answers(study.answers_file)
    with served(study_app(study, answers)) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 720}, color_scheme=theme)
        seen: dict[str, list[str]] = {}

        def look(name: str, ready: str | None = None) -> None:
            if ready:
                page.wait_for_selector(ready)
            seen[name] = found_in(page)

        page.goto(f"{address}/r/none")
        look("a link that is nobody's")
        page.goto(f"{address}/admin/{link_of(study, ADMINISTRATOR)}")
        look("administration")
        page.goto(f"{address}/r/{link_of(study, 0)}")
        look("consent")
        page.click("text=I agree")
        page.wait_for_selector("#scale-bar span:not(:empty)")
        look("reading")
        page.click("#pause")
        look("pause", "#go-on:visible")
        page.click("#go-on")
        page.keyboard.press("3")
        look("scored")
        page.keyboard.press("Enter")
        page.wait_for_selector("#where:has-text('image 2')")
        page.wait_for_selector("#scale-bar span:not(:empty)")
        page.keyboard.press("3")
        page.keyboard.press("Enter")
        look("between", "#begin:visible")
        page.keyboard.press("Enter")
        for place in range(4):
            page.wait_for_selector("#scale-bar span:not(:empty)")
            page.keyboard.press(str(place + 1))
            page.keyboard.press("Enter")
            page.wait_for_selector("#finished:visible" if place == 3 else f"#where:has-text('Image {place + 2} ')")
        look("finished")
        page.close()
    answers.close()
    write_report(study, tmp_path / "report")
    page = browser.new_page(viewport={"width": 1280, "height": 720}, color_scheme=theme)
    page.goto((tmp_path / "report/report.html").as_uri())
    look("report")
    page.close()
    assert not {name: found for name, found in seen.items() if found}
    assert len(seen) == 9


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_viewer(browser: Any, tmp_path: Path, theme: str) -> None:
    pixels = np.full((512, 512, 3), 220, np.uint8)
    pixels[100:300, 100:300] = (200, 120, 180)
    write_ome_tiff(tmp_path / "a.ome.tiff", [pixels], shape=(512, 512), mpp=0.5)
    write_png(tmp_path / "b.png", [pixels[::4, ::4]], shape=(128, 128), mpp=2.0)
    area = [[0, 0], [256, 0], [256, 256], [0, 0]]
    (tmp_path / "areas.geojson").write_text(
        '{"type": "Feature", "properties": {"classification": {"name": "IC"}}, '
        f'"geometry": {{"type": "Polygon", "coordinates": [{area}]}}}}'
    )
    slides = [open_tiles(tmp_path / "a.ome.tiff"), open_tiles(tmp_path / "b.png")]
    layer = read_layer(tmp_path / "areas.geojson", slides[0])
    steps: dict[str, Callable[[Any], None]] = {
        "two images": lambda page: None,
        "a layout": lambda page: page.keyboard.press("l"),
        "help": lambda page: page.keyboard.press("?"),
    }
    found: dict[str, list[str]] = {}
    with served(viewer_app(slides, layer)) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 720}, color_scheme=theme)
        page.goto(address)
        page.wait_for_timeout(1000)
        for name, step in steps.items():
            step(page)
            page.wait_for_timeout(200)
            found[name] = found_in(page)
        page.close()
    assert not {name: own for name, own in found.items() if own}


def test_the_checker_finds_what_is_wrong(browser: Any) -> None:
    page = browser.new_page()
    page.set_content("<html><body><input><p style='color:#bbb;background:#fff'>too pale</p></body></html>")
    assert {one.split(":")[0] for one in found_in(page)} >= {"label", "color-contrast", "html-has-lang"}
    page.close()
