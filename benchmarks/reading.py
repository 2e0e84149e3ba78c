"""Many readers at once: how long an answer takes until it is kept and the next image is named, and whether any is lost.

    python benchmarks/reading.py --readers 200 --answers 20

A study of made images is served by ``pathup study serve`` on loopback; every reader fetches an image, waits as long as
asked, and answers, all at the same time. Prints JSON: seconds of an answer and of an image (median, 95th percentile),
answers given and kept. Beside it, in the same run, the same number of bare requests for where a reader stands: what the
machine takes without keeping anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from pathup.study.answers import Answers
from pathup.study.folder import StudyFolder, StudyRequest, new_study

LABELS = ("A", "B")


def made_study(root: Path, readers: int, per_class: int, side: int) -> StudyFolder:
    """A study of noise."""
    for arm in ("real", "synthetic"):
        for label in LABELS:
            (root / arm / label).mkdir(parents=True)
            for index in range(per_class):
                draw = np.random.default_rng(hash((arm, label, index)) % 2**32)
                pixels = draw.integers(0, 256, (side, side, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / arm / label / f"{index}.png", compress_level=1)
    names = tuple(f"reader {number}" for number in range(readers))
    return new_study(StudyRequest(
        folder=root / "study", real=root / "real", synthetic=root / "synthetic", readers=names, per_class=per_class,
        practice=0, mpp=0.5,
    ))  # fmt: skip


class Reader:
    """A reader's browser, as far as it matters: one connection that is kept, and requests in turn on it.

    (A client library would take more of the machine than the server does.)
    """

    def __init__(self, address: str, link: str) -> None:
        self._address, self._base = urlsplit(address), f"/r/{link}"

    async def connect(self) -> None:
        """Open the connection."""
        self._reader, self._writer = await asyncio.open_connection(self._address.hostname, self._address.port)

    async def ask(self, path: str, body: bytes | None = None, into: list[float] | None = None) -> bytes:
        """What the server responds; the seconds go into a list."""
        method = "GET" if body is None else "POST"
        head = [f"{method} {self._base}{path} HTTP/1.1", f"host: {self._address.netloc}",
                f"origin: {self._address.geturl()}", f"content-length: {len(body or b'')}"]  # fmt: skip
        started = time.perf_counter()
        self._writer.write("\r\n".join([*head, "", ""]).encode() + (body or b""))
        told = await self._reader.readuntil(b"\r\n\r\n")
        length = next(line for line in told.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        content = await self._reader.readexactly(int(length.split(b":")[1]))
        if into is not None:
            into.append(time.perf_counter() - started)
        if told.split(b" ", 2)[1] not in (b"200", b"303"):
            raise RuntimeError(content.decode())
        return content


async def reads(reader: Reader, number: int, answers: int, pause: float, took: dict[str, list[float]]) -> None:
    """One reader, from consent to the last answer."""
    draw = np.random.default_rng(number)
    await asyncio.sleep(float(draw.uniform(0, pause)))
    await reader.connect()
    await reader.ask("/consent", b"")
    state = json.loads(await reader.ask("/state"))
    for _ in range(answers):
        await reader.ask(f"/{state['round']}/{state['place']}/image.jpg", into=took["image"])
        await asyncio.sleep(float(draw.uniform(0, 2 * pause)))
        told = {"round": state["round"], "place": state["place"], "turn": state["turn"], "score": 5}
        state = json.loads(await reader.ask("/answer", json.dumps(told).encode(), into=took["answer"]))
        await reader.ask("/state", into=took["bare"])


async def everyone(address: str, links: list[str], answers: int, pause: float) -> dict[str, list[float]]:
    """All readers at once."""
    took: dict[str, list[float]] = {"answer": [], "image": [], "bare": []}
    everybody = [reads(Reader(address, link), number, answers, pause, took) for number, link in enumerate(links)]
    await asyncio.gather(*everybody)
    return took


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--answers", type=int, default=20, help="of each reader [20]")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds that an image is looked at, mean [1]")
    parser.add_argument("--side", type=int, default=256, help="of an image, px [256]")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        study = made_study(Path(root), asked.readers, max(2, -(-asked.answers // 4)), asked.side)
        command = [sys.executable, "-m", "pathup", "study", "serve", str(study.path), "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            told = [server.stdout.readline().strip() for _ in range(asked.readers + 1)]
            addresses = [line.rpartition(": ")[2].rpartition("/r/") for line in told[:-1]]
            time.sleep(2)
            took = asyncio.run(everyone(addresses[0][0], [one[2] for one in addresses], asked.answers, asked.pause))
        finally:
            server.terminate()
            server.wait()
        answers = Answers(study.answers_file)
        rows = answers.rows()
        answers.close()
    found = {
        name: {"median": round(float(np.median(own)), 4), "p95": round(float(np.quantile(own, 0.95)), 4)}
        for name, own in took.items()
    }
    kept = len({(row["reader"], row["place"]) for row in rows})
    print(json.dumps({
        "readers": asked.readers, "given": asked.readers * asked.answers, "kept": kept, "rows": len(rows), **found,
        "answer_beside_bare": round(found["answer"]["p95"] / found["bare"]["p95"], 2),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
