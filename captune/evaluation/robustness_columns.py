"""The parts of the robustness matrix: data sets, domains, corruptions, prompts, relative drops, word statistics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captune.config import RunConfig
from captune.data import Issue, SourceFile, scan_manifest, text_lines
from captune.errors import ConfigError, DataError
from captune.evaluation.corruptions import CORRUPTIONS, STRENGTHS
from captune.evaluation.protocol import EvaluationSet, evaluation_set
from captune.events import Listener
from captune.metrics import NEGLIGIBLE, Scores, draw_images, resampled_scores
from captune.metrics.ptb import tokenize_batch
from captune.report import Difference

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

MIN_DOMAIN_IMAGES = 2
"""Least images of a domain that is scored separately; CIDEr needs two documents."""


@dataclass(frozen=True, slots=True)
class Corruption:
    """A corruption of the in-domain images.

    Attributes:
        kind: a key of `captune.evaluation.corruptions.CORRUPTIONS`.
        strength: 1-5.
    """

    kind: str
    strength: int

    @property
    def name(self) -> str:
        """The name of its column: "blur 3"."""
        return f"{self.kind} {self.strength}"


def parse_corruptions(kinds: Sequence[str], strengths: Sequence[int] = STRENGTHS) -> list[Corruption]:
    """Every kind at every strength.

    Args:
        kinds: names of corruptions; "all" is every one.
        strengths: out of 1-5.

    Raises:
        ConfigError: a kind or strength is unknown.
    """
    names = list(CORRUPTIONS) if "all" in kinds else list(dict.fromkeys(kinds))
    if unknown := next((kind for kind in names if kind not in CORRUPTIONS), None):
        raise ConfigError(f"there is no corruption '{unknown}'; choose of {', '.join(CORRUPTIONS)}, or all.")
    if wrong := next((strength for strength in strengths if strength not in STRENGTHS), None):
        raise ConfigError(f"the strength of a corruption is {wrong}; expected 1 to 5.")
    return [Corruption(kind, strength) for kind in names for strength in sorted(set(strengths))]


def evaluation_sets(
    config: RunConfig,
    data: Sequence[str],
    split: str | None = None,
    listener: Listener | None = None,
    *,
    ancestors: Sequence[Mapping[str, Any]] = (),
) -> list[EvaluationSet]:
    """The in-domain images and the other data sets, each with a unique name.

    Args:
        config: of the run, whose evaluation images are in domain.
        data: manifests, each optionally followed by `:SPLIT`; the in-domain images are skipped.
        split: of all that do not name one; by default the run's, or the only one that is not for training.
        listener: receives the progress of the leak guard.
        ancestors: of the checkpoints; see `CheckpointRecord`.

    Raises:
        DataError: a manifest cannot be read, or its split is ambiguous.
    """
    sets = [evaluation_set(config, listener, ancestors=ancestors)]
    for source in data:
        path, named_split = split_source(source)
        default = split or config.data.evaluate_split
        evaluated = named_split or _split(path, default, config.data.train_splits, required=split is not None)
        if evaluated == sets[0].split and path.exists() and path.samefile(sets[0].manifest):
            continue  # the in-domain images, named among the others
        section = config.data.model_copy(update={"evaluate": path, "evaluate_split": evaluated, "name": None})
        sets.append(evaluation_set(config.model_copy(update={"data": section}), listener, ancestors=ancestors))
    return _named(sets)


def domains_of(images: EvaluationSet) -> dict[str, list[str]]:
    """The domains of a data set.

    Returns:
        domain -> ids of its images, in order; empty for a set with fewer than two domains.
    """
    domains: dict[str, list[str]] = {}
    for image in images.images:
        if image.domain is not None:
            domains.setdefault(image.domain, []).append(image.id)
    is_single = len(domains) == 1 and len(next(iter(domains.values()))) == len(images.images)
    return {} if is_single else {name: ids for name, ids in domains.items() if len(ids) >= MIN_DOMAIN_IMAGES}


def split_source(source: str) -> tuple[Path, str | None]:
    """A manifest and the split after its last colon; an existing path is a manifest without split."""
    path, colon, split = source.rpartition(":")
    if colon and path and split and not Path(source).exists() and Path(path).is_file():
        return Path(path), split
    return Path(source), None


def _split(path: Path, default: str, trained: tuple[str, ...], *, required: bool) -> str:
    """The split of a manifest to evaluate: the default, or the only one that is not for training."""
    counts: Counter[str] = Counter()
    for _, row in scan_manifest(path):
        if not isinstance(row, Issue):
            counts[row.split] += 1
    if counts[default] or required:
        return default
    others = [name for name in counts if name not in ("train", *trained)] or list(counts)
    if len(others) == 1:
        return others[0]
    available = ", ".join(f"{name} ({count:,})" for name, count in counts.most_common(20) if count)
    raise DataError(
        f"the manifest '{path}' has no images of the split '{default}'; it has {available or 'none'}. "
        f"Name one with --split, or as {path}:SPLIT."
    )


def _named(sets: Sequence[EvaluationSet]) -> list[EvaluationSet]:
    """Sets with unique names: of the file, or of the folder of a `manifest.jsonl`, with split and number if needed."""
    names: list[str] = []
    for images in sets:
        name = images.name if images.manifest.stem == "manifest" or not names else images.manifest.stem
        name = name if name not in names else f"{name}-{images.split}"
        number, base = 2, name
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return [replace(images, name=name) for images, name in zip(sets, names, strict=True)]


SHIPPED = ("en", "zh")
"""Lists that are included in captune: English, Chinese."""


def read_instructions(source: str) -> list[str]:
    """Read a list of instructions, one a line; lines that begin with # are comments.

    Args:
        source: a name in `SHIPPED`, or a file.

    Raises:
        DataError: there is no such file, it is no UTF-8 text, holds no instruction, or one twice.
    """
    if source in SHIPPED:
        lines = (files("captune.evaluation") / "prompts" / f"{source}.txt").read_text(encoding="utf-8").splitlines()
    elif not Path(source).exists():
        raise DataError(f"there is no list of instructions '{source}'; give {' or '.join(SHIPPED)}, or a text file.")
    else:
        lines = list(text_lines(SourceFile(source)))
    instructions = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not instructions:
        raise DataError(f"the list of instructions '{source}' is empty; write one a line.")
    if twice := next((line for line in instructions if instructions.count(line) > 1), None):
        raise DataError(f"the list of instructions '{source}' holds {twice!r} twice.")
    return instructions


_SEED = 12345
_PORTION = 100  # resamples whose weights are held at once


def relative_drops(
    in_domain: Scores, out_of_domain: Scores, *, resamples: int = 1000, confidence: float = 0.95
) -> dict[str, Difference]:
    """The share of every corpus score that is lost out of domain (Koehn's bootstrap, EMNLP 2004, on the ratio).

    N images in domain, M out of domain. Where both are the same images (a corruption), each resample draws the same
    images on both sides; otherwise the two sides are drawn independently.

    Args:
        in_domain: scores of a system on the in-domain images.
        out_of_domain: scores of the same system on other images; paired where ids and order are the same.
        resamples: how many corpora to draw.
        confidence: of the interval.

    Returns:
        metric -> 1 - out_of_domain / in_domain: 0 is no loss, 1 a total one, below 0 a gain. An in-domain score of 0,
        or of no more than the constants that smooth it, has no ratio and is left out.
    """
    paired = in_domain.ids == out_of_domain.ids
    random = np.random.default_rng(_SEED)
    inside: dict[str, list[NDArray[np.float64]]] = {}
    outside: dict[str, list[NDArray[np.float64]]] = {}
    for start in range(0, resamples, _PORTION):
        size = min(_PORTION, resamples - start)
        weights = draw_images(random, size, len(in_domain.ids))
        others = weights if paired else draw_images(random, size, len(out_of_domain.ids))
        for resampled, scores, drawn in ((inside, in_domain, weights), (outside, out_of_domain, others)):
            for name, values in resampled_scores(scores, drawn).items():
                resampled.setdefault(name, []).append(values)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    drops = {}
    for name in in_domain.corpus:
        if name not in out_of_domain.corpus or not in_domain.corpus[name] >= NEGLIGIBLE:
            continue
        before, after = np.concatenate(inside[name]), np.concatenate(outside[name])
        ratios = 1 - after[before > 0] / before[before > 0]
        low, high = np.quantile(ratios, tails).tolist()
        if max(-low, high) > 1 / NEGLIGIBLE:
            # Too many resamples have no more than the constants that smooth them.
            continue
        drops[name] = Difference(1 - out_of_domain.corpus[name] / in_domain.corpus[name], low, high, paired)
    return drops


def word_counts(captions: Iterable[str]) -> Counter[str]:
    """How often each token occurs in captions, tokenized as in coco-caption's metrics."""
    counts: Counter[str] = Counter()
    for tokens in tokenize_batch(list(captions)):
        counts.update(tokens)
    return counts


def unseen_share(words: Counter[str], known: Counter[str]) -> float:
    """The share of words (each occurrence counted) that are not in `known`, 0-1; 0 where there are no words."""
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
    terms = []
    for word in one.keys() | other.keys():
        p, q = one[word] / first, other[word] / second
        middle = (p + q) / 2
        terms += [share * math.log2(share / middle) for share in (p, q) if share]
    # Rounded once: a set's order differs from process to process, and the number must not.
    return min(1.0, max(0.0, math.fsum(terms) / 2))
