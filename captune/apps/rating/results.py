"""What a study found: agreement, win rates, ranking, points, raters, and how well metrics agree with people.

N images, B resamples, S systems. Judgements of one image belong together, so every interval draws images again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from captune.apps.rating.agreement import alpha
from captune.apps.rating.bradley_terry import bradley_terry, is_connected
from captune.apps.rating.correlation import kendall_tau_c, pearson, row_kendall_tau_c, row_pearson
from captune.apps.rating.design import CRITERIA, Caption
from captune.apps.rating.estimates import Estimate, estimate, image_resamples, weighted_mean
from captune.apps.rating.findings import OVERALL, PREFERENCE, Correlation, PairResult, Ranked, Results
from captune.apps.rating.judgements import Judgements, read_judgements, rival_systems
from captune.apps.rating.quality import rater_quality
from captune.apps.rating.store import Store
from captune.errors import InputError

__all__ = ["compute_results"]


def compute_results(store: Store, least_attention: float = 0.0) -> Results:
    """Compute the results of a study as it stands.

    Args:
        store: the open study.
        least_attention: raters who passed a smaller share of their attention checks are not counted.

    Raises:
        InputError: the share is not between 0 and 1.
    """
    if not 0 <= least_attention <= 1:
        raise InputError(f"The least share of attention checks passed is {least_attention}, expected 0 to 1.")
    raters = rater_quality(store)
    careless = {r.rater: r.name for r in raters if r.attention is not None and r.attention < least_attention}
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
        place = {name: index for index, name in enumerate(self.systems)}
        # (N, S, S): wins of the row's system over the column's on each image, and ties of the two.
        self.wins = np.zeros((len(self.images), len(self.systems), len(self.systems)))
        self.ties = np.zeros_like(self.wins)
        for answer in judged.preferences:
            for one, other in rival_systems(self.captions, answer.captions):
                first, second = (one, other) if answer.outcome >= 0 else (other, one)
                if answer.outcome:
                    self.wins[answer.image, place[first], place[second]] += 1
                else:
                    self.ties[answer.image, place[first], place[second]] += 1
                    self.ties[answer.image, place[second], place[first]] += 1
        self.scored = self.wins + self.ties / 2
        # (captions, criteria): sums of points, and how many ratings.
        self.points = np.zeros((len(self.captions), len(CRITERIA)))
        self.ratings = np.zeros(len(self.captions))
        for rating in judged.ratings:
            self.points[rating.caption] += rating.points
            self.ratings[rating.caption] += 1

    def agreement(self, parts: tuple[str, ...]) -> dict[str, tuple[Estimate, int]]:
        found = {}
        if "pairwise" in parts:
            units = {pair: number for number, pair in enumerate({p.captions: None for p in self.judged.preferences})}
            values = [(p.image, units[p.captions], p.outcome + 1) for p in self.judged.preferences]
            found[PREFERENCE] = alpha(values, 3, "nominal", self.draws)
        if "rubric" in parts:
            for index, criterion in enumerate(CRITERIA):
                values = [(r.image, r.caption, r.points[index] - 1) for r in self.judged.ratings]
                found[criterion] = alpha(values, 5, "ordinal", self.draws)
        return found

    def win_rates(self) -> dict[str, Estimate]:
        played = self.scored + self.scored.swapaxes(1, 2)
        return {
            name: weighted_mean(self.scored[:, place].sum(axis=1), played[:, place].sum(axis=1), self.draws)
            for place, name in enumerate(self.systems)
            if played[:, place].any()
        }

    def pairs(self) -> tuple[PairResult, ...]:
        found = []
        for one, first in enumerate(self.systems):
            for other, second in list(enumerate(self.systems))[one + 1 :]:
                played = self.scored[:, one, other] + self.scored[:, other, one]
                equal = sum(first in caption.systems and second in caption.systems for caption in self.captions)
                if played.any() or (equal and self.judged.preferences):
                    wins, losses, ties = (
                        int(table.sum())
                        for table in (self.wins[:, one, other], self.wins[:, other, one], self.ties[:, one, other])
                    )
                    share = weighted_mean(self.scored[:, one, other], played, self.draws)
                    found.append(PairResult((first, second), wins, losses, ties, share, equal))
        return tuple(found)

    def ranking(self) -> tuple[Ranked, ...]:
        wins = self.scored.sum(axis=0)
        compared = (wins + wins.T) > 0
        if len(self.systems) < 2 or not is_connected(compared):
            return ()
        strengths = bradley_terry(wins, compared)
        resampled = bradley_terry(np.tensordot(self.draws, self.scored, axes=1), compared)
        order = np.argsort(-strengths, kind="stable")
        return tuple(
            Ranked(self.systems[place], rank, estimate(float(strengths[place]), resampled[:, place]))
            for rank, place in enumerate(order.tolist(), 1)
        )

    def rubric(self) -> dict[str, dict[str, Estimate]]:
        """Mean over images of the mean over raters."""
        found: dict[str, dict[str, Estimate]] = {}
        for system in self.systems:
            means, rated = self._system_points(system)
            if rated.any():
                found[system] = {
                    name: weighted_mean(means[:, index], rated, self.draws)
                    for index, name in enumerate((*CRITERIA, OVERALL))
                }
        return found

    def correlations(self) -> list[Correlation]:
        metrics = list(dict.fromkeys(name for scores in self._corpus.values() for name in scores))
        found = []
        for metric in metrics:
            for target, values in self._caption_targets().items():
                found += self._at_caption_level(metric, target, values)
        for metric in metrics:
            for target in (*CRITERIA, OVERALL, PREFERENCE):
                found += self._at_system_level(metric, target)
        return found

    def _at_caption_level(self, metric: str, target: str, values: dict[int, float]) -> list[Correlation]:
        scored = []
        for place, value in values.items():
            score = self._metric_of(self.captions[place], metric)
            if score is not None:
                scored.append((self.captions[place].image, score, value))
        if not scored:
            return []
        images = np.array([image for image, _, _ in scored])
        x, y = (np.array([row[column] for row in scored]) for column in (1, 2))
        draws = self.draws[:, images]
        return [Correlation(metric, target, "caption", len(x), kendall_tau_c(x, y, draws), pearson(x, y, draws))]

    def _at_system_level(self, metric: str, target: str) -> list[Correlation]:
        """Corpus scores stay as they are; the judgements of systems are resampled."""
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

    def _caption_targets(self) -> dict[str, dict[int, float]]:
        """For every target the judgement of each caption that was judged."""
        found: dict[str, dict[int, float]] = {}
        rated = np.flatnonzero(self.ratings)
        if len(rated):
            # Divided once, from whole numbers: equal judgements come out as equal numbers, which are ties.
            means = self.points[rated] / self.ratings[rated, None]
            overall = self.points[rated].sum(axis=1) / (len(CRITERIA) * self.ratings[rated])
            for index, criterion in enumerate(CRITERIA):
                found[criterion] = dict(zip(rated.tolist(), means[:, index].tolist(), strict=True))
            found[OVERALL] = dict(zip(rated.tolist(), overall.tolist(), strict=True))
        outcomes: defaultdict[int, list[float]] = defaultdict(list)
        for answer in self.judged.preferences:
            outcomes[answer.captions[0]].append((1 + answer.outcome) / 2)
            outcomes[answer.captions[1]].append((1 - answer.outcome) / 2)
        if outcomes:
            found[PREFERENCE] = {place: sum(values) / len(values) for place, values in sorted(outcomes.items())}
        return found

    def _system_points(self, system: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(N, criteria and overall) mean points of a system's caption of each image, and (N,) whether it was rated."""
        means = np.zeros((len(self.images), len(CRITERIA) + 1))
        rated = np.zeros(len(self.images))
        for place, caption in enumerate(self.captions):
            if system in caption.systems and self.ratings[place]:
                means[caption.image, :-1] = self.points[place] / self.ratings[place]
                means[caption.image, -1] = means[caption.image, :-1].mean()
                rated[caption.image] = 1
        return means, rated

    def _system_target(self, system: str, target: str) -> tuple[float, NDArray[np.float64]] | None:
        """People's judgement of a system, and of its resamples (B,)."""
        if target == PREFERENCE:
            place = self.systems.index(system)
            values = self.scored[:, place].sum(axis=1)
            weights = values + self.scored[:, :, place].sum(axis=1)
        else:
            means, weights = self._system_points(system)
            values = means[:, (*CRITERIA, OVERALL).index(target)]
        if not weights.any():
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(values.sum() / weights.sum()), (self.draws @ values) / (self.draws @ weights)

    def _metric_of(self, caption: Caption, metric: str) -> float | None:
        """The automatic score of a caption: that of the first system with a score that said it."""
        image = self.images[caption.image]
        scores = (self._per_image[name].get(image, {}).get(metric) for name in caption.systems)
        return next((score for score in scores if score is not None and np.isfinite(score)), None)
