"""The leak guard: what it finds, what it takes for a leak and is none, and how fast it is.

    python benchmarks/leaks.py [--scenes 5000] [--size 64 256] [--planted 300] [--photos DIR]
        [--speed] [--sweep] [--json]

Distinct drawn scenes, and distinct photographs where a folder of them exists, are trained on. Altered copies of some of
them are evaluated on: which are found? Every pair of distinct pictures is compared: how many are taken for the same?
`--sweep` prints both for other radii of the hash and other limits of the difference, which is how the guard's values
were selected. `--speed` searches a million hashes for ten thousand, against the loop that ImageHash's users write.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from captune.data.leaks import ImageFile, find_leaks
from captune.data.leaks.fingerprints import FULL_IMAGE, VIEWS, close_pairs, fingerprint
from captune.data.leaks.guard import RADIUS, candidates
from captune.data.leaks.pixels import LARGEST_DIFFERENCE, LEAST_STRUCTURE, Likeness, compare, read_thumbnail
from captune.toy.drawing import draw_scene
from captune.toy.scenes import sample_scenes

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT.parent / "shared/captions/flickr8k/images"
WIDEST_RADIUS = 16
LIMITS = (2.0, 4.0, 6.25, 8.0, 12.0, 100.0)
STRUCTURES = (-1.0, 0.4, 0.5, 0.56, 0.6, 0.7)

Alteration = Callable[[Image.Image, Random], Image.Image]


def cut(share: float) -> Alteration:
    """Cut up to a share from each side, all of it from at least one of them."""

    def altered(image: Image.Image, random: Random) -> Image.Image:
        shares = [random.uniform(0, share) for _ in range(4)]
        shares[random.randrange(4)] = share
        width, height = image.size
        left, top, right, bottom = shares
        box = (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
        return image.crop(box)

    return altered


def scaled(factor: float, stretch: float = 1.0) -> Alteration:
    """Another size, with other proportions where `stretch` is not 1."""

    def altered(image: Image.Image, random: Random) -> Image.Image:
        width, height = image.size
        return image.resize((round(width * factor * stretch), round(height * factor)), Image.Resampling.LANCZOS)

    return altered


def unchanged(image: Image.Image, random: Random) -> Image.Image:
    """The image itself."""
    return image


def cut_scaled(image: Image.Image, random: Random) -> Image.Image:
    """Cut up to 5 % from each side, then scale by 0.7."""
    return scaled(0.7)(cut(0.05)(image, random), random)


# What is done to the copy, and how it is saved: ending and quality.
ALTERATIONS: dict[str, tuple[Alteration, str, int]] = {
    "other name": (unchanged, "", 0),
    "PNG": (unchanged, "png", 0),
    "JPEG 75": (unchanged, "jpg", 75),
    "JPEG 40": (unchanged, "jpg", 40),
    "JPEG 20": (unchanged, "jpg", 20),
    "WebP 60": (unchanged, "webp", 60),
    "size x 0.5": (scaled(0.5), "jpg", 90),
    "size x 0.75": (scaled(0.75), "jpg", 90),
    "size x 2": (scaled(2.0), "jpg", 90),
    "squeezed": (scaled(0.8, 0.8), "jpg", 90),
    "cut 2 %": (cut(0.02), "jpg", 90),
    "cut 5 %": (cut(0.05), "jpg", 90),
    "cut 10 %": (cut(0.10), "jpg", 90),
    "cut 5 %, size x 0.7, JPEG 60": (cut_scaled, "jpg", 60),
}


def draw(folder: Path, count: int, size: int) -> list[Path]:
    """Distinct drawn scenes as files."""
    folder.mkdir()
    paths = []
    both = itertools.chain.from_iterable(
        zip(sample_scenes(1, held_out=False), sample_scenes(1, held_out=True), strict=False)
    )
    for number, scene in enumerate(itertools.islice(both, count)):
        paths.append(folder / f"{number}.jpg")
        draw_scene(scene, size).save(paths[-1], quality=92, subsampling=0)
    return paths


def plant(originals: Sequence[Path], folder: Path) -> Iterator[tuple[str, int, Path]]:
    """Altered copies: what was done, which original, and the path of the copy."""
    folder.mkdir()
    for name, (alter, ending, quality) in ALTERATIONS.items():
        for number, original in enumerate(originals):
            target = folder / f"{name.replace(' ', '_').replace('%', '')}-{number}.{ending or 'jpg'}"
            if not ending:
                target.write_bytes(original.read_bytes())
            else:
                image = Image.open(original).convert("RGB")
                alter(image, Random(f"{name}/{number}")).save(target, **({"quality": quality} if quality else {}))
            yield name, number, target


def files(paths: Sequence[Path], prefix: str) -> list[ImageFile]:
    """Image files with numbered ids."""
    return [ImageFile(f"{prefix}{number}", str(path)) for number, path in enumerate(paths)]


def recall(originals: Sequence[Path], planted: Sequence[tuple[str, int, Path]]) -> dict[str, Any]:
    """Share of the altered copies that are found: copies evaluated, and the other way round."""
    counts: dict[str, Any] = {name: {"planted": 0, "found": 0, "found_reversed": 0} for name in ALTERATIONS}
    copies = [path for _, _, path in planted]
    for key, trained, evaluated in (("found", originals, copies), ("found_reversed", copies, originals)):
        report = find_leaks(files(trained, "t"), files(evaluated, "e"), store=None)
        if key == "found":
            hits = {leak.evaluated: leak.trained for leak in report.leaks}
            for index, (name, original, _) in enumerate(planted):
                counts[name]["planted"] += 1
                counts[name]["found"] += hits.get(index) == original
    # Reversed, one copy suffices to find an original, so each kind of copy is trained on alone.
    for name in ALTERATIONS:
        alone = [path for kind, _, path in planted if kind == name]
        report = find_leaks(files(alone, "t"), files(originals[: len(alone)], "e"), store=None)
        counts[name]["found_reversed"] = sum(leak.evaluated == leak.trained for leak in report.leaks)
    return counts


def false_alarms(paths: Sequence[Path]) -> dict[str, Any]:
    """Pairs of distinct pictures that are taken for the same."""
    hashes = np.stack([fingerprint(str(path)).hashes for path in paths])
    near = candidates(hashes, hashes, RADIUS)
    near = near.at(np.flatnonzero(near.evaluated < near.trained))
    thumbnails: dict[int, Any] = {}
    alarms = []
    started = time.perf_counter()
    for pair in zip(*(column.tolist() for column in near), strict=True):
        likeness = of_candidate(paths, paths, pair, thumbnails)
        if likeness.is_same:
            alarms.append((paths[pair[0]].name, paths[pair[1]].name, *(round(part, 2) for part in likeness)))
    pairs = len(paths) * (len(paths) - 1) // 2
    return {
        "pictures": len(paths),
        "pairs": pairs,
        "candidates": len(near.bits),
        "false_alarms": len(alarms),
        "in_10000_pairs": 1e4 * len(alarms) / pairs,
        "seconds_a_candidate": (time.perf_counter() - started) / max(1, len(near.bits)),
        "examples": alarms[:5],
    }


def of_candidate(
    evaluated: Sequence[Path], trained: Sequence[Path], pair: tuple[int, int, int, bool, int], kept: dict[Any, Any]
) -> Likeness:
    """Compare the pictures of a candidate pair; thumbnails that were read stay in `kept`."""
    one, other, view, of_trained, _ = pair
    for path in (evaluated[one], trained[other]):
        if path not in kept:
            kept[path] = read_thumbnail(str(path))
    views = (FULL_IMAGE, VIEWS[view]) if of_trained else (VIEWS[view], FULL_IMAGE)
    return compare(kept[evaluated[one]], kept[trained[other]], view_of_one=views[0], view_of_other=views[1])


def sweep(distinct: Sequence[Path], originals: Sequence[Path], planted: Sequence[tuple[str, int, Path]]) -> None:
    """Recall and false alarms for other radii and limits."""
    hashes = np.stack([fingerprint(str(path)).hashes for path in distinct])
    copies = [path for _, _, path in planted]
    copy_hashes = np.stack([fingerprint(str(path)).hashes for path in copies])
    kept: dict[Any, Any] = {}
    near = candidates(hashes, hashes, WIDEST_RADIUS)
    near = near.at(np.flatnonzero(near.evaluated < near.trained))
    if len(near.bits) > 20000:
        share = np.random.default_rng(0).choice(len(near.bits), 20000, replace=False)
        weight, near = len(near.bits) / 20000, near.at(share)
    else:
        weight = 1.0
    wrong = np.array([of_candidate(distinct, distinct, pair, kept) for pair in pairs_of(near)]).reshape(-1, 2)
    hits = candidates(hashes[: len(originals)], copy_hashes, WIDEST_RADIUS)
    hits = hits.at(np.flatnonzero(np.array([planted[i][1] for i in hits.evaluated], int) == hits.trained))
    right = np.array([of_candidate(copies, originals, pair, kept) for pair in pairs_of(hits)]).reshape(-1, 2)
    count = len(distinct) * (len(distinct) - 1) / 2

    def cell(radius: int, limit: float, least: float) -> str:
        alarms = weight * float(np.sum((near.bits <= radius) & (wrong[:, 0] <= limit) & (wrong[:, 1] >= least)))
        recalled = np.sum((hits.bits <= radius) & (right[:, 0] <= limit) & (right[:, 1] >= least)) / len(copies)
        return f"{recalled:7.2%} {1e4 * alarms / count:8.4f}"

    print("  radius (difference, structure as chosen)")
    for radius in range(4, WIDEST_RADIUS + 1, 2):
        candidates_of = weight * np.sum(near.bits <= radius)
        print(f"  {radius:>4} {candidates_of:>11,.0f} candidates {cell(radius, LARGEST_DIFFERENCE, LEAST_STRUCTURE)}")
    print(f"  largest difference, least structure {' '.join(f'{least:>16g}' for least in STRUCTURES)}")
    for limit in LIMITS:
        print(f"  {limit:>35g} {' '.join(cell(RADIUS, limit, least) for least in STRUCTURES)}")


def pairs_of(near: Any) -> Iterator[tuple[int, int, int, bool, int]]:
    """The candidate pairs one by one, from their columns."""
    return zip(*(column.tolist() for column in near), strict=True)


def speed(trained: int, evaluated: int) -> dict[str, Any]:
    """All candidates of random hashes, and ImageHash's subtraction in a loop for as many pairs as a second allows."""
    import imagehash

    random = np.random.default_rng(0)
    corpus = random.integers(0, 1 << 64, trained, dtype=np.uint64)
    queries = random.integers(0, 1 << 64, evaluated, dtype=np.uint64)
    queries[0] = corpus[-1] ^ np.uint64(0b111)
    started = time.perf_counter()
    rows, columns, _ = close_pairs(queries, corpus, RADIUS)
    ours = time.perf_counter() - started
    assert (0, trained - 1) in set(zip(rows.tolist(), columns.tolist(), strict=True))
    one, *others = (imagehash.ImageHash(random.random((8, 8)) > 0.5) for _ in range(20001))
    started = time.perf_counter()
    close = sum(one - other <= RADIUS for other in others)
    peer_seconds = (time.perf_counter() - started) / len(others)
    comparisons = 2 * len(VIEWS) - 1
    return {
        "pairs": trained * evaluated,
        "seconds_one_view": ours,
        "seconds_all_views": ours * comparisons,
        "peer_seconds_a_pair": peer_seconds,
        "peer_close": close,
        "ratio": peer_seconds / (ours / (trained * evaluated)),
    }


def main() -> None:
    """Print what is found in every set of pictures, and the speed of the search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--size", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--planted", type=int, default=300)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.json:
        versions = ", ".join(f"{name} {version(name)}" for name in ("imagehash", "numpy", "pillow"))
        print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}", flush=True)
    with tempfile.TemporaryDirectory(prefix="captune-leaks-") as name:
        folder = Path(name)
        sets = {f"scenes of {size} px": draw(folder / f"{size}", arguments.scenes, size) for size in arguments.size}
        if arguments.photos.is_dir():
            sets["photographs"] = sorted(arguments.photos.glob("*.jpg"))
        for number, (title, distinct) in enumerate(sets.items()):
            originals = distinct[: arguments.planted]
            planted = list(plant(originals, folder / f"planted-{number}"))
            if arguments.sweep:
                print(f"\n{title}: share found, false alarms in 10,000 pairs")
                sweep(distinct, originals, planted)
                continue
            recalled, alarms = recall(originals, planted), false_alarms(distinct)
            if arguments.json:
                print(json.dumps({"pictures": title, "recall": recalled, "alarms": alarms}))
                continue
            print(f"\n{title}\n  {'altered copies':<30} {'planted':>8} {'found':>8} {'reversed':>9}")
            for kind, counts in recalled.items():
                print(f"  {kind:<30} {counts['planted']:>8} {counts['found']:>8} {counts['found_reversed']:>9}")
            print(
                f"  {alarms['pairs']:,} pairs of {alarms['pictures']:,}, {alarms['candidates']:,} candidates, "
                f"{alarms['false_alarms']} false alarms: {alarms['in_10000_pairs']:.4f} in 10,000 pairs; "
                f"{1e3 * alarms['seconds_a_candidate']:.1f} ms a candidate"
            )
            for example in alarms["examples"]:
                print(f"    taken for the same: {example}")
    if arguments.speed:
        result = speed(1_000_000, 10_000)
        if arguments.json:
            print(json.dumps(result))
        else:
            print(
                f"\n1,000,000 x 10,000 hashes: {result['seconds_one_view']:.1f} s a view, "
                f"{result['seconds_all_views']:.0f} s for all; {result['ratio']:,.0f} times as fast as a loop"
            )


if __name__ == "__main__":
    main()
