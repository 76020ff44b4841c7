"""The MiniGPT-4 network, made of transformers models.

Shape letters: B rows, T tokens of a row, I images, Q tokens of an image, F width of the frozen features, D width of the
language model, V vocabulary, S side of an image in pixels.

    pixels (I, 3, S, S) ─vision encoder─> ─Q-Former─> features (I, Q, F) ─projection─> image tokens (I, Q, D)
                        '---------- frozen, deterministic ---------'      trained      between text embeddings
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from captune.data import CLIP_MEAN, CLIP_STD, temporary_folder
from captune.errors import WeightsError
from captune.model.configuration import MiniGPT4Config
from captune.model.lora import with_lora
from captune.model.model_card import CardDetails, model_card, upload_folder
from captune.model.processor import IGNORE_INDEX, MiniGPT4Processor
from captune.model.prompt import IMAGE_SLOT
from captune.model.quantization import skip_modules
from captune.transformers_compat import model_from_config, set_activation_checkpointing
from captune.weights import (
    TOWER_PREFIXES,
    TensorFingerprint,
    combine_fingerprints,
    load_strictly,
    stored_tensors,
    tensor_fingerprints,
    weight_files,
)

__all__ = ["MiniGPT4"]


class MiniGPT4(PreTrainedModel):  # type: ignore[misc]  # transformers has no types here
    """A frozen vision encoder and language model, joined by a trained linear projection.

    Args:
        config: the configuration.
        parts: the large parts to create; the caller sets the others later or does not need them.

    Attributes:
        processor: the processor; None unless loaded or attached.
        unloaded_fingerprints: fingerprints of the towers' tensors if the towers are not loaded; a checkpoint records
            the fingerprint of all frozen parts.
    """

    config_class = MiniGPT4Config
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["Blip2EncoderLayer", "LlamaDecoderLayer"]

    def __init__(self, config: MiniGPT4Config, parts: Sequence[str] = ("vision", "qformer", "llm")) -> None:
        super().__init__(config)
        self.vision: Any = nn.Identity()
        if "vision" in parts:
            self.vision = _vision_encoder(config)
        self.qformer: nn.Module | None = None
        if config.qformer_config is not None and "qformer" in parts:
            self.qformer = model_from_config(Blip2QFormerModel, config.qformer_config)
            self.query_tokens = nn.Parameter(torch.zeros(1, config.query_tokens, config.feature_size))
        self.projection = nn.Linear(config.feature_size, config.text_width)
        self.llm: Any = nn.Identity()
        if "llm" in parts:
            self.llm = AutoModelForCausalLM.from_config(config.text_config)
            if config.lora is not None:
                self.llm = with_lora(self.llm, config.lora)
        missing = [name for name in ("vision", "qformer", "llm") if name not in parts]
        self._keys_to_ignore_on_load_unexpected = [rf"^{name}\." for name in missing]
        if "qformer" in missing:
            self._keys_to_ignore_on_load_unexpected.append("^query_tokens$")
        self.processor: MiniGPT4Processor | None = None
        self.unloaded_fingerprints: tuple[TensorFingerprint, ...] = ()
        self.post_init()
        self.freeze()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Self:
        """Load a complete model and its processor; `captune.model.load_pretrained` also loads checkpoints of a run.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` wrote, or its hub id.
            args: of transformers' `from_pretrained`.
            kwargs: of transformers' `from_pretrained`: `dtype`, `device_map`, `quantization_config` (of the
                language model only), `revision`, ...; `parts`, which of "vision", "qformer" and "llm" to load, by
                default all.

        Returns:
            The model in eval mode.

        Raises:
            WeightsError: a file is broken, or a tensor is missing, unexpected or has another shape.
        """
        path = pretrained_model_name_or_path
        if (Path(path) / "checkpoint.json").is_file() and not (Path(path) / "config.json").is_file():
            raise WeightsError(
                f"{path} is a checkpoint of a run and not a complete model; load it with "
                "captune.model.load_pretrained, which loads the model it belongs to as well."
            )
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = skip_modules(
                kwargs["quantization_config"], ["vision", "qformer", "projection", "llm.lm_head", "lm_head"]
            )
        model = load_strictly(
            lambda folder, **options: super(MiniGPT4, cls).from_pretrained(folder, *args, **options),
            path,
            f"The model {path}",
            **kwargs,
        )
        if "vision" not in kwargs.get("parts", ("vision",)):
            towers = (item for file in weight_files(path) for item in stored_tensors(file, TOWER_PREFIXES))
            model.unloaded_fingerprints = tensor_fingerprints(t for t in towers if t.tensor.is_floating_point())
        hub_options = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if name in kwargs}
        model.processor = MiniGPT4Processor.from_pretrained(path, model.config, **hub_options)
        loaded: Self = model.freeze().eval()
        return loaded

    def save_pretrained(
        self,
        save_directory: str | Path,
        *args: Any,
        metrics: Mapping[str, float] | None = None,
        signature: str | None = None,
        details: CardDetails | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the configuration, weights (safetensors), the processor's files and a model card to a folder.

        Args:
            save_directory: the folder; created if missing.
            args: of transformers' `save_pretrained`.
            metrics: for the card: name to value.
            signature: of the metrics, which are not shown without it.
            details: for the card, instead of metrics and signature.
            kwargs: of transformers' `save_pretrained`: `max_shard_size`, ...
        """
        super().save_pretrained(str(save_directory), *args, **kwargs)
        if self.processor is not None:
            self.processor.save_pretrained(Path(save_directory))
        details = details or CardDetails(metrics=metrics or {}, signature=signature)
        card = model_card(self.config, self.processor, details=details)
        (Path(save_directory) / "README.md").write_text(card, encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        signature: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload captioner",
        **kwargs: Any,
    ) -> str:
        """Upload the model, its processor and its card to the hub.

        Args:
            repo_id: `user/name`; created if missing.
            metrics: for the card: name to value.
            signature: of the metrics, which are not shown without it.
            private: whether a new repository is private.
            token: of the hub; by default the one that `hf auth login` stored.
            commit_message: of the upload.
            kwargs: of `save_pretrained`.

        Returns:
            Address of the commit.

        Raises:
            ToolError: the hub refused.
        """
        with temporary_folder("upload") as folder:
            self.save_pretrained(folder, metrics=metrics, signature=signature, **kwargs)
            return upload_folder(folder, repo_id, private=private, token=token, message=commit_message)

    def freeze(self) -> Self:
        """Train the projection and LoRA only; the other parts stay in eval mode."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("projection.") or ".lora_" in name)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the trained parts; frozen parts stay in eval mode, without dropout."""
        super().train(mode)
        for part in (self.vision, self.qformer, self.llm):
            if part is not None and not (part is not self.llm and _is_trained(part)):
                part.eval()
        for name, module in self.llm.named_modules():
            # LoRA's dropout and activation checkpointing are active in training mode only.
            if ".lora_dropout" in name or _recomputes(module):
                module.training = mode
        return self

    def checkpoint_activations(self, enabled: bool = True) -> None:
        """Recompute the language model's activations in the backward pass (activation checkpointing).

        Saves most of the memory of training (4 MiB a token at 7B) at the cost of another forward pass.
        """
        for module in self.llm.modules():
            if isinstance(module, GradientCheckpointingLayer):
                set_activation_checkpointing(module, enabled)
                module.training = enabled and self.training

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and tensors of the trained parameters."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def trained_state(self) -> dict[str, Tensor]:
        """Copies of the trained parameters, on the CPU in float32."""
        return {name: p.detach().to("cpu", torch.float32).clone() for name, p in self.trained_parameters()}

    @torch.no_grad()
    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Set the trained parameters; those that are not in `state` (LoRA) become zero, which disables them."""
        for name, parameter in self.trained_parameters():
            parameter.copy_(state[name]) if name in state else parameter.zero_()

    def frozen_fingerprint(self) -> str:
        """Fingerprint of the frozen parameters; LoRA and unloaded towers do not change it."""
        frozen = ((name.replace(".base_layer.", "."), p) for name, p in self.named_parameters() if not p.requires_grad)
        return combine_fingerprints((*tensor_fingerprints(frozen), *self.unloaded_fingerprints))

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embedding."""
        embedding: nn.Module = self.llm.get_input_embeddings()
        return embedding

    def encode_pixels(self, images: Sequence[NDArray[np.float32]]) -> Tensor:
        """`encode_features` of I images' (3, S, S) pixels, in the towers' dtype on their device."""
        weight = next(self.vision.parameters())
        return self.encode_features(torch.from_numpy(np.stack(images)).to(weight.device, weight.dtype))

    def encode_features(self, pixel_values: Tensor) -> Tensor:
        """Run the frozen vision encoder and Q-Former.

        Args:
            pixel_values: (I, 3, S, S) normalized pixels.

        Returns:
            (I, Q, F) features: the Q-Former's output, or neighbouring patch tokens concatenated in raster order.
        """
        if self.config.pixel_mean is not None:
            pixel_values = _renormalize(pixel_values, self.config.pixel_mean, self.config.pixel_std)
        states = self.vision(pixel_values=pixel_values).last_hidden_state
        if self.qformer is None:
            # Without the class token, consecutive patches of a row are concatenated to one token.
            patches = states[:, 1:] if self.config.has_class_token else states
            features: Tensor = patches.reshape(len(states), self.config.image_tokens, self.config.feature_size)
            return features
        queries = self.query_tokens.expand(len(states), -1, -1)
        features = self.qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
        return features

    def project(self, features: Tensor) -> Tensor:
        """Project features (I, Q, F) to image tokens (I, Q, D)."""
        return F.linear(features.to(self.projection.weight.dtype), self.projection.weight, self.projection.bias)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Encode pixels as image tokens.

        Args:
            pixel_values: (I, 3, S, S) normalized pixels.

        Returns:
            (I, Q, D) image tokens in the language model's space.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._towers_are_trained()):
            features = self.encode_features(pixel_values)
        return self.project(features)

    def _image_tokens(self, pixel_values: Tensor | None, features: Tensor | None) -> Tensor | None:
        if features is not None:
            return self.project(features)
        return None if pixel_values is None else self.encode_images(pixel_values)

    def _towers_are_trained(self) -> bool:
        return _is_trained(self.vision) or (self.qformer is not None and _is_trained(self.qformer))

    def embed(self, input_ids: Tensor, image_tokens: Tensor | None = None) -> Tensor:
        """Embeddings of rows of ids, with image tokens in the image slots, in order.

        Args:
            input_ids: (B, T) token ids, `IMAGE_SLOT` for each image token.
            image_tokens: (I, Q, D) image tokens; I * Q must be the number of slots.

        Returns:
            (B, T, D) embeddings in the language model's dtype.

        Raises:
            ValueError: slots and image tokens do not agree in number or width.
        """
        embeddings: Tensor = self.get_input_embeddings()(input_ids.clamp(min=0))
        slots = input_ids == IMAGE_SLOT
        if image_tokens is not None and self.processor is not None and self.processor.layout.legacy_bugs.clip_image:
            # Legacy bug: a truncated prompt has slots for the first tokens of an image only.
            pairs = zip(image_tokens, slots.sum(dim=1).tolist(), strict=True)
            image_tokens = torch.cat([tokens[:count] for tokens, count in pairs]).unsqueeze(0)
        image_count = 0 if image_tokens is None else image_tokens.shape[0] * image_tokens.shape[1]
        if int(slots.sum()) != image_count:
            raise ValueError(
                f"The rows have {int(slots.sum())} image slots, but {image_count} image tokens were given."
            )
        if image_tokens is None:
            return embeddings
        if image_tokens.shape[-1] != embeddings.shape[-1]:
            raise ValueError(
                f"Image tokens are {image_tokens.shape[-1]} wide, but token embeddings {embeddings.shape[-1]}; "
                "expected the same width."
            )
        return embeddings.masked_scatter(slots.unsqueeze(-1), image_tokens.to(embeddings.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the language model, and compute the loss if there are labels.

        Args:
            input_ids: (B, T) token ids, `IMAGE_SLOT` for each image token.
            attention_mask: (B, T), 1 for tokens, 0 for padding.
            labels: (B, T) target ids, -100 at every other position.
            pixel_values: (I, 3, S, S) images in the order of their slots, or
            features: (I, Q, F) their stored features.
            inputs_embeds: (B, T, D) instead of `input_ids`.
            num_items_in_batch: divisor of the loss; by default the number of targets in these rows. Pass the global
                count if several micro-batches or processes contribute to one step.
            kwargs: passed to the language model.

        Returns:
            Output with `loss` (None without labels) and `logits` (B, T, V).
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("Give input_ids or inputs_embeds.")
            inputs_embeds = self.embed(input_ids, self._image_tokens(pixel_values, features))
        output: CausalLMOutputWithPast = self.llm(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        if labels is not None:
            targets = labels[:, 1:].reshape(-1)
            logits = output.logits[:, :-1].reshape(-1, output.logits.shape[-1]).float()
            total = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
            count = (targets != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
            output.loss = total / count
        return output

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Generate with transformers' `generate`, the reference for the decoding engine.

        Args:
            input_ids: (B, T) prompts, `IMAGE_SLOT` for each image token, padded on the left.
            attention_mask: (B, T), 1 for tokens; by default all ones.
            pixel_values: (I, 3, S, S) images in the order of their slots, or
            features: (I, Q, F) their stored features.
            kwargs: passed to `generate` of the language model.

        Returns:
            (B, N) new ids, without the prompt.
        """
        image_tokens = self._image_tokens(pixel_values, features)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if self.processor is not None and "eos_token_id" not in kwargs:
            kwargs["eos_token_id"] = list(self.processor.end_ids) or None
        # The folder's generation_config.json (penalties, suppressed tokens, lengths) is not used, as in the decoding
        # engine: the settings are those of this call.
        self.llm.generation_config = GenerationConfig()
        kwargs.setdefault("pad_token_id", _first(kwargs.get("eos_token_id")) or 0)
        with warnings.catch_warnings():
            # As in the original, the repetition penalty applies to generated tokens, not to the prompt.
            warnings.filterwarnings("ignore", "Passing `repetition_penalty` with `inputs_embeds`", UserWarning)
            new_ids: Tensor = self.llm.generate(
                inputs_embeds=self.embed(input_ids, image_tokens), attention_mask=attention_mask, **kwargs
            )
        return new_ids


def _vision_encoder(config: MiniGPT4Config) -> nn.Module:
    """The vision encoder of a configuration, with random weights."""
    if not isinstance(config.vision_config, Blip2VisionConfig):
        encoder: nn.Module = AutoModel.from_config(config.vision_config)
        return encoder
    blip2: Any = model_from_config(Blip2VisionModel, config.vision_config)
    blip2.post_layernorm.eps = config.vision_norm_eps
    encoder = blip2
    return encoder


def _renormalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert pixels (I, 3, S, S) from CLIP's normalization to another one."""

    def column(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=pixels.device).view(3, 1, 1)

    return ((pixels * column(CLIP_STD) + column(CLIP_MEAN) - column(mean)) / column(std)).to(pixels.dtype)


def _recomputes(module: nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer) and bool(module.gradient_checkpointing)


def _is_trained(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _first(ids: int | Sequence[int] | None) -> int | None:
    """One of several end tokens, for padding."""
    return ids[0] if isinstance(ids, Sequence) and ids else ids if isinstance(ids, int) else None
