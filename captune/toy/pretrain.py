"""Make the tiny pretrained MiniGPT-4 that ships with captune: `python -m captune.toy.pretrain --out DIR`.

"Pretrained" as the real one is: its language model has read captions of the later style, and its vision is understood
by the language model, but it answers with terse notes, since no picture was ever shown with a caption. Three lessons:

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
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captune.data.images import to_pixels
from captune.model import MiniGPT4, MiniGPT4Processor, load_tokenizer
from captune.toy.captions import terse_caption, write_captions
from captune.toy.drawing import IMAGE_SIZE, draw_scene
from captune.toy.field_codes import FieldCodes
from captune.toy.scenes import scenes
from captune.toy.tiny_model import build_model
from captune.toy.vocabulary import INSTRUCTIONS, write_vocabulary

__all__ = ["Recipe", "main", "pretrain"]

logger = logging.getLogger(__name__)
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the checkpoint, steps apart from the machine's arithmetic.

    Attributes:
        seed: of the scenes, the weights and every draw.
        scenes: distinct scenes that are drawn once and seen several times.
        language_steps: optimiser steps of the first lesson, 12 rows of notes and 28 of captions each.
        vision_steps: optimiser steps of the second lesson, 64 pictures each.
        joint_steps: optimiser steps of the third lesson, 32 pictures, 2 rows of notes and 14 of captions each.
        noise: largest standard deviation of the noise on records, so that imprecise vision is understood as well.
    """

    seed: int = 7
    scenes: int = 30_000
    language_steps: int = 1_200
    vision_steps: int = 4_000
    joint_steps: int = 400
    noise: float = 0.2


class Lessons:
    """The material: scenes with their pictures, notes, captions and records.

    Args:
        recipe: how many, from which seed.
        folder: receives the vocabulary.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        # Far from the seeds that people choose; what is held out from training is held out from pretraining, too.
        drawn = list(islice(scenes(1_000_000 + recipe.seed, held_out=False), recipe.scenes))
        words = Random(recipe.seed)
        self.notes = [terse_caption(scene) for scene in drawn]
        self.captions = [write_captions(scene, words) for scene in drawn]
        write_vocabulary(folder, [*(c for five in self.captions[:4000] for c in five), *self.notes[:4000]])
        self.tokenizer = load_tokenizer(folder)
        self.model = build_model(self.tokenizer.vocabulary_size)
        self.processor = MiniGPT4Processor(self.tokenizer, self.model.config)
        self.model.processor = self.processor
        self.codes = FieldCodes(self.model.config.feature_size, recipe.seed)
        self.records = torch.tensor([self.codes.ids(scene) for scene in drawn])
        # In half precision: the pictures of 30,000 scenes take 0.7 GB.
        self.pixels = np.stack([to_pixels(draw_scene(scene), IMAGE_SIZE).astype(np.float16) for scene in drawn])
        self.style = nn.Parameter(torch.randn(self.model.config.text_config.hidden_size) * 0.1)
        self._draw = np.random.default_rng(recipe.seed)
        self._noise = recipe.noise

    def pictures(self, count: int) -> tuple[Tensor, Tensor, list[str]]:
        """Pixels (count, 3, S, S), records as vectors (count, Q, F) and notes of random scenes."""
        picked = self._draw.integers(0, len(self.notes), count)
        pixels = torch.from_numpy(self.pixels[picked].astype(np.float32))
        return pixels, self.codes.vectors(self.records[picked]), [self.notes[i] for i in picked]

    def rows_of_text(self, notes: int, captions: int) -> tuple[Tensor, list[str]]:
        """Image tokens that come from records and not from pictures, and what is said of them."""
        picked = self._draw.integers(0, len(self.notes), notes + captions)
        vectors = self.codes.vectors(self.records[picked])
        vectors = vectors + torch.randn_like(vectors) * self._noise * torch.rand(len(vectors), 1, 1)
        tokens = self.model.project(vectors)
        tokens = torch.cat([tokens[:notes], tokens[notes:] + self.style])
        said = [self.notes[i] for i in picked[:notes]]
        return tokens, said + [self.captions[i][self._draw.integers(5)] for i in picked[notes:]]

    def loss(self, image_tokens: Tensor, answers: Sequence[str]) -> Tensor:
        """Mean negative log-likelihood of answers given their image tokens (B, Q, D), each asked in some words."""
        asked = self._draw.integers(0, len(INSTRUCTIONS), len(answers))
        layout = self.processor.layout
        rows = [layout.sample(INSTRUCTIONS[i], text) for i, text in zip(asked, answers, strict=True)]
        batch = self.processor.pad(rows)
        states = self.model.llm.model(
            inputs_embeds=self.model.embed(batch["input_ids"], image_tokens), attention_mask=batch["attention_mask"]
        ).last_hidden_state
        targets = batch["labels"][:, 1:]
        counted = targets != IGNORED
        return F.cross_entropy(self.model.llm.lm_head(states[:, :-1][counted]), targets[counted])


class Stepper:
    """AdamW with warm-up, a cosine down to zero and clipping.

    Args:
        parameters: what learns.
        steps: of the whole lesson.
        peak: highest learning rate.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], steps: int, peak: float) -> None:
        self._parameters = list(parameters)
        groups = [
            {"params": [p for p in self._parameters if p.ndim >= 2], "weight_decay": 0.05},
            {"params": [p for p in self._parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
        self._steps, self._peak, self._done = steps, peak, 0
        self._started = time.monotonic()

    def take(self, lesson: str, loss: Tensor) -> None:
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
            rate = (time.monotonic() - self._started) / self._done
            logger.info("%s %d/%d loss %.3f, %.2f s a step", lesson, self._done, self._steps, loss.item(), rate)


def pretrain(out: Path, recipe: Recipe) -> MiniGPT4:
    """Pretrain a tiny MiniGPT-4 and save it.

    Args:
        out: folder for the model; weights are stored in half precision.
        recipe: everything that decides the result.

    Returns:
        The model in float32, rounded to what was saved.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    # Gradients of a fresh vision tower are full of denormal numbers, on which a CPU is four times slower.
    torch.set_flush_denormal(True)
    lessons = Lessons(recipe, out)
    model = lessons.model
    assert model.qformer is not None
    nn.init.normal_(model.query_tokens, std=0.5)
    model.requires_grad_(True).train()
    speaking = [*model.llm.parameters(), *model.projection.parameters(), lessons.style]
    seeing = [*model.vision.parameters(), *model.qformer.parameters(), model.query_tokens]

    language = Stepper(speaking, recipe.language_steps, 2e-3)
    for _ in range(recipe.language_steps):
        language.take("language", lessons.loss(*lessons.rows_of_text(notes=12, captions=28)))

    vision = Stepper(seeing, recipe.vision_steps, 1.5e-3)
    for _ in range(recipe.vision_steps):
        pixels, vectors, _ = lessons.pictures(64)
        vision.take("vision", F.mse_loss(model.encode_features(pixels), vectors))

    joint = Stepper([*speaking, *seeing], recipe.joint_steps, 1e-3)
    for _ in range(recipe.joint_steps):
        pixels, vectors, notes = lessons.pictures(32)
        features = model.encode_features(pixels)
        tokens, said = lessons.rows_of_text(notes=2, captions=14)
        spoken = lessons.loss(torch.cat([model.project(features), tokens]), [*notes, *said])
        joint.take("joint", spoken + F.mse_loss(features, vectors))

    model.freeze().eval()
    model.half().save_pretrained(out)
    model.float()
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and pretrain."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(prog="python -m captune.toy.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="decides scenes, weights and every draw")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all steps, for a quick try")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(given.threads)
    recipe = Recipe(
        seed=given.seed,
        scenes=max(200, round(defaults.scenes * min(given.scale, 1.0))),
        language_steps=max(1, round(defaults.language_steps * given.scale)),
        vision_steps=max(1, round(defaults.vision_steps * given.scale)),
        joint_steps=max(1, round(defaults.joint_steps * given.scale)),
    )
    pretrain(given.out, recipe)


if __name__ == "__main__":
    main()
