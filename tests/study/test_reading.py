"""A whole study in a browser: three readers, and a server that is killed between any two answers.

``PATHUP_STUDY_IMAGES=140 pytest tests/study/test_reading.py`` is the paper's size.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from pathup.study.answers import Answers
from pathup.study.folder import ADMINISTRATOR, StudyFolder
from pathup.study.report import write_report
from tests.study.browser import chromium
from tests.study.made import link_of, made_study
from tests.study.server import Server

WAIT_MS = 30_000
IMAGES = int(os.environ.get("PATHUP_STUDY_IMAGES", "8"))
"""Of the study that is read to its end; a multiple of 4: two classes, two arms."""


@pytest.fixture
def study(tmp_path) -> StudyFolder:
    return made_study(tmp_path, per_class=IMAGES // 4, readers=("anna", "ben", "carla"), repeats=0.25, practice=2)


@pytest.fixture
def server(study) -> Iterator[Server]:
    running = Server(study.path)
    yield running
    running.kill()


SHOWN = "document.querySelector('#scale-bar span')?.textContent"


def until(page, condition: str) -> None:
    """Wait until a page's JavaScript expression holds: Playwright's own waiting needs eval, which our pages forbid."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def moved_on(where: str) -> str:
    """Whether another image is shown than the one at a place, or what comes after the last."""
    covers = " || ".join(f"!document.querySelector('#{name}').hidden" for name in ("finished", "between"))
    return f"document.querySelector('#where').textContent !== {json.dumps(where)} || {covers}"


def read(page, server: Server, score: int, *, killed: bool) -> int:
    """Read to the end by the keyboard alone; returns how many answers were given."""
    given = 0
    while not page.locator("#finished").is_visible():
        if page.locator("#begin").is_visible():
            page.keyboard.press("Enter")
        until(page, SHOWN)
        where = page.locator("#where").inner_text()
        page.keyboard.press(str(score % 10))
        if killed:
            server.kill()
            page.keyboard.press("Enter")
            page.wait_for_selector("#trouble:not([hidden])", timeout=WAIT_MS)
            assert "not kept yet" in page.locator("#trouble").inner_text()
            server.start()
        page.keyboard.press("Enter")
        until(page, moved_on(where))
        given += 1
    return given


def test_three_readers_read_to_the_end_while_the_server_is_killed_between_answers(study, server, tmp_path):
    places = study.count("study")
    assert places == IMAGES + round(0.25 * IMAGES)
    links = {whose: f"{server.address}/{'admin' if whose == ADMINISTRATOR else 'r'}/{link}"
             for link, whose in study.links().items()}  # fmt: skip
    asked, problems = [], []
    with chromium() as browser:
        administration = browser.new_page()
        administration.goto(links[ADMINISTRATOR])
        assert administration.inner_text("#readers").count(f"0 of {places}") == 3
        for reader, killed in ((0, True), (1, False), (2, False)):
            page = browser.new_page(viewport={"width": 1280, "height": 720})
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.goto(links[reader])
            until(page, "document.activeElement.tagName === 'BUTTON'")
            page.keyboard.press("Enter")  # I agree
            page.wait_for_selector("#scores")
            assert read(page, server, score=reader + 8, killed=killed) == 2 + places
            page.close()
        done = f"document.querySelector('#readers').innerText.split('{places} of {places}').length === 4"
        until(administration, done)  # the page renews itself
    assert not problems
    assert all(url.startswith((server.address, "data:", "blob:")) for url in asked)  # no other host for anything
    answers = Answers(study.answers_file)
    rows = answers.rows()
    answers.close()
    for reader in range(3):
        own = [(row["round"], row["place"], row["score"]) for row in rows if row["reader"] == reader]
        wanted = [("practice", 0), ("practice", 1), *(("study", place) for place in range(places))]
        assert own == [(*place, reader + 8) for place in wanted]  # 8, 9, 10: each once, none lost
    write_report(study, tmp_path / "report")
    assert json.loads((tmp_path / "report/report.json").read_text())["auc"]["value"] == 0.5


def test_a_reader_pauses_goes_back_changes_an_answer_and_comes_back_on_another_device(study, server):
    link = link_of(study, 0)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(f"{server.address}/r/{link}")
        page.click("text=I agree")
        page.wait_for_selector("#scores")
        for score in ("3", "4"):
            until(page, SHOWN)
            where = page.locator("#where").inner_text()
            page.keyboard.press(score)
            page.keyboard.press("Enter")
            until(page, moved_on(where))
        page.click("#begin")
        page.click("#pause")
        page.keyboard.press("7")  # nothing is scored in a pause
        assert page.locator("input[name=score]:checked").count() == 0
        page.click("#go-on")
        page.fill("input[name=comment]", "5 nuclei, 0 mitoses")  # digits in a comment are no scores
        assert page.locator("input[name=score]:checked").count() == 0
        page.locator("label:has(input[value='6'])").click()
        page.select_option("select[name=guess]", "B")
        page.click("#next")
        until(page, "document.querySelector('#where').textContent.startsWith('Image 2')")
        page.close()

        tablet = browser.new_page(viewport={"width": 1024, "height": 768}, has_touch=True, color_scheme="dark")
        tablet.goto(f"{server.address}/r/{link}")
        until(tablet, "document.querySelector('#where').textContent.startsWith('Image 2')")
        tablet.tap("#back")
        until(tablet, "document.querySelector('#where').textContent.startsWith('Image 1 ')")
        assert tablet.locator("input[name=score]:checked").get_attribute("value") == "6"
        assert tablet.input_value("input[name=comment]") == "5 nuclei, 0 mitoses"
        assert tablet.input_value("select[name=guess]") == "B"
        tablet.locator("label:has(input[value='9'])").tap()
        tablet.tap("#next")
        until(tablet, "document.querySelector('#where').textContent.startsWith('Image 2')")
        tablet.close()
    answers = Answers(study.answers_file)
    rows = [(row["place"], row["score"]) for row in answers.rows(0) if row["round"] == "study"]
    answers.close()
    assert rows == [(0, 6), (0, 9)]


def test_an_image_that_does_not_come_is_asked_for_again_and_not_scored_before(study, server):
    link = link_of(study, 2)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(f"{server.address}/r/{link}")
        page.click("text=I agree")
        until(page, SHOWN)
        where = page.locator("#where").inner_text()
        page.route("**/practice/1/image.jpg", lambda route: route.abort())
        page.keyboard.press("3")
        page.keyboard.press("Enter")
        page.wait_for_selector("#trouble:not([hidden])", timeout=WAIT_MS)
        assert "could not be loaded" in page.locator("#trouble").inner_text()
        assert page.locator("#where").inner_text() != where
        page.keyboard.press("4")
        page.keyboard.press("Enter")
        assert page.locator("#next").is_disabled()
        page.unroute("**/practice/1/image.jpg")
        until(page, SHOWN)
        assert page.locator("#trouble").is_hidden() and page.locator("#next").is_enabled()  # the 4 still stands
    answers = Answers(study.answers_file)
    assert [row["score"] for row in answers.rows(2)] == [3]
    answers.close()


def test_everything_fits_the_screens_that_readers_have(study, server):
    link = link_of(study, 1)
    with chromium() as browser:
        for width, height in ((1280, 720), (1024, 768), (768, 1024), (1920, 1080)):
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(f"{server.address}/r/{link}")
            if page.locator("text=I agree").count():
                page.click("text=I agree")
            until(page, SHOWN)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
            box = page.locator("#image").bounding_box()
            assert box["height"] > 0.6 * height
            for button in page.locator(".score-row span").all():
                assert min(button.bounding_box()[side] for side in ("width", "height")) >= 40  # a finger's width
            page.close()
