"""The verdict and the three images at the top of a report."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from captune.report import RunScores, TrainingLog, build_page, compare_runs, write_report
from captune.report.columns import describe
from captune.report.headline import comparison_headline, examples, headline
from captune.report.narrative import catalogue
from captune.report.settings import changed_settings, image_links, read_settings, run_differences

HOSTILE = "</script><img src=x onerror=alert(1)>"


def _tested(run: RunScores, p: float, interval: tuple[float, float] = (0.1, 0.3)) -> RunScores:
    """The run with a test of every row against the first."""
    rows = [
        dataclasses.replace(
            row,
            p_values={metric: {"pretrained": p} for metric in row.corpus},
            differences={metric: {"pretrained": interval} for metric in row.corpus},
        )
        for row in run.checkpoints[1:]
    ]
    return dataclasses.replace(run, checkpoints=(run.checkpoints[0], *rows))


def test_a_gain_that_passes_its_test_is_a_verdict_with_its_interval(make_run: Any) -> None:
    line = headline(_tested(make_run({"CIDEr": (1.79, 4.27, 4.1), "BLEU-4": (0.1, 0.3, 0.3)}), 0.001, (2.2, 2.7)))
    assert (line.kind, line.title) == ("helped", "Tuning helped: CIDEr 1.79 → 4.27")
    assert line.detail == (
        "CIDEr changed by +2.48 (95 % interval +2.20 to +2.70) from pretrained to epoch0. "
        "epoch0 is the best of 2 epochs by CIDEr on these images. Better by more than chance on BLEU-4 and CIDEr. "
        "The last epoch, epoch1, scores 4.10."
    )


@pytest.mark.parametrize(
    ("columns", "p", "kind"),
    [
        ({"CIDEr": (1.0, 1.2)}, 0.4, "same"),
        ({"CIDEr": (2.0, 1.2)}, 0.001, "worse"),
        ({"CIDEr": (1.0, 1.2), "BLEU-4": (0.3, 0.2)}, 0.001, "mixed"),
        ({"CIDEr": (1e-9, 2e-9), "BLEU-4": (0.0, 0.0)}, 0.001, "zero"),
        ({"Unknown": (1.0, 2.0)}, 0.001, "none"),
    ],
)
def test_the_kind_follows_the_tests(make_run: Any, columns: Any, p: float, kind: str) -> None:
    run = _tested(make_run(columns), p)
    for language in ("en", "zh"):
        assert headline(run, language).kind == kind


def test_without_statistics_the_verdict_is_untested(make_run: Any) -> None:
    line = headline(make_run({"CIDEr": (1.0, 2.0)}))
    assert line.kind == "untested"
    assert "chance" not in line.detail


def test_a_leak_is_no_verdict(make_run: Any) -> None:
    line = headline(_tested(make_run({"CIDEr": (1.0, 2.0)}, leak="seen"), 0.001))
    assert line.title == "No fair verdict (LEAK): CIDEr 1.00 → 2.00"


def test_one_row_and_other_captioners_are_no_epochs(make_run: Any) -> None:
    assert headline(make_run({"CIDEr": (1.5,)}, half_width=0.1)).title == "pretrained: CIDEr 1.50"
    run = _tested(make_run({"CIDEr": (1.0, 2.0, 5.0)}), 0.001)
    other = dataclasses.replace(run.checkpoints[2], name="blip2", epoch=None)
    line = headline(dataclasses.replace(run, checkpoints=(*run.checkpoints[:2], other)))
    assert line.title == "Tuning helped: CIDEr 1.00 → 2.00"
    assert "only evaluated epoch" in line.detail
    models = make_run({"CIDEr": (1.0, 2.0)}, names=("a", "b"), half_width=0.1)
    assert headline(models).kind == "best"
    assert headline(make_run({"CIDEr": (1.0, 1.1)}, names=("a", "b"), half_width=0.1)).kind == "tie"


def _with_images(run: RunScores, changes: tuple[float, ...]) -> RunScores:
    ids = [str(index) for index in range(len(changes))]
    rows = [
        dataclasses.replace(
            row,
            captions=dict.fromkeys(ids, f"{HOSTILE} {index}"),
            per_image={image: {"CIDEr": 1.0 + index * changes[int(image)]} for image in ids},
        )
        for index, row in enumerate(run.checkpoints)
    ]
    return dataclasses.replace(run, checkpoints=tuple(rows), references=dict.fromkeys(ids, (HOSTILE,)))


def test_three_images_by_their_change(make_run: Any) -> None:
    run = _with_images(make_run({"CIDEr": (1.0, 1.2)}), (0.2, 0.9, -0.5, 0.25, 0.1))
    assert [(e.kind, e.image) for e in examples(run)] == [("improved", "1"), ("typical", "0"), ("regressed", "2")]
    rising = _with_images(make_run({"CIDEr": (1.0, 1.2)}), (0.2, 0.9, 0.1))
    assert [e.kind for e in examples(rising)] == ["improved", "typical", "least_improved"]
    noise = _with_images(make_run({"CIDEr": (1.0, 1.2)}), (1e-9, -0.5, -1e-9))
    assert [e.kind for e in examples(noise)] == ["least_regressed", "typical", "regressed"]
    assert examples(make_run({"CIDEr": (1.0, 1.2)})) == []
    # The rule below the images is true of every kind: it does not call the last one a loss.
    rule = catalogue("en").page["example_rule"]
    assert "lowest" in rule
    assert "loss" not in rule


def test_hostile_settings_and_captions_stay_text(make_run: Any, tmp_path: Path) -> None:
    run = _with_images(make_run({"CIDEr": (1.0, 1.2)}), (0.2, 0.9, -0.5))
    (tmp_path / "config.yaml").write_text(f"output: /secret/run\nmodel:\n  path: '{HOSTILE}'\ntrain:\n  epochs: 77\n")
    page = build_page(run, TrainingLog(), run_dir=tmp_path)
    assert HOSTILE not in page
    assert "77" in page
    assert "/secret" not in page
    (tmp_path / "config.yaml").write_text("[:")
    build_page(run, TrainingLog(), run_dir=tmp_path)


def test_settings_that_differ(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train:\n  epochs: 77\nseed: 42\ndata:\n  train: /a/b/c/m.jsonl\n")
    settings = read_settings(tmp_path)
    changed = {setting.name: setting.values[0] for setting in changed_settings(settings)}
    assert changed == {"train.epochs": "77", "data.train": "…/c/m.jsonl"}
    assert run_differences([settings, {**settings, "seed": 7}]) == [("seed", ["42", "7"])]
    assert read_settings(tmp_path / "absent") == {}


def test_links_to_image_files_are_relative(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "a b.jpg").write_bytes(b"")
    (tmp_path / "m.jsonl").write_text(
        '{"id": "1", "image": "a b.jpg", "captions": ["x"]}\n{"id": "2", "image": "gone.jpg"}\nbroken\n'
    )
    (run / "config.yaml").write_text(f"data:\n  train: {tmp_path / 'm.jsonl'}\n")
    assert image_links(run, ["1", "2"]) == {"1": "../a%20b.jpg"}


def test_every_metric_explains_itself() -> None:
    for name in ("BLEU-1", "BLEU-4", "CIDEr", "CIDEr-D", "ROUGE-L", "METEOR", "SPICE", "CLIPScore", "RefCLIPScore"):
        assert describe(name).endswith(".")
    assert describe("unknown") == ""


def test_compared_runs_say_what_is_compared_and_what_differs() -> None:
    words = ("dog", "cat", "horse", "bird", "cow", "man", "girl", "boat")
    references = {w + str(i): (f"A {w} runs at the beach number {i}.",) for w in words for i in range(4)}

    def run(bad: bool) -> RunScores:
        from captune.report import CheckpointScores

        rows = []
        for epoch in (0, 1):
            captions = {
                k: "Two people sit down." if bad and index % 2 else r[0]
                for index, (k, r) in enumerate(references.items())
            }
            rows.append(
                CheckpointScores(name=f"epoch{epoch}", epoch=epoch, corpus={"CIDEr": 5.0 - epoch}, captions=captions)
            )
        return RunScores("toy", tuple(rows), "test", "karpathy", len(references), references)

    comparison = compare_runs(
        {"slow": run(True), "fast": run(False)}, settings=[{"train.lr": 1e-5}, {"train.lr": 3e-5}]
    )
    line = comparison_headline(comparison)
    assert line.kind == "better"
    assert line.title.startswith("fast epoch0 is better than slow epoch0: CIDEr ")
    assert "fast epoch0 and slow epoch0" in line.detail
    page = build_page(comparison.table, TrainingLog(), comparison=comparison)
    assert re.search(r"<title>slow epoch0 · fast epoch0 – toy – captune</title>", page)
    assert "<code>train.lr</code>" in page
    assert page.count('data-t="cider_chart"') == 1


def test_the_page_opens_with_the_verdict(make_run: Any, tmp_path: Path) -> None:
    run = _tested(make_run({"CIDEr": (1.0, 2.0)}), 0.001)
    page = write_report(tmp_path, run, chart_formats=())[-1].read_text()
    assert page.index("Tuning helped: CIDEr 1.00 → 2.00") < page.index('id="score-table"') < page.index('class="facts"')
    assert "微调有效：CIDEr 1.00 → 2.00" in page
