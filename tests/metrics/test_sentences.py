"""Sentences of captions, and the warning about metrics of single sentences on paragraphs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import run_program

from captune.metrics import find_sentences, paragraph_warning
from captune.metrics.sentences import count_words, is_paragraph, sentence_prefix


@pytest.mark.parametrize(
    "sentences",
    [
        ["A dog runs.", "It barks."],
        ["a dog runs.", "a cat sits!", "why?"],
        ["Dr. Smith is 3.5 m tall.", "He waves to Mrs. Jones, e.g. with a hat."],
        ['The sign reads "STOP." in red.', "It is old."],
        ['The word "Stop!" is white.', "“Go!”", "(It is big.)"],
        ["It is 5 p.m. on a clock.", "The U.S. Capitol is white.", "The flag of the U.S.", "The sky is blue."],
        ["1. A dog.", "2. A cat of No. 5."],
        ["- A dog", "- A cat", "1. Two"],
        ["George W. Bush and J. R. Smith wave.", "There is a letter K.", "The end."],
        ["Bottles, cans, etc. on a table.", "Bottles, etc.", "The table is full..."],
        ["A man waits... and waits.", "Then…", "He goes."],
        ["一只狗在跑。", "天空是蓝色的！", "有人吗？"],
        ["彼は走る。", "「はい。」", "犬がいる"],
        ["한 남자가 걷는다.", "개가 있다."],
        ["A jersey with no. 7 at 3.14 km.", "Approx. 30 fans cheer."],
        ["लाल शर्ट पहने एक आदमी चल रहा है।", "आसमान नीला है॥", "कौन?"],
        ["رجل يمشي في الشارع.", "هل هو وحده؟", "السماء زرقاء"],
        ["ایک آدمی چل رہا ہے۔", "آسمان نیلا ہے۔"],
        ["ผู้ชายสวมเสื้อสีแดงเดินไปตามถนน", "มีรถยนต์หลายคันจอดอยู่ข้างทาง"],
        ["No end mark"],
    ],
)
@pytest.mark.parametrize("space", [" ", "\n", "  \n\n"])
def test_sentences(sentences: list[str], space: str) -> None:
    if space == " " and sentences[0].startswith("- "):
        return  # only line breaks end items of a list without marks
    text = space.join(sentences)
    assert [text[start:end] for start, end in find_sentences(text)] == sentences


def test_ideographic_sentences_need_no_space() -> None:
    text = "一只狗在跑。天空是蓝色的！「好。」完"
    assert [text[start:end] for start, end in find_sentences(text)] == [
        "一只狗在跑。",
        "天空是蓝色的！",
        "「好。」",
        "完",
    ]


@given(st.text("aB.!?…。 \n\t\"”)1'", max_size=60) | st.text(max_size=60))
def test_spans_are_in_order_and_leave_out_white_space_only(text: str) -> None:
    spans = find_sentences(text)
    before = 0
    for start, end in spans:
        assert before <= start < end <= len(text)
        assert not text[before:start].strip()
        assert text[start:end] == text[start:end].strip()
        before = end
    assert not text[before:].strip()


def test_the_prefix_that_comes_closest_in_words() -> None:
    text = "One two three. Four five six seven. Eight nine."
    assert sentence_prefix(text, 1) == "One two three."
    assert sentence_prefix(text, 4) == "One two three."
    assert sentence_prefix(text, 5) == "One two three."  # 3 and 7 are as close
    assert sentence_prefix(text, 6) == "One two three. Four five six seven."
    assert sentence_prefix(text, 90) == text
    assert sentence_prefix(" ", 5) == " "


def test_words_of_other_scripts() -> None:
    assert count_words("A dog, running") == 3
    assert count_words("一只狗 dog") == 4
    assert count_words("ผู้ชายสวมเสื้อสีแดง กับ dog") == 5 + 1 + 1  # four letters and marks of Thai are a word
    assert len(find_sentences("แมว 3 ตัว กับหมา")) == 1  # short runs are parts of a sentence
    assert not is_paragraph("word " * 60)
    assert not is_paragraph("A dog. A cat.")
    assert is_paragraph("A dog runs over the grass next to a long fence. " * 5)


SENTENCE = "A red barn is next to a long road with two cows on it."
PARAGRAPH = " ".join([SENTENCE] * 4)


def test_paragraphs_warn_and_ordinary_captions_do_not() -> None:
    paragraphs = {str(image): [PARAGRAPH] for image in range(3)}
    warning = paragraph_warning(paragraphs, ("cider", "bleu"))
    assert warning == (
        "CIDEr and BLEU were made for captions of one sentence, and these references are paragraphs (56 words in 4 "
        "sentences, medians), for which they agree less with people (a difference of 20 words leaves 0.4 % of CIDEr); "
        "report cider-r, bertscore or clipscore-sentences as well."
    )
    assert paragraph_warning(paragraphs, ["BLEU-1", "BLEU-4", "CIDEr", "CIDEr-R"]).endswith(
        "report bertscore or clipscore-sentences as well."
    )
    assert "0.4 %" not in paragraph_warning(paragraphs, ("bleu",))
    assert paragraph_warning(paragraphs, ("cider-r", "chair", "clipscore")) == ""
    assert paragraph_warning({"1": [SENTENCE] * 5}, ("cider",)) == ""
    assert paragraph_warning({"1": [SENTENCE * 9], "2": ["word " * 60]}, ("cider",)) == ""  # one sentence each
    assert paragraph_warning({"1": [PARAGRAPH, SENTENCE, SENTENCE]}, ("cider",)) == ""  # the median decides
    assert paragraph_warning({}, ("cider",)) == ""


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("images", [3000, 10_000])
def test_the_order_of_references_does_not_matter(first: bool, images: int) -> None:
    """One reference of five is unlike the others, always at the same position."""
    one, others = (PARAGRAPH, SENTENCE) if first else (SENTENCE, PARAGRAPH)
    references = {str(image): [one, others, others, others, others] for image in range(images)}
    assert bool(paragraph_warning(references, ("cider",))) is not first


@pytest.mark.parametrize(
    "text",
    [
        "लाल शर्ट पहने एक आदमी चल रहा है। ",
        "هل يرتدي الرجل قميصا أحمر ويمشي في الشارع؟ ",
        "ผู้ชายสวมเสื้อสีแดงกำลังเดินไปตามถนนที่พลุกพล่าน มีรถยนต์หลายคันจอดอยู่ข้างทาง ",
    ],
)
def test_paragraphs_of_other_scripts_warn(text: str) -> None:
    assert "these references are paragraphs" in paragraph_warning({"1": [text * 8]}, ("cider",))
    assert paragraph_warning({"1": [text]}, ("cider",)) == ""


def test_the_documentation_gives_the_advice_of_the_warning() -> None:
    advice = paragraph_warning({"1": [PARAGRAPH]}, ("cider",)).rpartition("; report ")[2].removesuffix(".")
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert f"Report {advice}." in " ".join(page.replace("`", "").split())


def test_the_penalty_of_cider_for_twenty_words() -> None:
    """The figure of the warning, from CIDEr-D's formula with sigma 6."""
    import math

    assert f"{100 * math.exp(-(20**2) / (2 * 6**2)):.1f}" == "0.4"


def test_real_captions_never_warn() -> None:
    folder = Path(__file__).parents[2].parent / "shared" / "captions"
    files = [path for path in folder.rglob("*") if path.name.endswith((".json", ".csv", ".txt", ".gz", ".jsonl"))]
    if not files:
        pytest.skip("needs ../shared/captions")
    from captune.errors import MetricInputError
    from captune.metrics import read_references

    read = 0
    for path in files:
        try:
            references = read_references(path).captions
        except MetricInputError:
            continue
        if not references:
            continue
        read += 1
        assert paragraph_warning(references, ("cider", "bleu", "rouge-l")) == "", path
        groups = list(references.items())
        for start in range(0, len(groups), max(1, len(groups) // 50)):  # also single images
            image, captions = groups[start]
            assert paragraph_warning({image: captions}, ("cider",)) == "", (path, image)
    assert read


def test_score_and_compare_warn_once(tmp_path: Path) -> None:
    references = {str(image): [f"{PARAGRAPH} Number {image}."] for image in range(4)}
    (tmp_path / "r.json").write_text(json.dumps(references))
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(dict.fromkeys(references, f"{PARAGRAPH} {name}.")))
    captune = [sys.executable, "-m", "captune"]
    done = run_program(*captune, "score", "-r", "r.json", "-p", "a.json", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    (warning,) = json.loads(done.out)["warnings"]
    assert warning.startswith("CIDEr, BLEU and ROUGE-L were made for captions of one sentence")
    assert done.err.count("made for captions of one sentence") == 1
    done = run_program(*captune, "score", "-r", "r.json", "-p", "a.json", "--metrics", "diversity", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    done = run_program(*captune, "compare", "-r", "r.json", "-p", "a.json", "-p", "b.json", cwd=tmp_path)
    assert done.err.count("made for captions of one sentence") == 1
    assert "a: " not in done.err


@pytest.mark.parametrize("run", [" ", ".", ". ", "\n", '"', "\u3002", "\u0e01"])
@pytest.mark.parametrize("end", ["", "a"])
def test_long_runs_of_one_character_take_linear_time(run: str, end: str) -> None:
    """A quadratic search would take minutes for these."""
    assert len(find_sentences(run * 100_000 + end)) <= 100_001
