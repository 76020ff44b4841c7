"""Caption and score the pretrained model and every epoch: python eval_scripts/eval_flickr30k.py.

The same as `captune evaluate CONFIG`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from captune.cli import run_program
from captune.cli.evaluate import run_evaluation

DEFAULT_CONFIG = Path("train_configs/minigpt4_flickr_finetune.yaml")


def main() -> None:
    """Read the original's arguments and evaluate."""
    parser = argparse.ArgumentParser(description="Caption and score the pretrained model and every checkpoint.")
    parser.add_argument("--cfg-path", default=DEFAULT_CONFIG, type=Path, help="YAML configuration of the run")
    parser.add_argument("--options", nargs="+", default=[], metavar="section.key=value", help="settings that win")
    parser.add_argument("--checkpoint", action="append", type=Path, help="a checkpoint's folder; all by default")
    parser.add_argument("--out", type=Path, help="folder for captions, scores, table and chart")
    arguments = parser.parse_args()
    run_program(lambda: run_evaluation(arguments.cfg_path, arguments.options, arguments.checkpoint, arguments.out))


if __name__ == "__main__":
    main()
