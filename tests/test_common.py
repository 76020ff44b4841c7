"""Parts of messages."""

from __future__ import annotations

from captune.common import did_you_mean, error_text, first_line, listed, shorten


def test_an_error_is_one_line_of_limited_length() -> None:
    assert error_text(ValueError("a\n  b\tc")) == "a b c"
    assert len(error_text("x" * 1000)) == 300
    assert error_text(ValueError("abc"), 2) == "ab"


def test_the_first_line_of_an_error_or_its_type() -> None:
    assert first_line(ValueError("\n no file.\nmore")) == "no file"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_long_text_is_cut_to_the_limit() -> None:
    assert shorten("abcde", 5) == "abcde"
    assert shorten("abcdef", 5) == "abcd…"
    assert shorten("abcdef", 5, "...") == "ab..."


def test_lists_read_as_english() -> None:
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


def test_the_closest_name_is_suggested_or_the_alternative() -> None:
    assert did_you_mean("trian", ["train", "score"]) == "did you mean 'train'?"
    assert did_you_mean("x", ["train", "score"], "known are train and score.") == "known are train and score."
    assert did_you_mean("ab", ["abcdef"]) == ""
    assert did_you_mean("ab", ["abcdef"], cutoff=0.5) == "did you mean 'abcdef'?"
