"""Loading a language model as it lies in its folder, every tensor accounted for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from captune.common import error_text
from captune.errors import ConfigError, WeightsError
from captune.model.causality import check_causal
from captune.transformers_compat import has_auto_class
from captune.weights.pointers import refuse_part, refuse_pointers
from captune.weights.strict import load_strictly, quiet, read_config

__all__ = ["decoder_layers", "embedding_width", "end_ids", "is_divided", "language_config", "load_language_model"]


_WIDTHS: dict[str, int] = {}
"""Widths that were found out, by configuration."""


def language_config(llm: str | Path) -> Any:
    """The configuration of a language model's folder or hub id.

    Raises:
        WeightsError: there is none, or it needs code of its own, which is not run.
    """
    refuse_pointers(llm)
    refuse_part(llm)
    try:
        config = read_config(AutoConfig.from_pretrained, llm, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if "trust_remote_code" in str(error):
            raise WeightsError(
                f"{llm} brings code of its own, which captune does not run; give another model."
            ) from error
        raise WeightsError(
            f"{llm} is not the folder of a language model; expected a config.json that transformers knows in it."
        ) from error
    if not has_auto_class(AutoModelForCausalLM, config) or not hasattr(config.get_text_config(), "vocab_size"):
        raise WeightsError(f"{llm} is a {config.model_type}; expected a causal language model.")
    return config


def embedding_width(config: Any) -> int:
    """Width of a language model's token embeddings, which may be narrower than its hidden states (OPT-350m).

    Args:
        config: of a causal language model.
    """
    key = config.to_json_string(use_diff=False)
    if key not in _WIDTHS:
        try:
            with torch.device("meta"), quiet():
                model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        except ImportError:
            raise
        except Exception as error:  # of values that the configuration's class does not check
            raise WeightsError(
                f"The configuration of the language model, a {config.model_type}, holds a value that is wrong: "
                f"{error_text(error)}; copy its config.json again from its source."
            ) from error
        _WIDTHS[key] = int(model.get_input_embeddings().weight.shape[1])
    return _WIDTHS[key]


def end_ids(llm: str | Path) -> list[int]:
    """Ids that end a text, as the folder's generation_config.json names them, or its config.json where there is none.

    Instruction-tuned models name both the end of a turn and the end of a text.

    Args:
        llm: folder or hub id.
    """
    try:
        stated = GenerationConfig.from_pretrained(str(llm)).eos_token_id
    except (OSError, ValueError):
        # The default of a configuration class says nothing about this model's vocabulary.
        stated = PreTrainedConfig.get_config_dict(str(llm))[0].get("eos_token_id")
    return list(stated) if isinstance(stated, list) else [] if stated is None else [int(stated)]


def decoder_layers(llm: Any) -> nn.ModuleList:
    """The layers of a causal language model, in order.

    Raises:
        ConfigError: they do not stand in one list.
    """
    text = llm.config.get_text_config(decoder=True)
    for part in llm.get_decoder().modules():
        if isinstance(part, nn.ModuleList) and len(part) == int(text.num_hidden_layers):
            return part
    raise ConfigError(
        f"The layers of a '{text.model_type}' do not stand in one list, so they can neither be divided nor compiled; "
        "set train.sharding to none and train.optimizations.compile to false."
    )


def is_divided(llm: nn.Module) -> bool:
    """Whether a language model's layers are divided among processes (FSDP2)."""
    return any(type(parameter).__name__ == "DTensor" for parameter in llm.parameters())


def load_language_model(llm: str | Path, *, dtype: torch.dtype | str, **options: Any) -> nn.Module:
    """Load a causal language model.

    Args:
        llm: folder or hub id.
        dtype: of its weights; "auto" is as they are stored.
        options: `quantization_config`, `device_map`, ... of transformers' `from_pretrained`.

    Raises:
        WeightsError: files are missing or broken, a tensor is missing, has another shape, or is not of this model; or
            the model is not causal, or does not read embeddings.
    """
    model: nn.Module = load_strictly(
        AutoModelForCausalLM.from_pretrained,
        llm,
        f"The language model {llm}",
        dtype=dtype,
        trust_remote_code=False,
        **options,
    )
    check_causal(model, str(llm))
    return model
