"""The configuration of a MiniGPT-4."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, Blip2QFormerConfig, Blip2VisionConfig, PretrainedConfig

from captune.hub import MINIGPT4

__all__ = ["MiniGPT4Config"]


class MiniGPT4Config(PretrainedConfig):  # type: ignore[misc]  # transformers has no types here
    """Configuration of `MiniGPT4`.

    Attributes:
        vision_config: of the vision encoder: a `Blip2VisionConfig`, a SigLIP or CLIP vision configuration, or the
            dictionary of one.
        qformer_config: of the Q-Former; None if patch tokens are projected directly.
        text_config: of any causal language model, or its dictionary.
        query_tokens: Q, the number of queries; ignored without a Q-Former.
        patches_per_token: number of neighbouring patch tokens that are concatenated to one image token; ignored with
            a Q-Former.
        conversation: name of the chat template: a key of `captune.model.prompt.CHAT_TEMPLATES`, or "chat".
        wrapping: the fields of a `ChatTemplate` that is not in `CHAT_TEMPLATES`; None otherwise.
        library_tokens: use the tokenizer of transformers for a LLaMA vocabulary, not that of the original code.
        end_ids: ids that end an answer, if the language model has more of them than its tokenizer's EOS.
        max_target_tokens: longest caption in tokens, stop symbol included.
        vision_norm_eps: epsilon of the LayerNorm after a BLIP-2 vision encoder (`ln_vision`). The original uses
            torch's default there, not the encoder's value.
        pixel_mean, pixel_std: normalization of the vision encoder; None is CLIP's. Pixels are normalized with CLIP's
            values, and the model converts them.
        lora: rank `r`, `alpha`, `targets` and `dropout` of LoRA on the language model; None is no LoRA.
    """

    model_type = MINIGPT4
    sub_configs: ClassVar[dict[str, Any]] = {
        "vision_config": AutoConfig,
        "qformer_config": Blip2QFormerConfig,
        "text_config": AutoConfig,
    }

    vision_config: Any = None
    qformer_config: Any = None
    text_config: Any = None
    query_tokens: int = 32
    patches_per_token: int = 4
    conversation: str = "vicuna-v0"
    wrapping: dict[str, Any] | None = None
    library_tokens: bool = False
    end_ids: list[int] | None = None
    max_target_tokens: int = 160
    vision_norm_eps: float = 1e-5
    pixel_mean: list[float] | None = None
    pixel_std: list[float] | None = None
    lora: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Convert dictionaries, as in config.json, to configurations."""
        if self.vision_config is None:
            self.vision_config = Blip2VisionConfig()
        elif isinstance(self.vision_config, dict):
            self.vision_config = _vision_config(self.vision_config)
        if isinstance(self.qformer_config, dict):
            self.qformer_config = Blip2QFormerConfig(**self.qformer_config)
        if self.text_config is None:
            self.text_config = AutoConfig.for_model("llama")
        elif isinstance(self.text_config, dict):
            settings = dict(self.text_config)
            self.text_config = AutoConfig.for_model(settings.pop("model_type", "llama"), **settings)
        super().__post_init__(**kwargs)

    @property
    def image_tokens(self) -> int:
        """Q, the number of tokens of an image."""
        if self.qformer_config is not None:
            return self.query_tokens
        side = self.vision_config.image_size // self.vision_config.patch_size
        return int(side * side // self.patches_per_token)

    @property
    def feature_size(self) -> int:
        """F, width of the features before the projection."""
        if self.qformer_config is not None:
            return int(self.qformer_config.hidden_size)
        return int(self.vision_config.hidden_size * self.patches_per_token)

    @property
    def text_width(self) -> int:
        """D, width of the language model's token embeddings."""
        from captune.model.language_model import embedding_width

        return embedding_width(self.text_config)

    @property
    def has_class_token(self) -> bool:
        """Whether the vision encoder has a class token before the patches; SigLIP has none."""
        return "siglip" not in self.vision_config.model_type


def _vision_config(settings: dict[str, Any]) -> Any:
    kind = settings.get("model_type", Blip2VisionConfig.model_type)
    if kind == Blip2VisionConfig.model_type:
        return Blip2VisionConfig(**settings)
    return AutoConfig.for_model(kind, **{key: value for key, value in settings.items() if key != "model_type"})
