"""Bulk captioning: images a second, and whether killing it changes anything.

    python benchmarks/bulk.py [--images 2000] [--shard-size 50] [--kills 10] [--ways processes ray] [--json]

Draws images (one in a hundred of them bad, in seven ways), captions them with the toy model by `captune caption` and
compares every output file, byte by byte, with those of an undisturbed run:

    undisturbed    one process
    killed         one process, killed with SIGKILL at random moments, started again each time
    processes      two processes, `--part 0/2` and `--part 1/2`
    ray            `--engine ray` on two processors with two actors, one of which is killed in the middle

A program's time includes its start: imports and loading the model. The last JSON line has `ratio`, images a second of
two processes over one, and `identical`, whether all files of all ways were equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captune.data.locks import is_lock_file

ROOT = Path(__file__).resolve().parent.parent
BAD = (
    b"",
    b"no image",
    b"\xff\xd8\xff\xe0 cut",
    b"GIF89a",
    b"\x89PNG\r\n\x1a\n",
    b"%!PS-Adobe-3.0 EPSF-3.0\n",
    b"\0" * 99,
)


STARTUP = 4.0
"""Seconds in which the program has not begun to caption."""


def draw(folder: Path, count: int) -> int:
    """Images of coloured shapes; how many of them are bad."""
    folder.mkdir()
    colours = np.random.default_rng(0)
    bad = 0
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        if number % 100 == 42:
            path.write_bytes(BAD[bad % len(BAD)])
            bad += 1
            continue
        pixels = np.full((96, 128, 3), colours.integers(0, 255, 3), np.uint8)
        for _ in range(4):
            x, y = colours.integers(0, 90, 2)
            pixels[y : y + 30, x : x + 40] = colours.integers(0, 255, 3)
        Image.fromarray(pixels).save(path, quality=90)
    return bad


def command(images: Path, out: Path, size: int, *more: str) -> list[str]:
    """The command line of `captune caption` with the toy model."""
    program = [sys.executable, "-m", "captune", "caption", "toy", str(images), "--out", str(out)]
    return [*program, "--shard-size", str(size), "--max-new-tokens", "24", *more]


def start(words: list[str], **environment: str) -> subprocess.Popen[bytes]:
    """Start a command on one thread, with variables added to the environment."""
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    for name in ("RANK", "WORLD_SIZE"):
        settings.pop(name, None)
    return subprocess.Popen(words, env=settings, stderr=subprocess.DEVNULL, start_new_session=True)


def finish(*processes: subprocess.Popen[bytes]) -> None:
    """Wait for processes that must end with images captioned or in quarantine."""
    codes = [process.wait() for process in processes]
    # Exit code 2: some images are in quarantine, as expected.
    assert set(codes) <= {0, 2}, codes


def contents(folder: Path) -> dict[str, bytes]:
    """The finished files of a folder, by relative path; lock files are left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".partial") and not is_lock_file(path.name)
    }


def killed(words: list[str], kills: int, usual: float, rng: random.Random) -> int:
    """Kill a job again and again at random moments, then let it end; how often it was killed."""
    done = 0
    for _ in range(kills):
        process = start(words)
        try:
            # After the start of the program, and early enough that there is work left for the last kill.
            process.wait(STARTUP + rng.random() * (usual - STARTUP) * 1.5 / kills)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
    finish(start(words))
    return done


def with_ray(words: list[str], out: Path, shards: int) -> int:
    """Run the Ray engine and kill one of its actors when a few shards are there; how many were killed."""
    process = start([*words, "--engine", "ray", "--actors", "2"])
    while len(list(out.glob("images-*.jsonl"))) < shards // 8 and process.poll() is None:
        time.sleep(0.05)
    victims = actors_of(process.pid)
    if victims:
        os.kill(victims[0], signal.SIGKILL)
    finish(process)
    return len(victims[:1])


def actors_of(root: int) -> list[int]:
    """Processes of Ray actors of this job's session, recognized by the title that Ray gives them."""
    actors = []
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes()
            session = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[3])
        except (OSError, ValueError, IndexError):
            continue
        if title.startswith(b"ray::_Worker") and session == root:
            actors.append(int(entry.name))
    return sorted(actors)


def main() -> None:
    """Caption the images in every way, compare the files and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shard-size", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ways", nargs="*", choices=("killed", "processes", "ray"), default=["killed", "processes", "ray"]
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def report(way: str, seconds: float, same: bool, **more: Any) -> None:
        rows.append({"way": way, "images_per_s": round(arguments.images / seconds, 1), "identical": same, **more})
        if arguments.json:
            print(json.dumps(rows[-1]), flush=True)
        else:
            details = "  ".join(f"{name} {value}" for name, value in more.items())
            print(f"{way:12} {rows[-1]['images_per_s']:7.1f} images/s  identical {same}  {details}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = folder / "images"
        bad = draw(images, arguments.images)
        began = time.monotonic()
        finish(start(command(images, folder / "undisturbed", arguments.shard_size)))
        usual = time.monotonic() - began
        undisturbed = contents(folder / "undisturbed")
        shards = [name for name in undisturbed if name.startswith("images-")]
        lines = [json.loads(line) for name in shards for line in undisturbed[name].splitlines()]
        quarantined = undisturbed["quarantine.jsonl"].count(b"\n")
        assert len({row["id"] for row in lines}) == len(lines) == arguments.images - bad, "every good image once"
        assert quarantined == bad, "every bad image with its reason"
        report("undisturbed", usual, True, shards=len(shards), quarantined=quarantined)
        if "killed" in arguments.ways:
            words = command(images, folder / "killed", arguments.shard_size)
            began = time.monotonic()
            times = killed(words, arguments.kills, usual, random.Random(arguments.seed))
            report("killed", time.monotonic() - began, contents(folder / "killed") == undisturbed, kills=times)
        if "processes" in arguments.ways:
            began = time.monotonic()
            out = folder / "processes"
            finish(*(start(command(images, out, arguments.shard_size, "--part", f"{k}/2")) for k in range(2)))
            seconds = time.monotonic() - began
            # The process that ends first collects the quarantine as it is then; the last one collects all of it.
            report("processes", seconds, contents(out) == undisturbed, processes=2)
        if "ray" in arguments.ways:
            began = time.monotonic()
            out = folder / "ray"
            dead = with_ray(command(images, out, arguments.shard_size), out, len(shards))
            report("ray", time.monotonic() - began, contents(out) == undisturbed, actors=2, actors_killed=dead)
    rate = {row["way"]: row["images_per_s"] for row in rows}
    summary = {
        "ratio": round(rate.get("processes", rate["undisturbed"]) / rate["undisturbed"], 3),
        "identical": all(row["identical"] for row in rows),
    }
    print(
        json.dumps(summary)
        if arguments.json
        else f"two processes over one: {summary['ratio']}; all files equal: {summary['identical']}"
    )
    sys.exit(0 if summary["identical"] else 1)


if __name__ == "__main__":
    main()
