"""Tune a model as configured: python train.py --cfg-path train_configs/minigpt4_flickr_finetune.yaml.

Runs alone or under torchrun --nproc-per-node N. The same as `captune train CONFIG`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from captune.cli import run_program
from captune.cli.train import run_training


def main() -> None:
    """Read the original's arguments and train."""
    parser = argparse.ArgumentParser(description="Tune a captioner as configured in a YAML file.")
    parser.add_argument("--cfg-path", required=True, type=Path, help="YAML configuration")
    parser.add_argument("--options", nargs="+", default=[], metavar="section.key=value", help="settings that win")
    parser.add_argument("--resume", choices=("auto", "never"), default="auto", help="resume an unfinished run")
    parser.add_argument("--overwrite", action="store_true", help="replace another run in the output folder")
    arguments = parser.parse_args()
    resume = arguments.resume == "auto"
    run_program(
        lambda: run_training(arguments.cfg_path, arguments.options, resume=resume, overwrite=arguments.overwrite)
    )


if __name__ == "__main__":
    main()
