"""What a model is evaluated on: home, other data sets, the domains of each, and damaged images of home."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from captune.config import RunConfig
from captune.data.corruptions import CORRUPTIONS, STRENGTHS
from captune.data.issues import Issue
from captune.data.manifest import scan_manifest
from captune.errors import ConfigError, DataError
from captune.events import Listener
from captune.protocols import EvaluationSet, evaluation_set

__all__ = ["Damage", "evaluation_sets", "parse_damages", "parts_of"]

FEWEST = 2
"""Images that a domain must have to be scored by itself; CIDEr needs two documents."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A corruption of home's images.

    Attributes:
        kind: a key of `captune.data.corruptions.CORRUPTIONS`.
        strength: 1-5.
    """

    kind: str
    strength: int

    @property
    def name(self) -> str:
        """What its column is called: "blur 3"."""
        return f"{self.kind} {self.strength}"


def parse_damages(kinds: Sequence[str], strengths: Sequence[int] = STRENGTHS) -> list[Damage]:
    """Every kind at every strength.

    Args:
        kinds: names of corruptions; "all" is every one.
        strengths: out of 1-5.

    Raises:
        ConfigError: a kind or strength is unknown.
    """
    chosen = list(CORRUPTIONS) if "all" in kinds else list(dict.fromkeys(kinds))
    if unknown := next((kind for kind in chosen if kind not in CORRUPTIONS), None):
        raise ConfigError(f"there is no corruption '{unknown}'; choose of {', '.join(CORRUPTIONS)}, or all.")
    if wrong := next((strength for strength in strengths if strength not in STRENGTHS), None):
        raise ConfigError(f"the strength of a corruption is {wrong}; expected 1 to 5.")
    return [Damage(kind, strength) for kind in chosen for strength in sorted(set(strengths))]


def evaluation_sets(
    config: RunConfig, data: Sequence[str], split: str | None = None, listener: Listener | None = None
) -> list[EvaluationSet]:
    """Home and the other data sets, each with a name of its own.

    Args:
        config: of the run, whose own evaluation images are home.
        data: manifests, each with `:SPLIT` behind it where the split is not to be guessed; home is passed over.
        split: of all that do not name one; by default the run's, or the only one that is not for training.
        listener: is told how far the leak guard is.

    Raises:
        DataError: a manifest cannot be read, or its split cannot be told.
    """
    sets = [evaluation_set(config, listener)]
    for source in data:
        path, own = _path_and_split(source)
        wanted = split or config.data.evaluate_split
        chosen = own or _split(path, wanted, config.data.train_splits, asked=split is not None)
        if chosen == sets[0].split and path.exists() and path.samefile(sets[0].manifest):
            continue  # home was named among the others
        section = config.data.model_copy(update={"evaluate": path, "evaluate_split": chosen})
        sets.append(evaluation_set(config.model_copy(update={"data": section}), listener))
    return _named(sets)


def parts_of(chosen: EvaluationSet) -> dict[str, list[str]]:
    """The domains of a data set.

    Returns:
        domain -> ids of its images, in order; empty for a set with fewer than two domains.
    """
    parts: dict[str, list[str]] = {}
    for image in chosen.images:
        if image.domain is not None:
            parts.setdefault(image.domain, []).append(image.id)
    whole = len(parts) == 1 and len(next(iter(parts.values()))) == len(chosen.images)
    return {} if whole else {name: ids for name, ids in parts.items() if len(ids) >= FEWEST}


def _path_and_split(source: str) -> tuple[Path, str | None]:
    """A manifest and the split behind its last colon; a path that is there is taken as it is."""
    path, colon, split = source.rpartition(":")
    if colon and path and split and not Path(source).exists() and Path(path).is_file():
        return Path(path), split
    return Path(source), None


def _split(path: Path, wanted: str, trained: tuple[str, ...], *, asked: bool) -> str:
    """The split of a manifest to evaluate: the wanted one, or the only one that is not for training."""
    counts: Counter[str] = Counter()
    for _, row in scan_manifest(path):
        if not isinstance(row, Issue):
            counts[row.split] += 1
    if counts[wanted] or asked:
        return wanted
    others = [name for name in counts if name not in ("train", *trained)] or list(counts)
    if len(others) == 1:
        return others[0]
    there = ", ".join(f"{name} ({count:,})" for name, count in counts.most_common(20) if count)
    raise DataError(
        f"the manifest '{path}' has no images of the split '{wanted}'; it has {there or 'none'}. "
        f"Name one with --split, or as {path}:SPLIT."
    )


def _named(sets: Sequence[EvaluationSet]) -> list[EvaluationSet]:
    """The sets with names that tell them apart: the file's, the folder's of a `manifest.jsonl`, and more if need be."""
    names: list[str] = []
    for chosen in sets:
        name = chosen.name if chosen.manifest.stem == "manifest" or not names else chosen.manifest.stem
        name = name if name not in names else f"{name}-{chosen.split}"
        number, base = 2, name
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return [replace(chosen, name=name) for chosen, name in zip(sets, names, strict=True)]
