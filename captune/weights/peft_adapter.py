"""Loading of peft adapters, as saved by TRL, Unsloth, ms-swift and LLaMA-Factory, into their base model.

peft ignores unexpected keys and keeps the initial values of modules without tensors: the captions are then those of the
base model. Here every tensor of the file must match a module, and every module of the adapter must be loaded.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor, nn

from captune.common import error_text
from captune.errors import MissingExtraError, WeightsError
from captune.transformers_compat import StoredNameMapping, fetch_file
from captune.weights.files import torch_state
from captune.weights.folder_checks import ADAPTER_CONFIG, holds_adapter, refuse_pointer
from captune.weights.safetensors_header import read_header
from captune.weights.strict import check_keys, check_values, quiet

__all__ = [
    "adapter_tensors",
    "attach_adapter",
    "find_adapter",
    "load_adapter_tensors",
    "read_adapter",
]

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_DOWNLOADED = (*_WEIGHTS, "*.json", "*.jinja", "*.model", "*.txt", "non_lora_*.bin")
"""Files of an adapter on the hub to download: weights, settings and its processor."""
_NAME = "default"
_PREFIX = "base_model.model."
"""The prefix of tensor names in peft's files."""
_ALL_LINEAR = "all-linear"
_TARGETS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find_adapter(model: str | Path) -> Path | None:
    """The folder of a peft adapter, downloaded if necessary; None for a complete model.

    Args:
        model: a folder or a hub id.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder if holds_adapter(folder) else None
    try:
        if fetch_file(model, ADAPTER_CONFIG, require_connection=False) is None:
            return None
        fetched = Path(snapshot_download(str(model), allow_patterns=list(_DOWNLOADED)))
    except OSError:
        # Loading the model reports what is wrong with the name.
        return None
    return fetched if any((fetched / name).is_file() for name in _WEIGHTS) else None


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of an adapter, under the names in its file.

    Raises:
        WeightsError: there is no weight file, it is broken, or holds NaN.
    """
    for file in sorted(folder.glob("non_lora_*.bin")):
        # LLaVA's and other scripts save further trained weights there.
        raise WeightsError(
            f"{folder} holds {file.name}, trained weights outside of the adapter, which captune does not read; merge "
            "both into the base model with the script that trained them."
        )
    for name in _WEIGHTS:
        file = folder / name
        if not file.is_file():
            continue
        refuse_pointer(file)
        if file.suffix == ".safetensors":
            read_header(file)
            try:
                state = load_file(file)
            except Exception as error:  # what the header does not show, such as an unknown dtype
                reason = error_text(error)
                raise WeightsError(f"{file} cannot be read: {reason}; copy it again from its source.") from error
        else:
            state = torch_state(file, "cpu")
        if not state:
            raise WeightsError(f"{file} holds no tensors; copy it again from its source.")
        check_values(f"The adapter {file}", state.items())
        return dict(state)
    raise WeightsError(
        f"{folder} holds {ADAPTER_CONFIG} and no {' or '.join(_WEIGHTS)}; copy the adapter's weights into it."
    )


def attach_adapter(model: Any, folder: Path, state: Mapping[str, Tensor], *, trained: bool = False) -> Any:
    """Load an adapter into its base model, in place.

    Module paths of older releases of transformers (`language_model.model` instead of `model.language_model`) are mapped
    with the library's table of renamed paths.

    Args:
        model: the base model.
        folder: of the adapter.
        state: its tensors, from `read_adapter`.
        trained: keep its parameters trainable and in the dtype of the model, as in captune's training; by default they
            are frozen and, as in peft, float32 in models of a 16-bit format.

    Returns:
        peft's wrapper of the model, for its `disable_adapter`; the model itself contains the adapter.

    Raises:
        WeightsError: the adapter belongs to another model, is incomplete, or is a prompt-learning adapter.
        MissingExtraError: peft is not installed.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise MissingExtraError("A peft adapter", "train") from error
    what = f"The adapter {folder}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # from unknown adapter types and settings
        raise WeightsError(f"{folder / ADAPTER_CONFIG} cannot be used: {error_text(error)}.") from error
    if config.is_prompt_learning or not hasattr(config, "target_modules"):
        raise WeightsError(
            f"{what} is a {config.peft_type.value} adapter, which changes no weights; captune supports LoRA-like ones."
        )
    config.inference_mode = not trained
    if _is_zero(state):
        raise WeightsError(
            f"{what} changes nothing: all of its 'lora_B' are zero, as before training; give a trained one."
        )
    moved = _moved_modules(model, state)
    _retarget(config, model, moved)
    try:
        with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            wrapped = PeftModel(model, config, adapter_name=_NAME, autocast_adapter_dtype=not trained)
    except Exception as error:  # peft raises ValueError and others if modules do not exist
        raise WeightsError(f"{what} does not fit its base model: {error_text(error)}") from error
    load_adapter_tensors(wrapped, state, what, moved)
    wrapped.eval()
    return wrapped


def load_adapter_tensors(
    wrapped: Any,
    state: Mapping[str, Tensor],
    what: str,
    moved: Mapping[str, str] | None = None,
    *,
    keeps_other_modules: bool = False,
) -> None:
    """Set the tensors of an attached adapter.

    Args:
        wrapped: peft's wrapper of the model.
        state: the tensors, under the names in peft's files.
        what: the adapter, the subject of messages.
        moved: paths of modules that transformers has renamed since.
        keeps_other_modules: modules that the attached adapter trains completely (`modules_to_save`) keep their values
            if there are no tensors of such modules.

    Raises:
        WeightsError: names or shapes are not those of the attached adapter.
    """
    tensors, embeddings = adapter_tensors(wrapped), adapter_tensors(wrapped, embeddings=True)
    if keeps_other_modules and all(".lora_" in name for name in state):
        tensors = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    assigned = _assign(wrapped, wrapped.peft_config[_NAME], tensors, state, moved or {})
    mismatched = [
        (name, tuple(assigned[name].shape), tuple(tensor.shape))
        for name, tensor in embeddings.items()
        if name in assigned and assigned[name].shape != tensor.shape
    ]
    check_keys(
        what,
        count=len(tensors),
        missing=tensors.keys() - assigned.keys(),
        unexpected=assigned.keys() - embeddings.keys(),
        mismatched=mismatched,
        misfit="does not fit its base model",
    )
    with torch.no_grad():
        for name, tensor in assigned.items():
            embeddings[name].copy_(tensor)
    after = adapter_tensors(wrapped, embeddings=True)
    assert all(torch.equal(after[name], tensor.to(after[name])) for name, tensor in assigned.items())


def _is_zero(state: Mapping[str, Tensor]) -> bool:
    """Whether an adapter has LoRA only, and all of its B matrices are zero."""
    if not all(".lora_" in name for name in state):
        return False
    second = [tensor for name, tensor in state.items() if ".lora_B" in name or ".lora_embedding_B" in name]
    return bool(second) and not any(bool(tensor.any()) for tensor in second)


def adapter_tensors(wrapped: Any, *, embeddings: bool = False) -> dict[str, Tensor]:
    """The tensors of an attached adapter, by their names in peft's files.

    Args:
        wrapped: peft's wrapper.
        embeddings: include the model's embeddings, which are saved if they were resized.
    """
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(get_peft_model_state_dict(wrapped, adapter_name=_NAME, save_embedding_layers=embeddings))
        except (AttributeError, NotImplementedError):
            # A model without token embeddings.
            return dict(get_peft_model_state_dict(wrapped, adapter_name=_NAME, save_embedding_layers=False))


def _module_path(name: str) -> str:
    """The path of the module of a tensor in an adapter's file."""
    path = re.sub(rf"^({re.escape(_PREFIX)})+", "", name)
    return (
        re.split(r"\.(?:lora_|base_layer\.|modules_to_save\.|original_module\.)", path)[0]
        if ".lora_" in path
        else (path.rpartition(".")[0])
    )


def _moved_modules(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Paths in an adapter's file that transformers has renamed since: old path -> path in this model."""
    tensors = model.state_dict(keep_vars=True)
    model_name = StoredNameMapping(model, renamings_only=True)
    moved = {}
    for module in {_module_path(name) for name in names}:
        weight = f"{module}.weight"
        if weight in tensors:
            continue
        renamed, _ = model_name(weight)
        if renamed in tensors:
            moved[module] = renamed.removesuffix(".weight")
    return moved


def _retarget(config: Any, model: Any, moved: Mapping[str, str]) -> None:
    """Resolve module paths of an older release in an adapter's settings to paths in this model."""
    if not moved or config.target_modules == _ALL_LINEAR:
        return
    from peft.tuners.tuners_utils import check_target_module_exists

    earlier = dict(_differing_prefixes(there, here) for there, here in moved.items())

    def before(path: str) -> str:
        for here in sorted(earlier, key=len, reverse=True):
            if path == here or path.startswith(f"{here}." if here else ""):
                return f"{earlier[here]}{path[len(here) :]}".lstrip(".")
        return path

    modules = [name for name, module in model.named_modules() if isinstance(module, _TARGETS)]
    targets = [name for name in modules if check_target_module_exists(config, before(name))]
    if not targets:
        return
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(config, field, None) or {}
        resolved = {
            re.escape(name): value
            for name in targets
            for key, value in pattern.items()
            if re.match(rf"(.*\.)?({key})$", before(name))
        }
        if pattern:
            setattr(config, field, resolved)
    config.target_modules = set(targets)
    for field in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        if getattr(config, field, None):
            setattr(config, field, None)


def _differing_prefixes(there: str, here: str) -> tuple[str, str]:
    """Two paths of one module without their common suffix, the current one first."""
    old, new = there.split("."), here.split(".")
    while old and new and old[-1] == new[-1]:
        old.pop()
        new.pop()
    return ".".join(new), ".".join(old)


def _assign(
    wrapped: Any, config: Any, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], moved: Mapping[str, str]
) -> dict[str, Tensor]:
    """An adapter's tensors under their names in this model."""
    plain = {_name_in_model(name, moved): tensor for name, tensor in state.items()}
    if len(plain) != len(state):
        raise WeightsError("Two tensors of the adapter's file have one name in the model; save the adapter again.")
    if plain.keys() == tensors.keys():
        return plain
    try:
        # Experts that newer releases store in one tensor.
        from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

        converted = convert_peft_adapter_state_dict_for_transformers(wrapped, config, dict(state), _NAME)
    except Exception:  # `check_keys` reports the names that do not fit
        return plain
    return dict(converted) if converted.keys() == tensors.keys() else plain


def _name_in_model(name: str, moved: Mapping[str, str]) -> str:
    module = _module_path(name)
    path = re.sub(rf"^({re.escape(_PREFIX)})+", "", name)
    rest = path[len(module) :].replace(f".{_NAME}.", ".").removesuffix(f".{_NAME}")
    return f"{_PREFIX}{moved.get(module, module)}{rest}"
