"""The memory of a transformers model in training and generation, from its configuration.

The decoder runs with fake tensors, which have shapes and no values, on a row of the length that is planned, with the
mask of a packed row or of plain rows; what autograd saves is counted. So the layers of every family, with their LoRA,
are counted by their own code, and no weights are loaded. Families whose decoder does not run with fake tensors, such as
encoder-decoders, are estimated from their dimensions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils

from captune.config import LoraConfig
from captune.hub import ResolvedModel
from captune.model import QUANTIZED, saved_bytes
from captune.vlm.decoder import PackedRow, PlainRow
from captune.vlm.loading import weightless_model

__all__ = ["ImageTextMemory", "ImageTextSize"]

_WIDTHS, _LINEAR = 12, 6
"""Values that a layer saves for each token, in hidden sizes and in sizes of its feed-forward part: rather too many."""


@dataclass(frozen=True, slots=True)
class ImageTextSize:
    """Bytes and dimensions of a model.

    Attributes:
        language: bytes of decoder, embeddings and head, without LoRA.
        vision: bytes of everything else.
        trained: number of trained values.
        added: those of them that LoRA and copies of the projector add to the model.
        layers: of the decoder.
        width: of the decoder.
        vocabulary: number of logits.
        capped: whether logits are capped by a tanh.
        value_bytes: of a value.
        trained_bytes: of a trained value.
        cache_bytes: keys and values of a token in all layers.
    """

    language: int
    vision: int
    trained: int
    added: int
    layers: int
    width: int
    vocabulary: int
    capped: bool
    value_bytes: int
    trained_bytes: int
    cache_bytes: int


class ImageTextMemory:
    """Counts the memory of a model whose weights are not loaded.

    Args:
        source: the model; its quantization is that of the decoder.
        dtype: number format.
        lora: of the decoder; None if complete parts are trained.
        parts: trained parts, by the names of `train.parts`.
        instruction: of the run; None is the family's.

    Attributes:
        model: the model without its weights.
        size: its dimensions.
        traced: whether the decoder runs with fake tensors; if not, activations are estimated.
    """

    def __init__(
        self,
        source: ResolvedModel,
        dtype: torch.dtype,
        *,
        lora: LoraConfig | None,
        parts: tuple[str, ...] = (),
        instruction: str | None = None,
    ) -> None:
        self.model = weightless_model(source, dtype=dtype, instruction=instruction)
        inner = self.model.model
        before = _values(inner.parameters())
        self._prompts: dict[tuple[int, int], dict[str, Any]] = {}
        self._inputs_are_trained = bool({"projector", "vision_tower"} & set(parts))
        _replace_tensors(inner, "meta")
        if lora is None:
            self.model.train_parts(language_model="language_model" in parts, vision_tower="vision_tower" in parts)
        else:
            with torch.device("meta"):
                self.model.add_lora(lora, projector="projector" in parts)
        trained_bytes = 4 if source.quantization else dtype.itemsize
        self.size = self._measure(before, source.quantization, dtype.itemsize, trained_bytes)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            # peft keeps LoRA of quantized layers in float32.
            _replace_tensors(inner, "cpu", None if source.quantization else dtype)
        self.model.train()
        text = inner.config.get_text_config(decoder=True)
        # Layers that read image features from outside of the row get none here.
        self.traced = self.model.decoder is not None and not getattr(text, "cross_attention_layers", None)
        self._saved: dict[tuple[int, int, bool, bool], int] = {}

    def _measure(self, before: int, quantization: str | None, value_bytes: int, trained_bytes: int) -> ImageTextSize:
        inner = self.model.model
        text = inner.config.get_text_config(decoder=True)
        head = inner.get_output_embeddings()
        added = _values(inner.parameters()) - before
        trained = [p for p in inner.parameters() if p.requires_grad]
        decoder = inner.get_decoder() if self.model.decoder is None else self.model.decoder.module
        parts = [decoder, inner.get_input_embeddings(), *([] if head is None else [head])]
        language = {id(p): p for part in parts for name, p in part.named_parameters() if ".lora_" not in name}
        language_bytes = sum(p.numel() for p in language.values()) * value_bytes
        if quantization is not None:
            linear = [m for name, m in decoder.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in name]
            matrices = {id(m.weight): m.weight.numel() for m in linear if m is not head}
            language_bytes += int(sum(matrices.values()) * (QUANTIZED[quantization] - value_bytes))
        rest = before - sum(p.numel() for p in language.values())
        layers = _number(text, "num_hidden_layers", "decoder_layers")
        width = int(inner.get_input_embeddings().weight.shape[1])
        heads = _number(text, "num_attention_heads", "decoder_attention_heads") or 1
        head_size = _number(text, "head_dim") or width // heads
        kept_heads = _number(text, "num_key_value_heads") or heads
        kinds = getattr(text, "layer_types", None) or []
        attending = sum("linear" not in kind for kind in kinds) or layers
        return ImageTextSize(
            language=language_bytes,
            vision=rest * value_bytes,
            trained=sum({id(p): p.numel() for p in trained}.values()),
            added=added,
            layers=layers,
            width=width,
            vocabulary=int(text.vocab_size if head is None else head.weight.shape[0]),
            capped=bool(getattr(text, "final_logit_softcapping", None)),
            value_bytes=value_bytes,
            trained_bytes=trained_bytes,
            cache_bytes=2 * attending * kept_heads * head_size * value_bytes,
        )

    @property
    def packs(self) -> bool:
        """Whether the captions of an image share one row: layers interact through attention masks only."""
        text = self.model.model.config.get_text_config(decoder=True)
        kinds = [str(kind) for kind in getattr(text, "layer_types", None) or []]
        return self.model.decoder is not None and not any("linear" in kind or "conv" in kind for kind in kinds)

    def saved(self, rows: int, tokens: int, *, packed: bool, padded: bool = False) -> int:
        """Bytes that autograd saves of all layers.

        Args:
            rows: B.
            tokens: of each row.
            packed: whether the row has the mask of a packed row.
            padded: whether plain rows have a mask, as they do if their lengths differ.
        """
        key = (rows, tokens, packed, padded)
        if key not in self._saved:
            try:
                self._saved[key] = self._traced_bytes(*key) if self.traced else self._estimate(*key)
            except Exception:  # decoders of hundreds of families raise anything without values
                self.traced = False
                self._saved[key] = self._estimate(*key)
        return self._saved[key]

    def _traced_bytes(self, rows: int, tokens: int, packed: bool, padded: bool) -> int:
        decoder, inner = self.model.decoder, self.model.model
        assert decoder is not None
        # Before the layers are replaced, which takes their parameters out of the model.
        tensors = [*inner.parameters(), *inner.buffers()]
        with _quiet(), _single_sequences(), self._mode, ExitStack() as stack:
            row = torch.arange(tokens)
            states = torch.empty(
                rows, tokens, self.size.width, dtype=inner.dtype, requires_grad=self._inputs_are_trained
            )
            mask = None if not padded else torch.ones(rows, 1, tokens, tokens, dtype=torch.bool)
            inputs: dict[str, Any] = {"inputs_embeds": states, "use_cache": False, "attention_mask": mask}
            extra = _number(inner.config.get_text_config(decoder=True), "hidden_size_per_layer_input")
            if extra:
                # Gemma reads a second embedding of the ids in every layer.
                inputs["per_layer_inputs"] = torch.empty(rows, tokens, self.size.layers, extra, dtype=inner.dtype)
            if packed:
                plain = PlainRow(None, (None,) * len(decoder.layers), tokens)
                visible = torch.ones(tokens, tokens, dtype=torch.bool)
                packed_row = PackedRow((), row, visible, row, row)
                stack.enter_context(decoder.packed([plain] * rows, [packed_row] * rows))
                inputs["attention_mask"] = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool)
            try:
                return saved_bytes(lambda: decoder.module(**inputs), tensors)[0]
            except Exception:  # some decoders take masks of two dimensions only
                inputs["attention_mask"] = torch.ones(rows, tokens, dtype=torch.int64)
                return saved_bytes(lambda: decoder.module(**inputs), tensors)[0]

    def _estimate(self, rows: int, tokens: int, packed: bool, padded: bool) -> int:
        """About what layers save: hidden states, feed-forward states, and a mask if there is one."""
        text = self.model.model.config.get_text_config(decoder=True)
        inner_width = _number(text, "intermediate_size", "decoder_ffn_dim", "d_ff") or 4 * self.size.width
        experts = max(1, _number(text, "num_experts_per_tok")) * _number(text, "moe_intermediate_size")
        inner_width = max(inner_width, experts + _number(text, "shared_expert_intermediate_size"))
        values = _WIDTHS * self.size.width + _LINEAR * inner_width
        masks = tokens * self.size.value_bytes if packed or padded else 0
        layers = self.size.layers * (2 if self.model.conversation.is_encoder_decoder else 1)
        return rows * tokens * layers * (values * self.size.value_bytes + masks)

    # Images

    def _inputs(self, size: tuple[int, int]) -> dict[str, Any]:
        """Inputs of a grey image of a size (width, height); pixels by their shape only."""
        if size not in self._prompts:
            inputs = self.model.conversation.prompt(Image.new("RGB", size, (127, 127, 127))).inputs
            self._prompts[size] = {
                name: value.new_empty(()).expand(value.shape) if value.is_floating_point() else value
                for name, value in inputs.items()
            }
        return self._prompts[size]

    def prompt_tokens(self, size: tuple[int, int]) -> int:
        """Length of the prompt of an image of a size (width, height), with its image tokens."""
        ids = self._inputs(size).get("input_ids")
        return 0 if ids is None else int(ids.shape[1])

    def has_token_types(self, size: tuple[int, int]) -> bool:
        """Whether the prompt of an image has token types, from which the model makes a mask for every row."""
        return "token_type_ids" in self._inputs(size)

    def feature_bytes(self, size: tuple[int, int]) -> int:
        """Bytes of the stored features of an image of a size (width, height): before the projector if it is trained."""
        config = self.model.model.config
        vision = getattr(config, "vision_config", None)
        inputs = self._inputs(size)
        if self._inputs_are_trained:
            return self._patches(inputs) * _number(vision, "hidden_size", "embed_dim") * self.size.value_bytes
        ids = inputs.get("input_ids")
        names = ("image_token_id", "image_token_index")
        image_ids = {value for name in names if isinstance(value := getattr(config, name, None), int)}
        tokens = 0 if ids is None else sum(token in image_ids for token in ids[0].tolist())
        tokens = tokens or int(getattr(config, "num_query_tokens", 0) or 0) or self._patches(inputs)
        # Qwen3-VL gives features to several layers.
        copies = 1 + len(getattr(vision, "deepstack_visual_indexes", None) or ())
        return tokens * self.size.width * copies * self.size.value_bytes

    def tower_bytes(self, size: tuple[int, int], images: int = 1) -> int:
        """About the bytes of a layer of the vision tower while it computes images of a size (width, height)."""
        return images * self._patches(self._inputs(size)) * self._tower_values()

    def tower_saved(self, size: tuple[int, int]) -> int:
        """About the bytes that autograd saves of a vision tower that is trained."""
        vision = getattr(self.model.model.config, "vision_config", None)
        return self.tower_bytes(size) * (_number(vision, "num_hidden_layers", "depth") or 1)

    def _tower_values(self) -> int:
        vision = getattr(self.model.model.config, "vision_config", None)
        width = _number(vision, "hidden_size", "embed_dim") or self.size.width
        inner = _number(vision, "intermediate_size") or 4 * width
        return (_WIDTHS * width + _LINEAR * inner) * self.size.value_bytes

    def _patches(self, inputs: Any) -> int:
        pixels = inputs.get("pixel_values")
        if not isinstance(pixels, Tensor):
            return 0
        if pixels.ndim == 2:
            return pixels.shape[0]
        vision = getattr(self.model.model.config, "vision_config", None)
        patch = getattr(vision, "patch_size", None) or 14
        patch = patch if isinstance(patch, int) else int(patch[-1])
        return math.prod(pixels.shape[:-3]) * (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)


def _number(config: Any, *names: str) -> int:
    """The first of some settings that is a number; 0 if there is none, or if it differs between layers."""
    for name in names:
        with suppress(Exception):
            if isinstance(value := getattr(config, name, None), int) and value:
                return value
    return 0


def _values(parameters: Any) -> int:
    return sum({id(parameter): parameter.numel() for parameter in parameters}.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's log of operators that fail with fake tensors."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _single_sequences() -> Iterator[None]:
    """Without the library's search for sequences that share a row, which makes masks if tensors have no values."""
    name = "find_packed_sequence_indices"
    original = getattr(masking_utils, name, None)
    if original is None:
        yield
        return
    setattr(masking_utils, name, lambda *_args, **_kwargs: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, original)


def _replace_tensors(model: Any, device: str, adapter_dtype: torch.dtype | None = None) -> None:
    """Replace the parameters and buffers of a model by empty ones; tied weights stay tied.

    Args:
        model: the model.
        device: of the new tensors.
        adapter_dtype: of LoRA; None keeps its number format.
    """
    made: dict[int, nn.Parameter] = {}
    for path, part in model.named_modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            if id(weight) not in made:
                dtype = adapter_dtype if adapter_dtype and ".lora_" in f".{path}" else weight.dtype
                empty = torch.empty(weight.shape, dtype=dtype, device=device)
                made[id(weight)] = nn.Parameter(empty, requires_grad=weight.requires_grad)
            setattr(part, name, made[id(weight)])
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
