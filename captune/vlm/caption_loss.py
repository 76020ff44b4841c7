"""The loss of one image's captions under a transformers model, computed in four ways with equal gradients.

    pixels, plain rows     the model's own forward: every caption repeats prompt and image, and the tower runs for each
    features, plain rows   the same from kept image features; the tower does not run
    pixels, packed row     all captions after one copy of prompt and image; the tower runs once
    features, packed row   both: a fifth of the work at five captions an image

`packed` needs a decoder whose tokens interact through attention masks only; models with recurrence or convolution over
tokens, and encoder-decoders, use plain rows. An encoder runs once for all captions of an image.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captune.transformers_compat import CACHE_ARGUMENT, kv_cache_of
from captune.vlm.conversation import PromptRow, concatenated, is_constant
from captune.vlm.decoder import Decoder, PackedRow, PlainRow
from captune.vlm.image_features import FeatureCall, ImageFeatures

__all__ = ["CaptionLoss"]

_COLUMNS_MULTIPLE = 64
"""Plain rows are recorded with this many target columns, or a multiple, so that one record serves many captions."""
_RECORDED_NUMBERS = 1 << 26
"""Most numbers in the masks of recorded rows, 64 MB of booleans."""


class CaptionLoss:
    """Computes losses of one model.

    Args:
        model: an image-text-to-text model.
        decoder: of the model; None if it cannot pack captions.
        feature_call: computes its image features; None if they cannot be kept.
        pad: id of padding.
        is_encoder_decoder: whether an encoder reads image and prompt.
    """

    def __init__(
        self,
        model: Any,
        decoder: Decoder | None,
        feature_call: FeatureCall | None,
        pad: int,
        *,
        is_encoder_decoder: bool = False,
    ) -> None:
        self._model, self.decoder, self.feature_call, self._pad = model, decoder, feature_call, pad
        self.is_encoder_decoder = is_encoder_decoder
        text = model.config.get_text_config(decoder=True)
        self._max_positions: int = getattr(text, "max_position_embeddings", None) or 1 << 62
        self._recorded: OrderedDict[tuple[Any, ...], PlainRow] = OrderedDict()
        accepted = inspect.signature(type(model).forward).parameters
        self._settings = {"use_cache": False} if "use_cache" in accepted or _takes_any(accepted) else {}

    def plain(
        self, prompt: PromptRow, captions: Sequence[Sequence[int]], features: ImageFeatures | None = None
    ) -> Tensor:
        """Summed negative log-likelihood in nats, one row per caption.

        Args:
            prompt: of the image; with its pixels, unless features replace them.
            captions: K rows of target ids.
            features: of the image; without them the tower runs.
        """
        device = self._model.device
        if features is None and len(captions) > 1:
            # One by one: some towers compute an image differently in a batch.
            return torch.stack([self.plain(prompt, [ids]) for ids in captions]).sum()
        if self.is_encoder_decoder:
            return self._encoder_decoder(prompt, captions, features)
        inputs = self._on_device(prompt.rows(captions, self._pad))
        counts = [len(ids) for ids in captions]
        rows = torch.arange(len(captions)).repeat_interleave(torch.tensor(counts)).to(device)
        columns = torch.cat([torch.arange(count) for count in counts]).to(device) + prompt.length - 1
        targets = torch.tensor([token for ids in captions for token in ids], device=device)
        with self._features(features, len(captions)):
            return self._loss(inputs, rows, columns, targets)

    def probe(self, prompt: PromptRow, ids: Sequence[int], copies: int) -> None:
        """Run the model's forward on equal rows with pixels, to observe it."""
        row = prompt.inputs if self.is_encoder_decoder else prompt.rows([ids], self._pad)
        inputs = {name: torch.cat([value] * copies) for name, value in row.items()}
        if self.is_encoder_decoder:
            inputs["labels"] = torch.tensor([list(ids)] * copies)
            inputs.pop("decoder_input_ids", None)
        with torch.no_grad():
            self._model(**self._on_device(inputs), **self._settings)

    def packed(
        self, prompt: PromptRow, captions: Sequence[Sequence[int]], features: ImageFeatures | None = None
    ) -> Tensor:
        """The same, with all captions in one row after one copy of prompt and image."""
        assert self.decoder is not None
        row = PackedRow.of(prompt.length, captions).to(self._model.device)
        plain = self.plain_row(prompt, features, max(map(len, captions)))
        inputs = self._on_device(prompt.rows([row.ids], self._pad))
        with self._features(features, 1), self.decoder.packed([plain], [row]):
            return self._loss(inputs, torch.zeros_like(row.states), row.states, row.targets)

    def packed_batch(
        self,
        prompts: Sequence[PromptRow],
        captions: Sequence[Sequence[Sequence[int]]],
        features: Sequence[ImageFeatures],
    ) -> Tensor:
        """The same for several images in one forward, a packed row of each.

        Args:
            prompts: of B images; see `can_share_batch`.
            captions: of each image.
            features: of each image.
        """
        assert self.decoder is not None
        assert self.feature_call is not None
        device = self._model.device
        rows = [PackedRow.of(prompt.length, ids).to(device) for prompt, ids in zip(prompts, captions, strict=True)]
        plains = [
            self.plain_row(prompt, one, max(map(len, ids)))
            for prompt, ids, one in zip(prompts, captions, features, strict=True)
        ]
        longest = max(len(row.columns) for row in rows)
        batches = [
            # Padding is hidden by the masks of layers.
            prompt.rows([(*row.ids, *[self._pad] * (longest - len(row.columns)))], self._pad)
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        inputs = self._on_device({name: concatenated([batch[name] for batch in batches]) for name in batches[0]})
        indices = torch.arange(len(rows), device=device).repeat_interleave(
            torch.tensor([len(row.states) for row in rows], device=device)
        )
        states, targets = (torch.cat([getattr(row, name) for row in rows]) for name in ("states", "targets"))
        with self.feature_call.replaced_in_batch(features), self.decoder.packed(plains, rows):
            return self._loss(inputs, indices, states, targets)

    @staticmethod
    def can_share_batch(one: PromptRow, other: PromptRow) -> bool:
        """Whether the inputs of two prompts can be concatenated, those per token after padding."""
        return one.inputs.keys() == other.inputs.keys() and all(
            name in one.ends or value.shape[1:] == other.inputs[name].shape[1:] for name, value in one.inputs.items()
        )

    def plain_row(self, prompt: PromptRow, features: ImageFeatures | None, length: int) -> PlainRow:
        """What the decoder gets for the prompt and at least `length` tokens after it.

        It is the same for all images of a size.
        """
        assert self.decoder is not None
        # Learned positions may end before the multiple does.
        room = self._max_positions - prompt.length
        length = max(length, min(-(-length // _COLUMNS_MULTIPLE) * _COLUMNS_MULTIPLE, room))
        key = (tuple(prompt.inputs["input_ids"][0].tolist()), _layout(prompt), length)
        if key not in self._recorded:
            inputs = self._on_device(prompt.rows([[self._pad] * length], self._pad))
            # Filler has the id of padding, but is no padding.
            inputs["attention_mask"].fill_(1)
            head = self._model.get_output_embeddings()
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(self._features(features, 1))
                rows = stack.enter_context(self.decoder.recorded())
                if head is not None:
                    stack.enter_context(_single_state(head))
                self._model(**inputs, **self._settings)
            self._recorded[key] = rows[0]
            while len(self._recorded) > 1 and sum(map(_mask_numbers, self._recorded.values())) > _RECORDED_NUMBERS:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        return self._recorded[key]

    def prefill(self, prompt: PromptRow, features: ImageFeatures | None, cache: Any) -> tuple[Any, Tensor]:
        """The cache after a prompt, and the logits (V,) of the token after it.

        Args:
            prompt: of an image.
            features: of the image; without them the tower runs.
            cache: an empty one, which keeps all tokens in every layer.
        """
        head = self._model.get_output_embeddings()
        with self._features(features, 1), nullcontext() if head is None else _last_state(head):
            output = self._model(**self._on_device(dict(prompt.inputs)), **{CACHE_ARGUMENT: cache}, use_cache=True)
        return kv_cache_of(output), output.logits[0, -1]

    def logits(self, prompt: PromptRow, ids: Sequence[int], features: ImageFeatures | None) -> Tensor:
        """(T, V) logits of each of T ids after a prompt, from one forward without a cache."""
        with self._features(features, 1):
            output = self._model(**self._on_device(prompt.rows([ids], self._pad)), **self._settings)
        logits: Tensor = output.logits[0, -len(ids) - 1 : -1]
        return logits

    def _encoder_decoder(
        self, prompt: PromptRow, captions: Sequence[Sequence[int]], features: ImageFeatures | None
    ) -> Tensor:
        """The loss of an encoder-decoder: the encoder reads image and prompt once, the decoder each caption."""
        labels = torch.full((len(captions), max(map(len, captions))), -100, dtype=torch.int64)
        for row, ids in zip(labels, captions, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        labels = labels.to(self._model.device)
        inputs = {name: torch.cat([value] * len(captions)) for name, value in prompt.inputs.items()}
        inputs = self._on_device(inputs)
        inputs.pop("decoder_input_ids", None)
        with self._features(features, len(captions)), _encoded_once(self._model, features is not None):
            logits = self._model(**inputs, labels=labels, **self._settings).logits
        return _cross_entropy(logits[:, -labels.shape[1] :].flatten(0, 1), labels.flatten())

    def _loss(self, inputs: dict[str, Tensor], rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
        head = self._model.get_output_embeddings()
        if head is None:
            logits = self._model(**inputs, **self._settings).logits
            offset = logits.shape[1] - inputs["input_ids"].shape[1]
            return _cross_entropy(logits[rows, columns + offset], targets)
        length = inputs["input_ids"].shape[1]
        with _states_at(head, rows, columns, length):
            logits = self._model(**inputs, **self._settings).logits
        return _cross_entropy(logits.squeeze(0), targets)

    def _on_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        def moved(value: Tensor) -> Tensor:
            if is_constant(value):
                # Pixels that image features replace: neither memory nor a transfer is spent on them.
                return moved(value[(0,) * value.ndim]).expand(value.shape)
            return value.to(self._model.device, self._model.dtype if value.is_floating_point() else None)

        return {name: moved(value) for name, value in inputs.items() if isinstance(value, Tensor)}

    @contextmanager
    def _features(self, features: ImageFeatures | None, copies: int) -> Iterator[None]:
        if features is None:
            yield
            return
        assert self.feature_call is not None
        with self.feature_call.replaced(features, copies):
            yield


def _mask_numbers(row: PlainRow) -> int:
    return sum({id(mask): mask.numel() for mask in row.masks if mask is not None}.values())


def _takes_any(parameters: Any) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _layout(prompt: PromptRow) -> tuple[Any, ...]:
    """Sizes and positions among a prompt's inputs, on which positions of tokens depend."""
    return tuple(
        (name, tuple(value.shape), tuple(value.flatten().tolist()) if value.numel() <= 64 else None)
        for name, value in prompt.inputs.items()
        if not value.is_floating_point() and name != "input_ids"
    )


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(precise, targets, reduction="sum", ignore_index=-100)


@contextmanager
def _states_at(head: nn.Module, rows: Tensor, columns: Tensor, length: int) -> Iterator[None]:
    """Pass only some states (B, S, D) to the head, as (1, N, D).

    The states may begin with image tokens that are not in the row of ids, which has `length` tokens.
    """

    def pick(module: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        before = states[0].shape[1] - length
        flat = rows * states[0].shape[1] + columns + before
        # An embedding look-up sums its gradient in a fixed order, also where positions repeat.
        return (F.embedding(flat, states[0].flatten(0, 1)).unsqueeze(0), *states[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _single_state(head: nn.Module) -> Iterator[None]:
    """Pass only the first state to the head."""
    handle = head.register_forward_pre_hook(lambda _module, states: (states[0][:1, :1], *states[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _last_state(head: nn.Module) -> Iterator[None]:
    """Pass only the last state of each row to the head."""
    handle = head.register_forward_pre_hook(lambda _module, states: (states[0][:, -1:], *states[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _encoded_once(model: Any, enabled: bool) -> Iterator[None]:
    """Run the encoder of an encoder-decoder on the first of several equal rows within the block."""
    encoder = model.get_encoder() if enabled else None
    if encoder is None:
        yield
        return
    original = encoder.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        count = next((value.shape[0] for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), 1)

        def first(value: Any) -> Any:
            return value[:1] if isinstance(value, Tensor) and value.ndim and value.shape[0] == count else value

        output = original(*map(first, args), **{name: first(value) for name, value in kwargs.items()})
        states = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
        repeated = states.expand(count, *states.shape[1:])
        return type(output)(last_hidden_state=repeated) if hasattr(output, "last_hidden_state") else (repeated,)

    encoder.forward = forward
    try:
        yield
    finally:
        del encoder.forward
