"""Kill commands with SIGKILL at random moments: nothing that was finished is lost.

    python benchmarks/kill_commands.py [--kills 20] [--seed 0] [--json]

The commands are train, evaluate, report, features, rate, caption and prepare, with the toy captioner over drawn
scenes. After every kill what was complete before must be there as it was, and what has its final name must be
complete; at the end each command runs undisturbed and must give what it gives without kills.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measuring import Output, options

# isort: split
import torch
from kill_resume import final, losses, same, scores, write_data
from PIL import Image

from captune.apps.rating import Store
from captune.cli import app, call, run
from captune.config import RunConfig, parse_config
from captune.data import read_manifest, resolve_image
from captune.features import FeatureStore, store_root, tower_identity
from captune.model.checkpoint import read_record
from captune.report import read_scores
from captune.training import train
from captune.training.run_folder import RunStatus, checkpoint_folders, run_status


@dataclass
class Trial:
    """A command, and what must hold.

    Attributes:
        name: of the command.
        work: the command; called in a process that is killed.
        check: called after every kill; raises what is lost.
        compare: called once after the command has ended; raises what differs.
    """

    name: str
    work: Callable[[], object]
    check: Callable[[], None]
    compare: Callable[[], None]


def forked(work: Callable[[], object]) -> int:
    """A process, forked from this one, that does some work and prints nothing."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        code = int(work() or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def seconds_of(work: Callable[[], object]) -> float:
    """How long some work takes undisturbed; exits where it fails."""
    began = time.monotonic()
    _, status = os.waitpid(forked(work), 0)
    if status:
        sys.exit(f"the command ended with status {status}")
    return time.monotonic() - began


def killed(trial: Trial, kills: int, draw: random.Random, output: Output) -> int:
    """Kill a command so many times; returns how often it was still at work."""
    span = seconds_of(trial.work)
    met = 0
    for number in range(1, kills + 1):
        process = forked(trial.work)
        time.sleep(draw.uniform(0, span))
        if os.waitpid(process, os.WNOHANG) == (0, 0):
            met += 1
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        trial.check()
        output.line(kind="kill", command=trial.name, number=number)
    seconds_of(trial.work)
    trial.check()
    trial.compare()
    return met


def must(holds: bool, what: str) -> None:
    """Raise what is lost."""
    if not holds:
        raise AssertionError(what)


def command(*words: object) -> Callable[[], object]:
    """A call of the program."""
    return lambda: run(lambda: call(app, [str(word) for word in words]))


def complete_json(folder: Path) -> None:
    """Every JSON file under a final name can be parsed."""
    for path in folder.rglob("*.json"):
        if not path.name.startswith(".captune"):
            json.loads(path.read_bytes())


def train_trial(folder: Path, config: RunConfig, undisturbed: Path) -> Trial:
    """Complete checkpoints stay as they are, and weights, losses and scores are those of an undisturbed run."""
    mine = config.model_copy(update={"output": folder / "killed"})
    known: dict[str, bytes] = {}

    def work() -> None:
        train(mine)

    def check() -> None:
        for name, data in known.items():
            path = mine.output / name
            must(path.is_file() and path.read_bytes() == data, f"{name} is not what it was")
        for checkpoint in checkpoint_folders(mine.output):
            read_record(checkpoint)
            weights = checkpoint / "trained.safetensors"
            known[str(weights.relative_to(mine.output))] = weights.read_bytes()
        complete_json(mine.output)
        must(run_status(mine) in (RunStatus.EMPTY, RunStatus.BEGUN, RunStatus.UNFINISHED, RunStatus.FINISHED), "status")
        if run_status(mine) is RunStatus.FINISHED:
            compare()
            shutil.rmtree(mine.output)
            known.clear()

    def compare() -> None:
        if mine.output.exists():
            must(same(final(undisturbed), final(mine.output)), "other weights")
            must(losses(undisturbed) == losses(mine.output), "other losses")
            must(scores(undisturbed) == scores(mine.output), "other scores")

    return Trial("train", work, check, compare)


def evaluate_trial(folder: Path, config: RunConfig, undisturbed: Path) -> Trial:
    """Rows, captions and scores of a finished run stay as they are."""
    copy = Path(shutil.copytree(undisturbed, folder / "evaluated"))
    mine = config.model_copy(update={"output": copy})
    before = read_scores(undisturbed)

    def work() -> object:
        shutil.rmtree(copy / "cache", ignore_errors=True)
        return command("evaluate", copy)()

    def check() -> None:
        after = read_scores(copy)
        must([row.name for row in after.checkpoints] == [row.name for row in before.checkpoints], "rows are lost")
        must(all(a.captions == b.captions for a, b in zip(after.checkpoints, before.checkpoints, strict=True)), "texts")
        must(run_status(mine) is RunStatus.FINISHED, "the run is not known as finished")
        complete_json(copy)

    return Trial("evaluate", work, check, lambda: must(scores(undisturbed) == scores(copy), "other scores"))


def report_trial(folder: Path, config: RunConfig, undisturbed: Path) -> Trial:
    """Page and chart are complete, and no other file of the run changes."""
    copy = Path(shutil.copytree(undisturbed, folder / "reported"))
    before = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file() and path.suffix != ".html"}

    def check() -> None:
        must((copy / "report.html").read_text().rstrip().endswith("</html>"), "half a page")
        for name, data in before.items():
            must(name.startswith(".") or (copy / name).read_bytes() == data, f"{name} is not what it was")
        with Image.open(copy / "metrics.png") as picture:
            picture.load()

    return Trial("report", command("report", copy), check, lambda: None)


def features_trial(folder: Path, config: RunConfig, undisturbed: Path) -> Trial:
    """Complete shards stay as they are, and the features are those of an undisturbed run."""
    root = folder / "features"
    file = folder / "features.yaml"
    settings = config.model_dump(mode="json")
    settings["data"]["features"] = str(root)
    file.write_text(json.dumps(settings))
    identity = tower_identity(config.model, torch.device("cpu"), folder / "identity")
    expected = FeatureStore(store_root(config), identity)
    expected.refresh()
    contents = [bytes(row) for shard in expected._shards for row in shard.ids]
    known: dict[Path, bytes] = {}

    def check() -> None:
        for path, data in known.items():
            must(path.read_bytes() == data, f"{path.name} is not what it was")
        known.update((path, path.read_bytes()) for path in (root / identity.key).glob("shard-*"))
        store = FeatureStore(root, identity)
        store.refresh()
        must(store.damaged([path.name for path in known]) == [], "a damaged shard")
        if not store.missing(contents):
            compare()
            shutil.rmtree(root)
            known.clear()

    def compare() -> None:
        if root.exists():
            store = FeatureStore(root, identity)
            store.refresh()
            must(torch.equal(store.read(contents)[:], expected.read(contents)[:]), "other features")

    return Trial("features", command("features", file), check, compare)


def rate_trial(folder: Path, config: RunConfig, undisturbed: Path) -> Trial:
    """Every confirmed answer is stored."""
    copy = Path(shutil.copytree(undisturbed, folder / "rated"))
    study = copy / "rating"
    confirmed = folder / "confirmed"
    confirmed.touch()

    def work() -> None:
        import captune.apps as http

        def answer(application: object, listener: object) -> None:
            """Answer as a rater's requests do; what is confirmed is on the disk."""
            store = Store(study)
            with confirmed.open("a", buffering=1) as stream:
                for rater in store.raters():
                    for position in range(store.answered(rater.number), len(store.trials(rater.number))):
                        part = store.trials(rater.number)[position].part
                        store.save_answer(rater.number, position, "first" if part == "pairwise" else "3333", 1.0)
                        stream.write(f"{rater.number} {position}\n")

        http.run_server = answer
        command("rate", copy, "--port", 0, "--images", 8)()
        command("rate", copy, "--results")()

    def check() -> None:
        must(scores(copy) == scores(undisturbed), "other scores")
        must((copy / "report.html").read_text().rstrip().endswith("</html>"), "half a page")
        sent = {tuple(map(int, line.split())) for line in confirmed.read_text().splitlines() if line.count(" ") == 1}
        if (copy / "rating.json").exists():
            json.loads((copy / "rating.json").read_bytes())
        if study.exists():
            store = Store(study)
            kept = {(answer.rater, answer.position) for answer in store.answers()}
            complete = len(kept) == sum(len(store.trials(rater.number)) for rater in store.raters())
            store.close()
            must(sent <= kept, f"{len(sent - kept)} answers are lost")
            if complete and (copy / "rating.json").exists():
                shutil.rmtree(study)
                (copy / "rating.json").unlink()
                confirmed.write_text("")
        else:
            must(not sent, "the study is lost")

    return Trial("rate", work, check, lambda: None)


def caption_trial(folder: Path, config: RunConfig, undisturbed: Path) -> Trial:
    """Complete shards stay as they are, and the captions are those of an undisturbed run."""
    images = config.data.train.parent / "flickr30k-images"
    out, expected = folder / "captioned", folder / "captions"
    known: dict[str, bytes] = {}

    def caption(to: Path) -> Callable[[], object]:
        return command("caption", "toy", images, "--out", to, "--shard-size", 8, "--max-new-tokens", 12)

    def rows(of: Path) -> list[str]:
        return [line for path in sorted(of.glob("images-*.jsonl")) for line in path.read_text().splitlines()]

    def check() -> None:
        for name, data in known.items():
            must((out / name).read_bytes() == data, f"{name} is not what it was")
        known.update((path.name, path.read_bytes()) for path in out.glob("images-*.jsonl"))
        for row in rows(out):
            json.loads(row)
        if len(rows(out)) == len(rows(expected)):
            compare()
            shutil.rmtree(out)
            known.clear()

    def compare() -> None:
        if out.exists():
            must(rows(out) == rows(expected), "other captions")

    seconds_of(caption(expected))
    return Trial("caption", caption(out), check, compare)


def prepare_trial(folder: Path, config: RunConfig, undisturbed: Path) -> Trial:
    """A manifest is that of an undisturbed run, and its images can be decoded."""
    samples = read_manifest(config.data.train)
    tar = folder / "shard.tar"
    with tarfile.open(tar, "w") as archive:
        for sample in samples:
            archive.add(resolve_image(config.data.train, sample.image), f"{sample.id}.jpg")
            text = "\n".join(sample.captions).encode()
            member = tarfile.TarInfo(f"{sample.id}.txt")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    home, expected = folder / "prepared", folder / "prepared_undisturbed"

    def prepare(to: Path) -> Callable[[], object]:
        return command("prepare", "webdataset", tar, "--images", to / "images", "--out", to / "manifest.jsonl")

    def check() -> None:
        manifest = home / "manifest.jsonl"
        if manifest.exists():
            must(manifest.read_bytes() == (expected / "manifest.jsonl").read_bytes(), "another manifest")
            for sample in read_manifest(manifest):
                with Image.open(resolve_image(manifest, sample.image)) as picture:
                    picture.load()
            shutil.rmtree(home)

    seconds_of(prepare(expected))
    return Trial("prepare", prepare(home), check, lambda: None)


TRIALS = (train_trial, evaluate_trial, report_trial, features_trial, rate_trial, caption_trial, prepare_trial)


def main() -> int:
    """Try every command and print how often it was killed at work."""
    parser = options(__doc__)
    parser.add_argument("--only", help="one command")
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    output = Output(arguments.json, "SIGKILL at random moments")
    draw = random.Random(arguments.seed)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = parse_config(
            {
                "output": str(folder / "undisturbed"),
                "log_every": 1,
                "save_every": 2,
                "model": {"path": "toy"},
                "data": {"train": str(write_data(folder / "data")), "evaluate_images": 8},
                "train": {"epochs": 2, "batch_size": 40, "warmup_steps": 2},
                "evaluate": {"max_new_tokens": 12, "train_slice": 0},
            }
        )
        seconds_of(lambda: train(config))
        for make in TRIALS:
            if arguments.only not in (None, make.__name__.removesuffix("_trial")):
                continue
            trial = make(folder, config, config.output)
            met = killed(trial, arguments.kills, draw, output)
            rows.append([trial.name, arguments.kills, met, "nothing"])
            output.line(kind="result", command=trial.name, kills=arguments.kills, met=met, lost=0)
            output.say(f"  {trial.name}: {arguments.kills} kills, {met} of them at work; nothing was lost")
    output.table(["command", "kills", "at work", "lost"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
