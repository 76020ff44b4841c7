"""The toy's vocabulary: a LLaMA-style SentencePiece BPE with byte fallback, trained on its captions and common English.

It is a real subword vocabulary: frequent words are one piece, others are several, and what was never seen (another
script, an emoji) falls back to bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

__all__ = ["INSTRUCTIONS", "VOCABULARY_SIZE", "write_vocabulary"]

VOCABULARY_SIZE = 768

# What the model is asked in pretraining, each time one of them; the first is captune's default.
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


def write_vocabulary(folder: Path, captions: Iterable[str]) -> None:
    """Train the vocabulary and write the files of a LLaMA tokenizer.

    Args:
        folder: receives `tokenizer.model` and `tokenizer_config.json`.
        captions: what the model will mostly read and write; equal captions give equal files.
    """
    from sentencepiece import SentencePieceTrainer

    prompts = [f"###Human: <Img></Img> {instruction} ###Assistant: " for instruction in INSTRUCTIONS]
    # Prompts and stop symbols come often enough to be whole pieces, general wording often enough to be known.
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
