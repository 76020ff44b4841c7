"""Strict loading of transformers models.

`from_pretrained` initializes missing tensors randomly, ignores unexpected ones, and reports both in its log only. Here
both are errors, for every kind of model that captune loads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from captune.common import error_text
from captune.errors import InputError, MissingExtraError, WeightsError
from captune.transformers_compat import StoredNameMapping
from captune.weights.files import check_weights, stored_names
from captune.weights.folder_checks import refuse_pointers

__all__ = [
    "check_keys",
    "check_values",
    "load_strictly",
    "missing_library",
    "quiet",
    "read_config",
    "unreadable_reason",
]


# Optional libraries of transformers models, on which captune does not depend.


def missing_library(what: str, error: ImportError) -> InputError:
    """The error for a missing library that a model needs, as one sentence.

    Args:
        what: the subject of the sentence.
        error: of the import.
    """
    text = str(error)
    if "num2words" in text:
        return MissingExtraError(what, "smolvlm")
    if "torchvision" in text.lower():
        return InputError(
            f"{what} needs torchvision, which is not installed; install the torchvision for your build of torch."
        )
    if named := re.search(r"`pip install ([\w.-]+)`", text):
        return InputError(f"{what} needs {named[1]}, which is not installed; install it with: pip install {named[1]}")
    return InputError(f"{what} needs a library that is not installed: {error_text(error)}")


_MAX_NAMES = 3
"""Largest number of tensor names in a message."""
_CAUSES = (
    (r"^(.*\.)?base_layer\.|\.lora_[AB]\.|\.base_layer\.", "it holds an adapter that was not merged into the model"),
    (r"\.(absmax|quant_map|quant_state\.\S+|SCB|qweight|qzeros|scales|weight_scale\w*)$", "it is a quantized copy"),
)
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.", "base_model.model.")
"""Prefixes of tensor names that wrappers of a model add."""
_COMPUTED_BUFFERS = re.compile(r"attn\.masked_bias$")
"""A buffer in early files of GPT-2 that the library does not list as ignorable."""


def load_strictly(
    from_pretrained: Callable[..., Any], path: str | Path, what: str, *, ignored: str | None = None, **options: Any
) -> Any:
    """Load a model with `from_pretrained`, and require that its files hold exactly its tensors.

    Tied weights, and keys that the model's class lists as ignorable, are handled by transformers.

    Args:
        from_pretrained: of a class of transformers.
        path: folder or hub id.
        what: the model in messages, such as "The language model NAME".
        ignored: pattern of the names of tensors to ignore.
        options: of `from_pretrained`.

    Returns:
        The model in eval mode.

    Raises:
        WeightsError: a file is broken; a tensor is missing or unexpected, has another shape, or holds NaN.
        InputError: the model needs a library that is not installed.
        MemoryError, torch.OutOfMemoryError: it does not fit into memory.
    """
    refuse_pointers(path)
    check_weights(path)
    if Path(path).is_dir() and (Path(path) / "adapter_config.json").is_file():
        # transformers would apply the adapter to these weights, and report loading errors of the adapter only.
        raise WeightsError(
            f"{what} has the weights of a model and an adapter's adapter_config.json in one folder; move the adapter "
            "into another folder or, if it has been merged into the weights, remove its files."
        )
    try:
        with quiet():
            model, loaded = from_pretrained(
                str(path), output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except (MemoryError, torch.OutOfMemoryError, InputError):
        raise
    except ImportError as error:
        raise missing_library(what, error) from error
    except Exception as error:  # broken files raise nearly anything
        raise WeightsError(f"{what} cannot be loaded: {unreadable_reason(path, error)}") from error
    check_keys(
        what,
        count=len(model.state_dict()),
        missing=loaded["missing_keys"],
        unexpected=_not_computed(model, loaded["unexpected_keys"], ignored),
        mismatched=loaded["mismatched_keys"],
    )
    _check_stored(model, path, what)
    check_values(what, model.state_dict(keep_vars=True).items())
    return model


def _check_stored(model: Any, path: str | Path, what: str) -> None:
    """Refuse files that transformers loads without a report.

    These are two stored tensors for one tensor of the model, under names of two releases or in two shards, of which it
    uses one; and integers, which it casts.
    """
    model_name = StoredNameMapping(model)
    tensors = model.state_dict(keep_vars=True)
    sources: dict[str, tuple[str, Path]] = {}
    quantized = getattr(getattr(model, "config", None), "quantization_config", None) is not None
    for name, file, floating in stored_names(path):
        renamed, is_converted = model_name(name)
        if renamed not in tensors and name in tensors:
            renamed = name
        if is_converted or renamed not in tensors:
            continue
        if tensors[renamed].is_floating_point() and not floating and not quantized:
            raise WeightsError(
                f"{what} does not fit its configuration: its files hold '{name}' as integers, like a quantized copy "
                "without scales; give the files of the original model."
            )
        first, shard = sources.setdefault(renamed, (name, file))
        if first != name:
            raise WeightsError(
                f"{what} does not fit its configuration: its files hold '{first}' and '{name}', which are one tensor "
                "of the model; save the weights again."
            )
        if shard != file:
            raise WeightsError(
                f"{what} is ambiguous: {shard.name} and {file.name} both hold '{name}'; copy its files again from one "
                "source."
            )


def _not_computed(model: nn.Module, names: Collection[str], ignored: str | None) -> list[str]:
    """The names without computed buffers, which older releases saved, and without ignored tensors."""
    computed = {name for name, _ in model.named_buffers()}
    kept = [name for name in names if name not in computed and not _COMPUTED_BUFFERS.search(name)]
    return [name for name in kept if ignored is None or not re.search(ignored, name)]


def check_keys(
    what: str,
    *,
    count: int,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[tuple[str, Collection[int], Collection[int]]] = (),
    misfit: str = "does not fit its configuration",
) -> None:
    """Refuse weights whose names or shapes are not those of the model.

    Args:
        what: the model, the subject of the sentence.
        count: number of tensors of the model.
        missing: tensors of the model that are not in the files.
        unexpected: tensors of the files that are not in the model.
        mismatched: name, shape in the files and shape in the model.
        misfit: the predicate of the sentence.

    Raises:
        WeightsError: there are any; one sentence with counts, first names and the likely cause.
    """
    problems = []
    if missing:
        problems.append(f"lack {len(missing)} of its {count} tensors ({_first(missing)})")
    if unexpected:
        problems.append(f"hold {len(unexpected)} that it does not have ({_first(unexpected)})")
    if mismatched:
        shapes = {name: f"{tuple(stored)} instead of {tuple(expected)}" for name, stored, expected in mismatched}
        name = min(shapes)
        problems.append(f"hold {len(shapes)} of another shape ('{name}': {shapes[name]})")
    if problems:
        cause = _cause(missing, unexpected, bool(mismatched))
        raise WeightsError(f"{what} {misfit}: its files {' and '.join(problems)}; {cause}.")


def _first(names: Collection[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in sorted(names)[:_MAX_NAMES])
    return shown if len(names) <= _MAX_NAMES else f"{shown}, ..."


def _cause(missing: Collection[str], unexpected: Collection[str], mismatched: bool) -> str:
    """The likely cause of such names, and what to do."""
    for pattern, cause in _CAUSES:
        if any(re.search(pattern, name) for name in unexpected) and not any(
            re.search(pattern, name) for name in missing
        ):
            return f"{cause}: give the files of the original model"
    for wrapper in _WRAPPERS:
        if any(wrapper in name for name in unexpected) and not any(wrapper in name for name in missing):
            return f"a wrapper put '{wrapper}' into the names: save the weights again without it"
    layers = re.compile(r"\.\d+\.")
    if mismatched or (any(map(layers.search, missing)) != any(map(layers.search, unexpected))):
        return "the weights may belong to a model of another size or be incomplete: copy them again from one source"
    return "copy the configuration and the weights again from one source"


def check_values(what: str, tensors: Iterable[tuple[str, Any]]) -> None:
    """Refuse weights without values, or with NaN or infinity.

    Args:
        what: the model, the subject of the sentence.
        tensors: names and weights; quantized ones are not checked.

    Raises:
        WeightsError: with the name of the first.
    """
    for name, tensor in tensors:
        if not isinstance(tensor, Tensor):
            continue
        if tensor.is_meta:
            raise WeightsError(f"{what} has no values for '{name}'; copy its files again from their source.")
        is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point() and tensor.itemsize > 1
        if not is_plain or tensor.numel() == 0:
            continue
        # Both are NaN if any value is; one pass without a copy.
        if not all(bool(value.isfinite()) for value in torch.aminmax(tensor.detach())):
            advice = "copy its files again from their source, or use an earlier checkpoint if training produced it"
            if tensor.dtype == torch.float16:
                advice = "if its files hold finite values, float16 overflows: set dtype to bfloat16"
            raise WeightsError(f"{what} holds NaN or infinity in '{name}'; {advice}.")


def read_config(from_pretrained: Callable[..., Any], path: str | Path, **options: Any) -> Any:
    """Load the configuration of a model.

    Args:
        from_pretrained: of a configuration class.
        path: folder or hub id.
        options: of `from_pretrained`.

    Raises:
        WeightsError: a value in it is of the wrong type, or contradicts another.
        OSError, ValueError, KeyError, TypeError: there is none, or transformers does not support the model type.
    """
    cause: Exception | None = None
    try:
        config = from_pretrained(str(path), **options)
        parts = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", {})}
        wrong = next((f"{name} is {part!r}" for name, part in parts.items() if not _is_settings(part)), "")
    except (OSError, ValueError, KeyError, TypeError):
        raise
    except Exception as error:  # the library validates some values with its own errors
        wrong, cause = error_text(error), error
    if wrong:
        raise WeightsError(
            f"The configuration of {path} holds a value that is wrong: {wrong}; copy its config.json again from its "
            "source."
        ) from cause
    return config


def _is_settings(part: Any) -> bool:
    """Whether a part of a configuration is valid: None, a configuration or a dictionary."""
    return part is None or isinstance(part, PreTrainedConfig | dict)


def unreadable_reason(path: str | Path, error: Exception) -> str:
    """The reason why a model cannot be read, for a message."""
    if isinstance(error, OSError) and not Path(path).expanduser().exists():
        # The library's message is about connections and caches, although a folder was probably meant.
        return "there is no such folder, and no model of that name could be loaded from the Hugging Face hub."
    text = error_text(error)
    if "weights_only" in text or "WeightsUnpickler" in text:
        return (
            "its files hold more than tensors and plain values, and opening them could run code; they were not opened. "
            "Save the model again as safetensors."
        )
    if "automatic conversion of the weights" in text:
        return (
            "its tensors are not those that its configuration makes of them (shapes or numbers of layers or experts "
            "differ); copy the configuration and the weights again from one source."
        )
    return text


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the loading report of transformers; `check_keys` reports problems in one sentence."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
