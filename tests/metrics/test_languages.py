"""Tokenizers of other languages against sacrebleu's recorded tokens, and the warning about them."""

from __future__ import annotations

import gzip
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captune.errors import InputError
from captune.metrics import tokenizers as languages
from captune.metrics.tokenizers import (
    language_tokenizer,
    language_warning,
    tokenize_13a,
    tokenize_zh_char,
    tokenize_zh_jieba,
    tokenizer_for,
)

GOLDENS = json.loads((Path(__file__).parent / "data" / "sacrebleu_tokens.json").read_text(encoding="utf-8"))
needs_jieba = pytest.mark.skipif(importlib.util.find_spec("jieba") is None, reason="needs jieba")


@pytest.mark.parametrize(("caption", "western", "chinese"), GOLDENS)
def test_tokens_are_those_of_sacrebleu(caption: str, western: list[str], chinese: list[str]) -> None:
    assert tokenize_13a(caption) == western
    assert tokenize_zh_char(caption) == chinese


@given(st.text())
def test_no_text_raises_and_no_token_is_blank(caption: str) -> None:
    for tokenize in (tokenize_13a, tokenize_zh_char):
        tokens = tokenize(caption)
        assert all(token and not token.isspace() for token in tokens)


@needs_jieba
def test_jieba_cuts_words_without_blanks() -> None:
    assert tokenize_zh_jieba("一个男人和一个女人 穿着军装") == ["一个", "男人", "和", "一个", "女人", "穿着", "军装"]


@needs_jieba
def test_jieba_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    languages._jieba.cache_clear()
    tokenize_zh_jieba("雨天行人打着伞")
    assert capfd.readouterr() == ("", "")


def test_signature_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert language_tokenizer("13a") == ("13a", tokenize_13a)
    assert language_tokenizer("zh-char") == ("zh-char", tokenize_zh_char)
    if importlib.util.find_spec("jieba") is not None:
        assert language_tokenizer("zh-jieba")[0].startswith("zh-jieba0.")


def test_absent_jieba_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(languages.importlib, "import_module", absent)
    languages._jieba.cache_clear()
    with pytest.raises(InputError, match="pip install jieba"):
        language_tokenizer("zh-jieba")
    languages._jieba.cache_clear()


@pytest.mark.parametrize("tokenize", [tokenize_13a, tokenize_zh_char])
@pytest.mark.parametrize("unit", ["a", "一", ".", "-", "&amp;", "1-", "<skipped", " ", "\n"])
def test_long_captions_take_linear_time(tokenize: Callable[[str], list[str]], unit: str) -> None:
    caption = unit * (200_000 // len(unit))
    started = time.process_time()
    tokenize(caption)
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["一个男人和一个女人穿着军装玩手机。", "三个甜甜圈"], "zh-char"),
        (["Собака бежит по траве.", "Двое мужчин"], "--tokenize 13a"),
        (["犬が草の上を走っている", "개가 잔디밭을 달린다"], "not Latin"),
        (["Ein Hund läuft durch das Gras.", "Zwei Männer sitzen auf einer Bank."], "German"),
        (["Un chien court dans l'herbe.", "Deux hommes sont assis sur un banc."], "French"),
        (["Bir köpek çimenlerde koşuyor.", "İki adam bankta oturuyor.", "Bir kadın"], "Turkish"),
    ],
)
def test_other_languages_are_noticed(captions: list[str], expected: str) -> None:
    warning = language_warning(captions)
    assert warning is not None
    assert expected in warning


@pytest.mark.parametrize(
    "captions",
    [
        [],
        [""],
        ["dog", "cat"],
        ["A dog runs across the grass."],
        ["A café in Łódź with the naïve façade", "the El train in Los Angeles"],
        ["🙂🙂 a dog ★★★"],
    ],
)
def test_english_is_left_alone(captions: list[str]) -> None:
    assert language_warning(captions) is None


def test_real_english_in_handfuls_is_left_alone(shared: Path) -> None:
    with gzip.open(shared / "captions" / "oracle" / "tokens_flickr8k.dev.jsonl.gz", "rt") as file:
        captions = [json.loads(line)[0] for line in file]
    assert len(captions) > 10_000
    assert language_warning(captions) is None
    for start in range(0, len(captions), 5):
        assert language_warning(captions[start : start + 5]) is None


def test_real_chinese_is_noticed(shared: Path) -> None:
    text = (shared / "captions" / "chinese" / "coco-cn_ext.icap2020.txt").read_text(encoding="utf-8")
    captions = [line.split("\t")[1] for line in text.splitlines()]
    warning = language_warning(captions)
    assert warning is not None
    assert "zh-char or zh-jieba" in warning


@pytest.mark.parametrize(
    ("name", "signed", "caption", "tokens"),
    [
        ("char", "char", "a ก้า", ["a", "ก", "้", "า"]),
        ("intl", "intl", "«oui», 3.5 m 5€", ["«", "oui", "»", ",", "3.5", "m", "5", "€"]),
        ("ja-mecab", "ja-mecab-", "犬が公園で走っている。", ["犬", "が", "公園", "で", "走っ", "て", "いる", "。"]),
        ("ko-mecab", "ko-mecab-", "개가 공원에서 달린다.", ["개", "가", "공원", "에서", "달린다", "."]),
        ("th-newmm", "th-newmm", "สุนัขกำลังวิ่งในสวน สาธารณะ", ["สุนัข", "กำลัง", "วิ่ง", "ใน", "สวน", "สาธารณะ"]),
    ],
)
def test_tokens_of_further_languages(name: str, signed: str, caption: str, tokens: list[str]) -> None:
    if name != "char":
        module = {"intl": "sacrebleu", "ja-mecab": "MeCab", "ko-mecab": "mecab_ko", "th-newmm": "pythainlp"}[name]
        pytest.importorskip(module)
    shown, tokenize = language_tokenizer(name)
    assert shown.startswith(signed)
    assert tokenize(caption) == tokens
    assert tokenize(" ") == []


@pytest.mark.parametrize(
    ("name", "extra"), [("intl", "intl"), ("ja-mecab", "ja"), ("ko-mecab", "ko"), ("th-newmm", "th")]
)
def test_an_absent_package_of_a_tokenizer_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    def absent(module: str) -> None:
        raise ImportError(module)

    monkeypatch.setattr(languages.importlib, "import_module", absent)
    for cached in (languages._sacrebleu, languages._thai):
        cached.cache_clear()
    with pytest.raises(InputError, match=rf"The tokenizer {name} needs the extra '{extra}'; install it with: pip"):
        language_tokenizer(name)


@pytest.mark.parametrize(
    ("caption", "advice"),
    [
        ("犬が公園を走っている", "ja-mecab"),
        ("개가 공원에서 달린다", "ko-mecab"),
        ("สุนัขวิ่งในสวน", "th-newmm"),
        ("狗在跑", "zh-char or zh-jieba"),
    ],
)
def test_the_warning_names_the_tokenizer_of_the_script(caption: str, advice: str) -> None:
    warning = language_warning([caption])
    assert warning is not None
    assert f"--tokenize {advice}" in warning


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("一只棕色的狗在草地上奔跑", "zh-char"),
        ("茶色の犬が草原を走っている", "char"),
        ("สุนัขสีน้ำตาลวิ่งบนสนามหญ้า", "char"),
        ("갈색 개가 잔디밭을 달리고 있다", "13a"),
        ("Коричневая собака бежит по траве", "13a"),
        ("Ein brauner Hund läuft über die Wiese", None),
        ("A brown dog (棕) runs across the meadow", None),
        ("123", None),
    ],
)
def test_tokenizers_for_captions_in_other_letters(caption: str, name: str | None) -> None:
    assert tokenizer_for([caption] * 3) == name
    assert tokenizer_for([]) is None
