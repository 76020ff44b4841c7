"""Folders of tiny random language models with vocabularies of bytes and a few words, for tests of what joins them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

TEXT = ["A red circle on white ground.", "One blue square.", "There is a dog.", "Describe this image.", "User: Hello"]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(
    folder: Path,
    special: list[str] | None = None,
    *,
    bos: str | None = "<s>",
    eos: str = "</s>",
    adds_bos: bool = False,
    template: str | None = None,
    words: list[str] | None = None,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE vocabulary as tokenizer.json.

    Args:
        folder: where it is written.
        special: further special tokens.
        bos: beginning of text.
        eos: end of text.
        adds_bos: whether the tokenizer itself puts its BOS in front of a text.
        template: chat template.
        words: added tokens that are not special.
    """
    base = list(dict.fromkeys(token for token in ("<pad>", bos, eos, "<unk>") if token))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=base, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    loaded = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, unk_token="<unk>", pad_token="<pad>"
    )
    loaded.add_special_tokens({"additional_special_tokens": special or []})
    loaded.add_tokens(words or [])
    loaded.chat_template = template
    loaded.save_pretrained(folder)
    return loaded


def write_model(folder: Path, kind: str, vocabulary: int, *, seed: int = 0, **settings: Any) -> Any:
    """A random model of a family, its weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **SIZES}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **settings})).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5 * 1.5)
        model.get_input_embeddings().weight.normal_(std=0.5)
    model.save_pretrained(folder)
    return model


def write_language_model(folder: Path, kind: str = "llama", *, template: str | None = CHATML, **settings: Any) -> Path:
    """A language model's folder, by default a LLaMA that talks in ChatML."""
    tokenizer = write_tokenizer(folder, ["<|im_start|>", "<|im_end|>"], template=template)
    write_model(folder, kind, len(tokenizer), **settings)
    return folder


def write_tower(folder: Path) -> Path:
    """A SigLIP of 9 patches, which become one image token."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(folder)
    return folder
