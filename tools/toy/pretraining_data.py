"""Data of the toy's pretraining: scenes with their images, records, notes and captions, and records as vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
from captune.toy.scenes import ACTIONS, COLORS, COMPANION_WEIGHTS, PROP_COLORS, SETTINGS, SKIES, Scene, sample_scenes
from tools.toy.model import INSTRUCTIONS

__all__ = ["FIELDS", "FieldCodes", "PretrainingConfig", "PretrainingData", "answer_loss"]

IGNORED = -100


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


_ALL_COLORS = _distinct(color for colors in COLORS.values() for color in colors)
# field -> its values; "" where a scene has nothing there.
FIELDS: dict[str, tuple[str, ...]] = {
    "setting": SETTINGS,
    "sky": SKIES,
    "count": ("1", "2", "3"),
    "kind": tuple(ACTIONS),
    "color": _ALL_COLORS,
    "action": _distinct(action for actions in ACTIONS.values() for action in actions),
    "prop color": ("", *_distinct(color for colors in PROP_COLORS.values() for color in colors)),
    "side": ("", "left", "right"),
    "size": ("", "small", "large"),
    "companion color": _ALL_COLORS,
    "companion kind": ("", *COMPANION_WEIGHTS),
}


def _values(scene: Scene) -> tuple[str, ...]:
    subject, companion = scene.subject, scene.companion
    companion_values = (
        ("", "", "", "") if companion is None else (companion.side, companion.size, companion.color, companion.kind)
    )
    return (
        scene.setting, scene.sky, str(subject.count), subject.kind, subject.color, subject.action, subject.prop_color,
        *companion_values,
    )  # fmt: skip


class FieldCodes:
    """Fixed random vectors for the values of all fields of a scene's record.

    Every field (setting, sky, count, kind, colour, ...) has a slot. The vision tower is trained to output these vectors
    and the language model to describe them, so that each can be trained without the other. The first stage of BLIP-2
    does the same with the features of captions.

    Args:
        width: F, length of a vector; each has mean 0 and variance 1, like the output of a LayerNorm.
        seed: of the vectors.
    """

    def __init__(self, width: int, seed: int) -> None:
        self._ids: dict[tuple[str, str], int] = {}
        for field, values in FIELDS.items():
            for value in values:
                self._ids[field, value] = len(self._ids)
        generator = torch.Generator().manual_seed(seed)
        self._vectors = F.layer_norm(torch.randn(len(self._ids), width, generator=generator), (width,))

    def ids(self, scene: Scene) -> list[int]:
        """Indices of the scene's values, one for each field."""
        return [self._ids[field, value] for field, value in zip(FIELDS, _values(scene), strict=True)]

    def vectors(self, ids: Tensor) -> Tensor:
        """Vectors (B, Q, F) of indices (B, Q), Q being the number of fields."""
        return self._vectors[ids]

    def loss(self, features: Tensor, ids: Tensor) -> Tensor:
        """How far features (B, Q, F) are from the vectors of `ids` (B, Q).

        Squared distance plus cross-entropy over the values of each field: with the distance alone the same accuracy
        takes more than twice as many steps.
        """
        distance = F.mse_loss(features, self.vectors(ids))
        cross_entropy = torch.stack([F.cross_entropy(*scored) for scored in self._scores(features, ids)]).sum()
        return distance + 0.5 * cross_entropy

    def _scores(self, features: Tensor, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each field, scores (B, values) of all its values and the index (B,) of the right one."""
        first = 0
        for slot, values in enumerate(FIELDS.values()):
            scores = features[:, slot] @ self._vectors[first : first + len(values)].T
            yield scores / 8, ids[:, slot] - first
            first += len(values)

    def accuracy(self, features: Tensor, ids: Tensor) -> dict[str, float]:
        """Share of features (B, Q, F) that are nearest to the right value of their field, by field."""
        return {
            field: float((scores.argmax(dim=1) == right).float().mean())
            for field, (scores, right) in zip(FIELDS, self._scores(features, ids), strict=True)
        }


@dataclass(frozen=True, slots=True)
class PretrainingConfig:
    """Everything that determines the checkpoint, except for the machine's arithmetic.

    Attributes:
        seed: of the scenes, the weights and every draw.
        scenes: distinct scenes; they are drawn once and seen several times.
        language_steps: optimizer steps on the language model, 12 rows of notes and 28 of captions each.
        vision_steps: optimizer steps on the vision tower, 64 images each.
        joint_steps: optimizer steps on both, 32 images, 2 rows of notes and 14 of captions each.
        noise: largest standard deviation of the noise on records, to accept imprecise features.
    """

    seed: int = 7
    scenes: int = 30_000
    language_steps: int = 700
    vision_steps: int = 3_500
    joint_steps: int = 300
    noise: float = 0.2


class PretrainingData:
    """Random rows for the stages of pretraining; what a stage does not need is never made.

    Args:
        config: which scenes, how many.
        codes: records as vectors.
        stage: number of the stage; each draws separate rows.
    """

    def __init__(self, config: PretrainingConfig, codes: FieldCodes, stage: int) -> None:
        # Far from the seeds of users; what is held out from training is held out from pretraining, too.
        self._scenes = list(islice(sample_scenes(1_000_000 + config.seed, held_out=False), config.scenes))
        self._config = config
        self._codes = codes
        self._draw = np.random.default_rng([config.seed, stage])

    @cached_property
    def notes(self) -> list[str]:
        """One line of notes for every scene."""
        return [terse_caption(scene) for scene in self._scenes]

    @cached_property
    def captions(self) -> list[list[str]]:
        """Five captions for every scene."""
        words = Random(self._config.seed)
        return [write_captions(scene, words) for scene in self._scenes]

    @cached_property
    def _records(self) -> Tensor:
        return torch.tensor([self._codes.ids(scene) for scene in self._scenes])

    @cached_property
    def _pixels(self) -> NDArray[np.float16]:
        # In half precision: 30,000 images of 64 x 64 pixels take 0.7 GB.
        return np.stack([to_pixels(draw_scene(scene), IMAGE_SIZE).astype(np.float16) for scene in self._scenes])

    def images(self, count: int) -> tuple[Tensor, Tensor, list[str]]:
        """Images of random scenes.

        Returns:
            Pixels (count, 3, S, S), record ids (count, Q), and the notes.
        """
        picked = self._draw.integers(0, len(self._scenes), count)
        pixels = torch.from_numpy(self._pixels[picked].astype(np.float32))
        return pixels, self._records[picked], [self.notes[i] for i in picked]

    def rows_of_text(self, notes: int, captions: int, model: MiniGPT4, style: Tensor) -> tuple[Tensor, list[str]]:
        """Image tokens made of records instead of images, and the answers about them.

        Args:
            notes: rows answered with notes.
            captions: rows answered with one of their captions; `style` is added to their tokens.
            model: its projection is used.
            style: (D,) marks captions.

        Returns:
            Image tokens (notes + captions, Q, D) and as many answers.
        """
        picked = self._draw.integers(0, len(self._scenes), notes + captions)
        vectors = self._codes.vectors(self._records[picked])
        vectors = vectors + torch.randn_like(vectors) * self._config.noise * torch.rand(len(vectors), 1, 1)
        tokens = model.project(vectors)
        tokens = torch.cat([tokens[:notes], tokens[notes:] + style])
        answers = [self.notes[i] for i in picked[:notes]]
        return tokens, answers + [self.captions[i][self._draw.integers(5)] for i in picked[notes:]]

    def rewritings(self, count: int) -> tuple[list[str], list[str]]:
        """The notes of random scenes, and one of the captions of each."""
        picked = self._draw.integers(0, len(self._scenes), count)
        return [self.notes[i] for i in picked], [self.captions[i][self._draw.integers(5)] for i in picked]

    def instructions(self, count: int) -> list[str]:
        """Random instructions."""
        return [INSTRUCTIONS[i] for i in self._draw.integers(0, len(INSTRUCTIONS), count)]


def answer_loss(model: MiniGPT4, image_tokens: Tensor, answers: Sequence[str], instructions: Sequence[str]) -> Tensor:
    """Mean negative log-likelihood of answers.

    Args:
        model: gives the likelihood.
        image_tokens: (B, Q, D), one image a row.
        answers: B texts.
        instructions: the prompt of each.

    Returns:
        The mean over all target tokens, stop symbols included, in nats.
    """
    assert model.processor is not None
    layout = model.processor.layout
    rows = [layout.sample(prompt, answer) for prompt, answer in zip(instructions, answers, strict=True)]
    batch = model.processor.pad(rows)
    states = model.llm.model(
        inputs_embeds=model.embed(batch["input_ids"], image_tokens), attention_mask=batch["attention_mask"]
    ).last_hidden_state
    targets = batch["labels"][:, 1:]
    counted = targets != IGNORED
    # Logits at the targets only; the others would be discarded.
    return F.cross_entropy(model.llm.lm_head(states[:, :-1][counted]), targets[counted])
