"""Two processes on gloo against one: the same losses and weights whatever the share of each, and the time of a step.

In a third way the two also divide the frozen language model's layers between them (`train.sharding: fsdp`, FSDP2).

    python benchmarks/dist.py [--json]

The same run, its captions of 4 to 30 tokens, so that the processes' shares hold different numbers of targets, is
trained by one process and by two that torchrun starts. Scaling is one process's processor time over the longer of the
two processes': what the sharing and the message cost, apart from how many cores are free. The message is only the
projection's gradient; the frozen language model is never sent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from measuring import INSTRUCTION, Output, captions, options
from prefix import FEATURES, QUERIES, build

# isort: split
import torch
from safetensors.torch import load_file, save_file

from captune.config import parse_config
from captune.data.manifest import Sample
from captune.distributed import distributed_context
from captune.training.equivalence import CheckedObjective
from captune.training.fsdp import FsdpContext, llm_bytes
from captune.training.trainer import TrainStep

IMAGES, PER_IMAGE, PER_STEP, STEPS, VOCABULARY = 24, 5, 8, 6, 2048
WAYS = {"one process": 1, "two": 2, "two, divided": 2}
"""How many processes each way has."""


def child(folder: Path, way: str) -> None:
    """One of the processes: train, and save losses, times and weights."""
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
    with distributed_context() as dist:
        fsdp = FsdpContext(dist) if way == "two, divided" else None
        with nullcontext() if fsdp is None else fsdp.load_in_rank_order():
            model = build(256, 4, VOCABULARY).train()
            if fsdp is not None:
                fsdp.shard(model)
        local_bytes, total_bytes = llm_bytes(model)
        features = torch.randn(IMAGES, QUERIES, FEATURES, generator=torch.Generator().manual_seed(1))
        collective_forward = nullcontext if fsdp is None else fsdp.collective_forward
        train_step = TrainStep(
            model,
            CheckedObjective(model, INSTRUCTION, config.train.enabled_optimizations),
            images,
            features,
            config.train,
            seed=0,
            dist=dist,
            collective_forward=collective_forward,
        )
        lengths = model.processor.layout
        records = []
        for step in range(STEPS):
            began = time.process_time()
            result = train_step.run(step)
            seconds = time.process_time() - began
            mine = dist.shard(train_step.samples.batch(step))
            targets = sum(len(lengths.target_ids(text)[0]) for sample in mine for text in sample.captions)
            held = local_bytes / total_bytes
            records.append({"loss": result.loss, "seconds": seconds, "targets": targets, "held": held})
        (folder / f"{way}-{dist.rank}.json").write_text(json.dumps(records), encoding="utf-8")
        if dist.is_main:
            weights = {name: parameter.detach() for name, parameter in model.trained_parameters()}
            save_file(weights, folder / f"{way}.safetensors")


def run(folder: Path, way: str) -> list[list[dict[str, float]]]:
    """What each process recorded in each step."""
    program = [str(Path(__file__).resolve()), "--child", str(folder), "--way", way]
    command = [sys.executable, *program]
    if WAYS[way] > 1:
        starter = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WAYS[way]}"]
        command = [sys.executable, *starter, *program]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return [json.loads((folder / f"{way}-{rank}.json").read_text()) for rank in range(WAYS[way])]


def main() -> int:
    """Train in every way and compare times, losses and weights."""
    parser = options(__doc__, rounds=1)
    parser.add_argument("--child", type=Path, help="be one of the processes; used by the program itself")
    parser.add_argument("--way", choices=WAYS, help="of which way")
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child, arguments.way)
        return 0
    output = Output(arguments.json, f"{STEPS} steps of {PER_STEP} images x {PER_IMAGE} captions of 4 to 30 tokens")
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(arguments.rounds):
            records = {way: run(folder, way) for way in WAYS}
            for way, each in records.items():
                # The first step also computes what is kept for the run.
                times[way] += [max(one[step]["seconds"] for one in each) for step in range(1, STEPS)]
        weights = {way: load_file(folder / f"{way}.safetensors") for way in WAYS}
    peer, *others = WAYS
    seconds = {way: sorted(taken)[len(taken) // 2] for way, taken in times.items()}
    losses = {way: [step["loss"] for step in each[0]] for way, each in records.items()}
    length = torch.cat([value.reshape(-1) for value in weights[peer].values()]).norm()
    rows = []
    for way in others:
        moved = torch.cat([(weights[peer][key] - weights[way][key]).reshape(-1) for key in weights[peer]])
        values = {
            "ratio": round(seconds[peer] / seconds[way], 3),
            "loss_difference": max(abs(a - b) / a for a, b in zip(losses[peer], losses[way], strict=True)),
            "weights_difference": float(moved.norm() / length),
            "held": max(each[0]["held"] for each in records[way]),
            "targets": [[int(step["targets"]) for step in each] for each in records[way]],
        }
        rows.append(values)
        output.line(kind="way", way=way, **values)
    output.table(
        ["step", *(f"loss, {way}" for way in WAYS), "targets of each"],
        [
            [
                step,
                *(f"{losses[way][step]:.7f}" for way in WAYS),
                " + ".join(str(each[step]["targets"]) for each in records["two"]),
            ]
            for step in range(STEPS)
        ],
    )
    output.say("")
    output.table(
        ["", "loss difference", "weights", "processor time", "language model held by each"],
        [
            [
                way,
                f"{row['loss_difference']:.1e}",
                f"{row['weights_difference']:.1e}",
                f"{row['ratio']:.2f} times less",
                f"{row['held']:.0%}",
            ]
            for way, row in zip(others, rows, strict=True)
        ],
    )
    output.line(kind="result", **rows[0])
    return 0 if all(row["loss_difference"] < 1e-5 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
