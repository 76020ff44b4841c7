"""Many raters at once on one study: `captune rate` under load, and whether every answer is there once.

    python benchmarks/rate.py [--raters 50] [--seconds 60] [--think 0] [--json]

A real server is started on loopback and as many raters go through their screens at once as `--raters` says, each as a
browser would: open a page, post the answer, follow to the next page. `--think` is how long each one looks at a screen;
it is 0 by default, so the server is never idle. Every tenth answer is sent twice, as an impatient person clicks, and
one in twenty is undone and given again. Load program and server share the machine's cores.

At the end the answers in the study's file are compared with what was confirmed to each rater: `lost` and `doubled`
must be 0. There is no peer to divide by; `ratio` is how many times faster than 100 ms the median page is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from PIL import Image

TARGET_MS = 100.0


def make_run(folder: Path, images: int) -> None:
    """A run with three checkpoints and pictures the size of Flickr30k's."""
    from captune.report import CheckpointScores, RunScores, write_scores

    chance = random.Random(0)
    words = "a man woman dog ball red blue green runs jumps sits on the grass park street bike two young near".split()  # noqa: SIM905
    (folder / "pictures").mkdir(parents=True)
    references = {}
    for number in range(images):
        name = f"image{number}"
        references[name] = tuple(" ".join(chance.choices(words, k=10)) for _ in range(5))
        Image.effect_noise((500, 375), 60).convert("RGB").save(folder / "pictures" / f"{name}.jpg")
    rows = []
    for row in ("pretrained", "epoch0", "epoch1"):
        captions = {name: " ".join(chance.choices(words, k=10)) for name in references}
        scores = {name: {"CIDEr": chance.random()} for name in references}
        rows.append(CheckpointScores(name=row, corpus={"CIDEr": 0.5}, per_image=scores, captions=captions))
    write_scores(RunScores("load", tuple(rows), "test", "karpathy", images, references), folder)


class Connection:
    """A connection that is kept open, as a browser does; an HTTP library would take the cores from the server."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port, self.used = host, port, 0.0
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, str], str]:
        """Status, headers and text of the answer."""
        if self.streams is None or time.monotonic() - self.used > 30:
            self.streams = await asyncio.open_connection(self.host, self.port)
        self.used = time.monotonic()
        reader, writer = self.streams
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        text = (await reader.readexactly(int(headers["content-length"]))).decode()
        return int(lines[0].split()[1]), headers, text


class Rater:
    """One person at full speed."""

    def __init__(self, link: str, number: int, think: float) -> None:
        where = urlsplit(link)
        assert where.hostname is not None
        assert where.port is not None
        # The second one is for second clicks.
        self.connections = [Connection(where.hostname, where.port) for _ in range(2)]
        self.path, self.think = where.path, think
        self.chance = random.Random(number)
        self.confirmed: dict[int, str] = {}
        self.pages: list[float] = []
        self.posts: list[float] = []
        self.errors: list[str] = []

    async def rate(self, until: float) -> None:
        """Answer one screen after the other until a time of the clock."""
        page = await self._get("rate")
        while time.monotonic() < until:
            screen = re.search(r'data-part="(\w+)">\s*<input type="hidden" name="position" value="(\d+)"', page)
            if screen is None:
                return
            if self.think:
                await asyncio.sleep(self.chance.uniform(0.5, 1.5) * self.think)
            await self._answer(screen[1], int(screen[2]))
            if self.chance.random() < 0.05:
                await self._post("undo", {"position": screen[2]})
                del self.confirmed[int(screen[2])]
                page = await self._get("rate")
                await self._answer(screen[1], int(screen[2]))
            page = await self._get("rate")

    async def _answer(self, part: str, position: int) -> None:
        value = self.chance.choice(("first", "second", "tie"))
        fields = {"choice": value}
        if part == "rubric":
            points = self.chance.choices("12345", k=4)
            value = "".join(points)
            fields = dict(zip(("precision", "recall", "fluency", "conciseness"), points, strict=True))
        form = {"position": str(position), **fields}
        twice = self.chance.random() < 0.1
        # What a second click sends may differ from the first; the first one that arrives counts.
        answers = await asyncio.gather(*(self._post("answer", form, number) for number in range(1 + twice)))
        if sum("notice" not in answer for answer in answers) != 1:
            self.errors.append(f"position {position}: confirmed {answers}")
        self.confirmed[position] = value

    async def _get(self, name: str) -> str:
        start = time.perf_counter()
        status, _, text = await self.connections[0].request("GET", self.path + name)
        self.pages.append(time.perf_counter() - start)
        if status != 200:
            self.errors.append(f"GET {name}: {status}")
        return text

    async def _post(self, name: str, form: dict[str, str], connection: int = 0) -> str:
        start = time.perf_counter()
        body = urlencode(form).encode()
        status, headers, _ = await self.connections[connection].request("POST", self.path + name, body)
        self.posts.append(time.perf_counter() - start)
        if status != 303:
            self.errors.append(f"POST {name}: {status}")
        return headers.get("location", "")


async def load(links: list[str], seconds: float, think: float) -> list[Rater]:
    """All raters at once."""
    raters = [Rater(link, number, think) for number, link in enumerate(links)]
    until = time.monotonic() + seconds
    await asyncio.gather(*(rater.rate(until) for rater in raters))
    return raters


def main() -> None:
    """Start the server, let all raters answer, and compare the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raters", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--think", type=float, default=0.0, help="mean seconds that a rater looks at a screen")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        make_run(run, arguments.images)
        command = [
            str(Path(sys.executable).parent / "captune"),
            *("rate", str(run), "--pictures", str(run / "pictures")),
            *("--systems", "pretrained,epoch0,epoch1", "--images", str(arguments.images)),
            *("--raters", str(arguments.raters), "--judgements", str(arguments.raters), "--port", "0", "--json"),
        ]
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ}
        )
        assert server.stdout is not None
        try:
            made = json.loads(server.stdout.readline())
            started = time.monotonic()
            raters = asyncio.run(load(list(made["links"].values()), arguments.seconds, arguments.think))
            took = time.monotonic() - started
        finally:
            # Killed, not shut down: what was confirmed must be on the disk already.
            server.kill()
            server.wait()
            server.stdout.close()
        report(run / "rating", raters, took, arguments.json)


def report(study: Path, raters: list[Rater], took: float, as_json: bool) -> None:
    """Compare the file with what was confirmed, and print the figures."""
    from captune.apps.rating import Store

    store = Store(study)
    kept: dict[tuple[int, int], list[str]] = {}
    for answer in store.answers():
        kept.setdefault((answer.rater, answer.position), []).append(answer.value)
    store.close()
    confirmed = {(n, position): value for n, rater in enumerate(raters) for position, value in rater.confirmed.items()}
    lost = sum(key not in kept for key in confirmed) + sum(
        kept[key] != [value] for key, value in confirmed.items() if key in kept and len(kept[key]) == 1
    )
    doubled = sum(len(values) - 1 for values in kept.values()) + sum(key not in confirmed for key in kept)
    pages = [1000 * seconds for rater in raters for seconds in rater.pages]
    posts = [1000 * seconds for rater in raters for seconds in rater.posts]
    errors = [error for rater in raters for error in rater.errors]
    median = statistics.median(pages)
    figures = {
        "raters": len(raters),
        "seconds": round(took, 1),
        "cores": os.cpu_count(),
        "answers": len(confirmed),
        "pages": len(pages),
        "median_page_ms": round(median, 1),
        "p95_page_ms": round(statistics.quantiles(pages, n=20)[-1], 1),
        "median_answer_ms": round(statistics.median(posts), 1),
        "requests_per_s": round((len(pages) + len(posts)) / took, 1),
        "errors": len(errors),
        "lost": lost,
        "doubled": doubled,
        "identical": float(lost == doubled == 0),
        "ratio": round(TARGET_MS / median, 2),
    }
    if as_json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<18} {value:>10}")
    for error in errors[:5]:
        print(error, file=sys.stderr)
    if errors or lost or doubled:
        sys.exit(1)


if __name__ == "__main__":
    main()
