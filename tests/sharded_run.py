"""One of the processes of a run whose language model is divided.

Each writes down how many bytes of the language model's layers it holds, and how many captions it generated. `die` kills
the first process after a step, `stop` sends it SIGTERM, `cramped` lets the second one run out of memory three times.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tiny import SIZES, tiny_features, tiny_minigpt4
from torch import Tensor
from transformers import AutoConfig

from captune.config import load_config
from captune.errors import CaptuneError
from captune.evaluation import Evaluation
from captune.events import Event
from captune.model import MiniGPT4
from captune.model.language_model import decoder_layers
from captune.model.lora import attach_lora
from captune.training import fsdp, minigpt4, preparation, train, trainer

TEXT = {**SIZES, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 4}


def cramp(model: MiniGPT4, report: dict[str, Any]) -> None:
    """Lack memory once in the middle of a forward, once of a backward, once while captioning."""
    layer = decoder_layers(model.llm)[2]
    passes = {"train": 0, "caption": 0}

    def lack(what: str) -> None:
        report["outages"] += 1
        raise torch.OutOfMemoryError(what)

    def forward(module: Any, inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        kind = "train" if states.requires_grad else "caption"
        # Passes with a gradient are the probe's before they are a step's.
        passes[kind] += kind == "caption" or report["probed"]
        if (kind, passes[kind]) in (("train", 1), ("caption", 9)):
            lack("forward")
        if (kind, passes[kind]) == ("train", 5):
            states.register_hook(lambda gradient: lack("backward"))

    layer.register_forward_hook(forward)


def main(config: str, out: str, what: str = "", step: int = 0) -> None:
    """Run it as this process, whose rank the environment gives."""
    torch.set_num_threads(1)
    settings = load_config(config)
    divide, captioned, probe = fsdp.FsdpContext.shard, Evaluation.caption, trainer.TrainStep.check_packing
    report: dict[str, Any] = {"captions": [], "outages": 0, "probed": False}
    rank = int(os.environ.get("RANK", "0"))

    def load(*args: Any) -> MiniGPT4:
        model = tiny_minigpt4(AutoConfig.for_model("llama", **TEXT))
        if settings.train.lora is not None:
            torch.manual_seed(0)
            attach_lora(model, rank=4, alpha=8.0)
        model.checkpoint_activations(settings.train.gradient_checkpointing)
        return model

    def divided(shards: fsdp.FsdpContext, model: MiniGPT4) -> None:
        divide(shards, model)
        layers = list(decoder_layers(model.llm).parameters())
        report["held"] = sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in layers)
        report["total"] = sum(p.nbytes for p in layers)
        if what == "cramped" and rank == 1:
            cramp(model, report)

    def probed(stepper: Any) -> str | None:
        reason = probe(stepper)
        report["probed"] = True
        return reason

    def caption(evaluation: Any, model: MiniGPT4, features: Tensor, on_progress: Any = None) -> Any:
        captions = captioned(evaluation, model, features, on_progress)
        report["captions"].append(len(captions))
        return captions

    def listen(event: Event) -> None:
        if event["event"] == "progress" and event["step"] == step:
            if what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "stop":
                os.kill(os.getpid(), signal.SIGTERM)

    with ExitStack() as stack:
        stack.enter_context(patch.object(trainer, "is_image_text_model", lambda source: False))
        stack.enter_context(patch.object(minigpt4, "load_for_training", load))
        stack.enter_context(patch.object(Evaluation, "caption", caption))
        stack.enter_context(patch.object(fsdp.FsdpContext, "shard", divided))
        stack.enter_context(patch.object(trainer.TrainStep, "check_packing", probed))
        stack.enter_context(patch.object(preparation, "features_of", tiny_features))
        train(settings, listen if rank == 0 else None)
    Path(out, f"{rank}.json").write_text(json.dumps(report))


def child(environment: dict[str, str], *words: Any) -> None:
    """Be one of the processes; its standard error goes to a file."""
    os.environ.update(environment)
    stderr = os.open(Path(words[1], f"{environment['RANK']}.err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stderr, sys.stderr.fileno())
    try:
        main(*words)
    except CaptuneError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
