"""Kill a training run with SIGKILL at random moments; started again each time, it ends as if nothing had happened.

    python benchmarks/kill_resume.py [--kills 20] [--seed 0] [--json]

A tiny captioner over drawn scenes is trained once undisturbed, and then in processes that are killed after a random
time, while they load the model, train, save, write a checkpoint, caption or score. Compared are every final weight, the
logged losses, and scores.json. `ratio` is the steps that were taken over those that were needed: what the kills cost.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from measuring import Output, options

# isort: split
import torch
from safetensors.torch import load_file
from tiny import tiny_features, tiny_minigpt4

from captune.config import parse_config
from captune.data.importers.flickr import flickr30k_rows
from captune.data.importing import prepare
from captune.data.text_files import SourceFile
from captune.toy import write_flickr30k
from captune.training import preparation, train, trainer


def write_data(folder: Path) -> Path:
    """Drawn scenes with their manifest."""
    written = write_flickr30k(folder, train=24, val=4, test=12, seed=7)
    reading = SourceFile(written.annotations)
    manifest = folder / "manifest.jsonl"
    prepare(flickr30k_rows(reading), source=str(written.annotations), images=written.images, out=manifest)
    reading.close()
    return manifest


def start(folder: Path, manifest: Path, name: str, epochs: int) -> int:
    """A process, forked from this one, that trains into `folder / name`; its events go to `folder / name.events`."""
    config = parse_config(
        {
            "output": str(folder / name),
            "log_every": 1,
            "save_every": 2,
            "model": {"path": "tiny"},
            "data": {"train": str(manifest), "evaluate_images": 4},
            "train": {"epochs": epochs, "batch_size": 20, "learning_rate": 0.01, "warmup_steps": 2},
            "evaluate": {"max_new_tokens": 4},
        }
    )
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with (folder / f"{name}.events").open("a", buffering=1) as events:

            def log(event: dict[str, Any]) -> None:
                if event["event"] in ("run", "progress", "checkpoint", "captions", "evaluation"):
                    events.write(f"{event['event']} {event.get('step', '')}\n")

            train(config, log)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(process: int, seconds: float | None) -> bool:
    """Wait for a process, at most for so many seconds; whether it has ended."""
    limit = None if seconds is None else time.monotonic() + seconds
    while limit is None or time.monotonic() < limit:
        exited, status = os.waitpid(process, 0 if limit is None else os.WNOHANG)
        if exited:
            if status:
                sys.exit("the run failed with the error above")
            return True
        time.sleep(0.002)
    return False


def steps(events: Path) -> int:
    """How many steps a run has logged."""
    return sum(line.startswith("progress") for line in events.read_text().splitlines())


def losses(output: Path) -> list[tuple[int, float]]:
    """Step and loss of every step in the log."""
    entries = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [(entry["step"], entry["loss"]) for entry in entries if entry["event"] == "step"]


def scores(output: Path) -> bytes:
    """The content of scores.json."""
    return (output / "scores.json").read_bytes()


def same(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are equal, bit for bit."""
    return expected.keys() == actual.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


def final(output: Path) -> dict[str, torch.Tensor]:
    """The weights of the last checkpoint."""
    return load_file(sorted((output / "checkpoints").iterdir())[-1] / "trained.safetensors")


def killed_runs(folder: Path, manifest: Path, arguments: Any, span: float, output: Output) -> list[Path]:
    """Kill until it has been done often enough, in a new folder where a run has ended; returns all folders.

    The last run is not killed.
    """
    draw = random.Random(arguments.seed)
    met, names = 0, ["killed-1"]
    while True:
        process = start(folder, manifest, names[-1], arguments.epochs)
        moment = draw.uniform(0.0, 1.0) * span if met < arguments.kills else None
        if not ended(process, moment):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            met += 1
            events = folder / f"{names[-1]}.events"
            lines = events.read_text().splitlines() if events.exists() else []
            last = lines[-1].strip() if lines else "nothing"
            output.line(kind="kill", number=met, after_s=round(moment or 0, 2), told_last=last)
            output.say(f"  kill {met:2}  after {moment:5.2f} s; the run had last told: {last}")
            continue
        if met >= arguments.kills:
            return [folder / name for name in names]
        names.append(f"killed-{len(names) + 1}")


def main() -> int:
    """Train undisturbed and with kills, and compare weights, losses and scores."""
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    trainer.load_for_training = lambda *_: tiny_minigpt4()
    preparation.features_of = tiny_features
    output = Output(arguments.json, "SIGKILL at random moments")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_data(folder / "data")
        began = time.monotonic()
        ended(start(folder, manifest, "undisturbed", arguments.epochs), None)
        span = time.monotonic() - began
        needed = steps(folder / "undisturbed.events")
        runs = killed_runs(folder, manifest, arguments, span, output)
        taken = sum(steps(run.with_name(f"{run.name}.events")) for run in runs)
        undisturbed = folder / "undisturbed"
        expected = final(undisturbed)
        result = {
            "kills": arguments.kills,
            "runs": len(runs),
            "steps": needed,
            "ratio": round(taken / (needed * len(runs)), 3),
            "identical": all(same(expected, final(run)) for run in runs),
            "losses_identical": all(losses(run) == losses(undisturbed) for run in runs),
            "scores_identical": all(scores(run) == scores(undisturbed) for run in runs),
        }
    checks = ["identical", "losses_identical", "scores_identical"]
    output.table(
        ["kills", "runs", "steps a run", "taken / needed", "weights", "losses", "scores"],
        [
            [arguments.kills, len(runs), needed, f"{result['ratio']:.2f}"]
            + ["identical" if result[key] else "DIFFERENT" for key in checks]
        ],
    )
    output.line(kind="result", **result)
    return 0 if all(result[key] for key in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
