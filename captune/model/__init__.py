"""The captioner: MiniGPT-4, its prompt layout, and its weights in and out."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from captune.model.build import ALIGNMENT_CONFIG, build_model
from captune.model.chat_template import announce_date, bos_count, with_clock
from captune.model.checkpoint import (
    CheckpointRecord,
    frozen_fingerprint,
    is_adapter,
    load_trained,
    read_record,
    save_trained,
    trained_state,
    use_chat_template,
)
from captune.model.configuration import MiniGPT4Config
from captune.model.language_model import batchable, decoder_layers, is_divided
from captune.model.layer_call import (
    CompiledLayers,
    KVAccumulator,
    LayerCall,
    StopAfterKV,
    hidden_states,
    patched_layer,
    replaced_forward,
    with_hidden_states,
)
from captune.model.loading import (
    LANGUAGE,
    TOWERS,
    compute_dtype,
    load_checked,
    load_config_and_processor,
    load_model,
    load_pretrained,
    named_device,
    pick_device,
)
from captune.model.lora import attach_lora
from captune.model.memory import (
    RESERVE,
    GenerationLoad,
    MemoryEstimate,
    ModelSize,
    TrainingLoad,
    cache_size,
    generation_memory,
    measure_model,
    saved_bytes,
    training_memory,
)
from captune.model.minigpt4 import MiniGPT4
from captune.model.official import load_official, official_checkpoint
from captune.model.processor import DEFAULT_INSTRUCTION, MiniGPT4Processor
from captune.model.prompt import (
    CHAT_TEMPLATES,
    IMAGE_PLACEHOLDER,
    IMAGE_SLOT,
    ChatTemplate,
    OriginalFaults,
    PromptLayout,
    TokenSequence,
)
from captune.model.tokenizer import HuggingFaceTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "ALIGNMENT_CONFIG",
    "CHAT_TEMPLATES",
    "DEFAULT_INSTRUCTION",
    "IMAGE_PLACEHOLDER",
    "IMAGE_SLOT",
    "LANGUAGE",
    "RESERVE",
    "TOWERS",
    "ChatTemplate",
    "CheckpointRecord",
    "CompiledLayers",
    "GenerationLoad",
    "HuggingFaceTokenizer",
    "KVAccumulator",
    "LayerCall",
    "MemoryEstimate",
    "MiniGPT4",
    "MiniGPT4Config",
    "MiniGPT4Processor",
    "ModelSize",
    "OriginalFaults",
    "PromptLayout",
    "StopAfterKV",
    "TokenSequence",
    "Tokenizer",
    "TrainingLoad",
    "announce_date",
    "attach_lora",
    "batchable",
    "bos_count",
    "build_model",
    "cache_size",
    "compute_dtype",
    "decoder_layers",
    "frozen_fingerprint",
    "generation_memory",
    "hidden_states",
    "is_adapter",
    "is_divided",
    "load_checked",
    "load_config_and_processor",
    "load_model",
    "load_official",
    "load_pretrained",
    "load_tokenizer",
    "load_trained",
    "measure_model",
    "named_device",
    "official_checkpoint",
    "patched_layer",
    "pick_device",
    "read_record",
    "replaced_forward",
    "save_trained",
    "saved_bytes",
    "trained_state",
    "training_memory",
    "use_chat_template",
    "with_clock",
    "with_hidden_states",
]

AutoConfig.register(MiniGPT4Config.model_type, MiniGPT4Config, exist_ok=True)
AutoModel.register(MiniGPT4Config, MiniGPT4, exist_ok=True)
AutoModelForImageTextToText.register(MiniGPT4Config, MiniGPT4, exist_ok=True)
