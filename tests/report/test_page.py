"""The page as a document: complete, small, the same twice, and nothing in it that came from a caption is markup."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captune.parsing import validate
from captune.report import RunScores, TrainingLog, build_page, read_log, write_thumbnails
from captune.report.caption_statistics import caption_statistics, most_changed_words, row_failures, word_classes
from captune.report.comparison import Comparison
from captune.report.narrative import LANGUAGES, catalogue
from captune.report.page import MAX_CHARACTERS, MAX_IMAGES, explorer_data, select_images
from captune.report.page_charts import (
    Series,
    comparison_charts,
    distribution_charts,
    line_chart,
    loss_charts,
    nice_ticks,
    score_charts,
)
from captune.report.rating import Rating
from captune.report.thumbnails import embedded_thumbnails, thumbnail_path

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\x00\u202e&amp;{{data}}"


@pytest.fixture
def run(make_run: Any, slides: Any) -> RunScores:
    """Two images with captions, references and scores, one of them hostile everywhere."""
    base: RunScores = make_run(slides, half_width=0.01)
    rows = [
        dataclasses.replace(
            row,
            captions={"1": f"a dog runs {index}", HOSTILE: HOSTILE},
            per_image={"1": {"CIDEr": 0.1 * index, "BLEU-4": 0.5}, HOSTILE: {"CIDEr": 0.2}},
        )
        for index, row in enumerate(base.checkpoints)
    ]
    references = {"1": ("A dog runs.", "The dog is running."), HOSTILE: (HOSTILE,)}
    return dataclasses.replace(base, checkpoints=tuple(rows), references=references)


class _Reader(HTMLParser):
    """Collects elements and the text of the data block."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script" and dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def _read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    return reader


def test_hostile_text_never_becomes_markup(run: RunScores) -> None:
    hostile = dataclasses.replace(run, data=HOSTILE, protocol=HOSTILE, split=HOSTILE)
    rows = [
        dataclasses.replace(row, name=f"{i}{HOSTILE}", leak=HOSTILE, signature=HOSTILE)
        for i, row in enumerate(run.checkpoints)
    ]
    page = build_page(
        dataclasses.replace(hostile, checkpoints=tuple(rows)), TrainingLog(facts={"model": HOSTILE, "device": HOSTILE})
    )
    reader = _read(page)
    assert [tag for tag, _ in reader.tags].count("script") == 2
    assert not any(tag == "img" for tag, _ in reader.tags)
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert "\x00" not in page
    data = json.loads(reader.data)
    assert data["images"][1]["c"][0] == HOSTILE
    assert data["checkpoints"][0] == f"0{HOSTILE}"


def test_names_in_a_rating_are_escaped_and_need_no_word(run: RunScores) -> None:
    value = {"value": 0.5, "low": 0.25, "high": 0.75, "units": 3}
    rating = {
        "counted": 1000,
        "images": 3,
        "ranking": [{"system": "<b>", "strength": value}],
        "win_rates": {"<b>": value},
        "rubric": {"<b>": {"<i>": value}},
        "agreement": {"<i>": {**value, "low": None}},
        "correlations": [{"metric": "<u>", "target": "overall", "level": "caption", "kendall": None, "pearson": value}],
    }
    page = build_page(run, TrainingLog(), rating=validate(rating, Rating, "rating.json"))
    assert '<span data-t="rating_counts">Answers counted / images:</span> 1,000 / 3' in page
    assert '<td>0.500<span class="interval">[0.250, 0.750]</span></td>' in page
    assert not {"b", "i", "u"} & {tag for tag, _ in _read(page).tags}
    assert all(text in page for text in ("&lt;b&gt;", "rating_&lt;i&gt;", "&lt;u&gt;"))


def test_nothing_is_loaded_from_anywhere(run: RunScores) -> None:
    page = build_page(run, TrainingLog())
    for _, attributes in _read(page).tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert not re.search(r"@import|url\(", page)
    policy = next(a["content"] for t, a in _read(page).tags if t == "meta" and "http-equiv" in a)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert policy is not None
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_the_same_run_gives_the_same_page(run: RunScores) -> None:
    assert build_page(run, TrainingLog()) == build_page(run, TrainingLog())


@pytest.mark.parametrize(("language", "word"), [("en", "Image by image"), ("zh", "逐图查看")])
def test_both_languages_are_readable_without_a_script(run: RunScores, language: str, word: str) -> None:
    page = build_page(run, TrainingLog(), language=language)
    head = page.partition('<script type="application/json"')[0]
    assert f'<html lang="{language}">' in page
    assert f">{word}</h2>" in head
    assert f'<th scope="row" data-t="people">{"people" if language == "en" else "人物"}</th>' in head
    assert not re.search(r'data-t="[^"]+"[^>]*></', head)
    assert "BLEU-4 rose fastest (+84&nbsp;%)" in head
    assert "BLEU-4（+84&nbsp;%）提升最快" in head


def test_every_word_of_the_page_is_in_both_dictionaries(run: RunScores, repository: Path) -> None:
    words = {language: catalogue(language).page for language in ("en", "zh")}
    assert words["en"].keys() == words["zh"].keys()
    page = build_page(run, TrainingLog(steps=(0.0, 1.0), loss=(2.0, 1.0), lr=(1e-5, 1e-5)))
    head = page.partition('<script type="application/json"')[0]
    script = (repository / "captune/report/page_files/page.js").read_text()
    used = set(re.findall(r'data-t(?:-label)?="([^"]+)"', head)) | set(re.findall(r'say\("(\w+)"\)', script))
    assert used <= words["en"].keys()


def test_a_bare_table_makes_a_page_too(make_run: Any, slides: Any) -> None:
    page = build_page(make_run(slides), TrainingLog())
    assert "There are no captions in this run." in page
    assert "There is no log of the training in this run." in page


def test_long_captions_and_many_images_are_limited(run: RunScores) -> None:
    row = run.checkpoints[0]
    many = {str(index): "x" * 10_000 for index in range(MAX_IMAGES + 200)}
    first = dataclasses.replace(row, captions=many, per_image={i: {"CIDEr": 0.5} for i in many})
    last = dataclasses.replace(first, name="epoch0", per_image={i: {"CIDEr": int(i) / 1000} for i in many})
    big = dataclasses.replace(run, checkpoints=(first, last), references={})
    images = select_images(big)
    assert len(images) == MAX_IMAGES
    assert {"0", str(MAX_IMAGES + 199)} <= set(images)
    assert "500" in images or "700" in images
    assert images == sorted(images, key=int)
    data = explorer_data(big, images, [{}, {}])
    assert data["left_out"] == 200
    assert data["images"][0]["c"][0] == "x" * MAX_CHARACTERS + "… (10,000 characters)"


def test_a_model_that_never_stops_does_not_make_the_page_too_large(run: RunScores, tmp_path: Path) -> None:
    images = [str(index) for index in range(1500)]
    rows = [
        dataclasses.replace(
            row, captions=dict.fromkeys(images, "and then " * 300), per_image={i: {"CIDEr": 0.1} for i in images}
        )
        for row in run.checkpoints
    ]
    page = build_page(dataclasses.replace(run, checkpoints=tuple(rows), references={}), TrainingLog(), run_dir=tmp_path)
    data = json.loads(_read(page).data)
    assert len(page.encode()) < 5_000_000
    assert len(data["images"]) == 1000
    assert data["left_out"] == 500
    assert data["images"][0]["c"][0].endswith("… (2,700 characters)")


def test_sentences_of_5000_paragraphs_hardly_enlarge_the_page(run: RunScores) -> None:
    """Only the ends of sentences are stored, and only for images with paragraphs."""
    text = "A red barn is next to a long road with two cows on it. " * 9
    images = {str(index): f"{text}It is number {index}." for index in range(5000)}
    row = dataclasses.replace(run.checkpoints[0], captions=images, per_image={i: {"CIDEr": 0.5} for i in images})
    references = {image: (caption, "A barn.") for image, caption in images.items()}
    big = dataclasses.replace(run, checkpoints=(row,), references=references)
    tree = explorer_data(big, select_images(big), [{}])
    first = tree["images"][0]
    assert [len(ends) for ends in first["m"]] == [10, 1]
    assert first["n"] == [first["m"][0]]
    assert [first["c"][0][:end][-1] for end in first["n"][0]] == ["."] * 10
    with_sentences = len(json.dumps(tree, separators=(",", ":")))
    for image in tree["images"]:
        del image["n"], image["m"]
    assert with_sentences < 1.1 * len(json.dumps(tree, separators=(",", ":")))
    short = dataclasses.replace(big, checkpoints=(dataclasses.replace(row, captions=dict.fromkeys(images, "A dog.")),))
    assert not {"n", "m"} & set(explorer_data(short, ["1"], [{}])["images"][0])


def test_failures_are_flagged_per_caption(run: RunScores) -> None:
    row = dataclasses.replace(
        run.checkpoints[0],
        captions={"1": "a dog ###", HOSTILE: ""},
        unfinished=("1",),
    )
    failures = row_failures(run, row)
    assert failures == {"1": ("stop symbol", "unfinished"), HOSTILE: ("empty",)}
    data = explorer_data(run, ["1"], [failures, *[{}] * 5])
    assert [data["failures"][index] for index in data["images"][0]["f"][0]] == ["stop symbol", "unfinished"]


def test_lengths_words_and_classes(run: RunScores) -> None:
    captions = caption_statistics(run)
    rows, references = list(captions.rows.values()), captions.references
    assert rows[0].lengths[0] == 4
    assert rows[0].words["dog"] == 1
    assert references.lengths[:2] == (3, 4)
    gained, lost = most_changed_words(rows[0].words, rows[-1].words)
    assert (gained, lost) == (["5"], ["0"])
    shares = word_classes(rows[0].words)
    assert shares["articles"] == pytest.approx(1 / rows[0].words.total())
    assert word_classes(references.words)["actions"] > 0


def test_chinese_captions_are_counted_by_character(make_run: Any) -> None:
    base = make_run({"CIDEr": (0.5,)})
    row = dataclasses.replace(base.checkpoints[0], captions={"1": "一只狗在跑。"})
    captions = caption_statistics(dataclasses.replace(base, checkpoints=(row,), references={"1": ("一只狗。",)}))
    assert captions.rows[row.name].lengths == (5,)


def _picture(path: Path, size: tuple[int, int] = (400, 300), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 80).convert(mode).save(path, "PNG" if mode != "RGB" else "JPEG")
    return path


def test_thumbnails_fit_the_budget_and_survive_broken_files(tmp_path: Path) -> None:
    pictures = {str(index): _picture(tmp_path / f"{index}.jpg") for index in range(20)}
    pictures["transparent"] = _picture(tmp_path / "t.png", mode="RGBA")
    pictures["broken"] = tmp_path / "broken.jpg"
    pictures["broken"].write_bytes(b"\xff\xd8 not a picture")
    pictures["missing"] = tmp_path / "missing.jpg"
    assert write_thumbnails(tmp_path / "run", pictures) == 21
    assert write_thumbnails(tmp_path / "run", pictures) == 0
    embedded = embedded_thumbnails(tmp_path / "run", pictures, budget=60_000)
    assert set(embedded) == set(pictures) - {"broken", "missing"}
    assert sum(map(len, embedded.values())) <= 60_000
    with Image.open(io.BytesIO(base64.b64decode(embedded["transparent"]))) as image:
        assert image.format == "JPEG"
    large = embedded_thumbnails(tmp_path / "run", pictures)
    with Image.open(io.BytesIO(base64.b64decode(large["0"]))) as image:
        assert max(image.size) == 256


def test_a_thumbnail_is_of_the_image_that_has_its_id_now(tmp_path: Path) -> None:
    first, second = (_picture(tmp_path / f"{name}.jpg") for name in ("first", "second"))
    run = tmp_path / "run"
    assert write_thumbnails(run, {"0": first, "1": second}) == 2
    before = embedded_thumbnails(run, ["0", "1"])
    assert write_thumbnails(run, {"0": second, "1": second}) == 1
    after = embedded_thumbnails(run, ["0", "1"])
    assert after["0"] == after["1"] == before["1"] != before["0"]
    assert write_thumbnails(run, {"0": second}, exif_rotation=False) == 1
    # A picture of an image that is gone is of nothing that can be evaluated.
    assert write_thumbnails(run, {"0": tmp_path / "gone.jpg"}) == 0
    assert set(embedded_thumbnails(run, ["0", "1"])) == {"1"}


def test_thumbnails_of_an_older_version_are_shown_and_made_anew_by_an_evaluation(tmp_path: Path) -> None:
    picture, other = (_picture(tmp_path / f"{name}.jpg") for name in ("picture", "other"))
    run = tmp_path / "run"
    write_thumbnails(run, {"0": picture})
    (run / "thumbnails" / "images.json").unlink()
    before = embedded_thumbnails(run, ["0"])
    assert set(before) == {"0"}
    assert write_thumbnails(run, {"0": other}) == 1
    assert embedded_thumbnails(run, ["0"]) != before


@pytest.mark.parametrize("image", ["../../etc/passwd", "a/b", "..", ".", "x" * 5000, "\ud800", "\x00", "图", "a\\b"])
def test_a_thumbnail_never_leaves_its_folder(image: str, tmp_path: Path) -> None:
    path = thumbnail_path(tmp_path, image)
    assert path.resolve().parent == (tmp_path / "thumbnails").resolve()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    assert thumbnail_path(tmp_path, image + "2") != path


def test_the_log_is_read_with_all_its_defects(tmp_path: Path) -> None:
    lines = [
        '{"time": 0, "event": "run", "model": "toy", "images": 5}',
        '{"time": 2, "event": "step", "step": 10, "loss": 2.0, "learning_rate": 3e-5, "captions_per_s": 40}',
        '{"time": 4, "event": "step", "step": 20, "loss": NaN, "learning_rate": "high", "captions_per_s": 20}',
        '{"time": 5, "event": "step", "step": 10, "loss": 1.0, "learning_rate": 1e-5}',
        '{"event": "step", "step": true}',
        "[]",
        "\x00garbage",
        '{"time": 9, "event": "st',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    log = read_log(tmp_path / "log.jsonl")
    assert log.steps == (10.0, 20.0)
    assert log.loss[0] == 1.0  # A resumed run writes a step again; the later line counts.
    assert log.facts == {"model": "toy", "images": 5}
    assert (log.seconds, log.captions_per_s) == (5.0, 20.0)
    assert read_log(tmp_path / "missing.jsonl") == TrainingLog()


def test_a_long_log_is_thinned(tmp_path: Path) -> None:
    lines = [json.dumps({"event": "step", "step": step, "loss": 1.0}) for step in range(5000)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    log = read_log(tmp_path / "log.jsonl")
    assert 300 < len(log.steps) <= 400
    assert set(log.loss) == {1.0}


def test_ticks_are_round() -> None:
    assert nice_ticks(0.13, 0.71) == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert nice_ticks(0, 3000) == pytest.approx([0, 500, 1000, 1500, 2000, 2500, 3000])
    assert nice_ticks(2.0, 2.0) == [2.0]


def test_a_drawing_is_valid_xml_and_leaves_gaps() -> None:
    from xml.etree import ElementTree

    nan = float("nan")
    series = [Series("a<b>&", [0.1, nan, 0.3, 0.4], 0, [(0.0, 0.2), (nan, nan), (0.2, 0.4), (0.3, 0.5)])]
    drawing = line_chart([0, 1, 2, 3], series, '"<t>"', "epoch", "score", {"epoch": "轮次"})
    tree = ElementTree.fromstring(drawing)
    assert len(tree.findall("polyline")) == len(tree.findall("polygon")) == 2
    assert line_chart([0, 1], [Series("x", [nan, nan], 0)], "", "", "", {}) == ""


def test_scores_that_are_zero_apart_from_smoothing_are_not_drawn(make_run: Any) -> None:
    run = make_run({"BLEU-1": (0.2, 0.3), "BLEU-4": (1e-9, 3e-9), "CIDEr": (2e-9, 1e-9), "Unknown": (0.0, 1e-8)})
    drawings = dict(score_charts(run, {}))
    assert list(drawings) == ["metrics_chart"]
    assert ">BLEU-1<" in drawings["metrics_chart"]
    assert "BLEU-4" not in drawings["metrics_chart"]
    assert "e-0" not in drawings["metrics_chart"]
    # No hallucinated word is a perfect score, not a missing one.
    assert "CHAIR-s" in dict(score_charts(make_run({"CHAIR-s": (0.0, 0.0)}), {}))["metrics_chart"]
    # A metric that only begins at 0 is drawn.
    assert "BLEU-4" in dict(score_charts(make_run({"BLEU-4": (1e-9, 0.2)}), {}))["metrics_chart"]


def test_the_first_tick_names_the_start_checkpoint(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.2, 0.3)})
    ((_, drawing),) = score_charts(run, {})
    assert ("pre-" in drawing, ">start<" in drawing) == (True, False)
    rows = (dataclasses.replace(run.checkpoints[0], name="start"), *run.checkpoints[1:])
    ((_, drawing),) = score_charts(dataclasses.replace(run, checkpoints=rows), {})
    assert ("pre-" in drawing, ">start<" in drawing) == (False, True)


@pytest.mark.parametrize(
    ("names", "ticks"),
    [
        (("start", "start"), (["start"], ["pre-"])),
        (("pretrained", "pretrained"), (["pre-"], ["start"])),
        (("pretrained", "start"), (["start"], ["pre-"])),
    ],
)
def test_charts_of_compared_runs_have_headings_and_a_tick_of_their_first_rows(
    make_run: Any, names: tuple[str, str], ticks: tuple[list[str], list[str]]
) -> None:
    runs = []
    for name in names:
        run = make_run({"CIDEr": (0.2, 0.3), "BLEU-4": (0.1, 0.2)})
        rows = (dataclasses.replace(run.checkpoints[0], name=name), *run.checkpoints[1:])
        runs.append(dataclasses.replace(run, checkpoints=rows))
    table = make_run({"CIDEr": (0.3, 0.3), "BLEU-4": (0.2, 0.2)}, names=("a", "b"))
    comparison = Comparison(table, {}, {}, {}, (), tuple(runs), ("a", "b"))
    charts = comparison_charts(comparison, catalogue("en").page)
    assert [key for key, _ in charts] == ["cider_chart", "bleu4_chart"]
    for language in LANGUAGES:
        assert len({catalogue(language).page[key] for key, _ in charts}) == 2
    for _, drawing in charts:
        assert all(f">{part}<" in drawing for part in ticks[0])
        assert not any(f">{part}<" in drawing for part in ticks[1])
    zero = make_run({"CIDEr": (0.2, 0.3), "BLEU-4": (1e-9, 2e-9)})
    charts = comparison_charts(dataclasses.replace(comparison, runs=(zero, zero)), catalogue("en").page)
    assert [key for key, _ in charts] == ["cider_chart"]


def test_cider_of_images_that_is_zero_apart_from_smoothing_has_no_distribution(make_run: Any) -> None:
    def keys(scores: tuple[float, float]) -> list[str]:
        run = make_run({"CIDEr": scores})
        rows = [
            dataclasses.replace(row, captions={"1": "a dog"}, per_image={"1": {"CIDEr": score}})
            for row, score in zip(run.checkpoints, scores, strict=True)
        ]
        run = dataclasses.replace(run, checkpoints=tuple(rows))
        statistics = caption_statistics(run)
        drawn = [statistics.rows[row.name] for row in rows]
        return [key for key, _ in distribution_charts(run, drawn, statistics.references, {})]

    assert "cider_distribution" not in keys((1e-9, 2e-9))
    assert "length_distribution" in keys((1e-9, 2e-9))
    assert "cider_distribution" in keys((1e-9, 0.5))


def test_compared_runs_have_curves_of_their_losses_over_each_other(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.2, 0.3)})
    table = make_run({"CIDEr": (0.3, 0.3)}, names=("a epoch1", "b epoch1"))
    logs = (TrainingLog(steps=(10, 20, 30), loss=(3.0, 2.0, 1.0)), TrainingLog(steps=(15, 30), loss=(2.5, math.nan)))
    comparison = Comparison(table, {}, {}, {}, (), (run, run), ("a", "b"), logs=logs)
    ((key, drawing),) = loss_charts(comparison, catalogue("en").page)
    assert (key, ">a<" in drawing, ">b<" in drawing) == ("loss_chart", True, True)
    page = build_page(table, TrainingLog(), comparison=comparison)
    assert 'id="training"' in page
    assert "No training loss" not in page.partition('id="training"')[2].partition("</section>")[0]
    one = dataclasses.replace(comparison, logs=(logs[0], TrainingLog()))
    page = build_page(table, TrainingLog(), comparison=one)
    assert "No training loss in the log of</span>: <bdi>b</bdi>" in page
    # Results without a log have no section of a training.
    page = build_page(table, TrainingLog(), comparison=dataclasses.replace(comparison, logs=()))
    assert 'id="training"' not in page
    assert 'href="#training"' not in page


def test_distributions_show_every_system_that_is_no_training(make_run: Any) -> None:
    table = make_run({"CIDEr": (0.3, 0.5)}, names=("a", "b"))
    rows = [
        dataclasses.replace(row, epoch=None, captions={"1": "a dog"}, per_image={"1": {"CIDEr": 0.5}})
        for row in table.checkpoints
    ]
    run = dataclasses.replace(table, checkpoints=tuple(rows))
    statistics = caption_statistics(run)
    drawings = dict(distribution_charts(run, [statistics.rows[n] for n in "ab"], statistics.references, {}))
    assert all(f">{name}<" in drawings["cider_distribution"] for name in "ab")
