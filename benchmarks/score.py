"""BLEU, CIDEr and ROUGE-L: captune against pycocoevalcap on this machine, in one run.

    python benchmarks/score.py [--images 1000 5000 40000] [--rounds 3] [--jobs 2] [--json] [--memory]

Short runs are noisy and take three times as many rounds; a figure is their median.

Both tools run as complete processes, in turns, on one thread: from the start of the interpreter to the last number,
with reading the file, importing and tokenizing included. For the ratio each is held to one processor, since Java
compiles and collects garbage in separate threads; the runs with several jobs, and the ratio of these, may use all
processors.

METEOR and SPICE are left out. A prediction is the first half of a reference and the second half of another image's, so
that some n-grams match and some do not. The runs in turns are with compat="coco-caption", which tokenizes a complete
call as pycocoevalcap does and is equal to the last digit; the default, where captions do not depend on each other, is
run once and shown next to it, and is what several jobs are tried with. What these can gain is bounded by the machine:
copies of captune with one job each are started at once, and a line says how much work they do in the time of one alone.
Memory is the peak of the process and its children in total. `--memory` instead scores a million captions once and
prints captune's peak.

Needs pycocoevalcap, a `java` on the path and the folder `../shared`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from score_child import NAMES, read

ROOT = Path(__file__).resolve().parent.parent
CAPTIONS = ROOT.parent / "shared" / "captions"
TARGETS = {1000: 10, 5000: 15, 40000: 20}
SMALL = 5000


def corpus(images: int) -> dict[str, Any]:
    """References and predictions of Flickr30k, COCO val2017 and Flickr8k, in this order."""
    references: dict[str, list[str]] = {}
    with open(CAPTIONS / "flickr30k/flickr_annotations_30k.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            references[row["filename"]] = json.loads(row["raw"])
    with gzip.open(CAPTIONS / "coco/captions_val2017.json.gz", "rt", encoding="utf-8") as file:
        for annotation in json.load(file)["annotations"]:
            references.setdefault(f"coco-{annotation['image_id']}", []).append(annotation["caption"])
    with open(CAPTIONS / "flickr8k/Flickr8k.token.txt", encoding="utf-8") as file:
        for line in file:
            name, tab, caption = line.rstrip("\n").partition("\t")
            if tab:
                references.setdefault(f"flickr8k-{name.partition('#')[0]}", []).append(caption)
    five = [(image, captions[:5]) for image, captions in references.items() if len(captions) >= 5][:images]
    predictions = {}
    for index, (image, captions) in enumerate(five):
        first, second = captions[3].rstrip(" .").split(), five[index - 1][1][4].split()
        predictions[image] = " ".join(first[: len(first) // 2] + second[len(second) // 2 :])
    return {"references": dict(five), "predictions": predictions}


def write(data: dict[str, Any], path: Path) -> None:
    """Write captions as lines, an image's prediction before its references, which both tools read equally fast."""
    lines = [
        "\n".join((image, str(len(captions)), data["predictions"][image], *captions)).replace("\r", " ")
        for image, captions in ((i, [" ".join(c.split("\n")) for c in cs]) for i, cs in data["references"].items())
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _tree(root: int) -> list[int]:
    processes = [root]
    for process in processes:
        try:
            for task in Path(f"/proc/{process}/task").iterdir():
                processes.extend(map(int, (task / "children").read_text().split()))
        except OSError:
            continue
    return processes


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def run(
    tool: str, data: Path, folder: Path, jobs: int = 1, compat: str = "coco-caption", one_processor: bool = True
) -> dict[str, Any]:
    """Run one tool: seconds to its numbers, peak memory in MiB, and the numbers."""
    result = folder / "result.json"
    child = Path(__file__).with_name("score_child.py")
    command = [sys.executable, str(child), tool, str(data), str(result), str(jobs), compat]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # Both tools run from compiled modules, as an installed package does.
    environment |= {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    peak, over = 0, threading.Event()
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if one_processor and hasattr(os, "sched_setaffinity"):
        # The interpreter is still starting; its threads and children inherit this.
        os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.01):
            if not result.exists():  # what comes after the numbers is not counted
                peak = max(peak, sum(map(_resident, _tree(process.pid))))

    watcher = threading.Thread(target=watch)
    if one_processor:  # otherwise the watcher would take from a processor that is measured
        watcher.start()
    code = process.wait()
    over.set()
    if one_processor:
        watcher.join()
    if code:
        raise SystemExit(f"{tool} failed with exit code {code}")
    numbers = json.loads(result.read_bytes())
    result.unlink()
    return {"seconds": numbers["done"] - start, "mib": peak / 2**20, **numbers}


def copies_at_once(count: int, data: Path, folder: Path) -> float:
    """Seconds until the last of several copies of captune, each with one job, has its numbers."""
    folders = [folder / f"copy-{number}" for number in range(count)]
    for copy in folders:
        copy.mkdir(exist_ok=True)
        # They use the same compiled modules.
        if not (copy / "bytecode").exists():
            (copy / "bytecode").symlink_to(folder / "bytecode")
    with ThreadPoolExecutor(count) as pool:
        runs = pool.map(lambda copy: run("captune", data, copy, 1, "caption", one_processor=False), folders)
        return max(result["seconds"] for result in runs)


def difference(ours: dict[str, Any], peer: dict[str, Any], images: bool = True) -> float:
    """The largest difference of any corpus score and, unless left out, of any image's score."""
    totals = [abs(ours["corpus"][name] - peer["corpus"][name]) for name in NAMES]
    if not images:
        return max(totals)
    pairs = ((ours["per_image"][name], peer["per_image"][name]) for name in NAMES)
    return max(totals + [abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True)])


def stages(data: Path) -> dict[str, float]:
    """Where captune's time goes, in this process, and the least that Python and numpy need for the same."""
    from itertools import chain

    import numpy as np

    from captune.metrics import METRICS, PredictionBatch, ReferenceIndex, ScoringOptions
    from captune.metrics.encoding import Encoder
    from captune.metrics.tokenizers import tokenizer

    loaded = read(str(data))
    references, predictions = loaded["references"], list(loaded["predictions"].values())
    captions = list(chain.from_iterable(references.values()))
    offsets = np.cumsum([0, *map(len, references.values())])
    times: dict[str, float] = {}

    def clock(name: str, work: Any) -> Any:
        start = time.perf_counter()
        result = work()
        times[name] = time.perf_counter() - start
        return result

    encoder = Encoder(tokenizer("ptb"))
    tokens = clock("tokenize and number references", lambda: encoder.encode(captions))
    predicted = clock("tokenize and number predictions", lambda: encoder.encode(predictions))
    index = ReferenceIndex(encoder, tokens, offsets, references)
    batch = PredictionBatch(index, predicted, predictions)
    metrics = [METRICS[name](ScoringOptions()) for name in ("bleu", "cider")]
    clock("count and weigh references", lambda: [*(metric.prepare(index) for metric in metrics), index.finish()])
    clock("BLEU and CIDEr of predictions", lambda: [metric.statistics(batch) for metric in metrics])
    clock("ROUGE-L of predictions", lambda: METRICS["rouge-l"](ScoringOptions()).statistics(batch))
    known = dict.fromkeys(chain.from_iterable(map(str.split, captions)), 1)
    random = np.random.default_rng(0).integers(0, 1 << 60, len(tokens.values))

    def least() -> None:
        for caption in chain(captions, predictions):
            list(map(known.get, caption.split()))
        for _ in range(4):
            random.copy().sort()

    clock("floor: split, look up, sort four times", least)
    return times


def compare(images: int, rounds: int, jobs: int, folder: Path, show: Any) -> dict[str, Any]:
    """All measurements at one size."""
    data = folder / f"{images}.txt"
    write(corpus(images), data)
    ours, peer, several, alone, free, copies = [], [], [], [], [], []
    for _ in range(rounds if images > SMALL else 3 * rounds):
        ours.append(run("captune", data, folder))
        peer.append(run("pycocoevalcap", data, folder))
        free.append(run("pycocoevalcap", data, folder, one_processor=False))
    for _ in range(3 * rounds):
        several.append(run("captune", data, folder, jobs, "caption", one_processor=False))
        alone.append(run("captune", data, folder, 1, "caption", one_processor=False))
        copies.append(copies_at_once(jobs, data, folder))
    default = run("captune", data, folder, compat="caption")

    def median(runs: list[dict[str, Any]], key: str) -> float:
        return statistics.median(run[key] for run in runs)

    record = {
        "images": images,
        "captune_seconds": median(ours, "seconds"),
        "pycocoevalcap_seconds": median(peer, "seconds"),
        "ratio": median(peer, "seconds") / median(ours, "seconds"),
        "target": TARGETS.get(images),
        "jobs": jobs,
        "jobs_seconds": median(several, "seconds"),
        "jobs_gain": median(alone, "seconds") / median(several, "seconds"),
        "copies_gain": jobs * median(alone, "seconds") / statistics.median(copies),
        "pycocoevalcap_seconds_all_processors": median(free, "seconds"),
        "jobs_ratio": median(free, "seconds") / median(several, "seconds"),
        "captune_mib": median(ours, "mib"),
        "pycocoevalcap_mib": median(peer, "mib"),
        "memory_ratio": median(peer, "mib") / median(ours, "mib"),
        "score_difference": difference(ours[0], peer[0]),
        "jobs_difference": difference(several[0], alone[0]),
        "caption_alone": {
            "seconds": default["seconds"],
            "corpus_difference": difference(default, peer[0], images=False),
            "image_difference": difference(default, peer[0]),
        },
        "stages": stages(data),
    }
    data.unlink()
    show(record)
    return record


def million(folder: Path) -> dict[str, Any]:
    """Memory for 166,667 images: a million captions with the predictions, read from a file and scored.

    Every caption is different: each further copy of the corpus has different words.
    """
    some = corpus(40_000)
    images = list(some["references"])
    references, predictions = {}, {}
    for number in range(166_667):
        copy, source = divmod(number, len(images))
        name = images[source]
        references[str(number)] = [caption.replace(" a ", f" a{copy} ", 1) for caption in some["references"][name]]
        predictions[str(number)] = some["predictions"][name]
    data = folder / "million.txt"
    write({"references": references, "predictions": predictions}, data)
    captions = sum(map(len, references.values())) + len(predictions)
    del some, references, predictions
    result = run("captune", data, folder)
    return {"captions": captions, "captune_seconds": result["seconds"], "captune_mib": result["mib"]}


def print_record(record: dict[str, Any]) -> None:
    """Print the measurements at one size."""
    print(f"{record['images']:,} images x 5 references")
    print("  on one processor")
    print(f"    pycocoevalcap    {record['pycocoevalcap_seconds']:8.3f} s {record['pycocoevalcap_mib']:8.0f} MiB")
    print(f"    captune          {record['captune_seconds']:8.3f} s {record['captune_mib']:8.0f} MiB")
    target = f" (wanted: {record['target']})" if record["target"] else ""
    print(f"    ratio {record['ratio']:.1f}{target}")
    print("  on all processors")
    print(f"    pycocoevalcap    {record['pycocoevalcap_seconds_all_processors']:8.3f} s")
    print(f"    captune, {record['jobs']} jobs  {record['jobs_seconds']:8.3f} s")
    print(f"    ratio {record['jobs_ratio']:.1f}")
    print(
        f"    captune, {record['jobs']} jobs against 1: {record['jobs_gain']:.2f}x, "
        f"largest score difference {record['jobs_difference']:.1e}"
    )
    print(f"    {record['jobs']} copies of captune at once against 1: {record['copies_gain']:.2f}x the work")
    print(f"  memory ratio {record['memory_ratio']:.2f} (wanted: 2)")
    print(f"  largest score difference {record['score_difference']:.1e}")
    alone = record["caption_alone"]
    print(
        f"  with compat='caption' {alone['seconds']:.3f} s, largest difference of the corpus's scores "
        f"{alone['corpus_difference']:.1e}, of an image's {alone['image_difference']:.1e}"
    )
    for name, seconds in record["stages"].items():
        print(f"    {name:42s} {seconds:7.3f} s")


def main() -> None:
    """Compare both tools at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=list(TARGETS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    if not CAPTIONS.is_dir():
        raise SystemExit("needs the folder '../shared' with real captions next to this checkout")
    if not arguments.json:
        print(f"{platform.platform()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm = folder / "warm.txt"
        write(corpus(50), warm)
        for tool in ("captune", "pycocoevalcap"):
            run(tool, warm, folder)
        if arguments.memory:
            record = million(folder)
            text = "{captions:,} captions: {captune_seconds:.1f} s, {captune_mib:.0f} MiB (wanted: below 2,000)"
            print(json.dumps(record) if arguments.json else text.format(**record))
            return
        for images in arguments.images:
            compare(
                images,
                arguments.rounds,
                arguments.jobs,
                folder,
                (lambda record: print(json.dumps(record), flush=True)) if arguments.json else print_record,
            )


if __name__ == "__main__":
    main()
