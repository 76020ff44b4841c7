"""The output folder of a run: whether a run may start or resume there, and making it ready.

Nothing in the folder is removed. A run starts in a folder that is new, empty, or holds this very run before anything of
it was saved. Files of another run or program are refused, or moved into `replaced-N` inside the folder with
`--overwrite`.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from captune.config import (
    PATHS_FILE,
    STORED_HEADING,
    RunConfig,
    changed_settings,
    commented_yaml,
    load_run_config,
    working_directory_record,
)
from captune.data import (
    RECORDS,
    atomic_file,
    content_ids,
    is_lock_file,
    load_image,
    manifest_hash,
    read_manifest,
    resolve_image,
)
from captune.errors import ConfigError, DataError, InputError
from captune.evaluation import training_images
from captune.parsing import load_json
from captune.report import RunScores, read_scores, thumbnail_sources
from captune.run_checkpoints import checkpoint_folder, checkpoint_folders, read_record, tensor_file
from captune.run_folders import (
    CONFIG,
    IGNORED,
    OVERWRITE,
    RUN_FILES,
    UNTOUCHED,
    decisive_changes,
    first_event,
    last_event,
    other_configuration,
)
from captune.training.saved_states import STATES, has_states, saved_progress

__all__ = [
    "QUARANTINE",
    "Inspection",
    "RunStatus",
    "clear_refused_run",
    "inspect_run",
    "left_out_images",
    "open_run_folder",
    "readable_again",
    "refuse_unless_free",
    "run_status",
    "store_config",
]


QUARANTINE = "quarantine.json"
"""Name of the file of the training images that a run leaves out, with the reasons."""


class RunStatus(Enum):
    """What the output folder of a configuration holds."""

    EMPTY = "nothing that a new run could touch"
    BEGUN = "this very run, before anything of it was saved"
    UNFINISHED = "this very run, saved somewhere on its way"
    FINISHED = "this very run, with its last epoch scored"
    OTHER = "a run with another configuration or on other data"
    DAMAGED = "a run of which something is damaged or missing"
    FOREIGN = "files, and no run"


_MODEL_REFUSAL = re.compile(r" refuses '| are not numbers: ")


@dataclass(frozen=True)
class Inspection:
    """What the output folder of a configuration holds.

    Attributes:
        status: in one word.
        reason: why no run may begin there, as a sentence that says what to do; empty where one may.
        stored: the configuration that the folder holds, where some of the adjustable settings differ from it.
    """

    status: RunStatus
    reason: str = ""
    stored: RunConfig | None = None


def run_status(config: RunConfig) -> RunStatus:
    """The status of `inspect_run`."""
    return inspect_run(config).status


def inspect_run(config: RunConfig) -> Inspection:
    """What the run's folder holds, seen from this configuration and its training data.

    Raises:
        ConfigError: the output is a file.
        DataError: the training manifest cannot be read.
    """
    output = config.output
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output is {output}, which is a file; give the name of a folder.")
    entries = _entries(output)
    if not entries:
        return Inspection(RunStatus.EMPTY)
    if CONFIG not in entries:
        return _refused(
            RunStatus.FOREIGN,
            f"{output} is not empty ({_shown(entries)}) and holds no {CONFIG} of a run. Put that file back if this was "
            "a run, give another folder with output=...",
        )
    try:
        written = load_run_config(output / CONFIG)
    except ConfigError as error:
        fault = str(error).splitlines()[0].rstrip(".")
        return _refused(
            RunStatus.DAMAGED,
            f"{output} holds a run whose {CONFIG} cannot be read: {fault}. Restore it, give another "
            "folder with output=...",
        )
    # By what it says, not by its text: a newer captune explains a field in other words, and has fields that an older
    # one had not written, which then have their defaults.
    written = written.model_copy(update={"output": output})
    changes = changed_settings(written, config)
    decisive = decisive_changes(changes)
    if decisive:
        return _refused(RunStatus.OTHER, other_configuration(output, decisive))
    inspection = _inspect_own(config, same=not changes)
    if not changes or inspection.reason:
        return inspection
    if config.train.epochs < written.train.epochs and inspection.status is not RunStatus.BEGUN:
        return _refused(
            RunStatus.OTHER,
            f"train.epochs is {config.train.epochs}, and the run in {output} has {written.train.epochs}: more epochs "
            f"continue a run, fewer do not shorten it. Set train.epochs to {written.train.epochs} or more, give "
            "another folder with output=...",
        )
    return replace(inspection, stored=written)


def refuse_unless_free(inspection: Inspection, *, overwrite: bool) -> None:
    """See that a run may begin or resume where it is to be written.

    Raises:
        ConfigError: the folder holds something else.
    """
    if inspection.reason and not overwrite:
        raise ConfigError(inspection.reason)


def open_run_folder(config: RunConfig, inspection: Inspection) -> Path | None:
    """Make the run's folder ready for a new run.

    Args:
        config: of the run; written into the folder with every default filled in.
        inspection: what the folder holds; moved aside unless it is this very run before anything of it was saved.

    Returns:
        The folder that now holds what was moved aside, None where nothing was.
    """
    output = config.output
    output.mkdir(parents=True, exist_ok=True)
    aside = None
    if inspection.status is RunStatus.BEGUN:
        for name in ("log.jsonl", QUARANTINE, "images.json", "computation.json"):
            (output / name).unlink(missing_ok=True)
    elif inspection.status is not RunStatus.EMPTY:
        aside = _move_aside(output)
    if not (output / CONFIG).exists() or inspection.stored is not None:
        store_config(config)
    return aside


def clear_refused_run(output: Path) -> None:
    """Remove what the preparation of a new run wrote into an empty folder, so that a corrected run may begin there."""
    for name in (CONFIG, PATHS_FILE, "log.jsonl", QUARANTINE, "images.json", "prompt.json", "computation.json"):
        (output / name).unlink(missing_ok=True)


def store_config(config: RunConfig) -> None:
    """Write the configuration of a run, and the directory that its paths are relative to, into its folder."""
    with atomic_file(config.output / PATHS_FILE, "w") as stream:
        stream.write(working_directory_record(config.output))
    with atomic_file(config.output / CONFIG, "w") as stream:
        stream.write(commented_yaml(config, STORED_HEADING))


def _inspect_own(config: RunConfig, *, same: bool) -> Inspection:
    """What is there of this very run; `same` if the folder holds this configuration, `ADJUSTABLE` settings included."""
    output = config.output
    data = manifest_hash(config.data.train)
    saved = has_states(output) or bool(checkpoint_folders(output))
    scores: RunScores | None = None
    if (output / "scores.json").exists():
        try:
            scores = read_scores(output)
        except InputError as error:
            return _damaged(output, _fact(error), rewritten=True)
    epochs = {row.epoch for row in scores.checkpoints if row.epoch is not None} if scores is not None else set()
    if not saved and not epochs:
        unknown = _unknown(output)
        if unknown:
            return _refused(
                RunStatus.FOREIGN,
                f"{output} holds files that captune did not write ({_shown(unknown)}); give another folder with "
                "output=...",
            )
        return Inspection(RunStatus.BEGUN)
    if scores is None:
        return _damaged(output, f"{output / 'scores.json'} is missing", rewritten=True)
    last = config.train.epochs - 1
    if same and last not in epochs and config.train.early_stop is not None:
        # The log ends with this event, until another process continues the run.
        event = last_event(output / "log.jsonl", ("run", "early_stop"))
        last = event.get("epoch", last) if event.get("event") == "early_stop" else last
    if last in epochs:
        return _inspect_finished(config, scores, data, last)
    progress = saved_progress(output)
    if progress is None:
        return _damaged(output, f"no saved state in {output / STATES} is intact", rewritten=False)
    if progress.manifest_hash != data:
        return _other_data(config, progress.manifest_hash, data)
    return Inspection(RunStatus.UNFINISHED)


def _inspect_finished(config: RunConfig, scores: RunScores, data: str, epoch: int) -> Inspection:
    """Whether all that a finished run is made of is there; `epoch` is its last one."""
    output = config.output
    last = checkpoint_folder(config.output, epoch)
    try:
        trained_on = read_record(last).manifest_hash
        left_out_images(output)
        for folder in checkpoint_folders(output):
            read_record(folder)
            if not tensor_file(folder).is_file():
                raise InputError(f"{tensor_file(folder)} is missing")
    except InputError as error:
        return _damaged(output, _fact(error), rewritten=False)
    if trained_on != data:
        return _other_data(config, trained_on, data)
    for row, name in zip(scores.checkpoints, scores.caption_files, strict=True):
        file = output / "captions" / name
        try:
            captions = {item["image_id"]: item["caption"] for item in load_json(file.read_bytes())}
        except (OSError, ValueError, TypeError, KeyError):
            return _damaged(output, f"{file} is missing or damaged", rewritten=True)
        if captions != dict(row.captions):
            return _damaged(output, f"{file} and scores.json hold different captions", rewritten=True)
    changed = _changed_image(config)
    if changed is not None:
        return _refused(
            RunStatus.OTHER,
            f"{output} holds this run, and the image {changed} has other content than when the run was evaluated; put "
            f"it back, evaluate the run again with `captune evaluate {output}`, give another folder with output=...",
        )
    if (again := readable_again(config)) is not None:
        return _refused(
            RunStatus.OTHER,
            f"{output} holds this run, and {again}; to train with it, give another folder with output=...",
        )
    return Inspection(RunStatus.FINISHED)


def left_out_images(output: Path) -> dict[str, str]:
    """The training images that a run leaves out: why, by their ids.

    Raises:
        InputError: the record is damaged.
    """
    path = output / QUARANTINE
    try:
        return {str(name): str(reason) for name, reason in dict(load_json(path.read_bytes())).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged; restore it from a copy, or train again in another folder.") from error


def readable_again(config: RunConfig) -> str | None:
    """Which training images a run left out although they can be read now, as a part of a sentence.

    Images that the model refused could be read before, and are not meant.

    Raises:
        InputError: the record of the run is damaged.
    """
    left_out = left_out_images(config.output)
    unread = {name for name, reason in left_out.items() if not _MODEL_REFUSAL.search(reason)}
    readable: list[Path] = []
    for image in training_images(config) if unread else ():
        path = resolve_image(config.data.train, image.image)
        if image.id in unread:
            with suppress(DataError):
                load_image(path)
                readable.append(path)
    if not readable:
        return None
    others = f" and {len(readable) - 1} more, which were" if len(readable) > 1 else ", which was"
    return f"the training image {readable[0]}{others} left out as unreadable, can be read now"


def _changed_image(config: RunConfig) -> Path | None:
    """An evaluation image that is there and is not the one that was captioned."""
    evaluated = thumbnail_sources(config.output) or {}
    try:
        samples = read_manifest(config.evaluation_manifest)
    except DataError:
        return None
    files = {
        resolve_image(config.evaluation_manifest, sample.image): evaluated[sample.id]
        for sample in samples
        if sample.id in evaluated
    }
    contents = content_ids(list(files), config.feature_folder)
    pairs = zip(files.items(), contents, strict=True)
    return next((path for (path, then), now in pairs if isinstance(now, bytes) and now.hex() != then), None)


def _fact(error: InputError) -> str:
    """What an error says is wrong, without what it says to do."""
    return str(error).partition("; ")[0].rstrip(".")


def _damaged(output: Path, what: str, *, rewritten: bool) -> Inspection:
    """A run of this configuration that cannot be used as it is."""
    remedy = f"Write it anew with `captune evaluate {output}`" if rewritten else "Restore it from a copy"
    return _refused(
        RunStatus.DAMAGED,
        f"{output} holds this run, but {what}; nothing was changed. {remedy}, give another folder with output=...",
    )


def _other(output: Path, what: str) -> Inspection:
    return _refused(RunStatus.OTHER, f"{output} already holds a run {what}; give another folder with output=...")


def _other_data(config: RunConfig, before: str, now: str) -> Inspection:
    changed = f"the content of {config.data.train} has changed, hash {before[:8]} -> {now[:8]}"
    return _other(config.output, f"on other data ({changed})")


def _refused(status: RunStatus, sentence: str) -> Inspection:
    return Inspection(status, f"{sentence}{OVERWRITE}")


def _entries(output: Path) -> list[str]:
    """What is in a folder, but for locks, records, and what no run touches."""
    if not output.is_dir():
        return []
    names = sorted(os.listdir(output))
    return [
        name
        for name in names
        if not (is_lock_file(name) or name == RECORDS or UNTOUCHED.fullmatch(name) or IGNORED.fullmatch(name))
    ]


def _unknown(output: Path) -> list[str]:
    """What a run that has saved nothing yet cannot have written."""
    unknown = [name for name in _entries(output) if not RUN_FILES.fullmatch(name)]
    for folder, known_names in (
        ("checkpoints", "start"),
        (STATES, ""),
        ("captions", r".*-(pretrained|start|references)\.json"),
    ):
        entries = _entries(output / folder)
        unknown += [f"{folder}/{name}" for name in entries if not re.fullmatch(known_names, name)]
    log = output / "log.jsonl"
    if log.exists() and log.stat().st_size and not first_event(log, "run"):
        unknown.append(log.name)
    return unknown


def _shown(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _move_aside(output: Path) -> Path | None:
    """Move everything under a name that a run writes into a new folder inside; other files stay where they are."""
    # Its configuration goes last: a folder without one is not taken for a run in between.
    names = sorted((name for name in _entries(output) if RUN_FILES.fullmatch(name)), key=lambda name: name == CONFIG)
    if not names:
        return None
    number = 1
    while (aside := output / f"replaced-{number}").exists():
        number += 1
    aside.mkdir()
    for name in names:
        os.rename(output / name, aside / name)
    return aside
