"""Configurations of MiniGPT-4 and LAVIS (`model:`, `datasets:`, `run:`) translated to captune's.

A translation is a plain dictionary for `captune.config` and a list of notes: which keys had no effect in the original,
which are not needed here, and what to do where there is no counterpart. A key that the original does not know either is
an error, for there it was silently ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from captune.common import did_you_mean
from captune.config.minigpt4_keys import (
    ARCHS,
    DATASET_KEYS,
    IGNORED_RUN_KEYS,
    KEYS_IN_CHECKPOINT,
    MODEL_KEYS,
    NOT_NEEDED_IN_RUN,
    PLAIN_DATASETS,
    READ_BY,
    RUN_KEYS,
    SECTIONS,
    VISION_KEYS,
)
from captune.errors import ConfigError
from captune.parsing import load_yaml

__all__ = ["Translation", "is_lavis", "translate"]


class Reader:
    """Reads one file and takes down what there is to say of it.

    Args:
        source: what messages call the file.
        processes: that torchrun started; the original's batch size is that of each process.

    Attributes:
        notes: sentences for a person, in the order of the file.
    """

    def __init__(self, source: str, processes: int) -> None:
        self.source = source
        self.processes = processes
        self.notes: list[str] = []

    def number(self, values: dict[str, Any], key: str, kind: Callable[[Any], Any]) -> Any:
        """A number of the run section."""
        return self.as_number(f"run.{key}", values[key], kind)

    def as_number(self, key_path: str, value: Any, kind: Callable[[Any], Any]) -> Any:
        """YAML 1.1 reads 3e-5 as text, and 5.0 is a whole number."""
        try:
            number = float(value)
            if isinstance(value, bool) or kind(number) != number:
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            expected = "a whole number" if kind is int else "a number"
            raise self.error(f"{key_path} is {value!r}; expected {expected}") from None
        return kind(number)

    def text(self, key_path: str, value: Any) -> str:
        """A path."""
        if not isinstance(value, str):
            raise self.error(f"{key_path} is {value!r}; expected a path")
        if "${" in value:
            raise self.error(f"{key_path} is '{value}', which OmegaConf would fill in; write the path itself")
        return value

    def known(self, key_path: str, values: Any, known: Iterable[str]) -> None:
        """Refuse keys that the original does not know either; there they were silently ignored."""
        if not isinstance(values, dict):
            raise self.error(f"{key_path} is {values!r}; expected keys with values")
        known = sorted(known)
        for key in values:
            if key not in known:
                hint = did_you_mean(str(key), known, f"known keys are: {', '.join(known)}", cutoff=0.5)
                raise self.error(f"there is no key '{f'{key_path}.' if key_path else ''}{key}'; {hint}")

    def error(self, sentence: str) -> ConfigError:
        """What to raise where the file cannot be translated."""
        end = "" if sentence.endswith("?") else "."
        return ConfigError(f"{self.source} is a configuration of the original: {sentence}{end}")

    def note(self, sentence: str) -> None:
        """Take down something a person should know."""
        self.notes.append(sentence)

    def dead(self, key_path: str, reason: str) -> None:
        """Take down a key without effect."""
        self.note(f"{key_path} had no effect in the original: {reason}.")


def read_datasets(reader: Reader, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The datasets by name, each with its settings; what has no counterpart is noted."""
    if not values:
        raise reader.error("datasets is empty; expected one")
    datasets = {}
    for name, settings in values.items():
        key_path = f"datasets.{name}"
        if not isinstance(settings, dict):
            raise reader.error(f"{key_path} is {settings!r}; expected its settings")
        reader.known(key_path, settings, DATASET_KEYS)
        _processors(reader, key_path, settings, name)
        if "sample_ratio" in settings and len(values) == 1:
            reader.dead(f"{key_path}.sample_ratio", "there is one dataset")
        if "build_info" in settings:
            reader.note(f"{key_path}.build_info: make a manifest of it with `captune prepare`.")
        datasets[name] = settings
    if len(datasets) > 1:
        reader.note(
            f"datasets: {len(datasets)} are mixed; captune trains on the captions of one manifest, data.train. The "
            f"batch size is that of {main_dataset(datasets)}."
        )
    reader.note(
        "datasets: images and captions come from the manifest data.train, which `captune prepare` writes; a sample "
        "is one image with one caption, as in the original (train.captions_per_image above 1 is faster)."
    )
    return datasets


def _processors(reader: Reader, key_path: str, settings: dict[str, Any], dataset: str) -> None:
    for kind in ("vis_processor", "text_processor"):
        splits = settings.get(kind) or {}
        reader.known(f"{key_path}.{kind}", splits, ("train", "eval", "test"))
        for split in splits:
            if split != "train":
                reader.dead(f"{key_path}.{kind}.{split}", "training reads train alone")
    vision = (settings.get("vis_processor") or {}).get("train") or {}
    reader.known(f"{key_path}.vis_processor.train", vision, VISION_KEYS)
    for key in ("min_scale", "max_scale"):
        if key in vision:
            reader.dead(f"{key_path}.vis_processor.train.{key}", "its transform crops nothing")
    if {"mean", "std"} & set(vision):
        problem = "gives mean or std; captune normalizes as the vision encoder was trained"
        raise reader.error(f"{key_path}.vis_processor.train {problem}")
    if settings.get("text_processor"):
        if dataset == "cc_sbu_align" or "grounded" in dataset:
            reader.dead(f"{key_path}.text_processor", "this dataset does not apply it to captions")
        else:
            reader.note(f"{key_path}.text_processor is not applied: captions are trained on as they are written.")


def main_dataset(datasets: Iterable[str]) -> str:
    """The dataset whose batch size counts."""
    names = list(datasets)
    return next((name for name in names if "caption" in name or name in PLAIN_DATASETS), names[0])


def model_settings(reader: Reader, values: dict[str, Any], datasets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The model section in captune's words."""
    reader.known("model", values, MODEL_KEYS)
    arch = values.get("arch")
    if arch not in ARCHS:
        raise reader.error(f"model.arch is {arch!r}; expected one of: {', '.join(ARCHS)}")
    read = READ_BY[ARCHS[arch]]
    for key in values:
        if key not in read:
            reader.dead(f"model.{key}", f"arch {arch} does not read it")
    path = _path(reader, values)
    instructed = [name for name in datasets if name not in PLAIN_DATASETS]
    if "prompt_path" in values and "prompt_path" in read:
        if instructed and len(instructed) == len(datasets):
            for key in ("prompt_path", "prompt_template"):
                if key in values:
                    reader.dead(
                        f"model.{key}", f"{instructed[0]} contains separate instructions, which are not wrapped"
                    )
        else:
            reader.note(
                "model.prompt_path: one of its prompts was drawn for each batch; here model.instruction is used "
                "of every image, in training and in evaluation."
            )
    carried = [key for key in values if key in KEYS_IN_CHECKPOINT & read]
    if carried:
        named = ", ".join(f"model.{key}" for key in carried)
        reader.note(f"{named}: the model's folder contains this; `captune convert` writes it.")
    if values.get("low_resource"):
        reader.note("model.low_resource: int8 made the original slower; to save memory set model.quantization to int8.")
    for key in ("freeze_vit", "freeze_qformer"):
        if values.get(key) is False:
            raise reader.error(f"model.{key} is false; captune keeps the vision side frozen")
    return {"path": path}


def _path(reader: Reader, values: dict[str, Any]) -> str:
    checkpoint = values.get("ckpt")
    if not checkpoint:
        reader.note("model.ckpt is not given; set model.path to the folder that `captune convert` wrote.")
        return "./weights/minigpt4-vicuna-7b"
    checkpoint = reader.text("model.ckpt", checkpoint)
    if not checkpoint.endswith(".pth"):
        return checkpoint
    folder = checkpoint.removesuffix(".pth")
    reader.note(
        f"model.ckpt is {checkpoint}; captune reads the folder {folder}, which `captune convert --checkpoint "
        f"{checkpoint} --out {folder}` makes with the language model and the vision files."
    )
    return folder


def run_settings(reader: Reader, values: dict[str, Any], datasets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The run section in captune's words: sections and keys of a `RunConfig`."""
    reader.known("run", values, RUN_KEYS)
    for key in values:
        if key in IGNORED_RUN_KEYS:
            reader.dead(f"run.{key}", IGNORED_RUN_KEYS[key])
        elif key in NOT_NEEDED_IN_RUN:
            reader.note(f"run.{key} is not needed: {NOT_NEEDED_IN_RUN[key]}.")
    _refuse(reader, values)
    settings: dict[str, Any] = {"train": _train(reader, values, datasets)}
    if "seed" in values:
        settings["seed"] = reader.number(values, "seed", int)
    if "output_dir" in values:
        settings["output"] = reader.text("run.output_dir", values["output_dir"])
    if "log_freq" in values:
        settings["log_every"] = reader.number(values, "log_freq", int)
    if values.get("wandb_log"):
        settings["tracker"] = "wandb"
    splits = values.get("train_splits")
    if splits:
        if not isinstance(splits, list):
            raise reader.error(f"run.train_splits is {splits!r}; expected a list of splits, such as ['train']")
        settings["data"] = {"train_split": ",".join(map(str, splits))}
    return settings


def _refuse(reader: Reader, values: dict[str, Any]) -> None:
    """Settings that would make another run than captune's."""
    if values.get("evaluate"):
        raise reader.error("run.evaluate is true, which trains nothing; use `captune evaluate`")
    schedule = values.get("lr_sched", "linear_warmup_cosine_lr")
    if schedule != "linear_warmup_cosine_lr":
        raise reader.error(f"run.lr_sched is {schedule!r}; captune has linear_warmup_cosine_lr")
    if values.get("resume_ckpt_path"):
        raise reader.error(
            f"run.resume_ckpt_path is {values['resume_ckpt_path']!r}; a run of the original cannot be gone on with, "
            "but `captune convert --checkpoint` reads its weights"
        )
    for key in ("valid_splits", "test_splits"):
        if values.get(key):
            reader.note(f"run.{key}: every epoch is evaluated on data.evaluate_split.")


def _train(reader: Reader, values: dict[str, Any], datasets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    train: dict[str, Any] = {"captions_per_image": 1, "clip_norm": None}
    for old, new, kind in (
        ("init_lr", "learning_rate", float),
        ("min_lr", "min_learning_rate", float),
        ("warmup_lr", "warmup_learning_rate", float),
        ("weight_decay", "weight_decay", float),
        ("warmup_steps", "warmup_steps", int),
        ("max_epoch", "epochs", int),
        ("iters_per_epoch", "steps_per_epoch", int),
    ):
        if values.get(old) is not None:
            train[new] = reader.number(values, old, kind)
    if "beta2" in values:
        train["betas"] = [0.9, reader.number(values, "beta2", float)]
    highest = train.get("learning_rate")
    if highest is not None and train.get("min_learning_rate", 0) > highest:
        reader.note(
            f"run.min_lr is {train['min_learning_rate']:g}, above run.init_lr: the original's rate rose to it. "
            f"captune's never rises after the warm-up; it stays at {highest:g}."
        )
        train["min_learning_rate"] = highest
    if train.get("warmup_steps", 0) > train.get("steps_per_epoch", train.get("warmup_steps", 0)):
        reader.note("run.warmup_steps is longer than an epoch: the original began again in each, captune does not.")
    _batch(reader, train, values, datasets)
    return train


def _batch(reader: Reader, train: dict[str, Any], values: dict[str, Any], datasets: dict[str, dict[str, Any]]) -> None:
    """The batch of an optimiser step over all processes, out of the original's batch of one process."""
    name = main_dataset(datasets)
    key_path, size = f"datasets.{name}.batch_size", datasets[name].get("batch_size")
    if size is not None and "batch_size_train" in values:
        reader.dead("run.batch_size_train", f"{key_path} is read instead")
    if size is None:
        key_path, size = "run.batch_size_train", values.get("batch_size_train")
    if size is None:
        raise reader.error(f"there is no {key_path.replace('run.', 'datasets.*.')}; give datasets.{name}.batch_size")
    each = reader.as_number(key_path, size, int)
    accumulated = reader.number(values, "accum_grad_iters", int) if values.get("accum_grad_iters") else 1
    if each < 1 or accumulated < 1:
        raise reader.error(f"{key_path} and run.accum_grad_iters have to be at least 1")
    train["batch_size"] = each * accumulated * reader.processes
    if reader.processes > 1:
        reader.note(f"{key_path} is {each} for each of {reader.processes} processes.")
    if accumulated > 1:
        train["micro_batch_size"] = each
        if "steps_per_epoch" in train:
            train["steps_per_epoch"] = -(-train["steps_per_epoch"] // accumulated)
        reader.note("run.accum_grad_iters: the original added up losses; here a step is the mean over its targets.")


OWN_SECTIONS = frozenset({"data", "train", "evaluate"})


@dataclass
class Translation:
    """An old configuration in new words.

    Attributes:
        settings: sections and keys of a `RunConfig`.
        overrides: those of the given overrides that are in new words already.
        notes: sentences for a person, in the order of the file.
    """

    settings: dict[str, Any]
    overrides: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_lavis(content: dict[str, Any]) -> bool:
    """Whether a YAML's content is a configuration of the original."""
    return bool({"run", "datasets"} & set(content)) and not OWN_SECTIONS & set(content)


def translate(
    content: dict[str, Any], overrides: Sequence[str] = (), *, source: str = "the configuration", processes: int = 1
) -> Translation:
    """Translate a configuration of the original.

    Args:
        content: as YAML gives it.
        overrides: `section.key=value` strings, in old words or in new ones.
        source: what messages call it.
        processes: that torchrun started; the original's batch size is that of each process.

    Returns:
        The settings, the overrides that are left, and what there is to say.

    Raises:
        ConfigError: a key that the original does not know, or a setting without a counterpart.
    """
    reader = Reader(source, processes)
    reader.known("", content, SECTIONS)
    sections = {name: _section(reader, content, name) for name in ("model", "datasets", "run")}
    left = []
    for override in overrides:
        name, _, value = override.partition("=")
        section, _, key = name.strip().partition(".")
        if section in ("datasets", "run") or (section == "model" and key in MODEL_KEYS):
            _override(sections[section], key.split("."), value)
        else:
            left.append(override)
    datasets = read_datasets(reader, sections["datasets"])
    model = model_settings(reader, sections["model"], datasets)
    settings = run_settings(reader, sections["run"], datasets)
    for name in ("preprocess", "evaluation_datasets"):
        if name in content:
            reader.dead(name, "training reads datasets alone")
    settings["model"] = model
    if sections["model"].get("use_grad_checkpoint_llm"):
        settings["train"]["gradient_checkpointing"] = True
    return Translation(settings, left, reader.notes)


def _section(reader: Reader, content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.get(name)
    if not isinstance(section, dict):
        raise reader.error(f"it has no section '{name}:'; the original needs model, datasets and run")
    return dict(section)


def _override(section: dict[str, Any], keys: list[str], value: str) -> None:
    for key in keys[:-1]:
        inner = section.get(key)
        section[key] = dict(inner) if isinstance(inner, dict) else {}
        section = section[key]
    try:
        section[keys[-1]] = load_yaml(value)
    except ValueError:
        section[keys[-1]] = value
