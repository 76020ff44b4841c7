"""Time and memory of the PTB tokenizer are linear in the text, whatever it repeats."""

from __future__ import annotations

import re
import time

import pytest

from captune.metrics import ptb

# Each begins many tokens of some kind and completes few, or goes on for ever as one.
REPEATED = """
    a A 1 . ' " - _ & < > ( ) @ # $ * / \\ : ; , ! ? ` ’ “ … é ˂ \xad \x00 \ud800 😀 \xa0 \n ٠ ٫ ‐
    a.a a. 1. 1, 1- 1-1- a- a' 'a n't a/ a_ a! A& &amp; &a &#1 &eacute; <a <a_ <a> <a_b=" <a_b=' <a_b='"_c='_d=" <!a
    <!-- </ http:// http://a www. www.1- www.a. a@ @a a@. x@a.. .com a.com/ +a. +a.com a+a.com a,b 1,a- p._
    p._The_ U.S._The_
    p._<!a_ etc._ etc._<a_ Mr. no._1_ 1_1/2_ 1/ (555)_123-4567 555_ 555- (( (- :) :- o'b o'bb- ba'a can't a.txt 1a. a.c.
    \\* *\\ '5 '51_ ^_^ (^_^ C+ A+ a\xad ~a. é! ._
"""
UNITS = [unit.replace("_", " ") for unit in REPEATED.split()] + [" ", "_", "^_", "a ", "A dog runs. "]
LENGTH = 3_000


def _seconds(unit: str, length: int) -> float:
    text = (unit * (length // len(unit) + 1))[:length]
    started = time.process_time()
    ptb.tokenize(text)
    return time.process_time() - started


@pytest.mark.parametrize("unit", UNITS, ids=ascii)
def test_four_times_the_text_takes_about_four_times_as_long(unit: str) -> None:
    # A quadratic search takes 16 times as long; the best of three tries shuts out a busy machine.
    short = min(_seconds(unit, LENGTH) for _ in range(3))
    long = min(_seconds(unit, 4 * LENGTH) for _ in range(3))
    assert long < max(9 * short, 0.02)


def test_a_word_of_ten_million_letters_is_one_token() -> None:
    (token,) = ptb.tokenize("a" * 10_000_000)
    assert len(token) == 10_000_000


def test_a_caption_of_many_words() -> None:
    assert ptb.tokenize("A dog's ball, " * 50_000).count("'s") == 50_000


def test_a_long_call_of_blank_lines_behind_initials_is_read_once() -> None:
    captions = ["letter p."] + [" "] * 20_000 + ["The dog"]
    assert ptb.tokenize_call(captions)[0] == ["letter", "p"]
    assert ptb.tokenize_batch(captions)[0] == ["letter", "p."]


def test_patterns_keep_no_choice_open_for_every_repetition() -> None:
    # Possessive repetition is what keeps memory flat on "a-a-a-..." and "a.a.a...." of any length.
    for unit in ("a-", "a.", "a_", "a!", "&amp;A", "x.y@", "a&"):
        assert ptb.tokenize(unit * 30_000) is not None
    assert re.fullmatch(r"a\.(a\.)*a", ptb.tokenize("a." * 3_000 + "a")[0])
