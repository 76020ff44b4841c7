"""Every number of the results against a separate computation from the raw file."""

from __future__ import annotations

import csv
import io
import json
import random
import sqlite3
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from simulated_raters import MakeStudy

from captune import cli
from captune.agreement import estimate, image_resamples, measure_agreement
from captune.apps.rating.estimates import (
    Estimate,
    is_connected,
    log_strengths,
    row_kendall_tau_c,
    row_pearson,
    weighted_kendall_tau_c,
    weighted_pearson,
)
from captune.apps.rating.export import answers_csv, write_results
from captune.apps.rating.store import DATABASE, Store
from captune.apps.rating.study_design import CRITERIA
from captune.apps.rating.study_items import StudyItems
from captune.apps.rating.study_results import (
    OVERALL,
    PREFERENCE,
    Correlation,
    PairResult,
    Ranked,
    Results,
    compute_results,
    judged_captions,
)
from captune.errors import InputError
from captune.metrics import ScoringOptions


@pytest.fixture(scope="module")
def results(answered: Store) -> Results:
    return compute_results(answered)


@pytest.fixture(scope="module")
def raw(answered: Store) -> list[dict[str, Any]]:
    """Counted answers from the file, read without captune."""
    connection = sqlite3.connect(answered.folder / DATABASE)
    captions = {
        index: (image, json.loads(systems))
        for index, image, systems in connection.execute("SELECT place, image, systems FROM caption")
    }
    rows = []
    query = (
        "SELECT a.rater, t.part, t.captions, a.value FROM answer a JOIN trial t ON a.rater = t.rater "
        "AND a.position = t.position WHERE t.kind = 'task'"
    )
    for rater, part, places, value in connection.execute(query):
        shown = json.loads(places)
        rows.append(
            {
                "rater": rater,
                "part": part,
                "value": value,
                "shown": shown,
                "image": captions[shown[0]][0],
                "systems": [captions[index][1] for index in shown],
            }
        )
    return rows


def _alpha(units: list[list[float]], distance: Any) -> float:
    """Krippendorff's alpha from its definition: observed over expected disagreement of pairs of values."""
    units = [unit for unit in units if len(unit) > 1]
    everything = [value for unit in units for value in unit]
    observed = sum(distance(a, b) * 2 / (len(unit) - 1) for unit in units for a, b in combinations(unit, 2)) / len(
        everything
    )
    expected = sum(2 * distance(a, b) for a, b in combinations(everything, 2))
    return 1 - observed / (expected / (len(everything) * (len(everything) - 1)))


def test_agreement(results: Results, raw: list[dict[str, Any]]) -> None:
    units = defaultdict(list)
    for row in raw:
        if row["part"] == "pairwise":
            low = min(row["shown"])
            better = {"tie": None, "first": row["shown"][0], "second": row["shown"][1]}[row["value"]]
            units[tuple(sorted(row["shown"]))].append(0 if better is None else 1 if better == low else -1)
    expected = _alpha(list(units.values()), lambda a, b: float(a != b))
    assert results.agreement["preference"][0].value == pytest.approx(expected, abs=1e-12)
    assert results.agreement["preference"][1] == len(units)
    for index, criterion in enumerate(CRITERIA):
        points = defaultdict(list)
        for row in raw:
            if row["part"] == "rubric":
                points[row["shown"][0]].append(int(row["value"][index]))
        counts = Counter(value for unit in points.values() for value in unit)

        def ordinal(a: int, b: int, counts: Counter[int] = counts) -> float:
            low, high = min(a, b), max(a, b)
            return float((sum(counts[v] for v in range(low, high + 1)) - (counts[low] + counts[high]) / 2) ** 2)

        assert results.agreement[criterion][0].value == pytest.approx(_alpha(list(points.values()), ordinal), abs=1e-12)


def test_win_rates_and_pairs(results: Results, raw: list[dict[str, Any]]) -> None:
    score, games, table = Counter[str](), Counter[str](), Counter[tuple[str, str, str]]()
    for row in raw:
        if row["part"] == "pairwise":
            for one in row["systems"][0]:
                for other in row["systems"][1]:
                    score[one] += {"first": 1, "second": 0, "tie": 0.5}[row["value"]]
                    score[other] += {"first": 0, "second": 1, "tie": 0.5}[row["value"]]
                    games.update((one, other))
                    table[one, other, row["value"]] += 1
                    table[other, one, {"first": "second", "second": "first", "tie": "tie"}[row["value"]]] += 1
    assert {name: rate.value for name, rate in results.win_rates.items()} == pytest.approx(
        {name: score[name] / games[name] for name in games}
    )
    for pair in results.pairs:
        counts = tuple(table[(*pair.systems, value)] for value in ("first", "second", "tie"))
        assert (pair.wins, pair.losses, pair.ties) == counts
        assert pair.share.value == pytest.approx((counts[0] + counts[2] / 2) / sum(counts))
    assert sum(pair.wins + pair.losses + pair.ties for pair in results.pairs) * 2 == sum(table.values())


def test_ranking(results: Results, raw: list[dict[str, Any]]) -> None:
    names = sorted({name for row in raw for systems in row["systems"] for name in systems})
    wins = Counter[tuple[str, str]]()
    for row in raw:
        if row["part"] == "pairwise":
            for one in row["systems"][0]:
                for other in row["systems"][1]:
                    share = {"first": 1.0, "second": 0.0, "tie": 0.5}[row["value"]]
                    wins[one, other] += share
                    wins[other, one] += 1 - share
    for one, other in combinations(names, 2):
        if wins[one, other] + wins[other, one]:
            wins[one, other] += 0.5
            wins[other, one] += 0.5

    def loss(free: np.ndarray[Any, Any]) -> float:
        strength = dict(zip(names, [0.0, *free], strict=True))
        return sum(count * np.log1p(np.exp(strength[o] - strength[i])) for (i, o), count in wins.items())

    best = optimize.minimize(loss, np.zeros(len(names) - 1), method="BFGS", options={"gtol": 1e-9})
    strengths = np.array([0.0, *best.x])
    expected = dict(zip(names, strengths - strengths.mean(), strict=True))
    assert {row.system: row.strength.value for row in results.ranking} == pytest.approx(expected, abs=1e-5)
    assert [row.rank for row in results.ranking] == [1, 2, 3, 4]
    assert results.ranking[0].system == "human"
    for row in results.ranking:
        assert row.strength.low is not None
        assert row.strength.low < row.strength.value < row.strength.high  # type: ignore[operator]


def test_points(results: Results, raw: list[dict[str, Any]]) -> None:
    points_by_name = defaultdict(lambda: defaultdict(list))
    for row in raw:
        if row["part"] == "rubric":
            for name in row["systems"][0]:
                points_by_name[name][row["image"]].append([int(point) for point in row["value"]])
    for name, images in points_by_name.items():
        means = np.mean([np.mean(points, axis=0) for points in images.values()], axis=0)
        for criterion, mean in zip(CRITERIA, means, strict=True):
            assert results.rubric[name][criterion].value == pytest.approx(mean)
        assert results.rubric[name]["overall"].value == pytest.approx(means.mean())


def test_correlation_with_metrics(
    results: Results, raw: list[dict[str, Any]], answered: Store, rated_run: Path
) -> None:
    scores = json.loads((rated_run / "scores.json").read_text())
    per_image = {row["name"]: row["per_image"] for row in scores["checkpoints"]}
    corpus = {row["name"]: row["corpus"] for row in scores["checkpoints"]}
    images = [name for name, _ in answered.images()]
    points, who, where = defaultdict(list), {}, {}
    outcome = defaultdict(list)
    for row in raw:
        for index, systems in zip(row["shown"], row["systems"], strict=True):
            models = [name for name in systems if name in per_image]
            if models:
                who[index], where[index] = models[0], images[row["image"]]
        if row["part"] == "rubric":
            points[row["shown"][0]].append(sum(int(point) for point in row["value"]))
        else:
            share = {"first": 1.0, "second": 0.0, "tie": 0.5}[row["value"]]
            outcome[row["shown"][0]].append(share)
            outcome[row["shown"][1]].append(1 - share)
    rows = {(row.metric, row.target, row.level): row for row in results.correlations}
    for target, judged in (("overall", points), ("preference", outcome)):
        indices = [index for index in judged if index in who]
        people = [float(np.mean(judged[index])) for index in indices]
        for metric in ("CIDEr", "BLEU-4", "ROUGE-L"):
            automatic = [per_image[who[index]][where[index]][metric] for index in indices]
            row = rows[metric, target, "caption"]
            assert row.pairs == len(indices)
            assert row.kendall.value == pytest.approx(stats.kendalltau(automatic, people, variant="c").statistic)
            assert row.pearson.value == pytest.approx(stats.pearsonr(automatic, people).statistic)
    systems = list(corpus)
    humans = [results.rubric[name]["overall"].value for name in systems]
    row = rows["CIDEr", "overall", "system"]
    assert row.pairs == 3
    assert row.pearson.value == pytest.approx(stats.pearsonr([corpus[n]["CIDEr"] for n in systems], humans).statistic)
    assert rows["CIDEr", "overall", "caption"].kendall.low is not None


@pytest.mark.parametrize(
    ("changes", "doubts"),
    [
        ({}, ()),
        ({"seconds": 0.4}, ("too_fast",)),
        ({"seconds": 0.4, "answered": 4}, ()),
        ({"attention_passed": 1}, ("attention_failed",)),
        ({"attention_passed": 0, "attention_checks": 1}, ()),
        ({"attention_passed": 0, "seconds": 1.4}, ("too_fast", "attention_failed")),
    ],
)
def test_doubts_about_a_rater(answered: Store, changes: dict[str, Any], doubts: tuple[str, ...]) -> None:
    first = compute_results(answered).raters[0]
    plausible = replace(first, answered=9, seconds=2.5, attention_passed=2, attention_checks=2)
    assert replace(plausible, **changes).doubts == doubts


@pytest.mark.parametrize("target", [OVERALL, PREFERENCE, CRITERIA[0]])
def test_judged_captions_give_the_correlations_of_the_results(
    answered: Store, items: StudyItems, results: Results, target: str
) -> None:
    judged = judged_captions(answered, items.references, target)
    assert judged.notes == ["10 captions of the human control are left out: they are references."]
    agreement = measure_agreement(judged, ScoringOptions(metrics=("rouge-l",)), resamples=0)
    rows = {(row.metric, row.target): row for row in results.correlations if row.level == "caption"}
    expected = rows["ROUGE-L", target]
    assert agreement.judgements == expected.pairs
    assert agreement.metrics["ROUGE-L"]["tau-c"].value == pytest.approx(expected.kendall.value, abs=1e-12)
    with pytest.raises(InputError, match="has references"):
        judged_captions(answered, {}, target)
    with pytest.raises(InputError, match="Nobody judged 'beauty'"):
        judged_captions(answered, items.references, "beauty")


def test_meta_reads_a_study(
    answered: Store, items: StudyItems, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references = tmp_path / "references.json"
    references.write_text(json.dumps({image: list(texts) for image, texts in items.references.items()}))
    arguments = ["meta", "study", str(answered.folder), "--metrics", "rouge-l", "--resamples", "50", "--json"]
    assert cli.run(lambda: cli.call(cli.app, [*arguments, "--references", str(references)])) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["title"].endswith(": overall")
    assert result["images"] == 10
    assert result["metrics"]["ROUGE-L"]["tau-c"]["value"] > 0
    assert cli.run(lambda: cli.call(cli.app, arguments)) == 2
    assert "has references; give --references FILE" in capsys.readouterr().err


def test_rater_quality(answered: Store) -> None:
    records = compute_results(answered).raters
    for record in records:
        trials = answered.trials(record.rater)
        assert record.answered == record.screens == len(trials)
        assert record.attention_checks == sum(trial.kind == "attention" for trial in trials)
        assert record.attention_passed == record.attention_checks, "the simulated raters see through every check"
        assert record.repeated_pairs == sum(trial.kind == "repeat" and trial.part == "pairwise" for trial in trials)
        assert record.points_apart is not None
        assert 0 <= record.points_apart < 2
        assert record.seconds == 2.5


def test_careless_raters_can_be_left_out(make_study: MakeStudy) -> None:
    store = make_study(images=10, attention=0.3)
    for rater in (0, 1):
        for position, trial in enumerate(store.trials(rater)):
            careful = (
                ("1111" if trial.kind == "attention" else "3333")
                if trial.part == "rubric"
                else ("first", "second")[trial.captions.index(trial.expected)]
                if trial.expected is not None
                else "tie"
            )
            careless = "5555" if trial.part == "rubric" else "first"
            store.save_answer(rater, position, careless if rater else careful, 1.0)
    everybody, careful_only = compute_results(store), compute_results(store, 0.8)
    assert careful_only.left_out == ("rater 2",)
    assert careful_only.counted < everybody.counted
    assert {pair.wins + pair.losses for pair in careful_only.pairs} == {0}
    assert careful_only.agreement["preference"][0].value is None, "one rater cannot agree"
    with pytest.raises(InputError, match="expected 0 to 1"):
        compute_results(store, 7)


def test_a_study_without_answers_has_no_numbers(make_study: MakeStudy) -> None:
    results = compute_results(make_study())
    assert results.counted == 0
    assert results.win_rates == results.rubric == {}
    assert results.ranking == results.pairs == ()
    assert all(alpha.value is None for alpha, _ in results.agreement.values())
    json.dumps(results.to_dict(), allow_nan=False)


def test_export(answered: Store, tmp_path: Path) -> None:
    files = write_results(tmp_path / "out", answered, compute_results(answered))
    assert [file.name for file in files] == ["results.json", "answers.csv"]
    tree = json.loads(files[0].read_text())
    assert tree["format"] == 1
    assert set(tree["win_rates"]) == {"pretrained", "epoch0", "epoch1", "human"}
    rows = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert len(rows) == len(answered.answers())
    assert {row["kind"] for row in rows} == {"task", "attention", "repeat"}
    first = rows[0]
    assert first["choice"] in ("first", "second", "tie")
    assert first["first_systems"] or first["kind"] == "attention"


def test_formulas_in_captions_and_names_stay_text(make_study: MakeStudy) -> None:
    store = make_study(names=('=HYPERLINK("x")', "@b", "c"))
    with sqlite3.connect(store.folder / DATABASE) as connection:
        connection.execute("UPDATE caption SET text = '=1+1'")
    store.save_answer(0, 0, "first", 1.0)
    (row,) = csv.DictReader(io.StringIO(answers_csv(store)))
    assert row["rater"].startswith("'=")
    assert row["first_caption"] == "'=1+1"


@given(st.integers(3, 12), st.integers(0, 2**32 - 1))
@example(3, 404)  # a row of 0.4, whose mean is not 0.4
@settings(max_examples=60, deadline=None)
def test_weighted_correlations_equal_those_of_repeated_things(size: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    x, y = chance.integers(0, 4, size).astype(float), chance.normal(size=size)
    weights = chance.integers(0, 3, (5, size))
    weights[:, 0] += 1
    for row, tau, r in zip(
        weights, weighted_kendall_tau_c(x, y, weights), weighted_pearson(x, y, weights), strict=True
    ):
        many_x, many_y = np.repeat(x, row), np.repeat(y, row)
        if len(set(many_x)) < 2 or len(set(many_y)) < 2:
            assert np.isnan(tau)
            assert np.isnan(r)
        else:
            assert tau == pytest.approx(stats.kendalltau(many_x, many_y, variant="c").statistic, abs=1e-9)
            assert r == pytest.approx(stats.pearsonr(many_x, many_y).statistic, abs=1e-7)
    if len(set(x)) > 1:
        rows = chance.normal(size=(4, size)).round(1)
        for row, tau, r in zip(rows, row_kendall_tau_c(x, rows), row_pearson(x, rows), strict=True):
            if len(set(row)) < 2:
                assert np.isnan(tau)
                assert np.isnan(r)
            else:
                assert tau == pytest.approx(stats.kendalltau(x, row, variant="c").statistic, abs=1e-9)
                assert r == pytest.approx(stats.pearsonr(x, row).statistic, abs=1e-9)


def test_strengths_of_known_games() -> None:
    # Two systems, three wins to one: the odds are 3.
    strengths = log_strengths(np.array([[0.0, 3.0], [1.0, 0.0]]))
    assert strengths[0] - strengths[1] == pytest.approx(np.log(3))
    # Strengths from which games were drawn come back.
    true = np.array([1.0, 0.2, -0.4, -0.8])
    chance = 1 / (1 + np.exp(true[None, :] - true[:, None]))
    wins = np.where(np.eye(4, dtype=bool), 0, 1000 * chance)
    assert log_strengths(wins) == pytest.approx(true, abs=1e-8)
    assert log_strengths(np.stack([wins, wins.T])) == pytest.approx(np.stack([true, -true]), abs=1e-8)


def test_systems_that_never_met_are_not_ranked() -> None:
    met = np.zeros((4, 4), dtype=bool)
    met[0, 1] = met[2, 3] = True
    assert not is_connected(met)
    met[1, 2] = True
    assert is_connected(met)


def test_intervals_cover_the_truth() -> None:
    chance, covered = random.Random(0), 0
    for trial in range(200):
        values = np.array([chance.gauss(0, 1) for _ in range(60)])
        draws = image_resamples(60, trial, 300)
        interval = estimate(float(values.mean()), draws @ values / 60)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 0 <= interval.high
    assert 180 <= covered <= 199


def test_neighbors_of_the_ranking_and_the_best_metrics_are_first() -> None:
    share = Estimate(0.25, 0.1, 0.45)
    results = Results(
        source="run",
        options={},
        systems=("a", "b"),
        images=4,
        counted=8,
        pairs=(PairResult(("a", "b"), 1, 3, 0, share, 0),),
        ranking=(Ranked("b", 1, Estimate(0.5)), Ranked("a", 2, Estimate(-0.5))),
        correlations=tuple(
            Correlation(metric, target, "caption", 8, Estimate(kendall), Estimate(None))
            for metric, kendall in (("BLEU-4", 0.1), ("CLIPScore", None), ("CIDEr", 0.4))
            for target in ("overall", "precision")
        ),
    )
    assert results.verdicts == [("b", "a", Estimate(0.75, 0.55, 0.9))]
    rows = results.correlations_at("caption", single_criteria=False)
    assert [row.metric for row in rows] == ["CIDEr", "BLEU-4", "CLIPScore"]
    assert {row.target for row in rows} == {"overall"}
    assert {row.target for row in results.correlations_at("caption", single_criteria=True)} == {"precision"}
    assert results.correlations_at("system", single_criteria=False) == []
