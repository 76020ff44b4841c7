"""Kill a training run with SIGKILL at random moments; started again each time, it ends as if nothing had happened.

    python benchmarks/kill_resume.py [--kills 20] [--seed 0] [--json]

A tiny captioner over drawn scenes is trained once undisturbed, and then in processes that are killed after a random
time, while they load, train, save, write a checkpoint, caption or score. What is compared: every final weight, the
logged losses, and scores.json. `ratio` is the steps that were taken over those that were needed: what the kills cost.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import ROOT, Output, options

# isort: split
import torch
from safetensors.torch import load_file

from captune.config import commented_yaml, parse_config
from captune.data.flickr30k import flickr30k_rows
from captune.data.importing import prepare
from captune.data.text import Reading
from captune.toy import write_flickr30k

PROGRAM = """
import sys
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
from tiny import tiny_features, tiny_minigpt4
from captune.config import load_config
from captune.training import feature_stage, loop, train
loop.load_tunable = lambda *given: tiny_minigpt4()
feature_stage.features_of = tiny_features
def tell(event):
    if event["event"] in ("run", "progress", "checkpoint", "evaluation"):
        print(event["event"], event.get("step", ""), flush=True)
train(load_config({config!r}), tell)
"""


def write_data(folder: Path) -> Path:
    """Drawn scenes with their manifest."""
    written = write_flickr30k(folder, train=24, val=4, test=12, seed=7)
    reading = Reading(written.annotations)
    manifest = folder / "manifest.jsonl"
    prepare(flickr30k_rows(reading), source=str(written.annotations), images=written.images, out=manifest)
    reading.close()
    return manifest


def start(folder: Path, manifest: Path, name: str, epochs: int) -> tuple[subprocess.Popen[str], Path]:
    """A process that trains into `folder / name`, and the file that receives what it tells."""
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
    path = folder / f"{name}.yaml"
    path.write_text(commented_yaml(config), encoding="utf-8")
    program = PROGRAM.format(path=[str(ROOT), str(ROOT / "tests")], config=str(path))
    told = folder / f"{name}.told"
    with told.open("a") as stream, (folder / f"{name}.err").open("a") as errors:
        return subprocess.Popen([sys.executable, "-c", program], stdout=stream, stderr=errors, text=True), told


def steps(told: Path) -> int:
    return sum(line.startswith("progress") for line in told.read_text().splitlines())


def losses(output: Path) -> list[tuple[int, float]]:
    entries = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [(entry["step"], entry["loss"]) for entry in entries if entry["event"] == "step"]


def scores(output: Path) -> bytes:
    return (output / "scores.json").read_bytes()


def same(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> bool:
    return wanted.keys() == found.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def final(output: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((output / "checkpoints").iterdir())[-1] / "trained.safetensors")


def killed_runs(folder: Path, manifest: Path, arguments: Any, span: float, output: Output) -> list[Path]:
    """Kill until it has been done often enough, in a new folder where a run has come to its end; returns all folders.

    The last run is let go to its end.
    """
    draw = random.Random(arguments.seed)
    met, names = 0, ["killed-1"]
    while True:
        process, told = start(folder, manifest, names[-1], arguments.epochs)
        # Loading takes the first seconds; some kills are to meet it, most what comes after.
        moment = draw.uniform(0.1, 1.0) * span if met < arguments.kills else None
        try:
            if process.wait(timeout=moment):
                sys.exit(f"the run ended by itself: {(folder / f'{names[-1]}.err').read_text()[-2000:]}")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            met += 1
            lines = told.read_text().split("\n")
            last = lines[-2] if len(lines) > 1 else "nothing"
            output.line(kind="kill", number=met, after_s=round(moment or 0, 2), told_last=last)
            output.say(f"  kill {met:2}  after {moment:5.2f} s; the run had last told: {last}")
            continue
        if met >= arguments.kills:
            return [folder / name for name in names]
        names.append(f"killed-{len(names) + 1}")


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    output = Output(arguments.json, "SIGKILL at random moments")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_data(folder / "data")
        began = time.monotonic()
        process, told = start(folder, manifest, "undisturbed", arguments.epochs)
        if process.wait():
            sys.exit((folder / "undisturbed.err").read_text()[-2000:])
        span = time.monotonic() - began
        undisturbed = steps(told)
        runs = killed_runs(folder, manifest, arguments, span, output)
        taken = sum(steps(run.with_name(f"{run.name}.told")) for run in runs)
        whole = folder / "undisturbed"
        wanted = final(whole)
        result = {
            "kills": arguments.kills,
            "runs": len(runs),
            "steps": undisturbed,
            "ratio": round(taken / (undisturbed * len(runs)), 3),
            "identical": all(same(wanted, final(run)) for run in runs),
            "losses_identical": all(losses(run) == losses(whole) for run in runs),
            "scores_identical": all(scores(run) == scores(whole) for run in runs),
        }
    checks = ["identical", "losses_identical", "scores_identical"]
    output.table(
        ["kills", "runs", "steps a run", "taken / needed", "weights", "losses", "scores"],
        [
            [arguments.kills, len(runs), undisturbed, f"{result['ratio']:.2f}"]
            + ["identical" if result[key] else "DIFFERENT" for key in checks]
        ],
    )
    output.line(kind="result", **result)
    return 0 if all(result[key] for key in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
