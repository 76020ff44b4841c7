"""Checks before torch is imported, in less than a second: extras, files, models and disk."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from captune.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from captune.config import ModelConfig, RunConfig
    from captune.run_checkpoints import SelectedCheckpoint

__all__ = [
    "check_configured_model",
    "check_manifest",
    "check_named_model",
    "check_output_folder",
    "check_run",
    "extra_imports",
    "preparing_command",
    "require_extra",
]

_LEAST_DISK = 50 * 2**20
"""Bytes that must be free for the folder of a run; less does not hold the first checkpoint."""


_MOST_ROWS = 100_000
"""Rows of a manifest that are searched for splits."""


def require_extra(what: str, *extras: str) -> None:
    """Refuse a command whose libraries are not installed; nothing is imported.

    Args:
        what: the command or function, as the subject of a sentence ("captune train").
        extras: the extras that it needs.

    Raises:
        MissingExtraError: a library of an extra is not installed; names the first such extra.
    """
    try:
        requirements = metadata.requires("captune") or []
    except metadata.PackageNotFoundError:  # run from a source folder; `extra_imports` reports a missing library
        return
    for extra in extras:
        for name in _libraries(requirements, extra):
            try:
                metadata.distribution(name)
            except metadata.PackageNotFoundError as error:
                raise MissingExtraError(what, extra) from error


@contextmanager
def extra_imports(what: str, extra: str) -> Iterator[None]:
    """Turn a failed import in the block into a sentence with the extra to install.

    Args:
        what: the command or function, as the subject of a sentence ("captune train").
        extra: the extra whose libraries the block imports.

    Raises:
        MissingExtraError: a library of another project is missing; captune's own missing modules pass through.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "captune").split(".")[0] == "captune":
            raise
        raise MissingExtraError(what, extra) from error


def _libraries(requirements: Iterable[str], extra: str) -> Iterable[str]:
    """Names of the distributions that an extra brings."""
    for requirement in requirements:
        name, _, marker = requirement.partition(";")
        if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", marker):
            match = re.match(r"[A-Za-z0-9._-]+", name.strip())
            assert match is not None, requirement
            yield match.group()


def check_run(config: RunConfig, *, trains: bool) -> None:
    """Refuse a run whose data, model or output folder cannot be used.

    Args:
        config: of the run.
        trains: whether it reads the training manifest; otherwise only the evaluation set is needed.

    Raises:
        ConfigError: a manifest or a split is missing, or the output folder cannot be written.
        WeightsError: there is no such model.
    """
    manifests = {"data.evaluate" if config.data.evaluate is not None else "data.train": config.evaluation_manifest}
    if trains:
        manifests["data.train"] = config.data.train
    for setting, path in manifests.items():
        check_manifest(setting, path)
    check_configured_model(config.model)
    if trains:
        from captune.hub import refuse_checkpoint, resolve_model

        refuse_checkpoint(resolve_model(config.model))
    check_output_folder(config.output)
    splits = {("data.train_split", name): config.data.train for name in config.data.train_splits} if trains else {}
    if config.evaluate.protocol == "karpathy":
        splits["data.evaluate_split", config.data.evaluate_split] = config.evaluation_manifest
    for path in dict.fromkeys(splits.values()):
        _check_splits(path, {name: setting for (setting, name), file in splits.items() if file == path})


def check_manifest(setting: str, path: str | Path) -> None:
    """Refuse a manifest that does not exist, and a table in its place.

    Args:
        setting: its key in the configuration.
        path: of the manifest.

    Raises:
        ConfigError: there is no such file, or it is a table.
    """
    if Path(path).is_dir():
        command = shlex.join(["captune", "init", str(path)])
        raise ConfigError(f"{setting} is {path}, which is a folder and not a manifest; make one with: {command}")
    if not Path(path).is_file():
        raise ConfigError(
            f"{setting} is {path}, and there is no such file; give the manifest that `captune prepare` wrote, as "
            f"{setting}=FILE."
        )
    _refuse_table(Path(path))


def _refuse_table(path: Path) -> None:
    from captune.data import Issue, SourceFile, scan_manifest

    with closing(SourceFile(path)) as reading:
        _, row = next(iter(scan_manifest(reading)), (0, None))
    if isinstance(row, Issue) and (command := preparing_command(path)) is not None:
        raise ConfigError(f"{path} is a table and not a manifest; make one with: {command}")


def _check_splits(path: Path, needed: dict[str, str]) -> None:
    """Refuse a manifest without a split; longer manifests are read by the run.

    Args:
        path: of the manifest.
        needed: name of each split, and the setting that has it.

    Raises:
        ConfigError: names the splits that there are.
    """
    from captune.data import Issue, SourceFile, scan_manifest

    there = Counter[str]()
    with closing(SourceFile(path)) as reading:
        for number, (_, row) in enumerate(scan_manifest(reading)):
            if isinstance(row, Issue):
                return  # the run lists all bad rows
            there[row.split] += 1
            if all(there[name] for name in needed) or number == _MOST_ROWS:
                return
    name = next((name for name in needed if not there[name]), None)
    if name is not None and there:
        listed = ", ".join(f"{split} ({count:,})" for split, count in there.most_common(20))
        raise ConfigError(
            f"{needed[name]} is {name}, and {path} has {listed}; set it to one of these, or divide the images with: "
            f"{shlex.join(['captune', 'init', str(path), '--split', 'train=0.9,test=0.1'])}"
        )


def preparing_command(path: Path) -> str | None:
    """The command that makes a manifest of a table; None if the file is a manifest, or is not recognized.

    Raises:
        DataError: a spreadsheet, or a table in an unknown encoding.
        MissingExtraError: a parquet file, and pyarrow is not installed.
    """
    from captune.data.importers import Columns, guess_table
    from captune.errors import DataError

    try:
        guess = guess_table(path)
    except MissingExtraError:
        raise
    except DataError:
        if path.is_file() and path.suffix.lower() in (".csv", ".tsv", ".tab", ".xlsx", ".xls", ".ods"):
            raise
        return None  # reported when the manifest is read
    if guess.kind == "manifest" or {"image", "captions"} <= set(guess.names):
        return None
    if guess.kind == "table" and guess.columns is None and path.suffix.lower() not in (".csv", ".tsv", ".tab"):
        return None
    if guess.kind == "table" and guess.columns is not None:
        # Finds the images, which may be in another folder, and divides them.
        return shlex.join(["captune", "init", str(path)])
    words = ["captune", "prepare", guess.kind if guess.kind in ("coco", "karpathy") else "table", str(path)]
    if guess.kind == "table":
        # Names that cannot be guessed are the ones to replace.
        words += Columns("IMAGE", "CAPTION").options()
    stem = path.name.split(".")[0]
    out = f"{stem}.jsonl" if path.name != f"{stem}.jsonl" else f"{stem}-manifest.jsonl"
    return shlex.join([*words, "--out", out])


def check_named_model(name: str, base: str | None = None) -> SelectedCheckpoint | None:
    """Refuse a captioner that cannot be read: a model, run, checkpoint, adapter or hub id.

    Args:
        name: of the captioner.
        base: of its base model, if it is not the recorded one.

    Returns:
        The checkpoint that is used of a run; None if the name is not that of a run.

    Raises:
        WeightsError: there is no such folder, and the hub does not provide it; or the base model of an adapter is
            missing.
    """
    from captune.hub import check_base, locate_model, require_available
    from captune.run_checkpoints import selected_checkpoint

    selected = selected_checkpoint(name)
    for model in (name, *([] if base is None else [base])):
        require_available(locate_model(model))
    if base is None:
        check_base(name)
    return selected


def check_configured_model(config: ModelConfig) -> None:
    """Refuse a model, or parts of one, that cannot be read.

    Raises:
        WeightsError: there is no such folder, and the hub does not provide it.
        ConfigError: the parts are of a kind that only `captune convert` joins.
    """
    from captune.hub import require_available, resolve_model

    resolve_model(config)
    for name in (config.path,) if config.llm is None else (config.llm, config.vision):
        require_available(str(name))


def check_output_folder(folder: Path) -> None:
    """Refuse an output folder that cannot be made, cannot be written, or is on a full disk.

    Raises:
        ConfigError: names the folder and the reason.
    """
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"The output folder {folder} cannot be created: {existing} is a file; give another name.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"The output folder {folder} cannot be written: {existing} is read-only; give another one.")
    try:
        free = shutil.disk_usage(existing).free
    except OSError:  # some network file systems do not report it
        return
    if free < _LEAST_DISK:
        raise OSError(errno.ENOSPC, f"only {free / 2**20:.0f} MiB are free on the disk", str(folder))
