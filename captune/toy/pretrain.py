"""Make the tiny pretrained MiniGPT-4 that ships with captune: `python -m captune.toy.pretrain --out DIR`.

"Pretrained" as the real one is: its language model has read captions of the later style, and its vision is understood
by the language model, but it answers with terse notes, since no picture was ever shown with a caption. Three lessons,
the first two side by side, since neither needs the other:

    1. language    record          ──projection──> language model ──> notes
                   record          ──projection──> + style ──> language model ──> caption
    2. vision      picture ──ViT──> Q-Former ──> record (as vectors, see field_codes.py)
    3. joint       picture ──ViT──> Q-Former ──projection──> language model ──> notes, with a little of lesson 1

The style is one vector that is added to the image tokens and thrown away at the end. What is left for tuning to find is
how to carry pictures to where captions are spoken; one linear projection can do that.
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
from captune.toy.field_codes import FieldCodes
from captune.toy.lessons import Material, Recipe, answer_loss
from captune.toy.tiny_model import build_model
from captune.toy.vocabulary import write_vocabulary

__all__ = ["main", "pretrain"]

logger = logging.getLogger(__name__)

Weights = dict[str, NDArray[np.float32]]


class _Stepper:
    """AdamW with warm-up, a cosine down to zero and clipping.

    Args:
        lesson: its name in the log.
        parameters: what learns.
        steps: of the whole lesson.
        peak: highest learning rate.
    """

    def __init__(self, lesson: str, parameters: Iterable[nn.Parameter], steps: int, peak: float) -> None:
        self._parameters = list(parameters)
        groups = [
            {"params": [p for p in self._parameters if p.ndim >= 2], "weight_decay": 0.05},
            {"params": [p for p in self._parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
        self._lesson, self._steps, self._peak, self._done = lesson, steps, peak, 0
        self._started = time.monotonic()

    def take(self, loss: Tensor) -> None:
        """Take one step down the gradient of `loss`."""
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
            logger.info("%s %d/%d loss %.3f %.2f s/step", self._lesson, self._done, self._steps, loss.item(), pace)


def _prepare(folder: Path, seed: int) -> tuple[MiniGPT4, FieldCodes, nn.Parameter]:
    """A fresh model that reads the vocabulary in `folder`, the vectors of records, and the style."""
    torch.manual_seed(seed)
    # Gradients of a fresh vision tower are full of denormal numbers, on which a CPU is four times slower.
    torch.set_flush_denormal(True)
    tokenizer = load_tokenizer(folder)
    model = build_model(tokenizer.vocabulary_size)
    model.processor = MiniGPT4Processor(tokenizer, model.config)
    style = nn.Parameter(torch.randn(model.config.text_config.hidden_size) * 0.1)
    return model.requires_grad_(True).train(), FieldCodes(model.config.feature_size, seed), style


def _speaking(model: MiniGPT4) -> list[nn.Parameter]:
    return [*model.llm.parameters(), *model.projection.parameters()]


def _seeing(model: MiniGPT4) -> list[nn.Parameter]:
    assert model.qformer is not None
    return [*model.vision.parameters(), *model.qformer.parameters(), model.query_tokens]


def _weights(model: MiniGPT4, *parts: str) -> Weights:
    return {name: value.numpy() for name, value in model.state_dict().items() if name.startswith(parts)}


def teach_language(folder: Path, recipe: Recipe) -> tuple[Weights, NDArray[np.float32]]:
    """First lesson: speak of records, in notes or, where the style is added, in captions.

    Returns:
        Weights of the language model and the projection, and the style (D,).
    """
    torch.set_num_threads(1)
    model, codes, style = _prepare(folder, recipe.seed)
    material = Material(recipe, codes, lesson=1)
    stepper = _Stepper("language", [*_speaking(model), style], recipe.language_steps, 2e-3)
    for _ in range(recipe.language_steps):
        tokens, answers = material.rows_of_text(12, 28, model, style)
        stepper.take(answer_loss(model, tokens, answers, material.instructions(len(answers))))
    return _weights(model, "llm.", "projection."), style.detach().numpy()


def teach_vision(folder: Path, recipe: Recipe) -> Weights:
    """Second lesson: see what is in a picture, field by field.

    Returns:
        Weights of the vision tower and the Q-Former.
    """
    torch.set_num_threads(1)
    model, codes, _ = _prepare(folder, recipe.seed)
    material = Material(recipe, codes, lesson=2)
    stepper = _Stepper("vision", _seeing(model), recipe.vision_steps, 2e-3)
    for _ in range(recipe.vision_steps):
        pixels, ids, _ = material.pictures(64)
        stepper.take(codes.loss(model.encode_features(pixels), ids))
    return _weights(model, "vision.", "qformer.", "query_tokens")


def teach_both(model: MiniGPT4, codes: FieldCodes, style: nn.Parameter, recipe: Recipe) -> None:
    """Third lesson: speak of pictures, in notes."""
    material = Material(recipe, codes, lesson=3)
    stepper = _Stepper("joint", [*_speaking(model), *_seeing(model), style], recipe.joint_steps, 1e-3)
    for _ in range(recipe.joint_steps):
        pixels, ids, notes = material.pictures(32)
        features = model.encode_features(pixels)
        tokens, answers = material.rows_of_text(2, 14, model, style)
        image_tokens = torch.cat([model.project(features), tokens])
        answers = [*notes, *answers]
        spoken = answer_loss(model, image_tokens, answers, material.instructions(len(answers)))
        stepper.take(spoken + codes.loss(features, ids))


def pretrain(out: Path, recipe: Recipe) -> None:
    """Pretrain a tiny MiniGPT-4 and save it.

    Args:
        out: folder for the model; its weights are stored in half precision.
        recipe: everything that decides the result.
    """
    out.mkdir(parents=True, exist_ok=True)
    words = Material(replace(recipe, scenes=min(4000, recipe.scenes)), FieldCodes(1, 0), lesson=0)
    write_vocabulary(out, [*(caption for five in words.captions for caption in five), *words.notes])
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=_log) as pool:
        language = pool.submit(teach_language, out, recipe)
        vision = pool.submit(teach_vision, out, recipe)
        speaking, style = language.result()
        seeing = vision.result()

    model, codes, _ = _prepare(out, recipe.seed)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in {**speaking, **seeing}.items()})
    teach_both(model, codes, nn.Parameter(torch.from_numpy(style)), recipe)
    model.freeze().eval().half().save_pretrained(out)


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and pretrain."""
    parser = argparse.ArgumentParser(prog="python -m captune.toy.pretrain", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    for field in fields(Recipe):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default, help=f"default {field.default}")
    given = vars(parser.parse_args(arguments))
    _log()
    pretrain(given.pop("out"), Recipe(**given))


if __name__ == "__main__":
    main()
