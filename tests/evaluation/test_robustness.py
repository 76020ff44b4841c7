"""The matrix of a model that travels: columns, drops with intervals, words, files, and the command."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from captune.cli import app, call, run
from captune.config import parse_config
from captune.data.manifest import Sample, read_manifest, write_manifest
from captune.errors import ConfigError, DataError, InputError
from captune.metrics import Scorer
from captune.report import CheckpointScores, RunScores, TrainingLog, build_page
from captune.report.robustness_matrix import (
    Cell,
    Column,
    Difference,
    Matrix,
    Row,
    matrix_csv,
    matrix_from_json,
    matrix_markdown,
    matrix_to_json,
    read_matrix,
    strength_curves,
)

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from captune.evaluation.robustness_columns import (  # noqa: E402  # noqa: E402
    divergence,
    domains_of,
    evaluation_sets,
    parse_corruptions,
    read_instructions,
    relative_drops,
    unseen_share,
    word_counts,
)


def example() -> Matrix:
    """Two rows, home, another set that leaked, and one kind of damage at two strengths."""
    rows = (Row("pretrained", "pretrained", "Say."), Row("epoch<0>|", "epoch0", "Say."))
    columns = (
        Column("home", "home", 60, {"unseen": 0.0, "divergence": 0.0}),
        Column("else|where", "data", 50, {"unseen": 0.25, "divergence": 0.5}),
        Column("blur 1", "corruption", 60),
        Column("blur 2", "corruption", 60),
    )
    left = {"home": 1.0, "else|where": 0.5, "blur 1": 0.9, "blur 2": 0.6}
    cells = tuple(
        Cell(
            row.name,
            column.name,
            {"BLEU-4": 0.2, "CIDEr": 1.2 * left[column.name]},
            {"CIDEr": (1.0, 1.4)},
            {}
            if column.kind == "home"
            else {"CIDEr": Difference(1 - left[column.name], 0.0, math.nan, column.kind != "data")},
            {} if number == 0 else {"CIDEr": Difference(0.1, -0.1, 0.3, True)},
            words=40,
            divergence=0.3,
            unfinished=1,
            signature=f"data:{column.name.replace('|', '')}|n:60",
            leak="1 of 50 was trained on" if column.kind == "data" else None,
        )
        for number, row in enumerate(rows)
        for column in columns
    )
    return Matrix(rows, columns, cells)


def test_the_file_is_read_back_and_is_strict_json(tmp_path: Path) -> None:
    text = matrix_to_json(example())
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert matrix_to_json(matrix_from_json(text)) == text
    assert read_matrix(tmp_path) is None
    changes = {
        '"format": 1': '"format": 2',
        '"words"': '"wrds"',
        '"words": 40': '"words": "4"',
        '"row": "': '"row": "x',
    }
    for wrong in ("{}", "[]", "{", *(text.replace(*change) for change in changes.items())):
        (tmp_path / "matrix.json").write_text(wrong)
        with pytest.raises(InputError, match=r"[Ee]valuate again"):
            read_matrix(tmp_path)


def test_tables_hold_every_number_its_drop_and_its_mark() -> None:
    matrix = example()
    rows = list(csv.DictReader(matrix_csv(matrix).splitlines()))
    assert len(rows) == 2 * 4 * 2
    away = next(row for row in rows if (row["column"], row["metric"]) == ("else|where", "CIDEr"))
    assert (away["score"], away["drop"], away["paired"], away["unseen"]) == ("0.6", "0.5", "false", "0.25")
    assert away["leak"] == "1 of 50 was trained on"
    markdown = matrix_markdown(matrix)
    assert "| else\\|where | 0.6000 −50 % [–, ±0] LEAK |" in markdown
    assert "- LEAK: 1 of 50 was trained on" in markdown
    assert all(f"`{cell.signature}`" in markdown for cell in matrix.cells)
    assert strength_curves(matrix) == {"blur": {1: pytest.approx(0.9), 2: pytest.approx(0.6)}}


def test_the_page_shows_the_matrix_and_escapes_it(tmp_path: Path) -> None:
    (tmp_path / "matrix.png").write_bytes(b"png")
    run = RunScores("toy", (CheckpointScores("pretrained", {"CIDEr": 0.5}),))
    page = build_page(run, TrainingLog(), matrix=example(), run_dir=tmp_path, language="zh")
    assert '<h2 id="robustness-title" data-t="robustness">其他数据与受损图像</h2>' in page
    assert "epoch&lt;0&gt;|" in page
    assert "<0>" not in page
    assert 'src="data:image/png;base64,cG5n"' in page
    assert '<p class="leak">LEAK: 1 of 50 was trained on</p>' in page


def test_the_picture_is_drawn_and_the_same_again() -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'train'")
    from captune.report.chart import draw_heatmap

    picture = draw_heatmap(example())
    assert picture.startswith(b"\x89PNG")
    assert draw_heatmap(example()) == picture
    without = replace(example(), columns=example().columns[:1])
    assert draw_heatmap(without) != picture


# Drops


def scorer(images: int, seed: int) -> tuple[Scorer, dict[str, str]]:
    random = np.random.default_rng(seed)
    words = ["a", "man", "dog", "red", "blue", "runs", "sits", "on", "grass", "ball", "two", "people", "near", "water"]
    references = {f"{seed}-{n}": [" ".join(random.choice(words, 8)) for _ in range(3)] for n in range(images)}
    candidates = {
        image: captions[0] if random.random() < 0.6 else "a dog sits" for image, captions in references.items()
    }
    return Scorer(references), candidates


def test_a_drop_is_the_share_that_is_lost_with_a_paired_interval() -> None:
    of, candidates = scorer(80, 0)
    home = of.score(candidates)
    worse = of.score({image: "a dog sits" if n % 2 else text for n, (image, text) in enumerate(candidates.items())})
    drops = relative_drops(home, worse)
    for name, drop in drops.items():
        assert drop.value == pytest.approx(1 - worse.corpus[name] / home.corpus[name])
        assert drop.low <= drop.value <= drop.high
        assert drop.paired
    assert all(drop.low == drop.high == 0 for drop in relative_drops(home, home).values())
    assert relative_drops(home, worse) == drops
    # A score that is no more than a smoothing constant has no share to lose.
    zero = of.score(dict.fromkeys(candidates, "zzz"))
    assert 0 < zero.corpus["BLEU-4"] < 1e-6
    assert "BLEU-4" not in relative_drops(zero, home)


def test_other_images_are_drawn_independently_and_leave_more_doubt() -> None:
    one, candidates = scorer(80, 0)
    other, elsewhere = scorer(60, 1)
    drops = relative_drops(one.score(candidates), other.score(elsewhere))
    assert not any(drop.paired for drop in drops.values())
    assert drops["CIDEr"].high - drops["CIDEr"].low > 0.05


def test_a_score_of_nothing_has_no_drop() -> None:
    of, candidates = scorer(20, 0)
    nothing = of.score(dict.fromkeys(candidates, ""))
    assert relative_drops(nothing, of.score(candidates)) == {}


# Words


def test_words_of_other_captions() -> None:
    home, away = word_counts(["A dog runs.", "A cat sits."]), word_counts(["A dog barks loudly ."])
    assert home == Counter({"a": 2, "dog": 1, "runs": 1, "cat": 1, "sits": 1})
    assert unseen_share(away, home) == 0.5
    assert unseen_share(Counter(), home) == 0
    assert divergence(home, home) == 0
    assert divergence(home, word_counts(["zebras graze"])) == 1
    assert divergence(home, away) == pytest.approx(divergence(away, home))
    assert 0 < divergence(home, away) < 1
    assert divergence(Counter(), home) == 1


# Columns


def test_sets_get_separate_names_and_splits(tmp_path: Path) -> None:
    folders = {"a/manifest.jsonl": ("train", "test"), "b/manifest.jsonl": ("val",), "b/other.jsonl": ("train", "val")}
    for name, splits in folders.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_manifest(
            tmp_path / name,
            [Sample(f"{name}-{s}-{n}", f"{n}.jpg", ("A dog .",), s) for s in splits for n in range(3)],
        )
    config = parse_config({}, [f"data.train={tmp_path / 'a/manifest.jsonl'}"])
    others = [str(tmp_path / name) for name in list(folders)[1:]]
    sets = evaluation_sets(config, [*others, f"{others[0]}:val", f"{others[1]}:train"])
    assert [(eval_set.name, eval_set.split) for eval_set in sets] == [
        ("a", "test"),
        ("b", "val"),
        ("other", "val"),
        ("b-val", "val"),
        ("other-train", "train"),
    ]
    assert [eval_set.name for eval_set in evaluation_sets(config, [str(tmp_path / "a/manifest.jsonl"), others[0]])] == [
        "a",
        "b",
    ]
    write_manifest(tmp_path / "three.jsonl", [Sample(s, "x.jpg", ("A .",), s) for s in ("val", "dev", "more")])
    with pytest.raises(DataError, match=r"it has val \(1\), dev \(1\), more \(1\)\. Name one with --split"):
        evaluation_sets(config, [str(tmp_path / "three.jsonl")])


def test_domains_are_parts_where_there_are_several(tmp_path: Path) -> None:
    domains = ["in", "out", "in", "out", "x", None]
    rows = [Sample(f"{n}", f"{n}.jpg", ("A dog .",), "test", domain) for n, domain in enumerate(domains)]
    write_manifest(tmp_path / "m.jsonl", [*rows, Sample("t", "t.jpg", ("A .",), "train")])
    config = parse_config({}, [f"data.train={tmp_path / 'm.jsonl'}"])
    (eval_set,) = evaluation_sets(config, [])
    assert domains_of(eval_set) == {"in": ["0", "2"], "out": ["1", "3"]}
    same = replace(eval_set, images=tuple(replace(image, domain="in") for image in eval_set.images))
    assert domains_of(same) == {}


def test_damages_are_named() -> None:
    names = [damage.name for damage in parse_corruptions(["blur", "jpeg"], [3, 1])]
    assert names == ["blur 1", "blur 3", "jpeg 1", "jpeg 3"]
    assert len(parse_corruptions(["all"])) == 25
    with pytest.raises(ConfigError, match="no corruption 'rain'; choose of blur"):
        parse_corruptions(["rain"])


def test_lists_of_instructions(tmp_path: Path) -> None:
    assert read_instructions("en")[0] == parse_config({}).model.instruction
    assert all(any(ord(c) > 0x4E00 for c in line) for line in read_instructions("zh"))
    (tmp_path / "own.txt").write_text("# mine\n\nSay it.\n说吧。\n", encoding="utf-8")
    assert read_instructions(str(tmp_path / "own.txt")) == ["Say it.", "说吧。"]
    for content, words in (("# nothing\n", "is empty"), ("a\na\n", "holds 'a' twice")):
        (tmp_path / "own.txt").write_text(content)
        with pytest.raises(DataError, match=words):
            read_instructions(str(tmp_path / "own.txt"))
    with pytest.raises(DataError, match="no list of instructions 'fr'; give en or zh"):
        read_instructions("fr")


# The complete command, on the toy


@pytest.fixture(scope="module")
def travelled(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model before training, on its own scenes, on others whose captions are swapped, and on damaged ones."""
    folder = tmp_path_factory.mktemp("travel")
    rows = read_manifest(toy_data / "manifest.jsonl", "test")
    swapped = [
        replace(image, id=f"x{n}", captions=rows[n - 1].captions, image=str(toy_data / image.image), domain="ab"[n % 2])
        for n, image in enumerate(rows)
    ]
    write_manifest(folder / "swapped.jsonl", swapped)
    (folder / "toy.yaml").write_text(
        f"output: {folder / 'run'}\ndata: {{train: {toy_data / 'manifest.jsonl'}}}\nmodel: {{path: toy}}\n"
    )
    words = ["--corrupt", "blur", "--corrupt", "noise", "--strength", "1", "--strength", "3", "--strength", "5"]
    words += ["--prompt", "Describe this image in detail.", "--prompt", "图里有什么？"]
    code = run(
        lambda: call(app, ["evaluate", str(folder / "toy.yaml"), "--data", str(folder / "swapped.jsonl"), *words])
    )
    assert code == 0
    return folder / "run"


def test_home_is_best_and_damage_degrades_on_average(travelled: Path) -> None:
    matrix = read_matrix(travelled)
    assert matrix is not None
    assert [column.name for column in matrix.columns] == [
        *("flickr30k", "swapped", "swapped/a", "swapped/b"),
        *("blur 1", "blur 3", "blur 5", "noise 1", "noise 3", "noise 5"),
    ]
    assert [row.name for row in matrix.rows] == ["pretrained, prompt 1", "pretrained, prompt 2"]
    first = matrix.rows[0].name
    home = matrix.cell(first, "flickr30k").scores["CIDEr"]
    assert all(home > matrix.cell(first, name).scores["CIDEr"] for name in ("swapped", "blur 5", "noise 5"))
    curves = strength_curves(matrix)
    mean = [sum(values[s] for values in curves.values()) / len(curves) for s in (1, 3, 5)]
    assert mean == sorted(mean, reverse=True)
    assert mean[-1] < 0.8


def test_every_number_carries_its_signature(travelled: Path) -> None:
    matrix = read_matrix(travelled)
    assert matrix is not None
    for cell in matrix.cells:
        assert "|prompt:" in cell.signature
        assert cell.signature.startswith("data:")
        assert cell.intervals.keys() == cell.scores.keys()
    prompts = {cell.signature.split("|prompt:")[1][:8] for cell in matrix.cells}
    assert len(prompts) == 2
    assert "data:flickr30k+blur3|" in matrix.cell(matrix.rows[0].name, "blur 3").signature
    assert matrix.cell(matrix.rows[0].name, "swapped/a").signature.startswith("data:swapped/a|split:test|n:6|")
    # These are home's own images under other ids; home was not trained on.
    assert matrix.leaks() == []


def test_what_the_run_holds_afterwards(travelled: Path) -> None:
    page = (travelled / "report.html").read_text(encoding="utf-8")
    assert 'id="robustness"' in page
    assert "data:image/png;base64" in page
    written = {path.name for path in travelled.iterdir()}
    assert {"matrix.csv", "matrix.md", "matrix.json", "matrix.png", "scores.json"} <= written
    # Home alone is what the run's own table holds.
    home = json.loads((travelled / "scores.json").read_text())
    matrix = read_matrix(travelled)
    assert matrix is not None
    assert home["checkpoints"][0]["corpus"] == dict(matrix.cell(matrix.rows[0].name, "flickr30k").scores)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--corrupt", "rain"], "There is no corruption 'rain'"),
        (["--prompts", "fr"], "There is no list of instructions 'fr'"),
        (["--data", "none.jsonl", "--data", "two.jsonl"], "There is no file 'none.jsonl'"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    travelled: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lambda: call(app, ["evaluate", str(travelled.parent / "toy.yaml"), *arguments])) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message
