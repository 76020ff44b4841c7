"""Configurations from YAML files, captune's own or the original's, with `section.key=value` overrides."""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from captune.config.minigpt4_yaml import is_lavis, translate
from captune.config.sections import RunConfig
from captune.config.writing import configuration_keys
from captune.errors import ConfigError
from captune.parsing import YamlSyntaxError, load_yaml, validate

__all__ = ["STORED_HEADING", "convert_config", "load_config", "load_run_config", "parse_config", "read_stored"]

logger = logging.getLogger(__name__)


RENAMED: dict[str, tuple[str, dict[str, str]]] = {
    "track": ("tracker", {}),
    "model.faults": ("model.legacy_bugs", {"dollars_are_padding": "pad_is_dollar_sign"}),
    "train.targets": ("train.caption_targets", {"each": "separate", "one": "random"}),
    "train.shard": ("train.sharding", {"layers": "fsdp"}),
    "train.fast": ("train.debug", {}),
    "train.optimizations": ("train.debug", {}),
}
"""Keys of earlier versions: their new names, and the new names of their values."""
_SYNONYMS_OF = {
    "output": "output_dir out out_dir",
    "log_every": "logging_steps log_steps",
    "save_every": "save_steps",
    "tracker": "report_to wandb",
    "model.path": "base_model model_name model_id model_name_or_path pretrained",
    "model.dtype": "precision torch_dtype bf16 fp16",
    "model.instruction": "prompt system_prompt",
    "model.quantization": "quant load_in_4bit load_in_8bit",
    "data.train": "dataset manifest train_file train_data",
    "train.epochs": "epoch n_epochs num_epochs num_train_epochs max_epoch max_epochs",
    "train.start": "checkpoint init_from resume_from ckpt",
    "train.select": "metric metric_for_best_model best_metric",
    "train.early_stop": "early_stopping patience early_stopping_patience",
    "train.keep": "save_total_limit keep_last",
    "train.batch_size": "batch bs batchsize batch_size train_batch_size per_device_train_batch_size",
    "train.micro_batch_size": "micro_batch mini_batch_size",
    "train.learning_rate": "lr init_lr max_lr",
    "train.min_learning_rate": "min_lr",
    "train.warmup_learning_rate": "warmup_lr",
    "train.warmup_steps": "warmup num_warmup_steps",
    "train.weight_decay": "wd decay",
    "train.clip_norm": "max_grad_norm grad_clip clip gradient_clip",
    "train.gradient_checkpointing": "grad_checkpointing activation_checkpointing use_grad_checkpoint",
    "train.lora.rank": "lora_r lora_rank r",
    "train.lora.alpha": "lora_alpha",
    "train.lora.targets": "lora_targets target_modules lora_target_modules",
    "train.lora.dropout": "lora_dropout",
    "evaluate.max_new_tokens": "max_tokens max_length",
    "evaluate.beams": "num_beams beam_size",
}
SYNONYMS = {synonym: key for key, text in _SYNONYMS_OF.items() for synonym in text.split()}
"""Names of settings in other programs, and the keys here."""
STORED_HEADING = "The configuration of this run, with every default filled in."
"""First line of a configuration that a run has stored. Keys of an earlier version are accepted only below it."""


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the configuration that is stored in a run's folder, also one of an earlier captune.

    Args:
        path: the file.
        overrides: `section.key=value` strings.

    Raises:
        ConfigError: as `load_config`.
    """
    return parse_config(read_stored(Path(path)), overrides, source=str(path))


def read_stored(path: Path) -> dict[str, Any]:
    """The sections of a stored configuration, with the present names of all keys.

    Raises:
        ConfigError: the file cannot be read.
    """
    content = _read_yaml(path)
    _rename_keys(content)
    return content


def _rename_keys(content: dict[str, Any]) -> None:
    for name, section, key in _renamed_keys(content):
        new_name, values = RENAMED[name]
        value = section.pop(key)
        value = [values.get(v, v) for v in value] if isinstance(value, list) else values.get(str(value), value)
        section.setdefault(new_name.rpartition(".")[2], value)


def _renamed_keys(content: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """The keys of an earlier version: full name, section that holds it, name in the section."""
    renamed = []
    for name in RENAMED:
        *sections, key = name.split(".")
        section = content.get(sections[0]) if sections else content
        if not isinstance(section, dict) or key not in section:
            continue
        # Today's key of this name is true or false.
        if name != "train.optimizations" or isinstance(section[key], dict):
            renamed.append((name, section, key))
    return renamed


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, captune's own or one of the original code.

    Args:
        path: the file.
        overrides: `section.key=value` strings; values are YAML. For a file of the original also in its words.

    Returns:
        The checked configuration. Relative paths in it are relative to the working directory; a data file that does
        not exist there is read next to the YAML file, if it exists there.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is not of the kind expected.
    """
    content = _read_yaml(Path(path))
    if is_lavis(content):
        config, notes = _from_lavis(content, overrides, str(path), int(os.environ.get("WORLD_SIZE", "1")))
    else:
        notes = _use_files_next_to(Path(path), content, overrides)
        config = parse_config(content, overrides, source=str(path))
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            logger.warning("%s: %s", path, note)
    return config


_DATA_FILES = (("data", "train"), ("data", "evaluate"), ("evaluate", "protocol"))
"""Sections and keys of files that a configuration names."""


def _use_files_next_to(path: Path, content: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Replace relative paths of data files that exist only next to the YAML file, as when it is used from elsewhere.

    Args:
        path: of the YAML file.
        content: its sections, which are changed.
        overrides: `section.key=value` strings, which win over the file and are relative to the working directory.

    Returns:
        A sentence for each path that was replaced.
    """
    overridden = {override.partition("=")[0].strip() for override in overrides}
    notes = []
    for section, key in _DATA_FILES:
        settings = content.get(section)
        if not isinstance(settings, dict) or not overridden.isdisjoint((section, f"{section}.{key}")):
            continue
        name = settings.get(key)
        if not isinstance(name, str) or os.path.isabs(name) or os.path.lexists(os.path.expanduser(name)):
            continue
        if key == "protocol" and not Path(name).suffix:  # the name of a protocol that captune has
            continue
        other = os.path.normpath(path.parent / name)
        if os.path.isfile(other):
            settings[key] = other
            notes.append(f"{section}.{key} is {other}; the working directory has no {name}.")
    return notes


def convert_config(
    path: str | Path, overrides: Sequence[str] = (), *, processes: int = 1
) -> tuple[RunConfig, list[str]]:
    """Read a YAML file of the original code.

    Args:
        path: the file, with `model:`, `datasets:` and `run:`.
        overrides: `section.key=value` strings, in its words or captune's.
        processes: with which it was run; its batch size is that of each.

    Returns:
        The same run in captune's words, and what there is to say of keys that have no counterpart.

    Raises:
        ConfigError: the file cannot be read, is none of the original's, or asks for what captune does not do.
    """
    content = _read_yaml(Path(path))
    if not is_lavis(content):
        raise ConfigError(f"{path} is no configuration of the original; expected the sections model, datasets and run.")
    return _from_lavis(content, overrides, str(path), processes)


def _from_lavis(
    content: dict[str, Any], overrides: Sequence[str], source: str, processes: int
) -> tuple[RunConfig, list[str]]:
    translation = translate(content, overrides, source=source, processes=processes)
    return parse_config(translation.settings, translation.overrides, source=source), translation.notes


_DATA_SUFFIXES = {".jsonl": "manifest", ".csv": "table", ".tsv": "table", ".parquet": "table"}
"""Endings of files from which `captune init` makes a configuration."""


def _read_yaml(path: Path) -> dict[str, Any]:
    kind = _DATA_SUFFIXES.get(path.suffix.lower())
    if kind is not None and path.is_file():
        command = shlex.join(["captune", "init", str(path)])
        raise ConfigError(f"{path} is a {kind} and not a configuration; write one with: {command}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        if path.parent.is_dir() and path.name == "config.yaml":
            raise ConfigError(
                f"{path.parent} is a folder without the config.yaml of a run; give a run or a YAML file."
            ) from None
        raise ConfigError(f"There is no configuration {path}; give the path of a YAML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give the path of a YAML file.") from error
    try:
        content = load_yaml(text)
    except YamlSyntaxError as error:
        excerpt = f"\n{error.excerpt}" if error.excerpt else ""
        raise ConfigError(f"{path} is not valid YAML: {error}.{excerpt}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; expected sections such as 'model:' and 'train:'.")
    if text.startswith(f"# {STORED_HEADING}"):
        _rename_keys(content)
    return content


def parse_config(
    content: dict[str, Any], overrides: Sequence[str] = (), *, source: str = "the configuration"
) -> RunConfig:
    """Check a dictionary as a configuration.

    Args:
        content: sections and keys, as YAML gives them.
        overrides: `section.key=value` strings that win over `content`.
        source: what error messages call it.

    Raises:
        ConfigError: a key is unknown, or a value is not of the kind expected.
    """
    for override in overrides:
        content = _override(content, override)
    renamed = []
    for name, section, key in _renamed_keys(content):
        inner = section[key]
        part = f".{next(iter(inner))}" if isinstance(inner, dict) and inner else ""
        renamed.append((f"{name}{part}", f"{RENAMED[name][0]}{part}"))
    if len(renamed) == 1:
        raise ConfigError(f"{source}: there is no key '{renamed[0][0]}'; did you mean '{renamed[0][1]}'?")
    if renamed:
        pairs = ", ".join(f"'{old}' is '{new}'" for old, new in renamed)
        raise ConfigError(f"{source} has keys of an earlier captune, which are renamed: {pairs}.")
    try:
        return validate(content, RunConfig, source, ConfigError)
    except ConfigError:
        _suggest_synonym(content, source)
        raise


def _suggest_synonym(content: dict[str, Any], source: str) -> None:
    """Name the key that an unknown one means, if it has another section or the name that other programs use.

    Raises:
        ConfigError: there is such a key.
    """
    known = [key.name for key in configuration_keys()]
    sections = {name.rpartition(".")[0] for name in known}
    last = Counter(name.rpartition(".")[2] for name in known)
    in_other_section = {name.rpartition(".")[2]: name for name in known if last[name.rpartition(".")[2]] == 1}
    # Two sections have a batch size.
    meant = {**in_other_section, **SYNONYMS}
    for name in _key_names(content, sections):
        key = name.rpartition(".")[2].lower().replace("-", "_")
        if name not in known and name not in sections and key in meant:
            raise ConfigError(f"{source}: there is no key '{name}'; did you mean '{meant[key]}'?")


def _key_names(content: dict[str, Any], sections: Collection[str], section: str = "") -> Iterator[str]:
    """The complete names of all keys in known sections."""
    for key, value in content.items():
        name = f"{section}.{key}".lstrip(".")
        yield name
        if isinstance(value, dict) and name in sections:
            yield from _key_names(value, sections, name)


def _override(content: dict[str, Any], override: str) -> dict[str, Any]:
    name, separator, value = override.partition("=")
    keys = name.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"'{override}' is not an override; expected section.key=value, such as train.epochs=3.")
    try:
        parsed = load_yaml(value)
    except ValueError:
        parsed = value
    merged = dict(content)
    node = merged
    for key in keys[:-1]:
        inner = node.get(key)
        node[key] = dict(inner) if isinstance(inner, dict) else {}
        node = node[key]
    node[keys[-1]] = parsed
    return merged
