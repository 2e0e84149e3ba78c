"""The study's server: what it lets whom do, and what it tells."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pathup.study import app as module
from pathup.study.answers import Answers
from pathup.study.app import study_app
from pathup.study.folder import ADMINISTRATOR, StudyFolder
from tests.study.made import link_of, made_study

ORIGIN = {"origin": "http://testserver"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> StudyFolder:
    return made_study(tmp_path_factory.mktemp("app"))


@pytest.fixture
def served(folder, tmp_path):
    answers = Answers(tmp_path / "answers.sqlite")
    with TestClient(study_app(folder, answers), raise_server_exceptions=False) as client:
        yield client, answers
    answers.close()


def begun(served, folder, reader: int = 0) -> str:
    client, _ = served
    base = f"/r/{link_of(folder, reader)}"
    assert client.post(f"{base}/consent", headers=ORIGIN, follow_redirects=False).status_code == 303
    return base


def answered(client, base: str, **values):
    told = {"round": "practice", "place": 0, "turn": 0, "score": 5, **values}
    return client.post(f"{base}/answer", json=told, headers=ORIGIN)


def test_a_reader_agrees_practises_and_reads_to_the_end(served, folder):
    client, answers = served
    base = f"/r/{link_of(folder)}"
    assert "I agree" in client.get(base).text
    assert client.get(f"{base}/practice/0/image.jpg").status_code == 404  # not before
    begun(served, folder)
    assert "How real does it look?" in client.get(base).text
    state = client.get(f"{base}/state").json()
    seen = []
    while state["round"]:
        path = f"{base}/{state['round']}/{state['place']}"
        image = client.get(f"{path}/image.jpg")
        assert image.status_code == 200 and image.headers["content-type"] == "image/jpeg"
        seen.append(image.content)
        assert client.get(f"{path}/answer").status_code == 404
        state = answered(client, base, round=state["round"], place=state["place"], turn=state["turn"], score=7).json()
    assert len(seen) == 2 + 14 and len(set(seen[2:])) == 12  # two come twice
    assert state == {"consented": True, "round": None, "place": 0, "turn": 16, "counts": {"practice": 2, "study": 14}}
    assert client.get(f"{base}/study/3/answer").json() == {"score": 7, "guess": None, "comment": None}
    assert answered(client, base, round="study", place=3, turn=16, score=2, guess="A").status_code == 200
    assert answers.newest(0, "study", 3).score == 2


def test_an_image_comes_only_when_all_before_it_have_answers(served, folder):
    client, answers = served
    base = begun(served, folder)
    for path in ("practice/1", "study/0", "study/13", "practice/99", "study/-1", "other/0"):
        assert client.get(f"{base}/{path}/image.jpg").status_code == 404
    for values in ({"place": 1}, {"round": "study"}, {"round": "study", "place": 5}):
        assert answered(client, base, **values).status_code == 409
    assert answered(client, base, round="study", place=14).status_code == 404
    assert answers.rows() == []


@pytest.mark.parametrize(
    "values",
    [
        {"score": 0}, {"score": 11}, {"score": -1}, {"score": "5"}, {"score": 5.5}, {"score": True}, {"score": None},
        {"score": 10**30}, {"round": "other"}, {"place": -1}, {"place": "0"}, {"turn": -1}, {"guess": "no class"},
        {"guess": 3}, {"comment": "x" * 2001}, {"seconds": -1}, {"reader": 1}, {"comment": ["x"]},
    ],
)  # fmt: skip
def test_an_answer_out_of_range_is_refused_and_leaves_no_trace(served, folder, values):
    client, answers = served
    base = begun(served, folder)
    response = answered(client, base, **values)
    assert response.status_code == 422 and "this is no answer" in response.json()["error"]
    for body in (b"", b"[]", b"null", b"{", b"\xff"):
        headers = {**ORIGIN, "content-type": "application/json"}
        assert client.post(f"{base}/answer", content=body, headers=headers).status_code == 422
    assert answers.rows() == []


def test_a_replayed_answer_is_refused(served, folder):
    client, answers = served
    base = begun(served, folder)
    assert answered(client, base).status_code == 200
    again = answered(client, base)
    assert again.status_code == 409 and "lies behind" in again.json()["error"]
    assert len(answers.rows()) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"origin": "null"}, {"origin": "http://evil.example"}, {"origin": "http://testserver.evil.example"},
        {"origin": "ftp://testserver"}, {"origin": "testserver"}, {**ORIGIN, "sec-fetch-site": "cross-site"},
        {**ORIGIN, "sec-fetch-site": "same-site"}, {**ORIGIN, "sec-fetch-site": "none"},
    ],
)  # fmt: skip
def test_what_does_not_come_from_our_own_page_is_refused(served, folder, headers):
    client, answers = served
    base = begun(served, folder)
    told = {"round": "practice", "place": 0, "turn": 0, "score": 5}
    assert client.post(f"{base}/answer", json=told, headers=headers).status_code == 403
    other = f"/r/{link_of(folder, 1)}"
    assert client.post(f"{other}/consent", headers=headers).status_code == 403
    assert answers.rows() == [] and answers.progress(1).consented is None


def test_a_body_that_is_too_large_is_refused_whatever_it_says_of_its_length(served, folder):
    client, answers = served
    base = begun(served, folder)
    headers = {**ORIGIN, "content-type": "application/json"}
    assert client.post(f"{base}/answer", content=b"x" * 20_000, headers=headers).status_code == 413
    parts = (b"x" * 1000 for _ in range(20))  # sent in pieces, with no length
    assert client.post(f"{base}/answer", content=parts, headers=headers).status_code == 413
    odd = {**headers, "content-length": "-1"}
    assert client.post(f"{base}/answer", content=b"x", headers=odd).status_code in (400, 413)
    assert answers.rows() == []


@pytest.mark.parametrize(
    "path",
    [
        "/r/{link}/practice/../key.json", "/r/{link}/../../key.json", "/static/../folder.py",
        "/static/%2e%2e/folder.py", "/static/..%2f..%2ffolder.py", "/static//etc/passwd", "/key.json", "/links.json",
        "/answers.sqlite", "/images/0000.jpg", "/r/{link}/practice/0/%2e%2e%2f%2e%2e%2fkey.json",
        "/r/{link}/practice/0%00/image.jpg", "/admin/{link}", "/", "/r/",
    ],
)  # fmt: skip
def test_nothing_but_its_pages_can_be_reached(served, folder, path):
    client, _ = served
    base = begun(served, folder)
    response = client.get(path.replace("/r/{link}", base).replace("{link}", link_of(folder)))
    assert response.status_code in (404, 405)
    assert "root:" not in response.text and "sha256" not in response.text


def test_another_readers_link_shows_and_changes_only_that_readers_own(served, folder):
    client, answers = served
    first, second = begun(served, folder), begun(served, folder, 1)
    assert answered(client, first, score=9).status_code == 200
    assert client.get(f"{second}/practice/0/answer").status_code == 404
    assert client.get(f"{second}/state").json()["turn"] == 0
    assert [row["reader"] for row in answers.rows()] == [0]


def test_the_administrator_sees_how_far_readers_are_and_no_score(served, folder):
    client, _ = served
    base = begun(served, folder)
    answered(client, base, score=8, comment="odd nuclei", guess="A")
    text = client.get(f"/admin/{link_of(folder, ADMINISTRATOR)}").text
    assert "anna" in text and "0 of 14" in text and link_of(folder, 1) in text
    assert "odd nuclei" not in text and not re.search(r">\s*8\s*<", text)
    assert client.get(f"/r/{link_of(folder, ADMINISTRATOR)}").status_code == 404
    assert client.get(f"/admin/{link_of(folder)}").status_code == 404


def test_whoever_tries_links_is_told_to_wait(served, folder, monkeypatch):
    client, _ = served
    codes = [client.get(f"/r/{number:032d}").status_code for number in range(module.WRONG_LINKS + 5)]
    assert codes == [404] * module.WRONG_LINKS + [429] * 5
    assert client.get("/admin/none").headers["retry-after"] == "60"
    assert client.get(f"/r/{link_of(folder)}").status_code == 200  # who has a link is not kept out by others
    later = module.time.monotonic() + module.WINDOW_SECONDS + 1
    monkeypatch.setattr(module.time, "monotonic", lambda: later)
    assert client.get("/r/none").status_code == 404


def test_an_error_within_shows_no_trace(served, folder, monkeypatch):
    client, answers = served
    base = begun(served, folder)
    monkeypatch.setattr(answers, "progress", lambda reader: 1 / 0)
    response = client.get(f"{base}/state")
    assert response.status_code == 500
    assert "something went wrong here" in response.text.lower() and "Zero" not in response.text


def test_every_response_has_its_headers_and_says_nothing_of_the_server(served, folder):
    client, _ = served
    base = begun(served, folder)
    for path in (base, f"{base}/practice/0/image.jpg", f"{base}/state", "/static/pathup.css", "/none"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers and "x-powered-by" not in headers
        if not path.startswith("/static"):
            assert headers["cache-control"] == "no-store"
            assert "last-modified" not in headers and "etag" not in headers


def test_files_are_read_from_the_folder_that_was_given(served, folder):
    client, _ = served
    base = begun(served, folder)
    assert client.get(f"{base}/practice/0/image.jpg").content == Path(folder.path / "practice/0000.jpg").read_bytes()
