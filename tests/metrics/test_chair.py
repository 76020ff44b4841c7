"""CHAIR against hand-made captions, the published formula, drawn scenes and hostile vocabularies."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune import cli
from captune.errors import MetricInputError
from captune.metrics import (
    METRICS,
    ObjectVocabulary,
    Scorer,
    Scores,
    ScoringOptions,
    Signature,
    approximate_randomization,
    coco_vocabulary,
    confidence_intervals,
    find_hallucinations,
    leave_one_out,
    paired_bootstrap,
    score_captions,
)
from captune.metrics.chair import read_objects, truncate_caption
from captune.metrics.object_vocabulary import plurals
from captune.toy import plan_rows, write_objects

LINES = (Path(__file__).parent / "data" / "object_mentions.txt").read_text(encoding="utf-8").splitlines()
MADE = [(caption, [name.strip() for name in names.split(",") if name.strip()]) for caption, names in (
    line.split("|") for line in LINES)]  # fmt: skip

REFERENCES = {"1": ["A dog runs.", "Two dogs."], "2": ["A cat on a bed."], "3": ["A man waves."], "4": ["Grass."]}
PREDICTIONS = {
    "1": "A dog and a hot dog. A car, a car.",
    "2": "A cat and a toy car",
    "3": "The man's teddy bears",
    "4": "Green grass",
}
STREET = ObjectVocabulary("street", {"car": ["police car"], "dog": []}, ["toy car"])


@pytest.mark.parametrize(("caption", "expected"), MADE)
def test_made_captions_mention_what_a_reader_reads(caption: str, expected: list[str]) -> None:
    mentions = coco_vocabulary().mentions(caption)
    assert [mention.name for mention in mentions] == expected
    assert all(first.end <= second.start for first, second in pairwise(mentions))
    assert all(caption[mention.start : mention.end].strip() for mention in mentions)


def test_there_are_two_hundred_made_captions_of_all_classes() -> None:
    assert len(MADE) >= 200
    assert {name for _, names in MADE for name in names} == set(coco_vocabulary().classes)


def test_the_published_formula() -> None:
    scores = score_captions(PREDICTIONS, REFERENCES, ["chair"])
    # 7 mentions: dog, hot dog, car, car; cat; man, teddy bear; 4 of them hallucinated, in 2 of 4 captions.
    assert scores.corpus["CHAIR-i"] == 4 / 7
    assert scores.corpus["CHAIR-s"] == 2 / 4
    # dog, cat, bed and person are in the images, and all but the bed are mentioned.
    assert scores.corpus["CHAIR-recall"] == 3 / 4
    assert scores.corpus["CHAIR-F1"] == pytest.approx(2 * (3 / 7) * 0.75 / (3 / 7 + 0.75), abs=1e-15)
    assert scores.per_image["4"] == {"CHAIR-s": 0, "CHAIR-i": 0, "CHAIR-recall": 0, "CHAIR-F1": 0}
    assert scores.statistics["chair"].tolist() == [[4, 3, 1, 1, 1], [1, 0, 0, 2, 1], [2, 1, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert [column.higher_is_better for column in METRICS["chair"].columns] == [False, False, True, True]


def test_hallucinated_words_have_their_position() -> None:
    wrong = find_hallucinations(PREDICTIONS, REFERENCES)
    words = {image: [PREDICTIONS[str(image)][m.start : m.end] for m in mentions] for image, mentions in wrong.items()}
    assert words == {"1": ["hot dog", "car", "car"], "3": ["teddy bears"]}


def test_drawn_scenes_score_as_their_scene_graph(tmp_path: Path) -> None:
    rows = plan_rows(train=150, val=0, test=50, seed=3)
    objects, vocabulary = write_objects(tmp_path, rows)
    names = [Path(row.filename).stem for row in rows]
    references = {name: list(row.captions) for name, row in zip(names, rows, strict=True)}
    options = ScoringOptions(("chair",), vocabulary=vocabulary, objects=objects, truth="objects")
    # People who describe their own image never hallucinate.
    assert {scores.corpus["CHAIR-i"] for scores in leave_one_out(references, options)} == {0.0}
    # The captions of the next image hallucinate exactly the things that are not in this one.
    predictions = {name: rows[index - 1].captions[0] for index, name in enumerate(names)}
    counts = Scorer(references, options).score(predictions).statistics["chair"]
    words = ObjectVocabulary.read(vocabulary)
    for index, row in enumerate(rows):
        mentioned = [mention.name for mention in words.mentions(rows[index - 1].captions[0])]
        assert set(mentioned) <= rows[index - 1].scene.objects
        hallucinated = [name for name in mentioned if name not in row.scene.objects]
        recalled = row.scene.objects & set(mentioned)
        assert counts[index].tolist() == [
            len(mentioned), len(hallucinated), bool(hallucinated), len(row.scene.objects), len(recalled),
        ]  # fmt: skip


def test_the_truth_is_references_objects_or_both() -> None:
    objects = {1: ["dog"], 2: ["cat", "car"], 3: [], 4: []}
    predictions = {"1": "a dog", "2": "a bed and a car", "3": "a man", "4": "grass"}

    def wrong(**options: Any) -> int:
        counts = Scorer(REFERENCES, ScoringOptions(("chair",), **options)).score(predictions).statistics["chair"]
        return int(counts[:, 1].sum())

    assert wrong() == 1  # the car
    assert wrong(objects=objects, truth="objects") == 2  # the bed and the man
    assert wrong(objects=objects) == wrong(objects=objects, truth="both") == 0


def test_intervals_tests_and_records() -> None:
    generator = np.random.default_rng(0)
    references = {str(i): ["a dog and a man"] for i in range(80)}
    good = {str(i): "a dog" if generator.random() < 0.9 else "a cat and a dog" for i in range(80)}
    bad = {str(i): "a dog" if generator.random() < 0.3 else "a cat and a dog" for i in range(80)}
    scorer = Scorer(references, ScoringOptions(("chair",)))
    first, second = scorer.score(bad), scorer.score(good)
    interval = confidence_intervals(second, resamples=200)["CHAIR-i"]
    assert interval.low < second.corpus["CHAIR-i"] < interval.high
    for tests in (paired_bootstrap(second, first, resamples=200), approximate_randomization(second, first, trials=200)):
        assert tests["CHAIR-i"].p_value < 0.01
        assert tests["CHAIR-i"].difference < 0
        assert tests["CHAIR-recall"].p_value == 1.0
    again = Scores.from_dict(json.loads(json.dumps(second.to_dict())))
    assert again.corpus == second.corpus
    assert again.details == second.details == Signature.parse(second.signature)


def test_the_signature_has_everything_that_a_number_depends_on() -> None:
    def sign(references: dict[str, list[str]] = REFERENCES, **options: Any) -> str:
        predictions = {image: PREDICTIONS[image] for image in references}
        signature = score_captions(predictions, references, ["chair"], **options).details.chair
        assert signature is not None
        return signature

    plain = sign()
    assert plain.startswith(f"voc=coco80-{coco_vocabulary().hash},truth=references-")
    assert plain.endswith(",cut=none")
    fewer = {image: REFERENCES[image] for image in ("1", "2")}
    others = [
        sign(fewer),
        sign(vocabulary=STREET),
        sign(objects={image: [] for image in REFERENCES}),
        sign({**REFERENCES, "4": ["A cow."]}),
        sign(truncate="words=3"),
        sign(truncate="complete=3"),
    ]
    assert len({plain, *others}) == 7
    same = {image: REFERENCES[image] for image in reversed(REFERENCES)}
    assert sign(same) == plain
    reordered = ObjectVocabulary("street", {"dog": [], "car": ["police car"]}, ["toy car"])
    assert reordered.hash == STREET.hash
    assert ObjectVocabulary("street", {"dog": [], "car": []}, ["toy car"]).hash != STREET.hash


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (None, "A dog sits. It's a big dog! A cat (in 3.5 m) sees it."),
        ("words=4", "A dog sits. It's"),
        ("words=99", "A dog sits. It's a big dog! A cat (in 3.5 m) sees it."),
        ("complete=4", "A dog sits."),
        ("complete=7", "A dog sits. It's a big dog!"),
        ("complete=2", "A dog"),
        ("sentences=1", "A dog sits."),
        ("sentences=2", "A dog sits. It's a big dog!"),
        ("sentences=3", "A dog sits. It's a big dog! A cat (in 3.5 m) sees it."),
    ],
)
def test_truncation(rule: str | None, kept: str) -> None:
    assert truncate_caption("A dog sits. It's a big dog! A cat (in 3.5 m) sees it.", rule) == kept


def test_plurals() -> None:
    words = {"fly": "flies", "toy": "toys", "box": "boxes", "fireman": "firemen", "german": "germans",
             "grandchild": "grandchildren", "knife": "knives"}  # fmt: skip
    assert {word: plurals(word)[0] for word in words} == words
    assert plurals("potato") == ("potatos", "potatoes")


def test_words_of_chinese_and_german() -> None:
    chinese = ObjectVocabulary("zh", {"狗": ["小狗"], "熱狗": []})
    assert [m.name for m in chinese.mentions("一隻小狗吃熱狗，狗")] == ["狗", "熱狗", "狗"]
    german = ObjectVocabulary("de", {"Hund": ["Hunde"], "Bär": ["Bären"]})
    assert [m.name for m in german.mentions("Zwei Hunde und ein BÄR")] == ["Hund", "Bär"]


def test_instances_of_coco_are_read_by_id_and_by_file(tmp_path: Path) -> None:
    instances = {
        "images": [{"id": 7, "file_name": "COCO_val2014_000000000007.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [{"image_id": 7, "category_id": 18}] * 2 + [{"image_id": 7, "category_id": 3}],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(instances))
    objects = read_objects(file)
    assert objects["7"] == objects["COCO_val2014_000000000007"] == objects["COCO_val2014_000000000007.jpg"]
    assert (objects["7"], objects["8"]) == (("dog", "car"), ())
    scores = score_captions({7: "a dog", 8: "a dog"}, {7: ["x"], 8: ["x"]}, ["chair"], objects=file, truth="objects")
    assert (scores.corpus["CHAIR-i"], scores.corpus["CHAIR-recall"]) == (0.5, 0.5)
    instances["annotations"] = [{"image_id": 7, "category_id": 99}]
    file.write_text(json.dumps(instances))
    with pytest.raises(MetricInputError, match="no or an unknown 99"):
        read_objects(file)
    file.write_text(json.dumps({"images": [], "annotations": [], "info": {}}))
    with pytest.raises(MetricInputError, match="has no objects of images"):
        read_objects(file)


HOSTILE = {
    "classes: {dog: [puppy], cat: [Puppy]}": "'Puppy' belongs to the class 'dog' and to the class 'cat'",
    "classes: {dog: [], cat: [dogs], mouse: [dog]}": "belongs to the class 'dog' and to the class 'mouse'",
    "classes: {die: [], dice: []}\ncompounds: [die]": "belongs to the class 'die' and to 'compounds'",
    "classes: {wolf: [], wolfe: []}\ncompounds: [wolf's]": "belongs to the class 'wolf' and to 'compounds'",
    "classes: {box: [], boxe: []}": "'boxes' is the plural of a word of the class 'box' and of one of the class 'boxe'",
    "classes: {'': [dog]}": "has the entry '', which has no word",
    "classes: {dog: ['...']}": "has the entry '...', which has no word",
    "classes: {dog: }": "the class 'dog' has null; give a list of words, or [] for none",
    "classes: {dog: puppy}": "give a list of words, or [] for none",
    "classes: {dog: [no]}": "is not text; put it in quotation marks",
    "classes: {dog: [null]}": "is not text; put it in quotation marks",
    "classes: {1: [one]}": "the class 1 is not text",
    "classes: {}": "has no classes",
    "dog: [puppy]": "is no vocabulary of objects; it needs 'classes'",
    "[dog]": "is no vocabulary of objects",
    "": "is no vocabulary of objects",
    "classes: {dog: []}\ncompound: [hot dog]": "unknown key 'compound'; did you mean 'compounds'?",
    "classes: {dog: []}\n7: x": "unknown key 7; choose one of name, classes, compounds, ignore",
    "classes: {dog: [], dog: []}": "the key 'dog' is given twice",
    "classes: {dog: [": "is not YAML",
    "name: 'a|b'\nclasses: {dog: []}": "name is 'a|b'",
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.items())
def test_a_hostile_vocabulary_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "words.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(MetricInputError) as caught:
        ObjectVocabulary.read(file)
    sentence = str(caught.value)
    assert message in sentence
    assert str(file) in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truth": "both"}, "needs annotations of objects"),
        ({"truth": "people"}, "choose one of references, objects, both"),
        ({"truth": "references", "objects": {"1": []}}, "leave one of them out"),
        ({"truncate": "64"}, "give words=N, complete=N"),
        ({"truncate": "words=0"}, "give words=N, complete=N"),
        ({"objects": "missing.json"}, "There is no file 'missing.json'"),
        ({"vocabulary": "missing.yaml"}, "There is no file 'missing.yaml'"),
        ({"objects": {"1": []}}, "has no entry for 3 of 4 images, such as '2'"),
        ({"objects": {i: ["unicorn"] for i in "1234"}}, "the category 'unicorn', which the vocabulary coco80 does not"),
        ({"vocabulary": ObjectVocabulary("sea", {"whale": []})}, "no image has an object of the vocabulary sea"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MetricInputError) as caught:
        score_captions(PREDICTIONS, REFERENCES, ["chair"], **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_categories_may_be_ignored() -> None:
    vocabulary = ObjectVocabulary("pets", {"dog": []}, ignore=["Unicorn"])
    objects = {image: ["unicorn", "dog"] for image in REFERENCES}
    scores = score_captions(PREDICTIONS, REFERENCES, ["chair"], vocabulary=vocabulary, objects=objects)
    assert scores.corpus["CHAIR-i"] == 0


def test_leave_one_out_is_the_base_rate_of_people() -> None:
    references = {"1": ["a dog", "a dog and a cat"], "2": ["a man", "a man", "a man and a car"]}
    first, second, third = leave_one_out(references)
    assert first.corpus["CHAIR-i"] == 0
    assert second.corpus["CHAIR-i"] == 1 / 3  # the cat
    assert third.corpus["CHAIR-i"] == 1 / 2  # the car
    with pytest.raises(MetricInputError, match="at least two references"):
        leave_one_out({"1": ["a dog"]})


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def captune(*arguments: object) -> int:
        return cli.run(lambda: cli.call(cli.app, [str(argument) for argument in arguments]))

    references, predictions = tmp_path / "r.json", tmp_path / "p.json"
    references.write_text(json.dumps(REFERENCES))
    predictions.write_text(json.dumps(PREDICTIONS))
    files = ["--references", references, "--predictions", predictions, "--metrics", "chair"]
    assert captune("score", *files, "--confidence") == 0
    out = capsys.readouterr().out
    assert "CHAIR-i       0.5714" in out
    assert "Most often hallucinated: car 2, hot dog 1, teddy bear 1." in out
    assert captune("score", *files, "--json", "--truncate", "sentences=1") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["hallucinated_objects"]["1"] == [{"class": "hot dog", "start": 12, "end": 19}]
    assert captune("compare", *files, "--predictions", predictions, "--name", "a", "--name", "b") == 0
    assert "CHAIR-recall" in capsys.readouterr().out
    vocabulary = tmp_path / "v.yaml"
    vocabulary.write_text("classes: {dog: [puppy], cat: [puppy]}")
    assert captune("score", *files, "--vocabulary", vocabulary) == 2
    assert captune("score", *files, "--vocabulary", vocabulary, "--out", vocabulary) == 2


def test_base_rates_of_shared_captions() -> None:
    repository = Path(__file__).parents[2]
    program = [sys.executable, str(repository / "benchmarks" / "hallucination.py"), "--images", "50"]
    result = subprocess.run(program, cwd=repository, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    if "no captions" in result.stdout:
        pytest.skip(result.stdout)
    assert "CHAIR-i" in result.stdout
