"""A study's folder: what it consists of, and which of its files may be shown to whom.

``study.json`` says what a reader may know (classes, scale, how many images); ``key.json`` says which image is real, and
``links.json`` which link is whose: both are for the server and the report alone. Images lie in ``images/``, named by
number in an order that the seed drew; answers in ``answers.sqlite``.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from pathup import __version__, draws, storage
from pathup.errors import PathUpError
from pathup.study.answers import Round
from pathup.study.images import Drawn, candidates, common_look, drawn_images, write_images
from pathup.study.order import viewing_order

__all__ = ["ADMINISTRATOR", "Shown", "StudyFolder", "StudyRequest", "new_study"]

STUDY_FILE, KEY_FILE, LINKS_FILE, ANSWERS_FILE = "study.json", "key.json", "links.json", "answers.sqlite"
IMAGES, PRACTICE = "images", "practice"
ADMINISTRATOR = -1
"""In the place of a reader, of the administrator's link."""

LINK_BYTES = 24
"""Of chance in a link: 192 bits cannot be guessed."""


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """``pathup study new``: the fields are its options (docs/commands.md)."""

    folder: Path
    real: Path
    synthetic: Path
    readers: tuple[str, ...]
    per_class: int = 10
    repeats: float = 0.1
    practice: int = 4
    seed: int = 0
    split: str | None = None
    size_px: int | None = None
    mpp: float | None = None
    title: str = "Reading of tissue images"

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise PathUpError(f"--per-class is {self.per_class}, but at least 1 was needed")
        if not 0 <= self.repeats <= 0.5:
            raise PathUpError(f"--repeats is {self.repeats:g}, but a share of the images from 0 to 0.5 was needed")
        if self.practice < 0:
            raise PathUpError(f"--practice is {self.practice}, but 0 or more was needed")
        if not self.readers or any(not name.strip() for name in self.readers):
            raise PathUpError("a study needs readers, each with a name: --readers anna,ben,carla")
        twice = sorted({name for name in self.readers if self.readers.count(name) > 1})
        if twice:
            raise PathUpError(f"two readers are called '{twice[0]}'; every reader needs a name of their own")


@dataclass(frozen=True)
class Shown:
    """One image of a study, and what the server alone knows of it.

    Attributes
    ----------
    name
        Of its file.
    label
        Its class.
    synthetic
        Whether PathUp made it.
    source, sha256
        Which image it was, and the hash of that file.
    """

    name: str
    label: str
    synthetic: bool
    source: str
    sha256: str


class StudyFolder:
    """A study that was made, as the server and the report read it.

    Parameters
    ----------
    path
        What `new_study` made.

    Raises
    ------
    PathUpError
        The folder holds no study, or a file of it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / STUDY_FILE).is_file():
            raise PathUpError(f"{path} holds no study ({STUDY_FILE}); make one with 'pathup study new'")
        told, key = storage.read_json(path / STUDY_FILE), storage.read_json(path / KEY_FILE)
        try:
            self.title, self.readers = str(told["title"]), tuple(str(name) for name in told["readers"])
            self.labels, self.seed = tuple(str(label) for label in told["labels"]), int(told["seed"])
            self.side_px, self.mpp, self.repeats = int(told["side_px"]), float(told["mpp"]), float(told["repeats"])
            self.images = tuple(Shown(**row) for row in key[IMAGES])
            self.practice = tuple(Shown(**row) for row in key[PRACTICE])
        except (KeyError, TypeError, ValueError) as error:
            raise PathUpError(f"{path} holds a damaged study ({error!r}); make it again") from error

    @property
    def answers_file(self) -> Path:
        """The database of answers."""
        return self.path / ANSWERS_FILE

    @cached_property
    def orders(self) -> tuple[tuple[int, ...], ...]:
        """Of each reader, the images by index as they come, repeats among them."""
        arms = [image.synthetic for image in self.images]
        count = range(len(self.readers))
        return tuple(tuple(viewing_order(arms, self.repeats, self.seed, reader)) for reader in count)

    def count(self, round_: Round) -> int:
        """How many images a reader sees in a round."""
        return len(self.practice) if round_ == "practice" else len(self.orders[0])

    def file_of(self, reader: int, round_: Round, place: int) -> Path:
        """The image at a place of a reader's order."""
        images, folder = (self.practice, PRACTICE) if round_ == "practice" else (self.images, IMAGES)
        index = place if round_ == "practice" else self.orders[reader][place]
        return self.path / folder / images[index].name

    # -- links ----------------------------------------------------------------------------------------------

    def links(self) -> dict[str, int]:
        """Whose link each is: a reader's place, or `ADMINISTRATOR`."""
        return {str(link): int(whose) for link, whose in storage.read_json(self.path / LINKS_FILE).items()}

    @cached_property
    def _hashed(self) -> dict[bytes, int]:
        return {sha256(link.encode()).digest(): whose for link, whose in self.links().items()}

    def owner(self, link: str) -> int | None:
        """Whose link it is; None where it is nobody's. Takes as long for any: hashes are compared, not links."""
        asked, found = sha256(link.encode("utf-8", "surrogatepass")).digest(), None
        for known, whose in self._hashed.items():
            if hmac.compare_digest(known, asked):
                found = whose
        return found


def new_study(request: StudyRequest, progress: Callable[[str, int, int], None] | None = None) -> StudyFolder:
    """Draw a study's images, write them blinded, and give every reader a link.

    Raises
    ------
    PathUpError
        The folder is there already; an arm lacks images of a class, or their scale; or the disk is full.
    """
    folder, tell = request.folder, progress or (lambda stage, done, total: None)
    if folder.exists():
        raise PathUpError(f"{folder} exists already; name another folder, so that no answers are lost")
    real = candidates(request.real, split=request.split, mpp=request.mpp)
    arms = [real, candidates(request.synthetic, mpp=request.mpp)]
    chosen = drawn_images(arms[0], arms[1], request.per_class, request.seed)
    taken = {drawn.image.file for drawn in chosen}
    labels = sorted({drawn.image.label for drawn in chosen})
    look = common_look([drawn.image for drawn in chosen], side_px=request.size_px, mpp=request.mpp)
    practice = _practice(arms, taken, look.side_um, request)
    with storage.atomic_folder(folder) as partial:
        partial.chmod(0o700)  # the key and the links are for whoever runs the study
        rounds = {IMAGES: _shuffled(chosen, request.seed), PRACTICE: practice}
        every = [drawn for own in rounds.values() for drawn in own]
        names = [f"{number:04d}.jpg" for own in rounds.values() for number in range(len(own))]
        files = [partial / place / name for place, own, name in
                 zip([place for place, own in rounds.items() for _ in own], every, names, strict=True)]  # fmt: skip
        for place in rounds:
            (partial / place).mkdir()
        write_images([drawn.image for drawn in every], files, look, seed=request.seed,
                     progress=lambda done, total: tell("images", done, total))  # fmt: skip
        storage.write_json(partial / KEY_FILE, _key(rounds))
        storage.write_json(partial / LINKS_FILE, _links(len(request.readers)))
        storage.write_json(partial / STUDY_FILE, {
            "title": request.title, "version": __version__, "readers": list(request.readers), "labels": labels,
            "per_class": request.per_class, "repeats": request.repeats, "seed": request.seed, "side_px": look.side_px,
            "mpp": look.mpp,
        })  # fmt: skip
    return StudyFolder(folder)


def _practice(arms: Sequence[Sequence[Any]], taken: set[Path], side_um: float, request: StudyRequest) -> list[Drawn]:
    """Images of both arms that are not in the study, as many of each; fewer where there are no more."""
    left = [[one for one in arm if one.file not in taken and one.side_um >= 0.999 * side_um] for arm in arms]
    each = min(request.practice // 2, *(len(own) for own in left))
    chosen = [
        Drawn(own[place], arm == 1)
        for arm, own in enumerate(left)
        for place in draws.numpy_generator(request.seed, "practice", arm).permutation(len(own))[:each]
    ]
    return [chosen[place] for place in draws.numpy_generator(request.seed, "practice").permutation(len(chosen))]


def _shuffled(chosen: Sequence[Drawn], seed: int) -> list[Drawn]:
    """In an order that tells nothing, since files are numbered by it."""
    order: np.ndarray = draws.numpy_generator(seed, "names").permutation(len(chosen))
    return [chosen[place] for place in order]


def _key(rounds: dict[str, list[Drawn]]) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [
            asdict(Shown(f"{number:04d}.jpg", drawn.image.label, drawn.synthetic, drawn.image.file.name,
                         storage.sha256_file(drawn.image.file)))
            for number, drawn in enumerate(own)
        ]
        for name, own in rounds.items()
    }  # fmt: skip


def _links(readers: int) -> dict[str, int]:
    return {secrets.token_urlsafe(LINK_BYTES): whose for whose in (*range(readers), ADMINISTRATOR)}
