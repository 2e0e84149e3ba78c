from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pathup.errors import PathUpError
from pathup.study.answers import Answer, Answers, RefusedAnswerError


@pytest.fixture
def answers(tmp_path: Path):
    kept = Answers(tmp_path / "answers.sqlite")
    kept.consent(0).result()
    yield kept
    kept.close()


def given(answers: Answers, place: int, turn: int, score: int = 5, reader: int = 0) -> int:
    return answers.give(Answer(reader, "study", place, turn, score)).result()


def test_a_changed_answer_supersedes_and_both_stay(answers):
    assert given(answers, 0, 0, score=3) == 1
    assert given(answers, 1, 1, score=4) == 2
    assert given(answers, 0, 2, score=9) == 3
    assert answers.newest(0, "study", 0).score == 9
    assert [(row["place"], row["score"]) for row in answers.rows(0)] == [(0, 3), (1, 4), (0, 9)]
    assert (answers.progress(0).study, answers.progress(0).turn) == (2, 3)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(0, "study", 0, 0, 0), "1 to 10"),
        (Answer(0, "study", 0, 0, 11), "1 to 10"),
        (Answer(0, "study", 1, 0, 5), "before this one"),
        (Answer(0, "study", 0, 1, 5), "lies behind"),
        (Answer(0, "study", 0, -1, 5), "lies behind"),
        (Answer(1, "study", 0, 0, 5), "agree to take part"),
        (Answer(0, "study", 0, 0, 5, comment="x" * 2001), "at most 2000"),
        (Answer(0, "study", 0, 0, 5, comment="\ud800"), "cannot be kept"),
        (Answer(0, "study", 0, 0, 2**70), "1 to 10"),
        (Answer(0, "other", 0, 0, 5), "no such round"),
    ],
)
def test_what_is_refused_leaves_no_trace(answers, answer, said):
    with pytest.raises(RefusedAnswerError, match=said):
        answers.give(answer).result()
    assert answers.rows() == []
    assert given(answers, 0, 0) == 1  # and others are taken


def test_an_answer_that_is_sent_twice_is_kept_once(answers):
    given(answers, 0, 0)
    with pytest.raises(RefusedAnswerError, match="lies behind"):
        given(answers, 0, 0)
    assert len(answers.rows()) == 1


def test_of_many_at_once_none_is_lost_or_doubled(tmp_path):
    answers = Answers(tmp_path / "many.sqlite")
    readers, count = 40, 10

    def reads(reader: int) -> None:
        answers.consent(reader).result()
        for place in range(count):
            given(answers, place, place, score=1 + (reader + place) % 10, reader=reader)

    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(reads, range(readers)))
    rows = answers.rows()
    assert len(rows) == len({(row["reader"], row["place"]) for row in rows}) == readers * count
    assert all(row["score"] == 1 + (row["reader"] + row["place"]) % 10 for row in rows)
    answers.close()


def _gives_for_ever(path: str, told: str) -> None:
    answers = Answers(Path(path))
    answers.consent(0).result()
    for place in range(100_000):
        given(answers, place, place, score=1 + place % 10)
        with Path(told).open("a") as log:
            log.write(f"{place}\n")


def test_what_was_said_to_be_kept_survives_a_kill(tmp_path):
    path, told = tmp_path / "answers.sqlite", tmp_path / "told"
    process = multiprocessing.get_context("spawn").Process(target=_gives_for_ever, args=(str(path), str(told)))
    process.start()
    deadline = time.monotonic() + 60
    while not told.exists() or told.read_text().count("\n") < 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    said = told.read_text().count("\n")
    answers = Answers(path)
    kept = [row["place"] for row in answers.rows(0)]
    assert kept == list(range(len(kept)))
    assert said <= len(kept) <= said + 1  # the last one may be on the disk and not yet said
    answers.close()


def test_a_full_disk_is_one_sentence_and_the_next_answer_is_taken(answers, monkeypatch):
    class Full:
        in_transaction = False

        def execute(self, *_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

    real = answers._writing
    monkeypatch.setattr(answers, "_writing", Full())
    with pytest.raises(PathUpError, match="is the disk full"):
        given(answers, 0, 0)
    monkeypatch.setattr(answers, "_writing", real)
    assert given(answers, 0, 0) == 1


def test_a_damaged_file_is_one_sentence(tmp_path):
    (tmp_path / "answers.sqlite").write_bytes(b"no database, but longer than its head would be" * 10)
    with pytest.raises(PathUpError, match="cannot be opened"):
        Answers(tmp_path / "answers.sqlite")
