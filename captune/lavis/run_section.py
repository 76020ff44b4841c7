"""The original's `run:` in captune's words."""

from __future__ import annotations

from typing import Any

from captune.lavis.data_section import main_dataset
from captune.lavis.keys import DEAD_IN_RUN, NOT_NEEDED_IN_RUN, RUN_KEYS
from captune.lavis.reader import Reader

__all__ = ["run_settings"]


def run_settings(reader: Reader, given: dict[str, Any], datasets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The run section in captune's words: sections and keys of a `RunConfig`."""
    reader.known("run", given, RUN_KEYS)
    for key in given:
        if key in DEAD_IN_RUN:
            reader.dead(f"run.{key}", DEAD_IN_RUN[key])
        elif key in NOT_NEEDED_IN_RUN:
            reader.note(f"run.{key} is not needed: {NOT_NEEDED_IN_RUN[key]}.")
    _refuse(reader, given)
    settings: dict[str, Any] = {"train": _train(reader, given, datasets)}
    if "seed" in given:
        settings["seed"] = reader.number(given, "seed", int)
    if "output_dir" in given:
        settings["output"] = reader.text("run.output_dir", given["output_dir"])
    if "log_freq" in given:
        settings["log_every"] = reader.number(given, "log_freq", int)
    if given.get("wandb_log"):
        settings["tracker"] = "wandb"
    splits = given.get("train_splits")
    if splits:
        if not isinstance(splits, list):
            raise reader.error(f"run.train_splits is {splits!r}; expected a list of splits, such as ['train']")
        settings["data"] = {"train_split": ",".join(map(str, splits))}
    return settings


def _refuse(reader: Reader, given: dict[str, Any]) -> None:
    """Settings that would make another run than captune's."""
    if given.get("evaluate"):
        raise reader.error("run.evaluate is true, which trains nothing; use `captune evaluate`")
    schedule = given.get("lr_sched", "linear_warmup_cosine_lr")
    if schedule != "linear_warmup_cosine_lr":
        raise reader.error(f"run.lr_sched is {schedule!r}; captune has linear_warmup_cosine_lr")
    if given.get("resume_ckpt_path"):
        raise reader.error(
            f"run.resume_ckpt_path is {given['resume_ckpt_path']!r}; a run of the original cannot be gone on with, "
            "but `captune convert --checkpoint` reads its weights"
        )
    for key in ("valid_splits", "test_splits"):
        if given.get(key):
            reader.note(f"run.{key}: every epoch is evaluated on data.evaluate_split.")


def _train(reader: Reader, given: dict[str, Any], datasets: dict[str, dict[str, Any]]) -> dict[str, Any]:
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
            train[new] = reader.number(given, old, kind)
    if "beta2" in given:
        train["betas"] = [0.9, reader.number(given, "beta2", float)]
    highest = train.get("learning_rate")
    if highest is not None and train.get("min_learning_rate", 0) > highest:
        reader.note(
            f"run.min_lr is {train['min_learning_rate']:g}, above run.init_lr: the original's rate rose to it. "
            f"captune's never rises after the warm-up; it stays at {highest:g}."
        )
        train["min_learning_rate"] = highest
    if train.get("warmup_steps", 0) > train.get("steps_per_epoch", train.get("warmup_steps", 0)):
        reader.note("run.warmup_steps is longer than an epoch: the original began again in each, captune does not.")
    _batch(reader, train, given, datasets)
    return train


def _batch(reader: Reader, train: dict[str, Any], given: dict[str, Any], datasets: dict[str, dict[str, Any]]) -> None:
    """The batch of an optimiser step over all processes, out of the original's batch of one process."""
    name = main_dataset(datasets)
    place, size = f"datasets.{name}.batch_size", datasets[name].get("batch_size")
    if size is not None and "batch_size_train" in given:
        reader.dead("run.batch_size_train", f"{place} is read instead")
    if size is None:
        place, size = "run.batch_size_train", given.get("batch_size_train")
    if size is None:
        raise reader.error(f"there is no {place.replace('run.', 'datasets.*.')}; give datasets.{name}.batch_size")
    each = reader.as_number(place, size, int)
    accumulated = reader.number(given, "accum_grad_iters", int) if given.get("accum_grad_iters") else 1
    if each < 1 or accumulated < 1:
        raise reader.error(f"{place} and run.accum_grad_iters have to be at least 1")
    train["batch_size"] = each * accumulated * reader.processes
    if reader.processes > 1:
        reader.note(f"{place} is {each} for each of {reader.processes} processes.")
    if accumulated > 1:
        train["micro_batch_size"] = each
        if "steps_per_epoch" in train:
            train["steps_per_epoch"] = -(-train["steps_per_epoch"] // accumulated)
        reader.note("run.accum_grad_iters: the original added up losses; here a step is the mean over its targets.")
