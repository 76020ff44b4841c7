"""Loading a transformers model with every tensor accounted for.

`from_pretrained` fills what a file does not have with random numbers, passes over what it does not know, and says so
only in its log. Here such a model is refused, for every kind of model that captune loads.
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


# Libraries that a model of transformers needs and captune does not bring.


def missing_library(what: str, error: ImportError) -> InputError:
    """What transformers says of a library that a model needs, as one sentence.

    Args:
        what: needs it, as the beginning of the sentence.
        error: of the import.
    """
    text = str(error)
    if "num2words" in text:
        return MissingExtraError(what, "smolvlm")
    if "torchvision" in text.lower():
        return InputError(
            f"{what} needs torchvision, which is not installed; install the torchvision that belongs to your build of "
            "torch."
        )
    if named := re.search(r"`pip install ([\w.-]+)`", text):
        return InputError(f"{what} needs {named[1]}, which is not installed; install it with: pip install {named[1]}")
    return InputError(f"{what} needs a library that is not installed: {error_text(error)}")


_SHOWN = 3
"""Names of tensors in a message."""
_CAUSES = (
    (r"^(.*\.)?base_layer\.|\.lora_[AB]\.|\.base_layer\.", "it holds an adapter that was not merged into the model"),
    (r"\.(absmax|quant_map|quant_state\.\S+|SCB|qweight|qzeros|scales|weight_scale\w*)$", "it is a quantised copy"),
)
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.", "base_model.model.")
"""What wrappers of a model put into the names of its tensors."""
_COMPUTED = re.compile(r"attn\.masked_bias$")
"""A buffer that GPT-2's early files carry and no list of the library names."""


def load_strictly(
    from_pretrained: Callable[..., Any], path: str | Path, what: str, *, ignored: str | None = None, **options: Any
) -> Any:
    """Load a model with `from_pretrained` and refuse it unless its files hold exactly its tensors.

    Tied weights, and keys that the model's class itself lists as ignorable, are left to the library.

    Args:
        from_pretrained: of a class of transformers.
        path: folder or hub id.
        what: names the model in messages, such as "The language model NAME".
        ignored: pattern of names in the files that belong to parts which are not wanted here.
        options: of `from_pretrained`.

    Returns:
        The model in eval mode.

    Raises:
        WeightsError: a file is broken; a tensor is missing, of another shape, not of this model, or holds NaN.
        InputError: the model needs a library that is not installed.
        MemoryError, torch.OutOfMemoryError: there is no room for it.
    """
    refuse_pointers(path)
    check_weights(path)
    if Path(path).is_dir() and (Path(path) / "adapter_config.json").is_file():
        # The library would put the adapter onto these weights, and report of the adapter alone.
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
    except Exception as error:  # broken files make the readers below transformers raise nearly anything
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
    """Refuse what the library loads without a report.

    That is two tensors which are one tensor of the model, under names of two releases or in two shards, of which it
    takes one; and whole numbers, which it casts.
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
                f"{what} does not fit its configuration: its files hold '{name}' in whole numbers, as a quantised copy "
                "without its scales does; give the files of the model itself."
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
    """Names that are no buffers which the class computes, as older releases saved them, and no parts to be ignored."""
    computed = {name for name, _ in model.named_buffers()}
    kept = [name for name in names if name not in computed and not _COMPUTED.search(name)]
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
        what: names the model, as the beginning of the sentence.
        count: of the model's tensors.
        missing: tensors of the model that the files do not have.
        unexpected: tensors of the files that the model does not have.
        mismatched: name, shape in the files and shape in the model.
        misfit: what is said of it.

    Raises:
        WeightsError: there is any; one sentence with counts, first names and, where it can be told, the cause.
    """
    faults = []
    if missing:
        faults.append(f"lack {len(missing)} of its {count} tensors ({_first(missing)})")
    if unexpected:
        faults.append(f"hold {len(unexpected)} that it does not have ({_first(unexpected)})")
    if mismatched:
        shapes = {name: f"{tuple(stored)} instead of {tuple(expected)}" for name, stored, expected in mismatched}
        name = min(shapes)
        faults.append(f"hold {len(shapes)} of another shape ('{name}': {shapes[name]})")
    if faults:
        cause = _cause(missing, unexpected, bool(mismatched))
        raise WeightsError(f"{what} {misfit}: its files {' and '.join(faults)}; {cause}.")


def _first(names: Collection[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, ..."


def _cause(missing: Collection[str], unexpected: Collection[str], mismatched: bool) -> str:
    """The usual cause of such names, and what to do."""
    for pattern, cause in _CAUSES:
        if any(re.search(pattern, name) for name in unexpected) and not any(
            re.search(pattern, name) for name in missing
        ):
            return f"{cause}: give the files of the model itself"
    for wrapper in _WRAPPERS:
        if any(wrapper in name for name in unexpected) and not any(wrapper in name for name in missing):
            return f"a wrapper put '{wrapper}' into the names: save the weights again without it"
    layers = re.compile(r"\.\d+\.")
    if mismatched or (any(map(layers.search, missing)) != any(map(layers.search, unexpected))):
        return "the weights are perhaps of a model of another size or are incomplete: copy them again from one source"
    return "copy the configuration and the weights again from one source"


def check_values(what: str, tensors: Iterable[tuple[str, Any]]) -> None:
    """Refuse weights that were never filled, or that hold NaN or infinity.

    Args:
        what: names the model, as the beginning of the sentence.
        tensors: names and weights; quantised ones are not looked into.

    Raises:
        WeightsError: names the first.
    """
    for name, tensor in tensors:
        if not isinstance(tensor, Tensor):
            continue
        if tensor.is_meta:
            raise WeightsError(f"{what} has no values for '{name}'; copy its files again from their source.")
        is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point() and tensor.itemsize > 1
        if not is_plain or tensor.numel() == 0:
            continue
        # NaN wins over every number in both; one pass without a copy.
        if not all(bool(value.isfinite()) for value in torch.aminmax(tensor.detach())):
            advice = "copy its files again from their source, or use an earlier checkpoint if it was trained so"
            if tensor.dtype == torch.float16:
                advice = "if they are numbers in its files, float16 is too narrow for them: set dtype to bfloat16"
            raise WeightsError(f"{what} holds NaN or infinity in '{name}'; {advice}.")


def read_config(from_pretrained: Callable[..., Any], path: str | Path, **options: Any) -> Any:
    """The configuration of a model.

    Args:
        from_pretrained: of a class of configurations.
        path: folder or hub id.
        options: of `from_pretrained`.

    Raises:
        WeightsError: a value in it is of the wrong type, or contradicts another.
        OSError, ValueError, KeyError, TypeError: there is none, or the library does not know the kind of model.
    """
    cause: Exception | None = None
    try:
        config = from_pretrained(str(path), **options)
        parts = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", {})}
        wrong = next((f"{name} is {part!r}" for name, part in parts.items() if not _is_settings(part)), "")
    except (OSError, ValueError, KeyError, TypeError):
        raise
    except Exception as error:  # the library checks values with errors of its own, and uses some unchecked
        wrong, cause = error_text(error), error
    if wrong:
        raise WeightsError(
            f"The configuration of {path} holds a value that is wrong: {wrong}; copy its config.json again from its "
            "source."
        ) from cause
    return config


def _is_settings(part: Any) -> bool:
    """Whether a part of a configuration may be settings of a model: absent, or a configuration or a mapping."""
    return part is None or isinstance(part, PreTrainedConfig | dict)


def unreadable_reason(path: str | Path, error: Exception) -> str:
    """Why a model could not be read, in the words that help."""
    if isinstance(error, OSError) and not Path(path).expanduser().exists():
        # The library's own text speaks of connections and caches, and not of the folder that was probably meant.
        return "there is no such folder here, and a model of that name could not be had from the Hugging Face hub."
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
    """Keep the library's table of strange keys off the screen; what is wrong is said in one sentence."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
