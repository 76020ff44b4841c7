"""Tiny random image-text-to-text models of transformers with their processors, made from configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    Blip2Config,
    Blip2Processor,
    Idefics3Config,
    Idefics3Processor,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLProcessor,
)

from captune.captioner.processor import DisabledVideoProcessor, disable_video_processor

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(*extra: str, **settings: Any) -> PreTrainedTokenizerFast:
    """Bytes, and special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", **settings
    )
    made.add_special_tokens({"additional_special_tokens": list(extra)})
    return made


def build(config: Any, processor: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Far from uniform, so that a wrong mask or position would show.
            if parameter.ndim > 1:
                parameter.copy_(
                    torch.randn_like(parameter) * (0.5 if "embed" in name else 2.0 / parameter.shape[-1] ** 0.5)
                )
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    return model, processor


def blip2() -> tuple[Any, Any]:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = tokenizer()
    processor = Blip2Processor(BlipImageProcessorPil(size={"height": 32, "width": 32}), words, num_query_tokens=4)
    config = Blip2Config(
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        qformer_config={
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "encoder_hidden_size": 16, "vocab_size": 50,
        },
        text_config={
            "model_type": "opt", "vocab_size": len(words), "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 256,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return build(config, processor)


def llava() -> tuple[Any, Any]:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = tokenizer("<image>", "<|im_start|>", "<|im_end|>")
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )  # fmt: skip
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        },
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )  # fmt: skip
    return build(config, processor)


def idefics3() -> tuple[Any, Any]:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    rows = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    words = tokenizer(
        "<fake_token_around_image>",
        "<image>",
        "<global-img>",
        "<end_of_utterance>",
        "<|im_start|>",
        "<|im_end|>",
        *rows,
    )
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(images, words, image_seq_len=4, chat_template=CHAT.replace("IMAGE", "<image>"))
    config = Idefics3Config(
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )  # fmt: skip
    return build(config, processor)


def _qwen(config_class: type, processor_class: type, **vision: Any) -> tuple[Any, Any]:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    names = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    words = tokenizer(*names)
    images = Qwen2VLImageProcessorPil(patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64})
    chat = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = disable_video_processor(processor_class)(images, words, DisabledVideoProcessor(), chat_template=chat)
    ids = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    config = config_class(
        vision_config={"depth": 2, "num_heads": 2, "patch_size": 8, **vision},
        text_config={
            "vocab_size": len(words),
            **TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    return build(config, processor)


def qwen2_vl() -> tuple[Any, Any]:
    return _qwen(Qwen2VLConfig, Qwen2VLProcessor, embed_dim=16, hidden_size=32)


def qwen2_5_vl() -> tuple[Any, Any]:
    return _qwen(
        Qwen2_5_VLConfig, Qwen2_5_VLProcessor, hidden_size=16, out_hidden_size=32, intermediate_size=24,
        fullatt_block_indexes=[1], window_size=32,
    )  # fmt: skip


MODELS = {"blip2": blip2, "llava": llava, "idefics3": idefics3, "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl}


def save(name: str, folder: Path) -> Path:
    """A model and its processor as files."""
    model, processor = MODELS[name]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
