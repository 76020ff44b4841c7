"""Exported prompts lead the bare language model to the same captions."""

from __future__ import annotations

import torch
from torch import Tensor

from captune.decoding import DecodingOptions, generate_captions
from captune.decoding.generate import prompt_embeddings
from captune.model import MiniGPT4


def test_the_bare_language_model_says_the_same(model: MiniGPT4, features: Tensor) -> None:
    embeddings = prompt_embeddings(model, features, "Describe it.")
    prompt = model.processor.layout.prompt("Describe it.").ids
    assert embeddings.shape == (len(features), len(prompt), 32)
    new = model.llm.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.int64),
        max_new_tokens=9,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=2,
    )
    # An engine that knows no stop symbol continues after it; the rest is cut off.
    captions = generate_captions(model, features, "Describe it.", DecodingOptions(max_new_tokens=9))
    assert model.processor.batch_decode(new) == [caption.text for caption in captions]
