"""A page to try a model on: python demo.py, or python demo.py --cfg-path train_configs/minigpt4_flickr_finetune.yaml.

Without a configuration, the included toy model is served. With one, its run is served: the pretrained model and every
epoch side by side, or, before training, the model to be tuned. The same as `captune serve MODEL`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from captune.cli import run_program
from captune.cli.serve import serve as serve_model


def main() -> None:
    """Read the original's arguments and serve."""
    parser = argparse.ArgumentParser(description="A page to try a model on.")
    parser.add_argument("--cfg-path", type=Path, help="YAML configuration of a run, captune's or the original's")
    parser.add_argument("--model", help="instead: a run, a checkpoint, a captune model, a hub id, or toy")
    parser.add_argument("--gpu-id", type=int, help="which GPU; by default the first")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    arguments = parser.parse_args()
    if arguments.gpu_id is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(arguments.gpu_id)
    run_program(lambda: serve(arguments.cfg_path, arguments.model, arguments.host, arguments.port))


def serve(config: Path | None, model: str | None, host: str, port: int) -> None:
    """Serve a model, or what a configuration made of it."""
    if model is None and config is not None:
        from captune.config import load_config

        settings = load_config(config)
        model = str(settings.output) if (settings.output / "config.yaml").is_file() else settings.model.path
    serve_model(model or "toy", host=host, port=port)


if __name__ == "__main__":
    main()
