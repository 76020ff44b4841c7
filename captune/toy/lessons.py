"""What the tiny MiniGPT-4 is pretrained on: scenes with their pictures, records, notes and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from captune.data.images import to_pixels
from captune.model import MiniGPT4
from captune.toy.captions import terse_caption, write_captions
from captune.toy.drawing import IMAGE_SIZE, draw_scene
from captune.toy.field_codes import FieldCodes
from captune.toy.scenes import scenes
from captune.toy.vocabulary import INSTRUCTIONS

__all__ = ["Material", "Recipe", "answer_loss"]

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the checkpoint, but for the machine's arithmetic.

    Attributes:
        seed: of the scenes, the weights and every draw.
        scenes: distinct scenes; they are drawn once and seen several times.
        language_steps: optimiser steps of the first lesson, 12 rows of notes and 28 of captions each.
        vision_steps: optimiser steps of the second lesson, 64 pictures each.
        joint_steps: optimiser steps of the third lesson, 32 pictures, 2 rows of notes and 14 of captions each.
        noise: largest standard deviation of the noise on records, so that imprecise vision is understood as well.
    """

    seed: int = 7
    scenes: int = 30_000
    language_steps: int = 700
    vision_steps: int = 3_500
    joint_steps: int = 300
    noise: float = 0.2


class Material:
    """Random rows for the lessons. What a lesson does not need is never made.

    Args:
        recipe: which scenes, how many.
        codes: records as vectors.
        lesson: number of the lesson; each draws rows of its own.
    """

    def __init__(self, recipe: Recipe, codes: FieldCodes, lesson: int) -> None:
        # Far from the seeds that people choose; what is held out from training is held out from pretraining, too.
        self._scenes = list(islice(scenes(1_000_000 + recipe.seed, held_out=False), recipe.scenes))
        self._recipe = recipe
        self._codes = codes
        self._draw = np.random.default_rng([recipe.seed, lesson])

    @cached_property
    def notes(self) -> list[str]:
        """One line of notes for every scene."""
        return [terse_caption(scene) for scene in self._scenes]

    @cached_property
    def captions(self) -> list[list[str]]:
        """Five captions for every scene."""
        words = Random(self._recipe.seed)
        return [write_captions(scene, words) for scene in self._scenes]

    @cached_property
    def _records(self) -> Tensor:
        return torch.tensor([self._codes.ids(scene) for scene in self._scenes])

    @cached_property
    def _pixels(self) -> NDArray[np.float16]:
        # In half precision: 30,000 pictures of 64 x 64 take 0.7 GB.
        return np.stack([to_pixels(draw_scene(scene), IMAGE_SIZE).astype(np.float16) for scene in self._scenes])

    def pictures(self, count: int) -> tuple[Tensor, Tensor, list[str]]:
        """Pictures of random scenes.

        Returns:
            Pixels (count, 3, S, S), record ids (count, Q), and the notes.
        """
        picked = self._draw.integers(0, len(self._scenes), count)
        pixels = torch.from_numpy(self._pixels[picked].astype(np.float32))
        return pixels, self._records[picked], [self.notes[i] for i in picked]

    def rows_of_text(self, notes: int, captions: int, model: MiniGPT4, style: Tensor) -> tuple[Tensor, list[str]]:
        """Image tokens that come from records and not from pictures, and what is to be said of them.

        Args:
            notes: rows to be answered with notes.
            captions: rows to be answered with one of their captions; their tokens carry `style`.
            model: its projection is used.
            style: (D,) what announces captions.

        Returns:
            Image tokens (notes + captions, Q, D) and as many answers.
        """
        picked = self._draw.integers(0, len(self._scenes), notes + captions)
        vectors = self._codes.vectors(self._records[picked])
        vectors = vectors + torch.randn_like(vectors) * self._recipe.noise * torch.rand(len(vectors), 1, 1)
        tokens = model.project(vectors)
        tokens = torch.cat([tokens[:notes], tokens[notes:] + style])
        answers = [self.notes[i] for i in picked[:notes]]
        return tokens, answers + [self.captions[i][self._draw.integers(5)] for i in picked[notes:]]

    def instructions(self, count: int) -> list[str]:
        """As many random instructions."""
        return [INSTRUCTIONS[i] for i in self._draw.integers(0, len(INSTRUCTIONS), count)]


def answer_loss(model: MiniGPT4, image_tokens: Tensor, answers: Sequence[str], instructions: Sequence[str]) -> Tensor:
    """Mean negative log-likelihood of answers.

    Args:
        model: speaks.
        image_tokens: (B, Q, D), one image a row.
        answers: B texts.
        instructions: what each was asked.

    Returns:
        The mean over all target tokens, stop symbols included, in nats.
    """
    assert model.processor is not None
    layout = model.processor.layout
    rows = [layout.sample(asked, said) for asked, said in zip(instructions, answers, strict=True)]
    batch = model.processor.pad(rows)
    states = model.llm.model(
        inputs_embeds=model.embed(batch["input_ids"], image_tokens), attention_mask=batch["attention_mask"]
    ).last_hidden_state
    targets = batch["labels"][:, 1:]
    counted = targets != IGNORED
    # Logits at the targets only; the rest would be thrown away.
    return F.cross_entropy(model.llm.lm_head(states[:, :-1][counted]), targets[counted])
