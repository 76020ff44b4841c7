"""Greedy captions of a transformers model from images or stored features, in a static KV cache.

A prompt is prefilled by the model's own forward, one image at a time, so that towers, tiles and positions of any
family are its own. Its keys and values move to a slot, and all captions in progress advance together, one token a step.
A token has the position, and attends to the columns, that it has in the model's plain row (`Decoder`). Rows join and
leave at any step, and a caption does not depend on the others.

Before it is used, the logits of a few steps are compared with those of the model's forward without a cache. Where they
differ, and for beam search and sampling, transformers' `generate` captions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from captune.common import error_text
from captune.decoding import (
    NON_FINITE_SCORES,
    Caption,
    DecodingOptions,
    StaticKVCache,
    halve_on_oom,
    is_out_of_memory,
)
from captune.errors import NonFiniteScoresError, WeightsError
from captune.transformers_compat import CACHE_ARGUMENT
from captune.vlm.conversation import PromptRow
from captune.vlm.decoder import PlainRow
from captune.vlm.image_features import ImageFeatures
from captune.vlm.model import ImageTextModel

__all__ = ["CaptionGenerator"]

logger = logging.getLogger(__name__)

_CHECKED_TOKENS = 6
_PROBE_CAPTION = "A photo of a dog."
_EXACT, _EXACT_IN_HALF = 1e-3, 0.1
"""Largest difference of logits, relative to the largest logit, that is due to rounding."""

ImageItem = Image.Image | ImageFeatures


@dataclass
class _Row:
    """A caption in progress.

    Attributes:
        index: of its image.
        prompt: its prompt.
        plain: positions and masks of the prompt and the longest caption.
        ids: new ids so far; the newest is not in the cache yet.
    """

    index: int
    prompt: PromptRow
    plain: PlainRow
    ids: list[int] = field(default_factory=list)

    @property
    def column(self) -> int:
        """Column of the newest token."""
        return self.prompt.length + len(self.ids) - 1


class CaptionGenerator:
    """Captions images with a model that is tuned.

    Args:
        model: in eval mode while it captions.
    """

    def __init__(self, model: ImageTextModel) -> None:
        self._model = model
        self._checked: str | None = None

    @property
    def instruction(self) -> str | None:
        """The default instruction."""
        return self._model.conversation.instruction

    def unsupported_reason(self, image: ImageItem) -> str:
        """Why `generate` of transformers captions instead; empty if this loop does. Compared once.

        Args:
            image: any image that the model captions.
        """
        if self._checked is None:
            self._checked = self._compare(image)
            if self._checked:
                logger.warning("captioning with transformers' generate: %s", self._checked)
        return self._checked

    def supports(self, options: DecodingOptions, image: ImageItem) -> bool:
        """Whether this loop captions with these options, also from features.

        Args:
            options: decoding options.
            image: any image that the model captions.
        """
        is_greedy = options.beams == 1 and not options.sampled and options.repetition_penalty == 1.0
        return is_greedy and not self.unsupported_reason(image)

    def generate(
        self,
        images: Sequence[ImageItem],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Caption]:
        """Caption images.

        Args:
            images: N images, or their features.
            instruction: for every image; by default the model's.
            options: decoding options; `batch_size` is halved if memory runs out.
            on_progress: called with (done, N) as captions end.

        Raises:
            NonFiniteScoresError: the scores of some images are not finite; it has the captions of the others.
            RefusedImagesError: some images cannot be captioned; it has the captions of the others.
            WeightsError: features were passed, and this loop does not support the options or the model.
        """
        decoding = options or DecodingOptions()
        if images and self.supports(decoding, images[0]):
            return self._greedy(images, instruction, decoding, on_progress)
        if pixels := [image for image in images if isinstance(image, Image.Image)]:
            return self._model.backend.generate(pixels, instruction, decoding, on_progress=on_progress)
        if not images:
            return []
        raise WeightsError(
            f"{self._model.name} cannot caption from stored features with these settings; caption from images."
        )

    @torch.inference_mode()
    def _greedy(
        self,
        images: Sequence[ImageItem],
        instruction: str | None,
        options: DecodingOptions,
        on_progress: Callable[[int, int], None] | None,
    ) -> list[Caption]:
        ids: list[list[int] | None] = [None] * len(images)
        faulty: set[int] = set()
        slots = min(options.batch_size, len(images))
        while any(row is None for row in ids):
            waiting = [index for index, row in enumerate(ids) if row is None]
            try:
                self._run(images, waiting, instruction, options.max_new_tokens, slots, ids, faulty, on_progress)
            except RuntimeError as error:
                if not is_out_of_memory(error) or slots == 1:
                    raise
            else:
                continue
            # Outside the handler, which keeps the failed pass's tensors alive.
            slots = halve_on_oom(slots)
        captions = [self._model.backend.caption_of(row or [], instruction) for row in ids]
        if faulty:
            kept = [None if index in faulty else caption for index, caption in enumerate(captions)]
            raise NonFiniteScoresError(kept, dict.fromkeys(sorted(faulty), NON_FINITE_SCORES))
        return captions

    def _run(
        self,
        images: Sequence[ImageItem],
        waiting: list[int],
        instruction: str | None,
        longest: int,
        slots: int,
        ids: list[list[int] | None],
        faulty: set[int],
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        """Caption the waiting images; writes into `ids` and `faulty`."""
        stop = self._stop_ids()
        steps = _Steps(self._model, slots)
        queue = list(reversed(waiting))
        while queue or steps.rows:
            while queue and len(steps.rows) < slots:
                index = queue.pop()
                steps.admit(index, images[index], instruction, longest)
            ended = []
            for number, (row, scores) in enumerate(zip(steps.rows, steps.logits, strict=True)):
                if not bool(scores.isfinite().any()) or bool(scores.isnan().any()):
                    faulty.add(row.index)
                    ended.append(number)
                    continue
                row.ids.append(int(scores.argmax()))
                if row.ids[-1] in stop or len(row.ids) == longest:
                    ended.append(number)
            for number in ended:
                ids[steps.rows[number].index] = steps.rows[number].ids
            steps.evict(ended)
            if ended and on_progress is not None:
                on_progress(sum(row is not None for row in ids), len(images))
            if steps.rows:
                steps.advance()

    def _stop_ids(self) -> set[int]:
        """Ids at which `generate` stops."""
        stated = getattr(self._model.model.generation_config, "eos_token_id", None)
        return set(stated) if isinstance(stated, list) else set() if stated is None else {int(stated)}

    @torch.inference_mode()
    def _compare(self, image: ImageItem) -> str:
        """Why the logits differ from those of the model's forward without a cache; empty if they do not."""
        model = self._model
        if model.decoder is None:
            return model.undivided
        if isinstance(image, ImageFeatures) and model.losses.feature_call is None:
            return "its image features cannot be stored"
        try:
            steps = _Steps(model, 2)
            compared: list[list[Tensor]] = [[], []]
            # Any text does; a generated one could contain an image token.
            ids = [*model.conversation.target_ids(_PROBE_CAPTION)[:-1]] * _CHECKED_TOKENS
            for step in range(_CHECKED_TOKENS):
                if step < len(compared):
                    # The second row joins while the first is in progress.
                    steps.admit(step, image, None, _CHECKED_TOKENS)
                for row, scores in zip(steps.rows, steps.logits, strict=True):
                    compared[row.index].append(scores.float())
                    row.ids.append(ids[len(row.ids)])
                if step + 1 < _CHECKED_TOKENS:
                    steps.advance()
            worst = 0.0
            for row in steps.rows:
                features = image if isinstance(image, ImageFeatures) else None
                exact = model.losses.logits(row.prompt, row.ids, features).float()
                actual = torch.stack(compared[row.index])
                known = exact.isfinite() & actual.isfinite()
                worst = max(worst, float((actual - exact)[known].abs().max() / exact[known].abs().max()))
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            return f"this model does not support a static cache ({error_text(error)[:120]})"
        allowed = _EXACT if model.model.dtype in (torch.float32, torch.float64) else _EXACT_IN_HALF
        # Written so that a NaN does not pass.
        return "" if worst <= allowed else f"a static cache changes the logits by {worst:.1e}"


class _Steps:
    """Rows in slots, and the logits of their next tokens.

    Args:
        model: in eval mode.
        slots: largest number of rows.
    """

    def __init__(self, model: ImageTextModel, slots: int) -> None:
        assert model.decoder is not None
        self._model, self._decoder, self._slots = model, model.decoder, slots
        self.rows: list[_Row] = []
        self.logits: list[Tensor] = []
        self._cache: StaticKVCache | None = None

    def admit(self, index: int, image: ImageItem, instruction: str | None, longest: int) -> None:
        """Prefill the prompt of an image, and give it a slot."""
        conversation, losses = self._model.conversation, self._model.losses
        if isinstance(image, ImageFeatures):
            prompt, features = conversation.prompt_of_size(image.size, instruction), image
            features = features.to(self._model.model.device)
        else:
            prompt, features = conversation.prompt(image, instruction), None
        plain = losses.plain_row(prompt, features, longest)
        cache, logits = losses.prefill(prompt, features, DynamicCache())
        self._store(cache, plain.length)
        self.rows.append(_Row(index, prompt, plain))
        self.logits.append(logits)

    def _store(self, cache: Any, width: int) -> None:
        """Copy keys and values of a prompt into the next slot, in a larger cache if the slots are too short."""
        layers = cache.layers
        if self._cache is None or self._cache.width < width:
            larger = StaticKVCache(self._slots, width, layers=0)
            for number, layer in enumerate(layers):
                slot = larger.layer_class_to_replicate()
                slot.lazy_initialization(layer.keys, layer.values)
                if self._cache is not None:
                    before = self._cache.layers[number]
                    slot.keys[:, :, : before.keys.shape[2]] = before.keys
                    slot.values[:, :, : before.values.shape[2]] = before.values
                larger.layers.append(slot)
            self._cache = larger
        slot_number = len(self.rows)
        for slot, layer in zip(self._cache.layers, layers, strict=True):
            slot.keys[slot_number], slot.values[slot_number] = 0, 0
            slot.keys[slot_number, :, : layer.keys.shape[2]] = layer.keys[0]
            slot.values[slot_number, :, : layer.values.shape[2]] = layer.values[0]

    def advance(self) -> None:
        """Compute the logits after the newest token of every row."""
        assert self._cache is not None
        device = self._model.model.device
        columns = [row.column for row in self.rows]
        width = max(columns) + 1
        self._cache.set_decode(torch.tensor(columns, device=device), width, width)
        inputs = {
            "input_ids": torch.tensor([[row.ids[-1]] for row in self.rows], device=device),
            "attention_mask": torch.ones(len(self.rows), width, dtype=torch.int64, device=device),
        }
        plains = [row.plain for row in self.rows]
        with self._decoder.stepped(plains, columns, width):
            output = self._model.model(**inputs, **{CACHE_ARGUMENT: self._cache}, use_cache=True)
        self.logits = list(output.logits[:, -1])

    def evict(self, numbers: Sequence[int]) -> None:
        """Remove rows; the last ones move to their slots."""
        assert self._cache is not None or not numbers
        for number in sorted(numbers, reverse=True):
            last = len(self.rows) - 1
            if number != last and self._cache is not None:
                source, target = torch.tensor([last]), torch.tensor([number])
                self._cache.copy(source, target, 0, self._cache.width)
                self.rows[number], self.logits[number] = self.rows[last], self.logits[last]
            self.rows.pop()
            self.logits.pop()
