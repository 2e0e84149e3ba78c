"""What readers say, kept in SQLite so that nothing is lost and nothing is overwritten.

The data flow: requests hand their answers to one thread, which takes all that are waiting, checks each against where
its reader stands, writes them in one transaction, and says so to each only when that is on the disk; only then is it
known to others where the reader stands. An answer that is changed is one more row; the newest of a place counts.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pathup.errors import PathUpError

__all__ = ["Answer", "Answers", "Progress", "RefusedAnswerError", "Round"]

Round = Literal["practice", "study"]
"""Practice is kept, too, but counts for nothing."""

SCORES = range(1, 11)
MOST_COMMENT = 2000
"""Characters of a comment."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY,
    reader INTEGER NOT NULL,
    round TEXT NOT NULL CHECK (round IN ('practice', 'study')),
    place INTEGER NOT NULL CHECK (place >= 0),
    turn INTEGER NOT NULL,
    score INTEGER NOT NULL CHECK (score BETWEEN 1 AND 10),
    guess TEXT,
    comment TEXT,
    seconds REAL,
    at TEXT NOT NULL,
    UNIQUE (reader, turn)
);
CREATE TABLE IF NOT EXISTS consents (reader INTEGER PRIMARY KEY, at TEXT NOT NULL);
"""


class RefusedAnswerError(PathUpError):
    """An answer that is not taken, and why; nothing of it is kept."""


@dataclass(frozen=True)
class Answer:
    """What a reader says of one image.

    Attributes
    ----------
    reader
        The reader's place among the readers.
    round, place
        Which image: the place in the reader's order, from 0.
    turn
        How many answers the reader had given before this one, by what the page knew: one that was sent twice, or from
        a page that lies behind, is refused.
    score
        1 (synthetic) to 10 (real).
    guess
        The class that the reader names, if any.
    comment
        If any.
    seconds
        That the image was looked at, by the browser.
    """

    reader: int
    round: Round
    place: int
    turn: int
    score: int
    guess: str | None = None
    comment: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Progress:
    """How far a reader is.

    Attributes
    ----------
    consented
        Whether the reader agreed to take part, and when (UTC).
    turn
        Answers given, changed ones counted every time.
    practice, study
        Images of each round that have an answer.
    last
        When the newest answer was given (UTC).
    """

    consented: str | None
    turn: int
    practice: int
    study: int
    last: str | None


class Answers:
    """The answers of a study, open for reading and writing by one process.

    Parameters
    ----------
    path
        The database; made when missing.

    Raises
    ------
    PathUpError
        It cannot be opened, or is no database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._writing = self._connected()
            self._writing.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise PathUpError(f"{path} cannot be opened ({error}); is the disk full, or the file damaged?") from error
        self._known: dict[int, Progress] = {}  # what is on the disk, of readers who were asked for
        self._waiting: queue.SimpleQueue[tuple[_Work, Future[Any]] | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._writer = threading.Thread(target=self._write, name="answers", daemon=True)
        self._writer.start()

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=30)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # an answer that was said to be kept survives a power cut
        return connection

    # -- writing --------------------------------------------------------------------------------------------

    def give(self, answer: Answer) -> Future[int]:
        """Keep an answer; the future holds how many the reader has given then, once that is on the disk.

        Its exception is `RefusedAnswerError` where the answer is out of range, the page that sent it lies behind, or
        an image before it has no answer yet; another PathUpError where the disk is full.
        """
        return self._ask(lambda connection, known: _give(connection, answer, known))

    def consent(self, reader: int) -> Future[None]:
        """Keep that a reader agreed to take part; the first time counts."""
        return self._ask(lambda connection, known: _consent(connection, reader, known))

    def _ask(self, work: _Work) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.put((work, future))
        return future

    def _write(self) -> None:
        """Take what is waiting, all in one transaction, until told to end."""
        while (first := self._waiting.get()) is not None:
            batch, ends = [first], False
            while not self._waiting.empty():
                more = self._waiting.get()
                if more is None:
                    ends = True
                    break
                batch.append(more)
            self._commit(batch)
            if ends:
                return

    def _commit(self, batch: list[tuple[_Work, Future[Any]]]) -> None:
        connection, results = self._writing, list[tuple[Future[Any], Any, Exception | None]]()
        known = _Standings(connection, self._known)
        try:
            connection.execute("BEGIN IMMEDIATE")
            for work, future in batch:
                try:
                    results.append((future, work(connection, known), None))
                except RefusedAnswerError as refused:
                    results.append((future, None, refused))
                except sqlite3.IntegrityError:  # another process has written: what it wrote is read anew
                    known.clear()
                    self._known.clear()
                    results.append((future, None, RefusedAnswerError("this page lies behind; load it again")))
                except (UnicodeError, OverflowError):  # what no page of ours sends
                    results.append((future, None, RefusedAnswerError("this cannot be kept")))
            connection.execute("COMMIT")
            self._known.update(known)
        except Exception as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            told = PathUpError(f"{self._path} could not be written ({error}); is the disk full?")
            results = [(future, None, told) for _, future in batch]
        for future, value, problem in results:
            if problem is None:
                future.set_result(value)
            else:
                future.set_exception(problem)

    # -- reading --------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if not hasattr(self._local, "connection"):
            self._local.connection = self._connected()
        yield self._local.connection

    def progress(self, reader: int) -> Progress:
        """How far a reader is, by what is on the disk."""
        known = self._known.get(reader)
        if known is None:
            with self._reading() as connection:
                known = self._known.setdefault(reader, _standing(connection, reader))
        return known

    def newest(self, reader: int, round_: Round, place: int) -> Answer | None:
        """The answer that counts for an image; None where there is none."""
        rows = [row for row in self.rows(reader) if (row["round"], row["place"]) == (round_, place)]
        if not rows:
            return None
        return Answer(**{name: rows[-1][name] for name in Answer.__dataclass_fields__})

    def rows(self, reader: int | None = None) -> list[dict[str, Any]]:
        """Every answer ever given, in order, changed ones too; of one reader, or of all."""
        with self._reading() as connection:
            found = connection.execute("SELECT * FROM answers WHERE ?1 IS NULL OR reader = ?1 ORDER BY id", (reader,))
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found]

    def close(self) -> None:
        """Write what is waiting, and end."""
        self._waiting.put(None)
        self._writer.join()
        self._writing.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _standing(connection: sqlite3.Connection, reader: int) -> Progress:
    rows = dict(connection.execute(
        "SELECT round, COUNT(DISTINCT place) FROM answers WHERE reader = ? GROUP BY round", (reader,)
    ))  # fmt: skip
    count, last = connection.execute("SELECT COUNT(*), MAX(at) FROM answers WHERE reader = ?", (reader,)).fetchone()
    consented = connection.execute("SELECT at FROM consents WHERE reader = ?", (reader,)).fetchone()
    return Progress(consented and consented[0], count, rows.get("practice", 0), rows.get("study", 0), last)


class _Standings(dict[int, Progress]):
    """Where readers stand once a transaction is through, begun from what is known, else from the database."""

    def __init__(self, connection: sqlite3.Connection, known: dict[int, Progress]) -> None:
        super().__init__()
        self._connection, self._before = connection, known

    def __missing__(self, reader: int) -> Progress:
        self[reader] = self._before.get(reader) or _standing(self._connection, reader)
        return self[reader]


_Work = Callable[[sqlite3.Connection, _Standings], Any]


def _consent(connection: sqlite3.Connection, reader: int, known: _Standings) -> None:
    if known[reader].consented is None:
        now = _now()
        connection.execute("INSERT INTO consents VALUES (?, ?)", (reader, now))
        known[reader] = replace(known[reader], consented=now)


def _give(connection: sqlite3.Connection, answer: Answer, known: _Standings) -> int:
    if answer.score not in SCORES:
        raise RefusedAnswerError(f"a score is {SCORES[0]} to {SCORES[-1]}")
    if answer.comment is not None and len(answer.comment) > MOST_COMMENT:
        raise RefusedAnswerError(f"a comment has at most {MOST_COMMENT} characters")
    if answer.round not in ("practice", "study"):
        raise RefusedAnswerError("there is no such round")
    before = known[answer.reader]
    if before.consented is None:
        raise RefusedAnswerError("please agree to take part first")
    if answer.turn != before.turn:
        raise RefusedAnswerError("this page lies behind: an answer was given elsewhere, or this one twice")
    done = before.practice if answer.round == "practice" else before.study
    if not 0 <= answer.place <= done:
        raise RefusedAnswerError("an image before this one has no answer yet")
    now = _now()
    connection.execute(
        "INSERT INTO answers (reader, round, place, turn, score, guess, comment, seconds, at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (answer.reader, answer.round, answer.place, answer.turn, answer.score, answer.guess, answer.comment,
         answer.seconds, now),
    )  # fmt: skip
    after = replace(before, turn=before.turn + 1, last=now)
    done = max(done, answer.place + 1)
    known[answer.reader] = replace(after, practice=done) if answer.round == "practice" else replace(after, study=done)
    return before.turn + 1
