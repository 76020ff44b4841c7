"""What a MiniGPT-4 is made of, as a transformers configuration."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, Blip2QFormerConfig, Blip2VisionConfig, PretrainedConfig

__all__ = ["MiniGPT4Config"]


class MiniGPT4Config(PretrainedConfig):  # type: ignore[misc]  # transformers has no types here
    """Configuration of `MiniGPT4`.

    Attributes:
        vision_config: the vision tower, a `Blip2VisionConfig` or its dictionary.
        qformer_config: the Q-Former, or None where patch tokens go to the projection directly.
        text_config: the language model, any causal language model's configuration or its dictionary.
        query_tokens: Q, the number of queries; not used without a Q-Former.
        patches_per_token: how many neighbouring patch tokens are concatenated into one image token; not used with a
            Q-Former.
        conversation: name of the prompt's wrapping (`captune.model.prompt.CONVERSATIONS`), or what it is called here.
        wrapping: the fields of a `Conversation` that stands in no list, such as a chat model's own; None otherwise.
        max_target_tokens: longest caption in tokens, stop symbol included.
        vision_norm_eps: epsilon of the LayerNorm behind the vision tower (`ln_vision`). The original uses torch's
            default there, which is not the tower's own.
    """

    model_type = "captune_minigpt4"
    sub_configs: ClassVar[dict[str, Any]] = {
        "vision_config": Blip2VisionConfig,
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
    max_target_tokens: int = 160
    vision_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        """Turn dictionaries, as they stand in config.json, into configurations."""
        if self.vision_config is None:
            self.vision_config = Blip2VisionConfig()
        elif isinstance(self.vision_config, dict):
            self.vision_config = Blip2VisionConfig(**self.vision_config)
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
        """Q, how many tokens of the language model an image takes."""
        if self.qformer_config is not None:
            return self.query_tokens
        side = self.vision_config.image_size // self.vision_config.patch_size
        return int(side * side // self.patches_per_token)

    @property
    def feature_size(self) -> int:
        """F, width of the frozen features that the projection reads."""
        if self.qformer_config is not None:
            return int(self.qformer_config.hidden_size)
        return int(self.vision_config.hidden_size * self.patches_per_token)
