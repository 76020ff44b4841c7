"""The architecture of `toy-vlm`: an Idefics3 model in SmolVLM's shape, which begins with the parts of the toy."""

from __future__ import annotations

import json
import re

import torch
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from captune.data import CLIP_MEAN, CLIP_STD
from captune.hub import locate_model
from captune.model import MiniGPT4
from captune.toy.drawing import IMAGE_SIZE

__all__ = ["IMAGE_TOKENS", "build_processor", "build_vlm"]

SCALE_FACTOR = 2
"""Of the pixel shuffle: 2 x 2 patches become one image token."""
IMAGE_TOKENS = 16
START, END, PAD = "<|im_start|>", "<end_of_utterance>", "<|im_end|>"
SPECIAL_TOKENS = (START, PAD, "<fake_token_around_image>", "<image>", "<global-img>", END)

CHAT_TEMPLATE = (
    "<|im_start|>"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>"
    "{% else %}{% if not (loop.previtem is defined and loop.previtem['type'] == 'image') %} {% endif %}"
    "{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "<end_of_utterance>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def build_processor() -> Idefics3Processor:
    """The processor: 64 x 64 pixels without tiles, and the toy's vocabulary with SmolVLM's special tokens."""
    settings = json.loads(AutoTokenizer.from_pretrained(locate_model("toy")).backend_tokenizer.to_str())
    # The chat template writes the first token.
    settings["post_processor"] = None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=FastTokenizer.from_str(json.dumps(settings)),
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": IMAGE_SIZE},
        max_image_size={"longest_edge": IMAGE_SIZE},
        do_image_splitting=False,
        image_mean=CLIP_MEAN.tolist(),
        image_std=CLIP_STD.tolist(),
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


def build_vlm(processor: Idefics3Processor) -> Idefics3ForConditionalGeneration:
    """The model before its pretraining.

    As SmolVLM begins with SigLIP and SmolLM, it begins with the vision tower and the language model of the toy; the
    connector and the special tokens have random weights from torch's generator.
    """
    toy = MiniGPT4.from_pretrained(locate_model("toy"), dtype=torch.float32)
    tokenizer = processor.tokenizer
    vision = toy.config.vision_config
    text = {
        name: value
        for name, value in toy.config.text_config.to_dict().items()
        if name in LlamaConfig().to_dict() and name not in ("dtype", "transformers_version", "_name_or_path")
    }
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Idefics3Config(
        vision_config={
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": vision.hidden_act,
            "layer_norm_eps": vision.layer_norm_eps,
        },
        text_config={**text, "vocab_size": len(tokenizer), **special},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=SCALE_FACTOR,
        **special,
    )
    model = Idefics3ForConditionalGeneration(config)
    _copy_vision(toy, model.model.vision_model)
    _copy_language(toy, model)
    connector = model.model.connector.modality_projection.proj.weight
    nn.init.normal_(connector, std=0.4 * connector.shape[1] ** -0.5)
    return model


@torch.no_grad()
def _copy_vision(toy: MiniGPT4, tower: nn.Module) -> None:
    """Set a tower to the toy's, without its class token."""
    state: dict[str, Tensor] = {}
    for name, value in toy.vision.state_dict().items():
        if name == "embeddings.position_embedding":
            state["embeddings.position_embedding.weight"] = value[0, 1:]
        elif ".qkv." in name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                state[name.replace(".qkv.", f".{part}_proj.")] = piece
        elif name != "embeddings.class_embedding":
            state[re.sub(r"\.projection\.", ".out_proj.", name)] = value
    tower.load_state_dict(state)


@torch.no_grad()
def _copy_language(toy: MiniGPT4, model: Idefics3ForConditionalGeneration) -> None:
    """Set the decoder and its head to the toy's; special tokens keep random rows."""
    model.model.text_model.load_state_dict(
        {**toy.llm.model.state_dict(), "embed_tokens.weight": model.model.text_model.embed_tokens.weight}
    )
    known = toy.config.text_config.vocab_size
    for new, old in (
        (model.model.text_model.embed_tokens.weight, toy.llm.model.embed_tokens.weight),
        (model.lm_head.weight, toy.llm.lm_head.weight),
    ):
        nn.init.normal_(new, std=float(old.std()))
        new[:known] = old
