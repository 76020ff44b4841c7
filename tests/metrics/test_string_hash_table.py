"""The table of chunks against `str.split` and a dictionary."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captune.metrics import ptb
from captune.metrics.encoding import Encoder
from captune.metrics.string_hash_table import ChunkTable
from captune.metrics.tokenizers import tokenizer

# Chunks around the lengths where the table changes its ways, in bytes: 8, 24, and 64 characters.
pieces = ["a", "A", "dog's", "é", "\ud800", "\x01", "x" * 7, "x" * 8, "y" * 9, "x" * 24, "z" * 25, "中" * 3, "w" * 65]
spaces = [" ", "  ", "\n", "\t", "\x1c", "\x0b"]
texts = st.lists(st.sampled_from(pieces + spaces), max_size=12).map("".join)


def plain_codes(captions: Sequence[str], known: dict[str, int]) -> tuple[list[int], list[int]]:
    # Between ASCII's white space, which str.split knows more of.
    split = [caption.encode("utf-8", "surrogatepass").split() for caption in captions]
    split = [[part for chunk in chunks for part in _at_separators(chunk)] for chunks in split]
    chunks = [chunk.decode("utf-8", "surrogatepass") for row in split for chunk in row]
    return [known.setdefault(chunk, len(known)) for chunk in chunks], [len(row) for row in split]


def _at_separators(chunk: bytes) -> list[bytes]:
    for separator in range(0x1C, 0x20):
        chunk = chunk.replace(bytes([separator]), b" ")
    return chunk.split()


@given(st.lists(st.lists(texts, min_size=1, max_size=5), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_codes_are_those_of_a_dictionary(calls: list[list[str]]) -> None:
    names: dict[str, int] = {}
    table, known = ChunkTable(lambda chunk: names.setdefault(chunk, len(names))), dict[str, int]()
    one_to_one: dict[int, int] = {}
    for captions in calls:
        result = table.codes(captions)
        assert result is not None
        codes, counts = plain_codes(captions, known)
        assert result[1].tolist() == counts
        for code, other in zip(result[0].tolist(), codes, strict=True):
            assert one_to_one.setdefault(code, other) == other
    assert len(set(one_to_one.values())) == len(one_to_one)
    assert names.keys() == known.keys()


def test_a_full_table_grows_and_forgets_nothing() -> None:
    named: list[str] = []
    table = ChunkTable(lambda chunk: named.append(chunk) or len(named) - 1)  # type: ignore[func-returns-value]
    chunks = [f"{'abcdefghijklm'[: number % 14]}{number}" for number in range(30_000)]
    for start in range(0, len(chunks), 1000):
        table.codes([" ".join(chunks[start : start + 1000])])
    assert sorted(named) == sorted(chunks)
    again = table.codes(chunks)
    assert again is not None
    assert [named[code] for code in again[0].tolist()] == chunks
    assert len(named) == len(chunks)


def test_chunks_with_one_beginning_or_one_hash_are_distinguished() -> None:
    table = ChunkTable(lambda chunk: int(chunk.strip("x")))
    chunks = ["x" * before + str(number) for before in range(24) for number in range(10)]
    for _ in range(2):
        result = table.codes([" ".join(chunks)])
        assert result is not None
        assert result[0].tolist() == [number for _ in range(24) for number in range(10)]


def test_a_zero_character_is_left_to_others() -> None:
    assert ChunkTable(len).codes(["a\0b", "c"]) is None
    captions = ["a\0b dog", "c"]
    encoder = Encoder(tokenizer("ptb"))
    rows, words = encoder.encode(captions), encoder.vocabulary
    assert [[words[token] for token in rows.row(index)] for index in range(2)] == [ptb.tokenize(c) for c in captions]


@pytest.mark.parametrize("whole_call", [False, True])
@given(st.lists(texts | st.text(max_size=20), max_size=6))
@settings(max_examples=200, deadline=None)
def test_encoded_captions_have_the_tokenizers_tokens(whole_call: bool, captions: list[str]) -> None:
    encoder = Encoder(tokenizer("ptb"))
    for _ in range(2):
        rows = encoder.encode_call(captions) if whole_call else encoder.encode(captions)
        words = encoder.vocabulary
        tokens = [[words[token] for token in rows.row(index)] for index in range(len(captions))]
        if whole_call and encoder.breaks_lines(captions):
            continue
        assert tokens == (ptb.tokenize_call(captions) if whole_call else [ptb.tokenize(c) for c in captions])
