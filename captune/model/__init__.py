"""MiniGPT-4: the model, its processor and prompt layout, checkpoints, loading and memory estimates."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from captune.model.build import ALIGNMENT_CONFIG, build_model
from captune.model.chat_template import count_bos, warn_date_is_fixed, with_fixed_clock
from captune.model.checkpoint import (
    copy_checkpoint,
    fetch_checkpoint,
    is_checkpoint,
    load_start,
    load_trained,
    load_tuned,
    mark_tuned,
    read_trained,
    recorded_base,
    restore_chat_template,
    save_trained,
    tuned_instruction,
)
from captune.model.configuration import MiniGPT4Config
from captune.model.language_model import copy_first_layers, decoder_layers, is_batch_invariant, is_sharded
from captune.model.layer_call import (
    CompiledLayers,
    KVAccumulator,
    LayerCall,
    StopAfterKV,
    hidden_states,
    patched_layer,
    with_hidden_states,
)
from captune.model.loading import (
    LANGUAGE,
    TOWERS,
    compute_dtype,
    default_device,
    load_config_and_processor,
    load_model,
    load_pretrained,
    load_quantized,
    parse_device,
)
from captune.model.lora import attach_lora
from captune.model.memory import (
    FLOAT32,
    QUANTIZED,
    RESERVE,
    GenerationLoad,
    MemoryEstimate,
    ModelSize,
    Part,
    TrainingLoad,
    cache_size,
    generation_memory,
    measure_model,
    saved_bytes,
    training_memory,
)
from captune.model.minigpt4 import MiniGPT4
from captune.model.model_card import CardDetails, card_header, metrics_table, upload_folder
from captune.model.official import load_official, official_checkpoint
from captune.model.packing import CaptionTree, PackedBatch, constant_prefix_length, fed_tokens, pack, row_multiple
from captune.model.processor import DEFAULT_INSTRUCTION, MiniGPT4Processor
from captune.model.prompt import (
    CHAT_TEMPLATES,
    IMAGE_PLACEHOLDER,
    IMAGE_SLOT,
    ChatTemplate,
    LegacyBugs,
    PromptLayout,
    TokenSequence,
)
from captune.model.quantization import quantization_config
from captune.model.tokenizer import HuggingFaceTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "ALIGNMENT_CONFIG",
    "CHAT_TEMPLATES",
    "DEFAULT_INSTRUCTION",
    "FLOAT32",
    "IMAGE_PLACEHOLDER",
    "IMAGE_SLOT",
    "LANGUAGE",
    "QUANTIZED",
    "RESERVE",
    "TOWERS",
    "CaptionTree",
    "CardDetails",
    "ChatTemplate",
    "CompiledLayers",
    "GenerationLoad",
    "HuggingFaceTokenizer",
    "KVAccumulator",
    "LayerCall",
    "LegacyBugs",
    "MemoryEstimate",
    "MiniGPT4",
    "MiniGPT4Config",
    "MiniGPT4Processor",
    "ModelSize",
    "PackedBatch",
    "Part",
    "PromptLayout",
    "StopAfterKV",
    "TokenSequence",
    "Tokenizer",
    "TrainingLoad",
    "attach_lora",
    "build_model",
    "cache_size",
    "card_header",
    "compute_dtype",
    "constant_prefix_length",
    "copy_checkpoint",
    "copy_first_layers",
    "count_bos",
    "decoder_layers",
    "default_device",
    "fed_tokens",
    "fetch_checkpoint",
    "generation_memory",
    "hidden_states",
    "is_batch_invariant",
    "is_checkpoint",
    "is_sharded",
    "load_config_and_processor",
    "load_model",
    "load_official",
    "load_pretrained",
    "load_quantized",
    "load_start",
    "load_tokenizer",
    "load_trained",
    "load_tuned",
    "mark_tuned",
    "measure_model",
    "metrics_table",
    "official_checkpoint",
    "pack",
    "parse_device",
    "patched_layer",
    "quantization_config",
    "read_trained",
    "recorded_base",
    "restore_chat_template",
    "row_multiple",
    "save_trained",
    "saved_bytes",
    "training_memory",
    "tuned_instruction",
    "upload_folder",
    "warn_date_is_fixed",
    "with_fixed_clock",
    "with_hidden_states",
]

AutoConfig.register(MiniGPT4Config.model_type, MiniGPT4Config, exist_ok=True)
AutoModel.register(MiniGPT4Config, MiniGPT4, exist_ok=True)
AutoModelForImageTextToText.register(MiniGPT4Config, MiniGPT4, exist_ok=True)
