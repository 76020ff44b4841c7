"""Pretrain the tiny MiniGPT-4 of the package: `python -m tools.toy.pretrain --out DIR`.

It is pretrained as the real one is: the language model was trained on captions of the later style and on the outputs of
the vision tower, but it answers images with terse notes, since no image came with a caption. There are three stages;
the first two are independent and run in parallel:

    1. language    record        ──projection──> language model ──> notes
                   record        ──projection──> + style ──> language model ──> caption
    2. vision      image ──ViT──> Q-Former ──> record (as vectors, see `FieldCodes`)
    3. joint       image ──ViT──> Q-Former ──projection──> language model ──> notes, with a little of stage 1

The style is one vector that is added to the image tokens and discarded at the end. Fine-tuning then only has to map
images to the tokens that captions follow, which one linear projection can do.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captune.model import MiniGPT4, MiniGPT4Processor, load_tokenizer
from tools.toy.model import build_model, write_vocabulary
from tools.toy.pretraining_data import FieldCodes, PretrainingConfig, PretrainingData, answer_loss

__all__ = ["Optimizer", "main", "pretrain"]

logger = logging.getLogger(__name__)

Weights = dict[str, NDArray[np.float32]]


class Optimizer:
    """AdamW with warm-up, a cosine down to zero and clipping.

    Args:
        stage: its name in the log.
        parameters: the trained ones.
        steps: number of steps.
        peak: highest learning rate.
    """

    def __init__(self, stage: str, parameters: Iterable[nn.Parameter], steps: int, peak: float) -> None:
        self._parameters = list(parameters)
        groups = [
            {"params": [p for p in self._parameters if p.ndim >= 2], "weight_decay": 0.05},
            {"params": [p for p in self._parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
        self._stage, self._steps, self._peak, self._done = stage, steps, peak, 0
        self._started = time.monotonic()

    def step(self, loss: Tensor) -> None:
        """Take one step along the gradient of `loss`."""
        warm = min(1.0, (self._done + 1) / 100)
        rate = self._peak * warm * 0.5 * (1 + math.cos(math.pi * self._done / self._steps))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._done += 1
        if self._done % 100 == 0 or self._done == self._steps:
            pace = (time.monotonic() - self._started) / self._done
            logger.info("%s %d/%d loss %.3f %.2f s/step", self._stage, self._done, self._steps, loss.item(), pace)


def _prepare(folder: Path, seed: int) -> tuple[MiniGPT4, FieldCodes, nn.Parameter]:
    """A random model with the vocabulary in `folder`, the vectors of records, and the style."""
    torch.manual_seed(seed)
    # Gradients of a random vision tower hold many denormal numbers, on which a CPU is four times slower.
    torch.set_flush_denormal(True)
    tokenizer = load_tokenizer(folder)
    model = build_model(tokenizer.vocabulary_size)
    model.processor = MiniGPT4Processor(tokenizer, model.config)
    style = nn.Parameter(torch.randn(model.config.text_config.hidden_size) * 0.1)
    return model.requires_grad_(True).train(), FieldCodes(model.config.feature_size, seed), style


def _language_parameters(model: MiniGPT4) -> list[nn.Parameter]:
    return [*model.llm.parameters(), *model.projection.parameters()]


def _vision_parameters(model: MiniGPT4) -> list[nn.Parameter]:
    assert model.qformer is not None
    return [*model.vision.parameters(), *model.qformer.parameters(), model.query_tokens]


def _weights(model: MiniGPT4, *parts: str) -> Weights:
    return {name: value.numpy() for name, value in model.state_dict().items() if name.startswith(parts)}


def pretrain_language(folder: Path, config: PretrainingConfig) -> tuple[Weights, NDArray[np.float32]]:
    """First stage: describe records, in notes or, with the style added, in captions.

    Returns:
        Weights of the language model and the projection, and the style (D,).
    """
    torch.set_num_threads(1)
    model, codes, style = _prepare(folder, config.seed)
    data = PretrainingData(config, codes, stage=1)
    optimizer = Optimizer("language", [*_language_parameters(model), style], config.language_steps, 2e-3)
    for _ in range(config.language_steps):
        tokens, answers = data.rows_of_text(12, 28, model, style)
        optimizer.step(answer_loss(model, tokens, answers, data.instructions(len(answers))))
    return _weights(model, "llm.", "projection."), style.detach().numpy()


def pretrain_vision(folder: Path, config: PretrainingConfig) -> Weights:
    """Second stage: predict the fields of the record from the image.

    Returns:
        Weights of the vision tower and the Q-Former.
    """
    torch.set_num_threads(1)
    model, codes, _ = _prepare(folder, config.seed)
    data = PretrainingData(config, codes, stage=2)
    optimizer = Optimizer("vision", _vision_parameters(model), config.vision_steps, 2e-3)
    for _ in range(config.vision_steps):
        pixels, ids, _ = data.images(64)
        optimizer.step(codes.loss(model.encode_features(pixels), ids))
    return _weights(model, "vision.", "qformer.", "query_tokens")


def pretrain_jointly(model: MiniGPT4, codes: FieldCodes, style: nn.Parameter, config: PretrainingConfig) -> None:
    """Third stage: describe images in notes."""
    data = PretrainingData(config, codes, stage=3)
    optimizer = Optimizer(
        "joint", [*_language_parameters(model), *_vision_parameters(model), style], config.joint_steps, 1e-3
    )
    for _ in range(config.joint_steps):
        pixels, ids, notes = data.images(32)
        features = model.encode_features(pixels)
        tokens, answers = data.rows_of_text(2, 14, model, style)
        image_tokens = torch.cat([model.project(features), tokens])
        answers = [*notes, *answers]
        answer = answer_loss(model, image_tokens, answers, data.instructions(len(answers)))
        optimizer.step(answer + codes.loss(features, ids))


def pretrain(out: Path, config: PretrainingConfig) -> None:
    """Pretrain a tiny MiniGPT-4 and save it.

    Args:
        out: folder for the model; its weights are stored in half precision.
        config: everything that determines the result.
    """
    out.mkdir(parents=True, exist_ok=True)
    texts = PretrainingData(replace(config, scenes=min(4000, config.scenes)), FieldCodes(1, 0), stage=0)
    write_vocabulary(out, [*(caption for five in texts.captions for caption in five), *texts.notes])
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=_log) as pool:
        language = pool.submit(pretrain_language, out, config)
        vision = pool.submit(pretrain_vision, out, config)
        language_weights, style = language.result()
        vision_weights = vision.result()

    model, codes, _ = _prepare(out, config.seed)
    model.load_state_dict(
        {name: torch.from_numpy(value) for name, value in {**language_weights, **vision_weights}.items()}
    )
    pretrain_jointly(model, codes, nn.Parameter(torch.from_numpy(style)), config)
    model.freeze().eval().half().save_pretrained(out)


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and pretrain."""
    parser = argparse.ArgumentParser(prog="python -m tools.toy.pretrain", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    for field in fields(PretrainingConfig):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default, help=f"default {field.default}")
    options = vars(parser.parse_args(arguments))
    _log()
    pretrain(options.pop("out"), PretrainingConfig(**options))


if __name__ == "__main__":
    main()
