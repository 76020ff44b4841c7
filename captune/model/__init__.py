"""The captioner: MiniGPT-4, its prompt layout, and its weights in and out."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from captune.model.configuration import MiniGPT4Config
from captune.model.loading import load_pretrained
from captune.model.minigpt4 import MiniGPT4
from captune.model.processor import MiniGPT4Processor
from captune.model.prompt import CHAT_TEMPLATES, IMAGE_SLOT, ChatTemplate, OriginalFaults, PromptLayout, TokenSequence
from captune.model.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "CHAT_TEMPLATES",
    "IMAGE_SLOT",
    "ChatTemplate",
    "MiniGPT4",
    "MiniGPT4Config",
    "MiniGPT4Processor",
    "OriginalFaults",
    "PromptLayout",
    "TokenSequence",
    "Tokenizer",
    "load_pretrained",
    "load_tokenizer",
]

AutoConfig.register(MiniGPT4Config.model_type, MiniGPT4Config, exist_ok=True)
AutoModel.register(MiniGPT4Config, MiniGPT4, exist_ok=True)
AutoModelForImageTextToText.register(MiniGPT4Config, MiniGPT4, exist_ok=True)
