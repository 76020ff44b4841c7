"""The cost of `CaptionEvaluation` in transformers' `Trainer`: a training with it and the same one without it.

    python benchmarks/caption_evaluation.py [--images 200] [--turns 3]

A tiny LLaVA with LoRA is trained for 20 steps with two evaluations, by turns with and without the callback, which
captions the images at the start and at both evaluations. Losses and weights of both are compared bit for bit. The
floor is the captioning alone, that of a captioner loaded from the last checkpoint, on the same images; its captions are
compared with those of the last row. Time is the processor time of the training's process, on one thread; charts and
page are made by other processes, whose processor time is printed too, as is what the training waits for them after its
last step. Medians over the turns.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import Output

# isort: split
import captioner_models
import torch
import transformers
from trainer_run import evaluation_of, make_trainer
from vlm_run import data_of

from captune.captioner import Captioner
from captune.decoding import DecodingOptions
from captune.report import read_scores

STEPS, EVERY, EVALUATIONS, TOKENS = 20, 10, 3, 24


class Timed:
    """A function that adds up the time of its calls, by default of the processor."""

    def __init__(self, function: Any, clock: Any = time.process_time) -> None:
        self.function, self.seconds, self.clock = function, 0.0, clock

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Call the function."""
        start = self.clock()
        try:
            return self.function(*args, **settings)
        finally:
            self.seconds += self.clock() - start


def train(base: Path, manifest: Path, folder: Path, callback: Any = None) -> tuple[float, list[float], list[Any]]:
    """Seconds, losses and trained weights."""
    settings = {"max_steps": STEPS, "eval_steps": EVERY, "save_steps": STEPS}
    trainer = make_trainer(base, manifest, folder, *([] if callback is None else [callback]), **settings)
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    seconds = time.process_time() - start
    losses = [entry[name] for entry in trainer.state.log_history for name in ("loss", "eval_loss") if name in entry]
    return seconds, losses, [value.detach() for value in trainer.model.parameters() if value.requires_grad]


def main() -> None:
    """Train by turns and print the times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    title = f"{STEPS} steps, {EVALUATIONS} evaluations of {arguments.images} images, at most {TOKENS} tokens a caption"
    Output(False, title)
    times: dict[str, list[float]] = {
        name: [] for name in ("without", "with", "captioning", "scoring", "page", "waiting", "alone")
    }
    equal = same = True
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        base = captioner_models.save("llava", root / "llava")
        manifest = data_of(root / "photos", train=8, test=arguments.images)
        # The first training imports and compiles what both use.
        train(base, manifest, root / "first", evaluation_of(manifest, root / "first-scores"))
        for turn in range(arguments.turns):
            plain = train(base, manifest, root / f"plain-{turn}")
            output, run = root / f"scores-{turn}", root / f"run-{turn}"
            callback: Any = evaluation_of(manifest, output, f"evaluate.max_new_tokens={TOKENS}", find_leaks=False)
            captioning = callback._caption = Timed(callback._caption)
            scoring = callback._score = Timed(callback._score)
            end = callback.on_train_end = Timed(callback.on_train_end, clock=time.perf_counter)
            other = train(base, manifest, run, callback)
            equal &= plain[1] == other[1] and all(map(torch.equal, plain[2], other[2]))
            captioner = Captioner.from_pretrained(run / f"checkpoint-{STEPS}", dtype="float32")
            rows = read_scores(output).checkpoints
            files = callback._files()
            start = time.process_time()
            for _ in range(EVALUATIONS):
                captions = captioner.caption_files(files, None, DecodingOptions(max_new_tokens=TOKENS))
            alone = time.process_time() - start
            same &= [caption.text for caption in captions] == list(rows[-1].captions.values())
            measured = {"without": plain[0], "with": other[0], "alone": alone, "page": callback._report.seconds}
            measured |= {"captioning": captioning.seconds, "scoring": scoring.seconds, "waiting": end.seconds}
            for key, value in measured.items():
                times[key].append(value)
    medians = {key: statistics.median(values) for key, values in times.items()}
    added = [one - two for one, two in zip(times["with"], times["without"], strict=True)]
    ratios = sorted(a / b for a, b in zip(added, times["alone"], strict=True))
    print(f"  training without the callback                     {medians['without']:7.2f} s")
    print(f"  training with it                                  {medians['with']:7.2f} s")
    print(f"  added                                             {statistics.median(added):7.2f} s")
    print(f"    captioning                                      {medians['captioning']:7.2f} s")
    print(f"    scores, intervals, paired tests, scores.json    {medians['scoring']:7.2f} s")
    print(f"  the floor: captioning with a loaded checkpoint    {medians['alone']:7.2f} s")
    low, middle, high = ratios[0], statistics.median(ratios), ratios[-1]
    print(f"  added / floor                                     {middle:7.2f}  ({low:.2f}-{high:.2f})")
    print(f"  thumbnails, charts, page, in other processes      {medians['page']:7.2f} s")
    print(f"    of which the training waits after its last step {medians['waiting']:7.2f} s of the clock")
    print(f"\nLosses and weights bit for bit equal: {equal}. Captions of the last row equal: {same}.")


if __name__ == "__main__":
    main()
