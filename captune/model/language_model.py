"""Loading of causal language models, and tests whether they are causal and batch-invariant."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from captune.common import error_text
from captune.errors import ConfigError, WeightsError
from captune.transformers_compat import has_auto_class
from captune.weights import load_strictly, quiet, read_config, refuse_pointers, require_complete_model

__all__ = [
    "check_causal",
    "copy_first_layers",
    "decoder_layers",
    "embedding_width",
    "end_ids",
    "is_batch_invariant",
    "is_sharded",
    "language_config",
    "load_language_model",
]


# Tests of a loaded language model: embeddings and token ids give the same logits, and no token depends on a later one.

_TOKENS = 12
_ALLOWED = 1e-3
"""Largest relative difference of logits that rounding explains in float32."""
_ALLOWED_IN_HALF = 0.02
"""The same in 16-bit formats. The compared tensors have the same shapes, so most models give equal numbers."""


@torch.no_grad()
def check_causal(llm: Any, name: str) -> None:
    """Refuse a model whose logits depend on later tokens, or differ between token ids and their embeddings.

    Image tokens are embeddings between those of text, and training predicts each token from those before it.

    Args:
        llm: a model with a language modelling head, in eval mode.
        name: of the model, for the messages.

    Raises:
        WeightsError: the model is not causal, or embeddings give other logits than token ids.
    """
    embedding = llm.get_input_embeddings()
    if embedding.weight.is_meta:
        return
    size = embedding.weight.shape[0]
    # Spread over the vocabulary, since the first ids are special tokens, which some models skip.
    ids = (torch.arange(_TOKENS, device=embedding.weight.device) * 7 + 5).remainder(size).unsqueeze(0)
    words = embedding(ids)
    changed = words.clone()
    changed[:, _TOKENS // 2 :] = words[:, : _TOKENS - _TOKENS // 2].roll(1, dims=1)
    try:
        from_ids, from_embeddings, from_changed = (
            llm(**inputs, use_cache=False).logits[0]
            for inputs in ({"input_ids": ids}, {"inputs_embeds": words}, {"inputs_embeds": changed})
        )
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = error_text(error)
        raise WeightsError(
            f"The language model {name} cannot be run on words and their embeddings ({reason}); give another."
        ) from error
    allowed = _ALLOWED_IN_HALF if words.dtype in (torch.bfloat16, torch.float16) else _ALLOWED
    kept = slice(0, _TOKENS // 2)
    difference = _difference(from_changed[kept], from_embeddings[kept])
    # NaN passes this comparison; other checks report it.
    if difference > allowed:
        raise WeightsError(
            f"{name} is no causal language model: its logits change by {difference:.1e} with later tokens, so training "
            "would see the captions that it predicts; give a decoder."
        )
    difference = _difference(from_embeddings, from_ids)
    if difference > allowed:
        raise WeightsError(
            f"The language model {name} gives other logits for the embeddings of words than for the words (by "
            f"{difference:.1e}), so image tokens cannot be put between them; give another model."
        )


def _difference(logits: Tensor, expected: Tensor) -> float:
    """Relative difference of logits at the median position, which a single rerouted token does not decide."""
    differences = (logits.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    return float(differences.median())


_WIDTHS: dict[str, int] = {}
"""Cached widths, by configuration."""


def language_config(llm: str | Path) -> Any:
    """The configuration of a language model's folder or hub id.

    Raises:
        WeightsError: there is none, or it needs remote code, which captune does not run.
    """
    refuse_pointers(llm)
    require_complete_model(llm)
    try:
        config = read_config(AutoConfig.from_pretrained, llm, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if "trust_remote_code" in str(error):
            raise WeightsError(f"{llm} needs remote code, which captune does not run; give another model.") from error
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
        except Exception as error:  # from values that the configuration's class does not validate
            raise WeightsError(
                f"The configuration of the language model, a {config.model_type}, holds a value that is wrong: "
                f"{error_text(error)}; copy its config.json again from its source."
            ) from error
        _WIDTHS[key] = int(model.get_input_embeddings().weight.shape[1])
    return _WIDTHS[key]


def end_ids(llm: str | Path) -> list[int]:
    """EOS ids of generation_config.json, or of config.json without one.

    Instruction-tuned models have ids for the end of a turn and for the end of a text.

    Args:
        llm: folder or hub id.
    """
    try:
        stated = GenerationConfig.from_pretrained(str(llm)).eos_token_id
    except (OSError, ValueError):
        # Not from the configuration object, whose class has a default that need not fit this vocabulary.
        stated = PreTrainedConfig.get_config_dict(str(llm))[0].get("eos_token_id")
    return list(stated) if isinstance(stated, list) else [] if stated is None else [int(stated)]


def decoder_layers(llm: Any) -> nn.ModuleList:
    """The layers of a causal language model, in order.

    Raises:
        ConfigError: they are not in one `ModuleList`.
    """
    text = llm.config.get_text_config(decoder=True)
    for part in llm.get_decoder().modules():
        if isinstance(part, nn.ModuleList) and len(part) == int(text.num_hidden_layers):
            return part
    raise ConfigError(
        f"The layers of a '{text.model_type}' are not in one ModuleList, so they can neither be sharded nor compiled; "
        "set train.sharding to none and train.debug.compile to false."
    )


def copy_first_layers(part: Any, layers: nn.ModuleList, count: int) -> Any:
    """A float32 copy of a model with the first layers of its decoder, or more if these do not include every kind.

    Args:
        part: a model with a configuration; it is not changed.
        layers: of its decoder.
        count: number of layers.

    Raises:
        torch.OutOfMemoryError: the copy does not fit into memory.
    """
    text = part.config.get_text_config(decoder=True)
    kinds = list(getattr(text, "layer_types", None) or [])
    count = min(len(layers), max([count, *(kinds.index(kind) + 1 for kind in set(kinds))]))
    rest = list(layers[count:])
    del layers[count:]
    try:
        copied = copy.deepcopy(part).float()
    finally:
        layers.extend(rest)
    text_config = copied.config.get_text_config(decoder=True)
    text_config.num_hidden_layers = count
    if "layer_types" in vars(text_config):
        text_config.layer_types = kinds[:count]
    return copied


def is_sharded(llm: nn.Module) -> bool:
    """Whether a language model is sharded among processes (FSDP2)."""
    return any(type(parameter).__name__ == "DTensor" for parameter in llm.parameters())


def load_language_model(llm: str | Path, *, dtype: torch.dtype | str, **options: Any) -> nn.Module:
    """Load a causal language model.

    Args:
        llm: folder or hub id.
        dtype: of its weights; "auto" is the stored one.
        options: `quantization_config`, `device_map`, ... of transformers' `from_pretrained`.

    Raises:
        WeightsError: files are missing or broken; a tensor is missing, unexpected or has another shape; or the model
            is not causal or gives other logits for embeddings than for token ids.
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


# Whether transformers' `generate` is batch-invariant; measured, since some families are not.

_NEW_TOKENS = 4
_ALLOWED_PADDING_EFFECT = 0.1
"""Largest relative difference of logits that rounding explains in 16-bit formats."""
_TESTED: WeakKeyDictionary[Any, dict[bool, bool]] = WeakKeyDictionary()


def is_batch_invariant(llm: Any, *, padded: bool) -> bool:
    """Whether `generate` gives the rows of a batch the same logits as separate rows.

    Args:
        llm: a causal language model.
        padded: whether the rows have different lengths, and shorter ones are padded on the left.
    """
    tested = _TESTED.setdefault(llm, {})
    if padded not in tested:
        tested[padded] = _test_batch(llm, _TOKENS // 2 if padded else _TOKENS)
    return tested[padded]


@torch.no_grad()
def _test_batch(llm: Any, shorter: int) -> bool:
    embedding = llm.get_input_embeddings()
    ids = torch.arange(3 * _TOKENS, device=embedding.weight.device).view(3, _TOKENS)
    rows = embedding((ids * 7 + 5) % embedding.weight.shape[0])
    mask = torch.ones_like(ids)
    mask[1, : _TOKENS - shorter] = 0
    batch = _logits(llm, rows, mask)
    allowed = _ALLOWED_PADDING_EFFECT if rows.dtype in (torch.bfloat16, torch.float16) else _ALLOWED
    for number, row in enumerate(rows):
        seen = mask[number].bool()
        alone = _logits(llm, row[seen].unsqueeze(0), mask[number][seen].unsqueeze(0))
        if not alone.isfinite().all():
            # No evidence about batches; generation reports non-finite scores.
            continue
        for batched, single in zip(batch[number], alone[0], strict=True):
            # NaN does not pass this comparison.
            if not float((batched - single).norm() / single.norm()) <= allowed:
                return False
            if batched.argmax() != single.argmax():
                # Rounding selected another token, so the rows continue differently.
                break
    return True


def _logits(llm: Any, embeddings: Tensor, mask: Tensor) -> Tensor:
    """(B, N, V) logits of new tokens."""
    settings = GenerationConfig(max_new_tokens=_NEW_TOKENS, min_new_tokens=_NEW_TOKENS, do_sample=False, pad_token_id=0)
    llm.generation_config = GenerationConfig()
    made = llm.generate(
        inputs_embeds=embeddings,
        attention_mask=mask,
        generation_config=settings,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(made.logits, dim=1).float()
