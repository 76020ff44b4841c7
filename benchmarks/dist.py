"""Two processes on gloo beside one: the same losses and weights whatever the share of each, and the time of a step.

    python benchmarks/dist.py [--json]

The same run, its captions of 4 to 30 tokens, so that the processes' shares hold different numbers of targets, is
trained by one process and by two that torchrun starts. Scaling is one process's processor time over the longer of two
processes' own: what the sharing and the message cost, apart from how many cores are free. The message is the
projection's gradient alone; the frozen language model is never sent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import INSTRUCTION, Output, captions, options
from prefix import FEATURES, QUERIES, build

# isort: split
import torch
from safetensors.torch import load_file, save_file

from captune.config import parse_config
from captune.data.manifest import Sample
from captune.training.distributed import world
from captune.training.samples import TrainingSamples
from captune.training.step import Stepper

IMAGES, PER_IMAGE, PER_STEP, STEPS, VOCABULARY = 24, 5, 8, 6, 2048


def child(folder: Path) -> None:
    """One of the processes: train, and leave losses, times and weights behind."""
    torch.set_num_threads(1)
    texts = captions(IMAGES * PER_IMAGE, (4, 30), VOCABULARY)
    images = [Sample(str(n), "", tuple(texts[n * PER_IMAGE : (n + 1) * PER_IMAGE]), "train") for n in range(IMAGES)]
    config = parse_config(
        {
            "model": {"instruction": INSTRUCTION},
            "train": {
                "epochs": 2,
                "batch_size": PER_STEP * PER_IMAGE,
                "learning_rate": 1e-3,
                "warmup_steps": 2,
            },
        }
    )
    with world() as place:
        model = build(256, 4, VOCABULARY).train()
        samples = TrainingSamples(images, config.train, 0)
        features = torch.randn(IMAGES, QUERIES, FEATURES, generator=torch.Generator().manual_seed(1))
        stepper = Stepper(model, features, samples, config, place)
        lengths = model.processor.layout
        told = []
        for step in range(STEPS):
            began = time.process_time()
            result = stepper.take(step)
            seconds = time.process_time() - began
            mine = place.share(stepper.samples.batch(step))
            own = sum(len(lengths.target_ids(text)[0]) for sample in mine for text in sample.captions)
            told.append({"loss": result.loss, "seconds": seconds, "targets": own})
        (folder / f"{place.size}-{place.rank}.json").write_text(json.dumps(told), encoding="utf-8")
        if place.is_main:
            weights = {name: parameter.detach() for name, parameter in model.trained_parameters()}
            save_file(weights, folder / f"{place.size}.safetensors")


def run(folder: Path, processes: int) -> list[list[dict[str, float]]]:
    """What each process told of each step."""
    own = [str(Path(__file__).resolve()), "--child", str(folder)]
    command = [sys.executable, *own]
    if processes > 1:
        starter = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *starter, *own]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return [json.loads((folder / f"{processes}-{rank}.json").read_text()) for rank in range(processes)]


def main() -> int:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--child", type=Path, help="be one of the processes; used by the program itself")
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child)
        return 0
    output = Output(arguments.json, f"{STEPS} steps of {PER_STEP} images x {PER_IMAGE} captions of 4 to 30 tokens")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(arguments.rounds):
            for processes, collected in times.items():
                told = run(folder, processes)
                # The first step also computes what is kept for the run.
                collected += [max(each[step]["seconds"] for each in told) for step in range(1, STEPS)]
        one = [step["loss"] for step in run(folder, 1)[0]]
        both = run(folder, 2)
        weights = [load_file(folder / f"{processes}.safetensors") for processes in (1, 2)]
    two = [step["loss"] for step in both[0]]
    difference = max(abs(a - b) / a for a, b in zip(one, two, strict=True))
    moved = torch.cat([(weights[0][key] - weights[1][key]).reshape(-1) for key in weights[0]])
    distance = float(moved.norm() / torch.cat([value.reshape(-1) for value in weights[0].values()]).norm())
    ratio = sorted(times[1])[len(times[1]) // 2] / sorted(times[2])[len(times[2]) // 2]
    output.table(
        ["step", "loss, one process", "loss, two", "difference", "targets of each"],
        [
            [
                step,
                f"{a:.6f}",
                f"{b:.6f}",
                f"{abs(a - b) / a:.1e}",
                " + ".join(str(each[step]["targets"]) for each in both),
            ]
            for step, (a, b) in enumerate(zip(one, two, strict=True))
        ],
    )
    output.say(f"\nweights differ by {distance:.1e}; a step takes {ratio:.2f} times less processor time in each of two")
    output.line(
        kind="result",
        ratio=round(ratio, 3),
        loss_difference=difference,
        weights_difference=distance,
        targets=[[int(step["targets"]) for step in each] for each in both],
    )
    return 0 if difference < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
