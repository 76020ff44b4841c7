"""The parts of the robustness matrix: data sets, domains, corruptions, prompts, relative drops and word statistics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from captune.config import RunConfig
from captune.data.issues import Issue
from captune.data.manifest import scan_manifest
from captune.data.readers import SourceFile, text_lines
from captune.errors import ConfigError, DataError
from captune.evaluation.corruptions import CORRUPTIONS, STRENGTHS
from captune.evaluation.protocol import EvaluationSet, evaluation_set
from captune.events import Listener
from captune.metrics import Scores
from captune.metrics.ptb import tokenize_batch
from captune.metrics.significance import NEGLIGIBLE, draw_images, resampled_scores
from captune.report.matrix import Difference

__all__ = [
    "SHIPPED",
    "Corruption",
    "divergence",
    "domains_of",
    "evaluation_sets",
    "parse_corruptions",
    "read_instructions",
    "relative_drops",
    "unseen_share",
    "word_counts",
]

FEWEST = 2
"""Images that a domain must have to be scored by itself; CIDEr needs two documents."""


@dataclass(frozen=True, slots=True)
class Corruption:
    """A corruption of home's images.

    Attributes:
        kind: a key of `captune.evaluation.corruptions.CORRUPTIONS`.
        strength: 1-5.
    """

    kind: str
    strength: int

    @property
    def name(self) -> str:
        """What its column is called: "blur 3"."""
        return f"{self.kind} {self.strength}"


def parse_corruptions(kinds: Sequence[str], strengths: Sequence[int] = STRENGTHS) -> list[Corruption]:
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
    return [Corruption(kind, strength) for kind in chosen for strength in sorted(set(strengths))]


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


def domains_of(chosen: EvaluationSet) -> dict[str, list[str]]:
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


SHIPPED = ("en", "zh")
"""Lists that come with captune: English, Chinese."""


def read_instructions(source: str) -> list[str]:
    """Read a list of instructions, one a line; lines that begin with # are notes.

    Args:
        source: a name out of `SHIPPED`, or a file.

    Raises:
        DataError: there is no such file, it is no UTF-8 text, holds no instruction, or one twice.
    """
    if source in SHIPPED:
        lines = (files("captune.evaluation") / "prompts" / f"{source}.txt").read_text(encoding="utf-8").splitlines()
    elif not Path(source).exists():
        raise DataError(f"there is no list of instructions '{source}'; give {' or '.join(SHIPPED)}, or a text file.")
    else:
        lines = list(text_lines(SourceFile(source)))
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise DataError(f"the list of instructions '{source}' is empty; write one a line.")
    if twice := next((line for line in found if found.count(line) > 1), None):
        raise DataError(f"the list of instructions '{source}' holds {twice!r} twice.")
    return found


_SEED = 12345
_PORTION = 100  # resamples whose weights are held at once


def relative_drops(
    home: Scores, away: Scores, *, resamples: int = 1000, confidence: float = 0.95
) -> dict[str, Difference]:
    """The share of every corpus score that is lost away from home (Koehn's bootstrap, EMNLP 2004, on the ratio).

    Args:
        home: scores of a system at home.
        away: those of the same system elsewhere; paired where the images are the same in the same order.
        resamples: how many corpora to draw.
        confidence: of the interval.

    Returns:
        metric -> 1 - away / home: 0 is no loss, 1 a total one, below 0 a gain. A score of 0 at home, or of no more than
        the constants that smooth it, has no ratio and is left out.
    """
    paired = home.ids == away.ids
    random = np.random.default_rng(_SEED)
    in_domain: dict[str, list[NDArray[np.float64]]] = {}
    out_of_domain: dict[str, list[NDArray[np.float64]]] = {}
    for start in range(0, resamples, _PORTION):
        size = min(_PORTION, resamples - start)
        weights = draw_images(random, size, len(home.ids))
        others = weights if paired else draw_images(random, size, len(away.ids))
        for portions, scores, drawn in ((in_domain, home, weights), (out_of_domain, away, others)):
            for name, values in resampled_scores(scores, drawn).items():
                portions.setdefault(name, []).append(values)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    drops = {}
    for name in home.corpus:
        if name not in away.corpus or not home.corpus[name] >= NEGLIGIBLE:
            continue
        base, other = np.concatenate(in_domain[name]), np.concatenate(out_of_domain[name])
        ratios = 1 - other[base > 0] / base[base > 0]
        low, high = np.quantile(ratios, tails).tolist()
        drops[name] = Difference(1 - away.corpus[name] / home.corpus[name], low, high, paired)
    return drops


def word_counts(captions: Iterable[str]) -> Counter[str]:
    """How often each token stands in captions, as coco-caption's metrics see them."""
    counts: Counter[str] = Counter()
    for tokens in tokenize_batch(list(captions)):
        counts.update(tokens)
    return counts


def unseen_share(words: Counter[str], known: Counter[str]) -> float:
    """The share of running words that stand nowhere in `known`, 0-1; 0 where there are no words."""
    total = words.total()
    return sum(count for word, count in words.items() if word not in known) / total if total else 0.0


def divergence(one: Counter[str], other: Counter[str]) -> float:
    """Jensen-Shannon divergence of two distributions of words, in bits (Lin 1991).

    Returns:
        0 where they are equal, 1 where they have no word in common, or one of them has none at all.
    """
    if not one or not other:
        return 0.0 if one == other else 1.0
    first, second = one.total(), other.total()
    parts = []
    for word in one.keys() | other.keys():
        p, q = one[word] / first, other[word] / second
        middle = (p + q) / 2
        parts += [share * math.log2(share / middle) for share in (p, q) if share]
    # Rounded once: a set's order differs from process to process, and the number must not.
    return min(1.0, max(0.0, math.fsum(parts) / 2))
