"""The model and the vocabulary of the toy: the classes of MiniGPT-4, small enough for the package."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from sentencepiece import SentencePieceTrainer
from torch import nn
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig

from captune.model import MiniGPT4, MiniGPT4Config
from captune.toy.drawing import IMAGE_SIZE

__all__ = ["INSTRUCTIONS", "QFORMER", "VOCABULARY_SIZE", "build_model", "write_vocabulary"]

VOCABULARY_SIZE = 768

# Prompts of pretraining, one at random for each row; the first is captune's default.
INSTRUCTIONS = (
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)

# Ordinary English, so that words outside the drawn world are cut into sensible pieces.
_COMMON_ENGLISH = (
    "the quick visitors were walking around the old town while other people waited for them outside",
    "she is looking at something that they have never seen before and wants to know more about it",
    "an older gentleman with glasses reads his newspaper in front of the coffee shop every morning",
    "several workers are building a new bridge over the river using large machines and metal beams",
    "children play in the water, laughing and splashing each other while their parents are watching",
    "someone in uniform speaks to a crowd of students during an outdoor concert at the university",
    "the band performed on stage with guitars, drums, and a microphone before a large audience",
    "what would you like to do with this picture, and which question should be answered first",
    "a group of friends share dinner at the table, talking about music, football, and the weather",
    "young athletes compete for the trophy, throwing, catching, climbing, and swimming very quickly",
    "this is the best example of how things can be described in simple words that everyone understands",
    "construction, information, government, different, important, interesting, between, because, through",
)

VISION = Blip2VisionConfig(
    image_size=IMAGE_SIZE,
    patch_size=8,
    hidden_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=384,
    hidden_act="gelu",
)
QFORMER = Blip2QFormerConfig(
    hidden_size=96,
    encoder_hidden_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=192,
    cross_attention_frequency=1,
    # Word embeddings belong to the text branch, which MiniGPT-4 does not have.
    vocab_size=1,
    max_position_embeddings=16,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
QUERY_TOKENS = 11
LLM_WIDTH = 160


def build_model(vocabulary_size: int) -> MiniGPT4:
    """A tiny MiniGPT-4 with random weights from torch's generator.

    Args:
        vocabulary_size: V of the language model.

    Returns:
        The model; only its projection is trainable.
    """
    llm = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=LLM_WIDTH,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=5,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = MiniGPT4Config(
        vision_config=VISION.to_dict(),
        qformer_config=QFORMER.to_dict(),
        text_config=llm.to_dict(),
        query_tokens=QUERY_TOKENS,
        max_target_tokens=64,
    )
    model = MiniGPT4(config)
    _init_weights_by_fan_in(model)
    return model


@torch.no_grad()
def _init_weights_by_fan_in(model: MiniGPT4) -> None:
    """Initialize the weights of vision tower and Q-Former with a standard deviation of fan-in ** -0.5.

    The usual 0.02 suits widths of 768 and more; with it a width of 96 attends to nothing for thousands of steps.
    """
    assert model.qformer is not None
    for tower in (model.vision, model.qformer):
        for name, module in tower.named_modules():
            if isinstance(module, nn.Linear):
                # Layers that add to the residual stream start at half.
                gain = 0.5 if any(end in name for end in ("projection", "fc2", "output")) else 1.0
                nn.init.normal_(module.weight, std=gain * module.in_features**-0.5)
    patches = model.vision.embeddings.patch_embedding.weight
    nn.init.normal_(patches, std=patches[0].numel() ** -0.5)
    nn.init.normal_(model.vision.embeddings.position_embedding, std=0.3)
    nn.init.normal_(model.query_tokens, std=0.5)


def write_vocabulary(folder: Path, captions: Iterable[str]) -> None:
    """Train the vocabulary and write the files of a LLaMA tokenizer.

    It is a LLaMA-style SentencePiece BPE: frequent words are one piece, others are several, and unseen text (another
    script, an emoji) falls back to bytes.

    Args:
        folder: receives `tokenizer.model` and `tokenizer_config.json`.
        captions: the text that the model mostly reads and writes; equal captions give equal files.
    """
    prompts = [f"###Human: <Img></Img> {instruction} ###Assistant: " for instruction in INSTRUCTIONS]
    # Prompts and stop symbols are frequent enough to become single pieces, general wording to be in the vocabulary.
    lines = [*(f"{caption}###" for caption in captions), *(prompts * 50), *(_COMMON_ENGLISH * 20)]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
