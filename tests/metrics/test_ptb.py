"""The PTB tokenizer on strings whose tokens the Java tool gave, and what must hold for every string."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captune.metrics import ptb

# Caption and all its tokens, blank-separated; "~" is a no-break space inside a token.
ALL_TOKENS = [
    ("A man's dog.", "a man 's dog ."),
    ("They can't, won't and shan't've", "they ca n't , wo n't and sha n't ` ve"),
    ("she'll go", "she 'll go"),
    ("she'll", "she ` ll"),
    ("I cannot, you gonna 'tis Gimme", "i can not , you gon na 't is gim me"),
    ("y'all ma'am O'Brien D'Angelo o'o l'x", "y' all ma'am o'brien d'angelo o'o l' x"),
    ("'em 'til '90s '51 cars '90", "'em 'til '90s '51 cars ' 90"),
    ("rock'n'roll goin' dunkin'", "rock 'n' roll goin ' dunkin'"),
    ("“Stop” ‘go’ \"no\" ``so''", "`` stop '' ` go ' `` no '' `` so ''"),
    ("main st. mr. x", "main st. mr. x"),
    ("Ave. Inc. Zoo etc.", "ave. inc. . zoo etc. ."),
    ("Tex. tex. no. 5 no. way", "tex. tex . no. 5 no . way"),
    ("letter p. next", "letter p. next"),
    ("letter p. The next", "letter p . the next"),
    ("the U.S. army, the U.S. It is", "the u.s. army , the u.s. . it is"),
    ("dogs.,cats.; x-y.,", "dogs. , cats. ; x-y. ,"),
    ("desk.with Hello!World a1.b 1a.b", "desk.with hello!world a1.b 1a . b"),
    ("see 4file.txt now", "see 4file.txt now"),
    ("1,000.50 .5 -3 12:30pm 2x4 1990's", "1,000.50 .5 -3 12:30 pm 2x4 1990 's"),
    ("1 1/2 9/11/2001 1-1/2 ½ 24\\/7", "1~1/2 9/11/2001 1-1/2 1/2 24\\/7"),
    ("(555) 123-4567 +44 20 7946 0958", "-lrb-555-rrb-~123-4567 +44~20~7946~0958"),
    ("US$5 $5 £3 €4 5¢ #1 #tag @me", "us$ 5 $ 5 # 3 $ 4 5 cents # 1 #tag @me"),
    ("AT&T R&B rock&roll A&amp;B &lt; &copy; &#39;", "at&t r&b rock & roll a&b < & copy ; &#39;"),
    ("and/or a-b/c 1/2/3/4 w/", "and/or a-b/c 1/2/3 / 4 w /"),
    ("a_b a__b ex-U.S. U.S.-based 1,2-3", "a_b a __ b ex-u.s. u.s.-based 1,2-3"),
    ("x -- y --- z ----- – — - ...... . . .", "x -- y -- z ----- -- -- - ... ..."),
    ("what?! no!!! (a) [b] {c}", "what ?! no !!! -lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb-"),
    (":) :-( ;D =] ^_^ (-_-) :)", ":-rrb- :--lrb- ;d =] ^_^ -lrb--_--rrb- : -rrb-"),
    ('<b>x</b> <a href="y z"> a < b <!-- c d -->', '<b> x </b> <a~href="y~z"> a < b <!--~c~d~-->'),
    ("a@b.com, <me@x.org> foo@bar @", "a@b.com, <me@x.org> foo@bar @"),
    ("http://x.org/a?b=c. www.a-b.co/d/e f+g.com/hh", "http://x.org/a?b=c . www.a-b.co/d/e f+g.com/hh"),
    ("a\x07b c\u200bd 🙂 e\xadf ½\xa0g", "a b c d ef 1/2 g"),
    ("CAFÉ naïve ΟΔΟΣ İ 你好。", "café naïve οδος i̇ 你好 。"),
    ("caf&eacute; x*y **z** C++ C# D#", "caf&eacute; x * y ** z ** c++ c# d #"),
    ("\ud800 x \udfff", "x"),
    ("\x00x.com", "\x00x.com"),
    ("", ""),
    (" \t ", ""),
]


@pytest.mark.parametrize(("caption", "tokens"), ALL_TOKENS, ids=[ascii(caption) for caption, _ in ALL_TOKENS])
def test_all_tokens(caption: str, tokens: str) -> None:
    expected = [token.replace("~", "\xa0") for token in tokens.split(" ") if token]
    assert ptb.tokenize_all(caption) == expected


def test_punctuation_is_dropped_but_brackets_and_runs_of_marks_stay() -> None:
    assert ptb.tokenize('He (left): "so - what?!" ... !!') == ["he", "-lrb-", "left", "-rrb-", "so", "what", "?!", "!!"]


def test_a_no_break_space_at_the_end_of_the_line_is_stripped() -> None:
    assert ptb.tokenize("see http://ab.c\xa0") == ["see", "http://ab.c"]


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029"])
def test_line_breaks_in_a_caption_are_spaces(line_break: str) -> None:
    assert ptb.tokenize(f"A dog{line_break}runs.") == ["a", "dog", "runs"]
    assert ptb.tokenize_all(f"letter p.{line_break}A dog") == ["letter", "p", ".", "a", "dog"]


@pytest.mark.parametrize(
    ("captions", "tokens"),
    [
        (["letter p.", "A man ."], ["letter p", "a man"]),
        (["letter p.", "", " ", "The man ."], ["letter p", "", "", "the man"]),
        (["letter p.", "Dogs run"], ["letter p.", "dogs run"]),
        (["letter p."], ["letter p."]),
        (["they'll", "go"], ["they 'll", "go"]),
        (["smile :)", "now"], ["smile :-rrb-", "now"]),
        (["smile :)"], ["smile -rrb-"]),
        (["", "a"], ["", "a"]),
        ([], []),
    ],
)
def test_a_line_end_looks_at_the_next_caption_of_the_call(captions: list[str], tokens: list[str]) -> None:
    # Blank-separated; these examples hold no punctuation that stays.
    got = [" ".join(line) for line in ptb.tokenize_call(captions)]
    assert got == [line.replace(": -rrb-", "-rrb-") for line in tokens]


def test_line_breaks_in_a_call_are_counted_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert ptb.tokenize_call(["a\rb", "c\u2028d"]) == [["a", "b"], ["c", "d"]]
    assert "2 characters that break lines" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ptb.tokenize_call(["a\nb"])
    assert not caplog.text


@pytest.mark.parametrize(
    "chunk", ["p.", "U.S.", "Mr.", "no.", "1/2", "555", "<b", "they'll", ":)", "x@y", "a.com", "etc.)"]
)
def test_chunks_that_depend_on_others_have_no_tokens_of_their_own(chunk: str) -> None:
    assert ptb.chunk_tokens(chunk) is None


@pytest.mark.parametrize(
    ("chunk", "tokens"),
    [
        ("dog.", ("dog",)),
        ("Dogs,", ("dogs",)),
        (".", ()),
        ("man's", ("man", "'s")),
        ("don't", ("do", "n't")),
        ("'s", ("'s",)),
        ("cannot", ("can", "not")),
        ("t-shirt.", ("t-shirt",)),
        ('"Stop!"', ("stop",)),
        ("(a", ("-lrb-", "a")),
        ("5", ("5",)),
        ("dog...", ("dog",)),
        ("café", ("café",)),
    ],
)
def test_chunks_that_stand_alone(chunk: str, tokens: tuple[str, ...]) -> None:
    assert ptb.chunk_tokens(chunk) == tokens


PIECES = """
    a A I p p. st. St. Mr. etc. U.S. The It x- -y 's 'll n't don't ' '' " ` ’ “ . , ; : ! ? ... - -- _ / \\ & &amp; ( )
    [ ] { } < > <b> @ # $ % * + = ^ ~ | 1 12 555 1/2 .5 ½ http:// www. .com .txt é ˂ \xad 🙂 :) cannot dogs. a.b
    'em no. no c'mon
"""
TEXTS = st.lists(st.sampled_from([*PIECES.split(), *[" "] * 12, "\xa0", "\u2003", "\x85"]), max_size=14).map("".join)


@settings(max_examples=500, deadline=None)
@given(caption=TEXTS | st.text(max_size=30), following=TEXTS)
def test_chunks_laid_end_to_end_are_the_caption(caption: str, following: str) -> None:
    tokens = ptb.tokenize(caption)
    assert ptb.tokenize_batch([caption, caption]) == [tokens, tokens]
    chunks = [ptb.chunk_tokens(chunk) for chunk in caption.split()]
    if None not in chunks:
        laid = [token for chunk in chunks for token in chunk or ()]
        assert laid == tokens
        assert ptb.tokenize_call([caption, following])[0] == laid


@settings(max_examples=500, deadline=None)
@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=40))
def test_no_string_raises_and_tokens_are_clean(caption: str) -> None:
    for token in ptb.tokenize_all(caption):
        assert token
        assert token == token.lower()
        assert not set(token) & set(" \n\t")


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, max_size=6))
def test_a_call_gives_a_line_for_every_caption(captions: list[str]) -> None:
    lines = ptb.tokenize_call(captions)
    assert len(lines) == len(captions)
    if captions:
        assert lines[-1] == ptb.tokenize(captions[-1])


def test_no_group_is_possessive(repository: Path) -> None:
    """Python before 3.11.5 matches a possessive group wrongly where it backtracks; then tokens differ from Java's."""
    possessive = re.compile(r"\)(?:[+*?]|\{+[0-9,]+\}+)\+|\(\?>")
    for path in sorted((repository / "captune").rglob("*.py")):
        assert not possessive.search(path.read_text(encoding="utf-8")), path
