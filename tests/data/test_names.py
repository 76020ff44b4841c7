"""File names as text: reversible, and different for different names."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from captune.data.image_files import name_as_text, text_as_name


def test_examples() -> None:
    assert name_as_text("café b\\c.jpg") == "café b\\c.jpg"
    assert name_as_text(os.fsdecode(b"caf\xe9.jpg")) == r"caf\xe9.jpg"
    assert name_as_text(r"caf\xe9.jpg") == r"caf\x5cxe9.jpg"
    assert name_as_text(os.fsdecode(b"a\xe9\\b")) == r"a\xe9\x5cb"
    assert name_as_text("half \ud83d") == r"half \xed\xa0\xbd"  # not a file name: half of a pair out of JSON


@given(st.binary(max_size=12) | st.text(alphabet="\\x5ce9é", max_size=12).map(str.encode))
def test_every_name_is_text_and_can_be_read_back(name: bytes) -> None:
    decoded = name.decode("utf-8", "surrogateescape")
    text = name_as_text(decoded)
    text.encode("utf-8")
    assert text_as_name(text) == decoded
