"""`Scores` in a notebook and as a DataFrame."""

from __future__ import annotations

import sys

import pytest

from captune.common import html_table
from captune.errors import MissingExtraError
from captune.metrics import Scores, score_captions


@pytest.fixture
def scores() -> Scores:
    references = {f"image-{n}": [f"a dog number {n} runs", f"dog {n} on grass"] for n in range(3)}
    return score_captions({image: texts[0][:-5] for image, texts in references.items()}, references)


def test_repr_has_scores_and_signature_but_no_ids(scores: Scores) -> None:
    assert repr(scores) == f"Scores({scores.format()}, {scores.signature})"
    assert "image-1" not in repr(scores)


def test_a_notebook_displays_a_table(scores: Scores) -> None:
    page = scores._repr_html_()
    assert page.count("<tr>") == 1 + len(scores.corpus)
    assert f">{scores.corpus['CIDEr']:.4f}</td>" in page
    assert "0-10" in page
    assert scores.signature in page


def test_dataframe_has_a_row_for_each_image(scores: Scores) -> None:
    frame = scores.to_dataframe()
    assert frame.index.name == "image"
    assert frame.index.tolist() == ["image-0", "image-1", "image-2"]
    assert frame.to_dict("index") == scores.per_image
    assert frame["CIDEr"].mean() == pytest.approx(scores.corpus["CIDEr"])


def test_dataframe_of_the_corpus_has_one_row(scores: Scores) -> None:
    frame = scores.to_dataframe(corpus=True)
    assert frame.to_dict("index") == {"corpus": scores.corpus}


def test_without_pandas_the_error_names_the_extra(scores: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"Scores.to_dataframe needs the extra 'notebook'"):
        scores.to_dataframe()


def test_html_table_escapes_everything() -> None:
    hostile = "<img src=x onerror='a'>\u202e"
    page = html_table([hostile], [[hostile]], titles=[hostile], notes=[hostile], best=[(0, 0)])
    assert page.count("&lt;img src=x onerror=&#x27;a&#x27;&gt;\\u202e") == 4
    assert "<img" not in page
