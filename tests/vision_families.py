"""Folders of tiny random models of many image-text-to-text families, as the hub holds them.

A recipe names what a folder is made of; `save_family` writes it. Nothing is downloaded, and no processor is built, so
that a family can be written where its processor cannot be loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from captioner_models import TEXT, tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForImageTextToText

__all__ = ["FAMILIES", "Recipe", "save_family", "save_processor"]

SIDE, PATCH = 32, 8
SQUARE = {"height": SIDE, "width": SIDE}
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE}, "crop_size": SQUARE}
TURNS = ("<|im_start|>", "<|im_end|>")


@dataclass
class Recipe:
    """What the folder of a family is made of.

    Attributes:
        config: of the model, its `model_type` among the settings.
        words: the tokenizer.
        images: settings of the image processor.
        processor: the processor's class; None where the family has none.
        settings: of the processor.
        template: the chat template.
        folders: further tokenizers, by the name of their folder.
        spread: of the embeddings; those of Gemma are multiplied in the model.
        gain: of the matrices.
    """

    config: dict[str, Any]
    words: Any
    images: dict[str, Any]
    processor: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    template: str | None = None
    folders: dict[str, Any] = field(default_factory=dict)
    spread: float = 0.5
    gain: float = 2.0


def chat(image: str, *, begin: str = "") -> str:
    """A template in the manner of ChatML, with what it writes for an image."""
    return (
        begin + "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def words_of(*special: str, begins: bool = False, ends: bool = False, **named: str) -> Any:
    """A tokenizer that may put `<s>` before a text and `</s>` after it; named tokens become attributes of it."""
    made = tokenizer(*special, *TURNS, *named.values(), extra_special_tokens=named)
    parts = [*(["<s>"] if begins else []), "$A", *(["</s>"] if ends else [])]
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join(parts), special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return made


def text(kind: str, words: Any, **more: Any) -> dict[str, Any]:
    sizes = {**TEXT, "num_hidden_layers": 3, "head_dim": 8, "vocab_size": len(words), **more}
    return {**sizes, "model_type": kind} if kind else sizes


def llava_kind(
    kind: str,
    processor: str,
    images: dict[str, Any],
    *,
    language: str = "llama",
    tower: str = "clip_vision_model",
    **config: Any,
) -> Recipe:
    words = words_of("<image>", "<video>", begins=True)
    ids = words.convert_tokens_to_ids(["<image>", "<video>"])
    extra = 1 if tower == "clip_vision_model" else 0
    strategy = config.pop("strategy", "default" if extra else "full")
    return Recipe(
        {
            "model_type": kind,
            "vision_config": {**TOWER, "model_type": tower},
            "text_config": text(language, words),
            "image_token_index": ids[0],
            "vision_feature_select_strategy": strategy,
            **config,
        },
        words,
        images,
        processor,
        {"patch_size": PATCH, "vision_feature_select_strategy": strategy, "num_additional_image_tokens": extra},
        chat("<image>\n"),
    )


GRID = [[32, 64], [64, 32], [64, 64]]


def llava() -> Recipe:
    return llava_kind("llava", "LlavaProcessor", CLIP, image_seq_length=16)


def vipllava() -> Recipe:
    made = llava_kind("vipllava", "LlavaProcessor", CLIP, vision_feature_layers=[-2, -1])
    made.config.pop("vision_feature_select_strategy")
    return made


def llava_next() -> Recipe:
    images = {**CLIP, "image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": GRID}
    return llava_kind("llava_next", "LlavaNextProcessor", images, language="mistral", image_grid_pinpoints=GRID)


def llava_onevision() -> Recipe:
    images = {"image_processor_type": "LlavaOnevisionImageProcessor", "size": SQUARE, "image_grid_pinpoints": GRID}
    made = llava_kind(
        "llava_onevision",
        "LlavaOnevisionProcessor",
        images,
        language="qwen2",
        tower="siglip_vision_model",
        image_grid_pinpoints=GRID,
        video_token_index=5,
    )
    made.config["vision_config"]["vision_use_head"] = False
    made.config["vision_feature_layer"] = -1
    made.settings = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    return made


def qwen_kind(kind: str, processor: str, tower: dict[str, Any], **language: Any) -> Recipe:
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    words = words_of(*(f"<|{name}|>" for name in names))
    ids = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in names}
    return Recipe(
        {
            "model_type": kind,
            "vision_config": {"depth": 2, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, **tower},
            "text_config": text("", words, rope_parameters=ROTARY, **language),
            "image_token_id": ids["image_pad"],
            "video_token_id": ids["video_pad"],
            "vision_start_token_id": ids["vision_start"],
            "vision_end_token_id": ids["vision_end"],
        },
        words,
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": 8,
            "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        },
        processor,
        template=chat("<|vision_start|><|image_pad|><|vision_end|>"),
    )


def qwen2_vl() -> Recipe:
    return qwen_kind("qwen2_vl", "Qwen2VLProcessor", {"embed_dim": 16, "hidden_size": 32})


def qwen2_5_vl() -> Recipe:
    tower = {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "window_size": 32}
    return qwen_kind("qwen2_5_vl", "Qwen2_5_VLProcessor", {**tower, "fullatt_block_indexes": [1]})


def qwen3_vl() -> Recipe:
    tower = {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "num_position_embeddings": 16}
    return qwen_kind("qwen3_vl", "Qwen3VLProcessor", {**tower, "deepstack_visual_indexes": [0]})


def glm4v() -> Recipe:
    words = words_of("<|begin|>", "<|end|>", image_token="<|image|>", video_token="<|video|>")
    ids = words.convert_tokens_to_ids(["<|image|>", "<|video|>", "<|begin|>", "<|end|>"])
    names = ("image_token_id", "video_token_id", "image_start_token_id", "image_end_token_id")
    return Recipe(
        {
            "model_type": "glm4v",
            "vision_config": {
                "depth": 2, "num_heads": 2, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24,
                "patch_size": 8, "image_size": 32,
            },
            "text_config": text("glm4v_text", words, rope_parameters={**ROTARY, "partial_rotary_factor": 1.0}),
            **dict(zip(names, ids, strict=True)),
        },
        words,
        {
            "image_processor_type": "Glm4vImageProcessor",
            "patch_size": 8,
            "size": {"shortest_edge": 16 * 16 * 2, "longest_edge": 64 * 64 * 2},
        },
        "Glm4vProcessor",
        template=chat("<|begin|><|image|><|end|>"),
    )  # fmt: skip


def gemma3() -> Recipe:
    words = words_of(begins=True, boi_token="<start>", eoi_token="<end>", image_token="<soft>")
    ids = words.convert_tokens_to_ids(["<soft>", "<start>", "<end>"])
    return Recipe(
        {
            "model_type": "gemma3",
            "vision_config": {**TOWER, "model_type": "siglip_vision_model", "vision_use_head": False},
            "text_config": text("gemma3_text", words, query_pre_attn_scalar=8, sliding_window=256),
            "image_token_index": ids[0],
            "boi_token_index": ids[1],
            "eoi_token_index": ids[2],
            "mm_tokens_per_image": 4,
        },
        words,
        {"image_processor_type": "Gemma3ImageProcessor", "size": SQUARE},
        "Gemma3Processor",
        {"image_seq_length": 4},
        chat("<start>", begin="{{ bos_token }}"),
        spread=0.02,
        gain=4.0,
    )


def paligemma() -> Recipe:
    words = words_of("<image>", begins=True)
    return Recipe(
        {
            "model_type": "paligemma",
            "vision_config": {
                **TOWER, "model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 32
            },
            "text_config": text("gemma", words),
            "image_token_index": words.convert_tokens_to_ids("<image>"),
            "projection_dim": 32,
            "hidden_size": 32,
        },
        words,
        {"image_processor_type": "SiglipImageProcessor", "size": SQUARE, "image_seq_length": 16},
        "PaliGemmaProcessor",
        spread=0.05,
    )  # fmt: skip


def tiled(kind: str, name: str) -> Recipe:
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    words = words_of("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *rows, begins=True)
    return Recipe(
        {
            "model_type": kind,
            "vision_config": {**TOWER, "model_type": f"{kind}_vision"},
            "text_config": text("llama", words),
            "image_token_id": words.convert_tokens_to_ids("<image>"),
            "scale_factor": 2,
        },
        words,
        {
            "image_processor_type": f"{name}ImageProcessor",
            "size": {"longest_edge": 64},
            "max_image_size": {"longest_edge": 32},
        },
        f"{name}Processor",
        {"image_seq_len": 4},
        chat("<image>", begin="{{ bos_token }}"),
    )


def idefics3() -> Recipe:
    return tiled("idefics3", "Idefics3")


def smolvlm() -> Recipe:
    return tiled("smolvlm", "SmolVLM")


def idefics2() -> Recipe:
    words = words_of("<image>", "<fake_token_around_image>", "<end_of_utterance>", begins=True)
    return Recipe(
        {
            "model_type": "idefics2",
            "vision_config": {**TOWER, "model_type": "idefics2_vision", "image_size": 64},
            "perceiver_config": {
                "hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
                "resampler_head_dim": 16, "num_key_value_heads": 2,
            },
            "text_config": text("mistral", words),
            "image_token_id": words.convert_tokens_to_ids("<image>"),
        },
        words,
        {
            "image_processor_type": "Idefics2ImageProcessor",
            "size": {"shortest_edge": 24, "longest_edge": 64},
            "do_image_splitting": False,
        },
        "Idefics2Processor",
        {"image_seq_len": 4},
        chat("<image>"),
    )  # fmt: skip


def internvl() -> Recipe:
    words = words_of(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<context>", video_token="<video>"
    )
    return Recipe(
        {
            "model_type": "internvl",
            "vision_config": {
                **TOWER, "model_type": "internvl_vision", "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]
            },
            "text_config": text("qwen2", words),
            "image_token_id": words.convert_tokens_to_ids("<context>"),
            "image_seq_length": 4,
            "downsample_ratio": 0.5,
        },
        words,
        {"image_processor_type": "GotOcr2ImageProcessor", "size": SQUARE, "crop_to_patches": False},
        "InternVLProcessor",
        {"image_seq_length": 4},
        chat("<context>\n"),
    )  # fmt: skip


def mllama() -> Recipe:
    words = words_of("<|image|>", begins=True)
    image = words.convert_tokens_to_ids("<|image|>")
    # Ids after the image token have no output; those of the turns are before it here.
    words_size = len(words)
    return Recipe(
        {
            "model_type": "mllama",
            "vision_config": {
                "model_type": "mllama_vision_model", "hidden_size": 16, "attention_heads": 2, "intermediate_size": 24,
                "num_hidden_layers": 2, "num_global_layers": 1, "image_size": SIDE, "patch_size": PATCH,
                "intermediate_layers_indices": [0], "vision_output_dim": 32, "max_num_tiles": 4,
                "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
            },
            "text_config": {
                **text("mllama_text_model", words, cross_attention_layers=[1]), "vocab_size": words_size,
            },
            "image_token_index": image,
        },
        words,
        {"image_processor_type": "MllamaImageProcessor", "size": SQUARE, "max_image_tiles": 4},
        "MllamaProcessor",
        template=chat("<|image|>", begin="{{ bos_token }}"),
    )  # fmt: skip


def deepseek_vl() -> Recipe:
    words = words_of(image_token="<holder>")
    return Recipe(
        {
            "model_type": "deepseek_vl",
            "vision_config": {**TOWER, "model_type": "siglip_vision_model", "vision_use_head": False},
            "text_config": text("llama", words),
            "num_image_tokens": 16,
            "image_token_id": words.convert_tokens_to_ids("<holder>"),
        },
        words,
        {"image_processor_type": "DeepseekVLImageProcessor", "size": SQUARE, "min_size": 4},
        "DeepseekVLProcessor",
        {"num_image_tokens": 16},
        chat("<holder>"),
    )


BLIP_IMAGES = {"image_processor_type": "BlipImageProcessor", "size": SQUARE}
QFORMER = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "encoder_hidden_size": 16, "vocab_size": 50,
}  # fmt: skip


def bert_words() -> Any:
    words = words_of("[DEC]", begins=True, ends=True)
    words.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>"})
    return words


def blip() -> Recipe:
    words = bert_words()
    return Recipe(
        {
            "model_type": "blip",
            "projection_dim": 16,
            "image_text_hidden_size": 16,
            "vision_config": TOWER,
            "text_config": {
                "vocab_size": len(words), "hidden_size": 32, "encoder_hidden_size": 16, "intermediate_size": 48,
                "projection_dim": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "pad_token_id": 0,
                "bos_token_id": words.convert_tokens_to_ids("[DEC]"), "eos_token_id": 2, "sep_token_id": 2,
                "max_position_embeddings": 128, "hidden_dropout_prob": 0.0, "is_decoder": True,
            },
        },
        words,
        BLIP_IMAGES,
        "BlipProcessor",
    )  # fmt: skip


def blip_2_kind(words: Any, language: dict[str, Any]) -> Recipe:
    return Recipe(
        {
            "model_type": "blip-2",
            "vision_config": TOWER,
            "qformer_config": QFORMER,
            "text_config": language,
            "num_query_tokens": 4,
            "image_token_index": words.convert_tokens_to_ids("<image>"),
        },
        words,
        BLIP_IMAGES,
        "Blip2Processor",
        {"num_query_tokens": 4},
    )


def blip_2() -> Recipe:
    """OPT, whose texts begin with the token that also ends them."""
    words = words_of("<image>")
    return blip_2_kind(
        words,
        {
            "model_type": "opt", "vocab_size": len(words), "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 256,
            "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0,
        },
    )  # fmt: skip


def t5(words: Any) -> dict[str, Any]:
    return {
        "model_type": "t5", "vocab_size": len(words), "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2,
        "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2,
        "tie_word_embeddings": False,
    }  # fmt: skip


def blip_2_t5() -> Recipe:
    words = words_of("<image>", ends=True)
    return blip_2_kind(words, t5(words))


def instructblip() -> Recipe:
    words, question_words = words_of("<image>", begins=True), bert_words()
    made = blip_2_kind(words, text("llama", words))
    made.config.update(model_type="instructblip", qformer_config={**QFORMER, "vocab_size": len(question_words)})
    made.processor = "InstructBlipProcessor"
    made.folders = {"qformer_tokenizer": question_words}
    return made


def git() -> Recipe:
    words = bert_words()
    return Recipe(
        {
            "model_type": "git", "vision_config": TOWER, "vocab_size": len(words), "hidden_size": 32,
            "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 128,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
        },
        words,
        CLIP,
        "GitProcessor",
    )  # fmt: skip


def kosmos_2() -> Recipe:
    words = words_of("<image>", "</image>", "<grounding>", "<phrase>", "</phrase>", "<object>", "</object>")
    return Recipe(
        {
            "model_type": "kosmos-2",
            "latent_query_num": 64,
            "vision_config": TOWER,
            "text_config": {
                "vocab_size": len(words), "embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 4,
                "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            },
        },
        words,
        CLIP,
        "Kosmos2Processor",
        {"num_patch_index_tokens": 8},
        spread=0.05,
    )  # fmt: skip


def florence2() -> Recipe:
    """A decoder that starts with the token that also ends a text."""
    words = words_of(begins=True, ends=True, image_token="<image>")
    return Recipe(
        {
            "model_type": "florence2",
            "vision_config": {
                "embed_dim": [8, 16], "depths": [1, 1], "num_heads": [2, 2], "num_groups": [2, 2],
                "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True],
                "window_size": 4, "projection_dim": 32, "max_position_embeddings": 20,
            },
            "text_config": {
                "model_type": "bart", "vocab_size": len(words), "d_model": 32, "encoder_layers": 2,
                "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 256, "pad_token_id": 0,
                "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
            },
            "image_token_id": words.convert_tokens_to_ids("<image>"),
        },
        words,
        {**CLIP, "size": SQUARE, "do_center_crop": False, "image_seq_length": 17},
        "Florence2Processor",
        {"num_additional_image_tokens": 1},
    )  # fmt: skip


def pix2struct() -> Recipe:
    words = words_of(ends=True)
    sizes = {"hidden_size": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
    return Recipe(
        {
            "model_type": "pix2struct",
            "vision_config": {
                **sizes, "patch_embed_hidden_size": 3 * 64, "num_hidden_layers": 2, "seq_len": 4096
            },
            "text_config": {
                **sizes, "vocab_size": len(words), "num_layers": 2, "decoder_start_token_id": 0, "pad_token_id": 0,
                "eos_token_id": 2,
            },
            "is_encoder_decoder": True,
            "tie_word_embeddings": False,
        },
        words,
        {
            "image_processor_type": "Pix2StructImageProcessor",
            "patch_size": {"height": 8, "width": 8},
            "max_patches": 16,
            "is_vqa": False,
        },
        "Pix2StructProcessor",
    )  # fmt: skip


def vision_encoder_decoder() -> Recipe:
    words = words_of()
    return Recipe(
        {
            "model_type": "vision-encoder-decoder",
            "encoder": {**TOWER, "model_type": "vit"},
            "decoder": {
                "model_type": "gpt2", "vocab_size": len(words), "n_positions": 128, "n_embd": 32, "n_layer": 2,
                "n_head": 4, "bos_token_id": 2, "eos_token_id": 2, "is_decoder": True, "add_cross_attention": True,
            },
            "decoder_start_token_id": 2,
            "pad_token_id": 2,
            "eos_token_id": 2,
        },
        words,
        {"image_processor_type": "ViTImageProcessor", "size": SQUARE},
        None,
    )  # fmt: skip


FAMILIES: dict[str, Callable[[], Recipe]] = {
    "blip": blip,
    "blip-2 (OPT)": blip_2,
    "blip-2 (T5)": blip_2_t5,
    "deepseek_vl": deepseek_vl,
    "florence2": florence2,
    "gemma3": gemma3,
    "git": git,
    "glm4v": glm4v,
    "idefics2": idefics2,
    "idefics3": idefics3,
    "instructblip": instructblip,
    "internvl": internvl,
    "kosmos-2": kosmos_2,
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "mllama": mllama,
    "paligemma": paligemma,
    "pix2struct": pix2struct,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
    "vipllava": vipllava,
    "vision-encoder-decoder": vision_encoder_decoder,
}


def save_family(name: str, folder: Path) -> Path:
    """Write the folder of a family.

    Args:
        name: a key of `FAMILIES`.
        folder: where to; made.
    """
    recipe = FAMILIES[name]()
    settings = dict(recipe.config)
    torch.manual_seed(3)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            # Far from uniform, so that a wrong mask, prompt or picture shows in the words.
            if weight.ndim > 1:
                scale = recipe.spread if "embed" in key else recipe.gain / weight[0].numel() ** 0.5
                weight.copy_(torch.randn_like(weight) * scale)
            elif "gate" in key:
                weight.fill_(1.0)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = model.generation_config.pad_token_id or 0
    model.save_pretrained(folder)
    save_processor(recipe, folder)
    return folder


def save_processor(recipe: Recipe, folder: Path) -> None:
    """Write the processor of a recipe, with its tokenizers and chat template."""
    recipe.words.save_pretrained(folder)
    for part, words in recipe.folders.items():
        words.save_pretrained(folder / part)
    kind = {} if recipe.processor is None else {"processor_class": recipe.processor}
    (folder / "preprocessor_config.json").write_text(json.dumps({**recipe.images, **kind}))
    if recipe.processor is not None:
        (folder / "processor_config.json").write_text(json.dumps({**recipe.settings, **kind}))
    if recipe.template is not None:
        (folder / "chat_template.jinja").write_text(recipe.template)
