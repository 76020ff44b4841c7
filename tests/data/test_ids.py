"""Duplicates are found with their first line, among recent ids and packed ones alike."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from captune.data.ids import SeenIds


@given(st.lists(st.text(max_size=2)), st.integers(1, 5))
def test_it_answers_as_a_dictionary(names: list[str], recent: int) -> None:
    seen, expected = SeenIds(recent), dict[str, int]()
    for line, name in enumerate(names, 1):
        assert seen.line_of(name) == expected.get(name)
        if name not in expected:
            expected[name] = line
            seen.add(name, line)
