"""The results of a study: agreement, win rates, ranking, points, raters, and how well metrics agree with people.

N images, B resamples, S systems. Judgements of one image are dependent, so every interval resamples images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captune.agreement import Judgements as AgreementJudgements
from captune.apps.rating.estimates import (
    CONFIDENCE,
    Estimate,
    alpha,
    bradley_terry,
    estimate,
    image_resamples,
    is_connected,
    kendall_tau_c,
    pearson,
    row_kendall_tau_c,
    row_pearson,
    weighted_mean,
)
from captune.apps.rating.judgements import Judgements, RaterQuality, rater_quality, read_judgements, rival_systems
from captune.apps.rating.store import Store
from captune.apps.rating.study_design import CRITERIA, Caption
from captune.apps.rating.study_items import HUMAN
from captune.errors import InputError

__all__ = [
    "OVERALL",
    "PREFERENCE",
    "Correlation",
    "PairResult",
    "Ranked",
    "Results",
    "compute_results",
    "judged_captions",
]

FORMAT = 1

OVERALL = "overall"
"""The mean of the four criteria."""

PREFERENCE = "preference"
"""Share of comparisons in which a caption was preferred; a tie counts as a half."""


@dataclass(frozen=True, slots=True)
class PairResult:
    """Two systems compared.

    Attributes:
        systems: their names.
        wins: how often the first was preferred.
        losses: how often the second was.
        ties: how often neither.
        share: how often the first was preferred; a tie counts as a half.
        equal: images with the same text of both, which were not compared.
    """

    systems: tuple[str, str]
    wins: int
    losses: int
    ties: int
    share: Estimate
    equal: int


@dataclass(frozen=True, slots=True)
class Ranked:
    """Rank of a system by Bradley and Terry; strength is on the log-odds scale with mean 0."""

    system: str
    rank: int
    strength: Estimate


@dataclass(frozen=True, slots=True)
class Correlation:
    """Correlation of an automatic metric with human judgements.

    Attributes:
        metric: its name.
        target: a criterion, "overall" or "preference".
        level: "caption", over captions, or "system", over systems.
        pairs: number of captions or systems.
        kendall: tau-c.
        pearson: r.
    """

    metric: str
    target: str
    level: str
    pairs: int
    kendall: Estimate
    pearson: Estimate


@dataclass(frozen=True, slots=True)
class Results:
    """Results of a study so far.

    Attributes:
        source: sources of the study.
        options: of the study, as JSON values.
        systems: names.
        images: number of images.
        counted: number of answers in the results.
        left_out: names of ignored raters.
        agreement: "preference" or a criterion -> alpha and the number of items that two or more people judged.
        win_rates: system -> share of comparisons in which it was preferred.
        pairs: all compared pairs of systems.
        ranking: best first; empty if there is nothing to rank or systems are not connected by comparisons.
        rubric: system -> criterion or "overall" -> mean points.
        correlations: of every automatic metric.
        raters: records.
    """

    source: str
    options: dict[str, Any]
    systems: tuple[str, ...]
    images: int
    counted: int
    left_out: tuple[str, ...] = ()
    agreement: dict[str, tuple[Estimate, int]] = field(default_factory=dict)
    win_rates: dict[str, Estimate] = field(default_factory=dict)
    pairs: tuple[PairResult, ...] = ()
    ranking: tuple[Ranked, ...] = ()
    rubric: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    correlations: tuple[Correlation, ...] = ()
    raters: tuple[RaterQuality, ...] = ()

    @property
    def verdicts(self) -> list[tuple[str, str, Estimate]]:
        """Neighbors in the ranking, the better one first, and the share of their comparisons in which it won."""
        shares = {pair.systems: pair.share for pair in self.pairs}
        verdicts = []
        for better, worse in pairwise(ranked.system for ranked in self.ranking):
            share = shares.get((better, worse))
            if share is None and (reverse := shares.get((worse, better))) is not None and reverse.value is not None:
                low, high = (None if bound is None else 1 - bound for bound in (reverse.high, reverse.low))
                share = Estimate(1 - reverse.value, low, high)
            if share is not None and share.value is not None:
                verdicts.append((better, worse, share))
        return verdicts

    def correlations_at(self, level: str, *, single_criteria: bool) -> list[Correlation]:
        """Correlations of a level, the metric that agrees best with people first.

        Args:
            level: "caption" or "system".
            single_criteria: those with a single criterion, otherwise those with the preference and the mean.
        """
        rows = [
            row
            for row in self.correlations
            if row.level == level and (row.target in (OVERALL, PREFERENCE)) is not single_criteria
        ]
        return sorted(rows, key=lambda row: (row.target, 2.0 if row.kendall.value is None else -row.kendall.value))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, the content of `rating.json` in a run."""
        return {"format": FORMAT, "confidence": CONFIDENCE, **asdict(self)} | {
            "agreement": {name: {**alpha.to_dict(), "units": units} for name, (alpha, units) in self.agreement.items()}
        }


def compute_results(store: Store, least_attention: float = 0.0) -> Results:
    """Compute the current results of a study.

    Args:
        store: the open study.
        least_attention: raters who passed a smaller share of their attention checks are ignored.

    Raises:
        InputError: the share is not between 0 and 1.
    """
    raters = rater_quality(store)
    careless = _careless(raters, least_attention)
    judged = read_judgements(store, careless)
    options = store.options
    study = _Study(store, judged, image_resamples(len(store.images()), options.seed))
    return Results(
        source=store.setting("source"),
        options=asdict(options),
        systems=study.systems,
        images=len(study.images),
        counted=len(judged.preferences) + len(judged.ratings),
        left_out=tuple(careless.values()),
        agreement=study.agreement(options.parts),
        win_rates=study.win_rates(),
        pairs=study.pairs(),
        ranking=study.ranking(),
        rubric=study.rubric(),
        correlations=tuple(study.correlations()),
        raters=tuple(raters),
    )


def _careless(raters: Iterable[RaterQuality], least_attention: float) -> dict[int, str]:
    """Raters who passed a smaller share of their attention checks, by number."""
    if not 0 <= least_attention <= 1:
        raise InputError(f"The least share of attention checks passed is {least_attention}, expected 0 to 1.")
    return {r.rater: r.name for r in raters if r.attention is not None and r.attention < least_attention}


def judged_captions(
    store: Store,
    references: Mapping[str, Sequence[str]],
    target: str | None = None,
    least_attention: float = 0.0,
) -> AgreementJudgements:
    """The judged captions of a study, to compare any metric with people.

    Args:
        store: the open study.
        references: image -> reference captions. The human control, which is one of them, is left out.
        target: "overall" (mean points), a criterion, or "preference"; by default the first one that was judged.
        least_attention: as for `compute_results`.

    Raises:
        InputError: nothing was judged so, or no judged image has references.
    """
    judged = read_judgements(store, _careless(rater_quality(store), least_attention))
    study = _Study(store, judged, np.zeros((0, len(store.images())), np.int64))
    targets = study.caption_targets()
    if not targets:
        raise InputError(f"The study in {store.folder} has no answers yet.")
    if target is None:
        target = OVERALL if OVERALL in targets else next(iter(targets))
    if target not in targets:
        raise InputError(
            f"Nobody judged '{target}' in the study in {store.folder}; choose one of {', '.join(targets)}."
        )
    texts, images, groups, values = [], [], [], []
    human = without = 0
    for caption_number, value in targets[target].items():
        caption = study.captions[caption_number]
        image = study.images[caption.image]
        if set(caption.systems) == {HUMAN}:
            human += 1
        elif not references.get(image):
            without += 1
        else:
            texts.append(caption.text)
            images.append(image)
            groups.append(list(references[image]))
            values.append(value)
    if not texts:
        raise InputError(f"No judged image of the study in {store.folder} has references; give --references FILE.")
    notes = [f"{human:,} captions of the human control are left out: they are references."] if human else []
    notes += [f"{without:,} judged captions are left out: their images have no references."] if without else []
    return AgreementJudgements(
        f"Study of {store.setting('source')}: {target}", texts, images, groups, np.array(values), notes=notes
    )


class _Study:
    """The judgements of a study as tables."""

    def __init__(self, store: Store, judged: Judgements, draws: NDArray[np.int64]) -> None:
        self.captions = store.captions()
        self.images = [name for name, _ in store.images()]
        self.systems: tuple[str, ...] = tuple(store.setting("systems"))
        self.judged = judged
        self.draws = draws
        self._corpus: dict[str, dict[str, float]] = store.setting("corpus")
        self._per_image: dict[str, dict[str, dict[str, float]]] = store.setting("per_image")
        index = {name: number for number, name in enumerate(self.systems)}
        # (N, S, S): wins of the row's system over the column's on each image, and ties of the two.
        self.wins = np.zeros((len(self.images), len(self.systems), len(self.systems)))
        self.ties = np.zeros_like(self.wins)
        for answer in judged.preferences:
            for pair in rival_systems(self.captions, answer.captions):
                first, second = pair if answer.outcome >= 0 else pair[::-1]
                if answer.outcome:
                    self.wins[answer.image, index[first], index[second]] += 1
                else:
                    self.ties[answer.image, index[first], index[second]] += 1
                    self.ties[answer.image, index[second], index[first]] += 1
        self.scored = self.wins + self.ties / 2
        # (captions, criteria): sums of points, and how many ratings.
        self.points = np.zeros((len(self.captions), len(CRITERIA)))
        self.ratings = np.zeros(len(self.captions))
        for rating in judged.ratings:
            self.points[rating.caption] += rating.points
            self.ratings[rating.caption] += 1

    def agreement(self, parts: tuple[str, ...]) -> dict[str, tuple[Estimate, int]]:
        agreement = {}
        if "pairwise" in parts:
            units = {pair: number for number, pair in enumerate({p.captions: None for p in self.judged.preferences})}
            values = [(p.image, units[p.captions], p.outcome + 1) for p in self.judged.preferences]
            agreement[PREFERENCE] = alpha(values, 3, "nominal", self.draws)
        if "rubric" in parts:
            for index, criterion in enumerate(CRITERIA):
                values = [(r.image, r.caption, r.points[index] - 1) for r in self.judged.ratings]
                agreement[criterion] = alpha(values, 5, "ordinal", self.draws)
        return agreement

    def win_rates(self) -> dict[str, Estimate]:
        played = self.scored + self.scored.swapaxes(1, 2)
        return {
            name: weighted_mean(self.scored[:, index].sum(axis=1), played[:, index].sum(axis=1), self.draws)
            for index, name in enumerate(self.systems)
            if played[:, index].any()
        }

    def pairs(self) -> tuple[PairResult, ...]:
        pairs = []
        for (i, first), (j, second) in combinations(enumerate(self.systems), 2):
            played = self.scored[:, i, j] + self.scored[:, j, i]
            equal = sum(first in caption.systems and second in caption.systems for caption in self.captions)
            if played.any() or (equal and self.judged.preferences):
                wins, losses, ties = (
                    int(table.sum()) for table in (self.wins[:, i, j], self.wins[:, j, i], self.ties[:, i, j])
                )
                share = weighted_mean(self.scored[:, i, j], played, self.draws)
                pairs.append(PairResult((first, second), wins, losses, ties, share, equal))
        return tuple(pairs)

    def ranking(self) -> tuple[Ranked, ...]:
        wins = self.scored.sum(axis=0)
        compared = (wins + wins.T) > 0
        if len(self.systems) < 2 or not is_connected(compared):
            return ()
        strengths = bradley_terry(wins, compared)
        resampled = bradley_terry(np.tensordot(self.draws, self.scored, axes=1), compared)
        order = np.argsort(-strengths, kind="stable")
        return tuple(
            Ranked(self.systems[index], rank, estimate(float(strengths[index]), resampled[:, index]))
            for rank, index in enumerate(order.tolist(), 1)
        )

    def rubric(self) -> dict[str, dict[str, Estimate]]:
        """Mean over images of the mean over raters."""
        means_of: dict[str, dict[str, Estimate]] = {}
        for system in self.systems:
            means, rated = self._system_points(system)
            if rated.any():
                means_of[system] = {
                    name: weighted_mean(means[:, index], rated, self.draws)
                    for index, name in enumerate((*CRITERIA, OVERALL))
                }
        return means_of

    def correlations(self) -> list[Correlation]:
        metrics = list(dict.fromkeys(name for scores in self._corpus.values() for name in scores))
        correlations = []
        for metric in metrics:
            for target, values in self.caption_targets().items():
                correlations += self._at_caption_level(metric, target, values)
        for metric in metrics:
            for target in (*CRITERIA, OVERALL, PREFERENCE):
                correlations += self._at_system_level(metric, target)
        return correlations

    def _at_caption_level(self, metric: str, target: str, values: dict[int, float]) -> list[Correlation]:
        scored = []
        for number, value in values.items():
            score = self._metric_of(self.captions[number], metric)
            if score is not None:
                scored.append((self.captions[number].image, score, value))
        if not scored:
            return []
        images = np.array([image for image, _, _ in scored])
        x, y = (np.array([row[column] for row in scored]) for column in (1, 2))
        draws = self.draws[:, images]
        return [Correlation(metric, target, "caption", len(x), kendall_tau_c(x, y, draws), pearson(x, y, draws))]

    def _at_system_level(self, metric: str, target: str) -> list[Correlation]:
        """Corpus scores are fixed; the judgements of systems are resampled."""
        names = [name for name in self.systems if metric in self._corpus[name]]
        people = [self._system_target(name, target) for name in names]
        known = [(name, value) for name, value in zip(names, people, strict=True) if value is not None]
        if not known:
            return []
        x = np.array([self._corpus[name][metric] for name, _ in known])
        y = np.array([value for _, (value, _) in known])
        resampled = np.stack([drawn for _, (_, drawn) in known], axis=1)
        none = np.zeros((0, len(x)), dtype=np.int64)
        kendall, r = kendall_tau_c(x, y, none), pearson(x, y, none)
        if kendall.value is not None and r.value is not None:
            kendall = estimate(kendall.value, row_kendall_tau_c(x, resampled))
            r = estimate(r.value, row_pearson(x, resampled))
        return [Correlation(metric, target, "system", len(x), kendall, r)]

    def caption_targets(self) -> dict[str, dict[int, float]]:
        """For every target the mean judgement of each judged caption."""
        targets: dict[str, dict[int, float]] = {}
        rated = np.flatnonzero(self.ratings)
        if len(rated):
            # One division of integers: equal judgements become equal numbers, which are ties.
            means = self.points[rated] / self.ratings[rated, None]
            overall = self.points[rated].sum(axis=1) / (len(CRITERIA) * self.ratings[rated])
            for index, criterion in enumerate(CRITERIA):
                targets[criterion] = dict(zip(rated.tolist(), means[:, index].tolist(), strict=True))
            targets[OVERALL] = dict(zip(rated.tolist(), overall.tolist(), strict=True))
        outcomes: defaultdict[int, list[float]] = defaultdict(list)
        for answer in self.judged.preferences:
            outcomes[answer.captions[0]].append((1 + answer.outcome) / 2)
            outcomes[answer.captions[1]].append((1 - answer.outcome) / 2)
        if outcomes:
            targets[PREFERENCE] = {number: sum(values) / len(values) for number, values in sorted(outcomes.items())}
        return targets

    def _system_points(self, system: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(N, criteria and overall) mean points of a system's caption of each image, and (N,) whether it was rated."""
        means = np.zeros((len(self.images), len(CRITERIA) + 1))
        rated = np.zeros(len(self.images))
        for number, caption in enumerate(self.captions):
            if system in caption.systems and self.ratings[number]:
                means[caption.image, :-1] = self.points[number] / self.ratings[number]
                means[caption.image, -1] = means[caption.image, :-1].mean()
                rated[caption.image] = 1
        return means, rated

    def _system_target(self, system: str, target: str) -> tuple[float, NDArray[np.float64]] | None:
        """The human judgement of a system, and of its resamples (B,)."""
        if target == PREFERENCE:
            index = self.systems.index(system)
            values = self.scored[:, index].sum(axis=1)
            weights = values + self.scored[:, :, index].sum(axis=1)
        else:
            means, weights = self._system_points(system)
            values = means[:, (*CRITERIA, OVERALL).index(target)]
        if not weights.any():
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(values.sum() / weights.sum()), (self.draws @ values) / (self.draws @ weights)

    def _metric_of(self, caption: Caption, metric: str) -> float | None:
        """The automatic score of a caption: that of its first system with a score."""
        image = self.images[caption.image]
        scores = (self._per_image[name].get(image, {}).get(metric) for name in caption.systems)
        return next((score for score in scores if score is not None and np.isfinite(score)), None)
