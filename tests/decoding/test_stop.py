"""The stop symbol is found however it is spelt, in as few decodings as can be."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captune.decoding.options import StopRule

PIECES = [
    "",
    "",
    "a",
    "b",
    " ",
    "#",
    "##",
    "###",
    "# ",
    " #",
    "x#",
    "#y",
    "##z",
    "####",
    " ###",
    "\n",
    "a\n\n",
    "###b",
    "é",
]


class Pieces:
    """A vocabulary in which the symbol can be spelt in many ways; 0 and 1 are special and have no text."""

    bos_id: int | None = 0
    eos_id: int | None = 1
    vocabulary_size = len(PIECES)
    decoded = 0

    def encode(self, text: str) -> list[int]:
        return [PIECES.index(text)]

    def decode(self, ids: Iterable[int]) -> str:
        self.decoded += 1
        text = "".join(PIECES[i] for i in ids)
        # As SentencePiece does: a text has no space at its start.
        return text.removeprefix(" ")

    def piece_id(self, piece: str) -> int | None:
        return PIECES.index(piece)

    def save(self, folder: Path) -> None: ...


@dataclass
class _Layout:
    stop_text: str


def processor(symbol: str, tokenizer: Any = None) -> Any:
    tokenizer = tokenizer or Pieces()
    layout = _Layout(symbol)
    return SimpleNamespace(tokenizer=tokenizer, layout=layout, end_ids=(tokenizer.eos_id,))


def first_end(symbol: str, ids: list[int]) -> int | None:
    """The sure and slow way: decode everything after each token."""
    for count in range(1, len(ids) + 1):
        if ids[count - 1] == 1 or symbol in Pieces().decode(ids[:count]):
            return count
    return None


@given(st.lists(st.integers(0, len(PIECES) - 1), max_size=12), st.sampled_from(["###", "\n", "##", "a\n"]))
def test_rows_end_where_the_symbol_is_complete(ids: list[int], symbol: str) -> None:
    rule = StopRule(processor(symbol))
    end = next((index + 1 for index, token in enumerate(ids) if rule.ended(ids[:index], token)), None)
    assert end == first_end(symbol, ids)


def test_ordinary_words_are_not_decoded_again() -> None:
    tokenizer = Pieces()
    rule = StopRule(processor("###", tokenizer))
    words = [random.Random(0).choice([2, 3, 4, 15]) for _ in range(500)]
    for index, token in enumerate(words):
        assert not rule.ended(words[:index], token)
    # Once for the anchor and once for each of the four words.
    assert tokenizer.decoded <= 5


def test_only_the_end_of_text_ends_without_a_symbol() -> None:
    rule = StopRule(processor("###"), symbol=False)
    assert not rule.ended([2], PIECES.index("###"))
    assert rule.ended([2], 1)


@pytest.mark.parametrize("symbol", ["###", "\n", "</s>", "<end_of_turn>"])
def test_a_real_vocabulary(symbol: str) -> None:
    """The toy's SentencePiece vocabulary, with byte pieces: equal to decoding everything, on random ids."""
    from importlib.resources import files

    from captune.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(str(files("captune") / "toy" / "pretrained")))
    rule = StopRule(processor(symbol, tokenizer))
    rng = random.Random(1)
    spelt = tokenizer.encode(symbol)
    hashes = [i for i in range(tokenizer.vocabulary_size) if set(symbol) & set(tokenizer.decode([i]))]
    ended = 0
    for _ in range(300):
        ids = rng.choices([*hashes, *spelt] or [5], k=6) + rng.choices(range(3, tokenizer.vocabulary_size), k=4)
        rng.shuffle(ids)
        ids += spelt * rng.randrange(2)
        end = next((index + 1 for index, token in enumerate(ids) if rule.ended(ids[:index], token)), None)
        expected = next(
            (
                count
                for count in range(1, len(ids) + 1)
                if ids[count - 1] == tokenizer.eos_id or symbol in tokenizer.decode(ids[:count])
            ),
            None,
        )
        assert end == expected
        ended += end is not None
    assert ended > 10 or symbol == "<end_of_turn>"
