"""Configurations of MiniGPT-4 and LAVIS (`model:`, `datasets:`, `run:`) in the words of captune.

A translation is a plain dictionary for `captune.config` and a list of sentences: which keys had no effect in the
original, which are not needed here, and what to do where there is no counterpart. A key that the original does not know
either is an error, for there it was silently ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from captune.errors import ConfigError
from captune.lavis.keys import (
    ARCHS,
    DATASET_KEYS,
    DEAD_IN_RUN,
    IN_THE_FOLDER,
    MODEL_KEYS,
    NOT_NEEDED_IN_RUN,
    PLAIN_DATASETS,
    READ_BY,
    RUN_KEYS,
    SECTIONS,
    VISION_KEYS,
)

__all__ = ["Translation", "is_lavis", "translate"]

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
    return _Translator(source, processes).translate(content, overrides)


class _Translator:
    def __init__(self, source: str, processes: int) -> None:
        self._source = source
        self._processes = processes
        self._notes: list[str] = []

    def translate(self, content: dict[str, Any], overrides: Sequence[str]) -> Translation:
        self._known("", content, SECTIONS)
        sections = {name: self._section(content, name) for name in ("model", "datasets", "run")}
        left = []
        for override in overrides:
            name, _, value = override.partition("=")
            section, _, key = name.strip().partition(".")
            if section in ("datasets", "run") or (section == "model" and key in MODEL_KEYS):
                self._override(sections[section], key.split("."), value)
            else:
                left.append(override)
        datasets = self._datasets(sections["datasets"])
        model = self._model(sections["model"], datasets)
        settings = self._run(sections["run"], datasets)
        for name in ("preprocess", "evaluation_datasets"):
            if name in content:
                self._dead(name, "training reads datasets alone")
        settings["model"] = model
        return Translation(settings, left, self._notes)

    def _section(self, content: dict[str, Any], name: str) -> dict[str, Any]:
        section = content.get(name)
        if not isinstance(section, dict):
            raise self._error(f"it has no section '{name}:'; the original needs model, datasets and run")
        return dict(section)

    def _override(self, section: dict[str, Any], keys: list[str], value: str) -> None:
        for key in keys[:-1]:
            inner = section.get(key)
            section[key] = dict(inner) if isinstance(inner, dict) else {}
            section = section[key]
        try:
            section[keys[-1]] = yaml.safe_load(value)
        except yaml.YAMLError:
            section[keys[-1]] = value

    def _model(self, given: dict[str, Any], datasets: dict[str, dict[str, Any]]) -> dict[str, Any]:
        self._known("model", given, MODEL_KEYS)
        arch = given.get("arch")
        if arch not in ARCHS:
            raise self._error(f"model.arch is {arch!r}; expected one of: {', '.join(ARCHS)}")
        read = READ_BY[ARCHS[arch]]
        for key in given:
            if key not in read:
                self._dead(f"model.{key}", f"arch {arch} does not read it")
        path = self._model_path(given)
        own = [name for name in datasets if name not in PLAIN_DATASETS]
        if "prompt_path" in given and "prompt_path" in read:
            if own and len(own) == len(datasets):
                for key in ("prompt_path", "prompt_template"):
                    if key in given:
                        self._dead(f"model.{key}", f"{own[0]} brings instructions of its own, which are not wrapped")
            else:
                self._note(
                    "model.prompt_path: one of its prompts was drawn for each batch; here model.instruction is asked "
                    "of every image, in training and in evaluation."
                )
        carried = [key for key in given if key in IN_THE_FOLDER & read]
        if carried:
            named = ", ".join(f"model.{key}" for key in carried)
            self._note(f"{named}: the model's folder says this; `captune convert` writes it.")
        if given.get("low_resource"):
            self._note("model.low_resource: int8 made the original slower; the language model stays in model.dtype.")
        for key in ("freeze_vit", "freeze_qformer"):
            if given.get(key) is False:
                raise self._error(f"model.{key} is false; captune keeps the vision side frozen")
        return {"path": path}

    def _model_path(self, given: dict[str, Any]) -> str:
        checkpoint = given.get("ckpt")
        if not checkpoint:
            self._note("model.ckpt is not given; set model.path to the folder that `captune convert` wrote.")
            return "weights/minigpt4-vicuna-7b"
        checkpoint = self._text("model.ckpt", checkpoint)
        if not checkpoint.endswith(".pth"):
            return checkpoint
        folder = checkpoint.removesuffix(".pth")
        self._note(
            f"model.ckpt is {checkpoint}; captune reads the folder {folder}, which `captune convert --checkpoint "
            f"{checkpoint} --out {folder}` makes with the language model and the vision files."
        )
        return folder

    def _datasets(self, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
        if not given:
            raise self._error("datasets is empty; expected one")
        found = {}
        for name, settings in given.items():
            place = f"datasets.{name}"
            if not isinstance(settings, dict):
                raise self._error(f"{place} is {settings!r}; expected its settings")
            self._known(place, settings, DATASET_KEYS)
            self._processors(place, settings, name)
            if "sample_ratio" in settings and len(given) == 1:
                self._dead(f"{place}.sample_ratio", "there is one dataset")
            if "build_info" in settings:
                self._note(f"{place}.build_info: make a manifest of it with `captune prepare`.")
            found[name] = settings
        if len(found) > 1:
            self._note(
                f"datasets: {len(found)} are mixed; captune trains on the captions of one manifest, data.train. The "
                f"batch size is that of {self._main_dataset(found)}."
            )
        self._note(
            "datasets: images and captions come from the manifest data.train, which `captune prepare` writes; a sample "
            "is one image with one caption, as in the original (train.captions_per_image above 1 is faster)."
        )
        return found

    def _processors(self, place: str, settings: dict[str, Any], dataset: str) -> None:
        for kind in ("vis_processor", "text_processor"):
            splits = settings.get(kind) or {}
            self._known(f"{place}.{kind}", splits, ("train", "eval", "test"))
            for split in splits:
                if split != "train":
                    self._dead(f"{place}.{kind}.{split}", "training reads train alone")
        vision = (settings.get("vis_processor") or {}).get("train") or {}
        self._known(f"{place}.vis_processor.train", vision, VISION_KEYS)
        for key in ("min_scale", "max_scale"):
            if key in vision:
                self._dead(f"{place}.vis_processor.train.{key}", "its transform crops nothing")
        if {"mean", "std"} & set(vision):
            raise self._error(f"{place}.vis_processor.train gives mean or std; captune normalises as the towers learnt")
        if settings.get("text_processor"):
            if dataset == "cc_sbu_align" or "grounded" in dataset:
                self._dead(f"{place}.text_processor", "this dataset does not apply it to captions")
            else:
                self._note(f"{place}.text_processor is not applied: captions are learnt as they are written.")

    def _main_dataset(self, datasets: Iterable[str]) -> str:
        names = list(datasets)
        return next((name for name in names if "caption" in name or name in PLAIN_DATASETS), names[0])

    def _run(self, given: dict[str, Any], datasets: dict[str, dict[str, Any]]) -> dict[str, Any]:
        self._known("run", given, RUN_KEYS)
        for key in given:
            if key in DEAD_IN_RUN:
                self._dead(f"run.{key}", DEAD_IN_RUN[key])
            elif key in NOT_NEEDED_IN_RUN:
                self._note(f"run.{key} is not needed: {NOT_NEEDED_IN_RUN[key]}.")
        self._refuse(given)
        settings: dict[str, Any] = {"train": self._train(given, datasets)}
        if "seed" in given:
            settings["seed"] = self._number(given, "seed", int)
        if "output_dir" in given:
            settings["output"] = self._text("run.output_dir", given["output_dir"])
        if "log_freq" in given:
            settings["log_every"] = self._number(given, "log_freq", int)
        if given.get("wandb_log"):
            settings["track"] = "wandb"
        splits = given.get("train_splits")
        if splits:
            if not isinstance(splits, list) or len(splits) > 1:
                raise self._error(f"run.train_splits is {splits!r}; expected one split, such as ['train']")
            settings["data"] = {"train_split": str(splits[0])}
        return settings

    def _refuse(self, given: dict[str, Any]) -> None:
        """Settings that would make another run than captune's."""
        if given.get("evaluate"):
            raise self._error("run.evaluate is true, which trains nothing; use `captune evaluate`")
        schedule = given.get("lr_sched", "linear_warmup_cosine_lr")
        if schedule != "linear_warmup_cosine_lr":
            raise self._error(f"run.lr_sched is {schedule!r}; captune has linear_warmup_cosine_lr")
        if given.get("resume_ckpt_path"):
            raise self._error(
                f"run.resume_ckpt_path is {given['resume_ckpt_path']!r}; a run of the original cannot be gone on with, "
                "but `captune convert --checkpoint` reads its weights"
            )
        for key in ("valid_splits", "test_splits"):
            if given.get(key):
                self._note(f"run.{key}: every epoch is evaluated on data.evaluate_split.")

    def _train(self, given: dict[str, Any], datasets: dict[str, dict[str, Any]]) -> dict[str, Any]:
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
            if given.get(old) is not None:
                train[new] = self._number(given, old, kind)
        if "beta2" in given:
            train["betas"] = [0.9, self._number(given, "beta2", float)]
        highest = train.get("learning_rate")
        if highest is not None and train.get("min_learning_rate", 0) > highest:
            self._note(
                f"run.min_lr is {train['min_learning_rate']:g}, above run.init_lr: the original's rate rose to it. "
                f"captune's never rises after the warm-up; it stays at {highest:g}."
            )
            train["min_learning_rate"] = highest
        if train.get("warmup_steps", 0) > train.get("steps_per_epoch", train.get("warmup_steps", 0)):
            self._note("run.warmup_steps is longer than an epoch: the original began again in each, captune does not.")
        self._batch(train, given, datasets)
        return train

    def _batch(self, train: dict[str, Any], given: dict[str, Any], datasets: dict[str, dict[str, Any]]) -> None:
        """The batch of an optimiser step over all processes, out of the original's batch of one process."""
        name = self._main_dataset(datasets)
        place, size = f"datasets.{name}.batch_size", datasets[name].get("batch_size")
        if size is not None and "batch_size_train" in given:
            self._dead("run.batch_size_train", f"{place} is read instead")
        if size is None:
            place, size = "run.batch_size_train", given.get("batch_size_train")
        if size is None:
            raise self._error(f"there is no {place.replace('run.', 'datasets.*.')}; give datasets.{name}.batch_size")
        each = self._as_number(place, size, int)
        accumulated = self._number(given, "accum_grad_iters", int) if given.get("accum_grad_iters") else 1
        if each < 1 or accumulated < 1:
            raise self._error(f"{place} and run.accum_grad_iters have to be at least 1")
        train["batch_size"] = each * accumulated * self._processes
        if self._processes > 1:
            self._note(f"{place} is {each} for each of {self._processes} processes.")
        if accumulated > 1:
            train["micro_batch_size"] = each
            if "steps_per_epoch" in train:
                train["steps_per_epoch"] = -(-train["steps_per_epoch"] // accumulated)
            self._note("run.accum_grad_iters: the original added up losses; here a step is the mean over its targets.")

    def _number(self, given: dict[str, Any], key: str, kind: Callable[[Any], Any]) -> Any:
        return self._as_number(f"run.{key}", given[key], kind)

    def _as_number(self, place: str, value: Any, kind: Callable[[Any], Any]) -> Any:
        """YAML 1.1 reads 3e-5 as text, and 5.0 is a whole number."""
        try:
            number = float(value)
            if isinstance(value, bool) or kind(number) != number:
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            expected = "a whole number" if kind is int else "a number"
            raise self._error(f"{place} is {value!r}; expected {expected}") from None
        return kind(number)

    def _text(self, place: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self._error(f"{place} is {value!r}; expected a path")
        if "${" in value:
            raise self._error(f"{place} is '{value}', which OmegaConf would fill in; write the path itself")
        return value

    def _known(self, place: str, given: Any, known: Iterable[str]) -> None:
        if not isinstance(given, dict):
            raise self._error(f"{place} is {given!r}; expected keys with values")
        known = sorted(known)
        for key in given:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = f"did you mean '{close[0]}'?" if close else f"known keys are: {', '.join(known)}"
                raise self._error(f"there is no key '{f'{place}.' if place else ''}{key}'; {hint}")

    def _error(self, sentence: str) -> ConfigError:
        end = "" if sentence.endswith("?") else "."
        return ConfigError(f"{self._source} is a configuration of the original: {sentence}{end}")

    def _note(self, sentence: str) -> None:
        self._notes.append(sentence)

    def _dead(self, place: str, reason: str) -> None:
        self._note(f"{place} had no effect in the original: {reason}.")
