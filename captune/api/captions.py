"""Captions as Python users have them: dictionaries, lists, DataFrames, Series, and paths of files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from captune.common import Thinking, split_thinking
from captune.errors import MetricInputError
from captune.metrics import (
    ID_KEYS,
    PREDICTION_KEYS,
    REFERENCE_KEYS,
    PredictionFile,
    ReferenceFile,
    align,
    match_stems,
    read_predictions,
    read_reference_files,
    thinking_warnings,
)

__all__ = ["Captions", "match_captions"]

Captions: TypeAlias = Mapping[Any, Any] | Sequence[Any] | str | os.PathLike[str] | Any
"""Captions of images: a dictionary from id to caption(s), a list of them, a pandas DataFrame or Series, or a file."""

_FORMS = "give a dictionary from image id to caption, a list, a DataFrame, a Series, or the path of a file"


def match_captions(
    predictions: Captions,
    references: Captions,
    *,
    ids: Sequence[Any] | None = None,
    split: str | None = None,
    subset: bool = False,
    match: str = "exact",
) -> tuple[Mapping[Any, str], Mapping[Any, Sequence[str]], list[str]]:
    """Bring captions of any form into dictionaries, predictions without thinking text.

    Args:
        predictions: one caption for each image.
        references: one or more captions for each image.
        ids: of the images, for lists; by default their positions from 0.
        split: of the references' file.
        subset: leave out images without a prediction.
        match: "stem" joins ids of two files that differ by folder or file ending only.

    Returns:
        Predictions, references, and warnings about what files have besides.

    Raises:
        MetricInputError: they cannot be read, or their images differ.
    """
    predicted = _read(predictions, "predictions", lambda path: read_predictions(path))
    referred = _read_references(references, split)
    if match not in ("exact", "stem"):
        raise MetricInputError(f"match is {match!r}; give 'exact' or 'stem'")
    if isinstance(predicted, PredictionFile) and isinstance(referred, ReferenceFile):
        if match == "stem":
            predicted = match_stems(predicted, referred)
        aligned = align(predicted, referred, subset=subset)
        return aligned.predictions, aligned.references, list(aligned.warnings)
    if match == "stem":
        raise MetricInputError("match='stem' is for two files; give the paths of predictions and references")
    thinking: list[Thinking] = []
    if isinstance(predicted, PredictionFile):
        thinking = list(predicted.thinking.values())
        predicted = _file_captions(predicted.captions, predicted.by_line)
    if isinstance(referred, ReferenceFile):
        referred = _file_captions({i: texts for i, texts in referred.captions.items() if texts}, referred.by_line)
    predicted, referred = _join(predicted, referred, ids)
    written = {image: split_thinking(text) for image, text in predicted.items() if isinstance(text, str)}
    thinking += [answer.thinking for answer in written.values()]
    captions = {image: written[image].text if image in written else text for image, text in predicted.items()}
    return captions, referred, thinking_warnings(thinking)


def _join(predicted: Any, referred: Any, ids: Sequence[Any] | None) -> tuple[Any, Any]:
    """Dictionaries of captions, of which lists have the ids of their positions."""
    lists = {
        name: value
        for name, value in (("predictions", predicted), ("references", referred))
        if not isinstance(value, Mapping)
    }
    if len(lists) == 1 and ids is None:
        (name,) = lists
        raise MetricInputError(
            f"the {name} are a list without ids and the other captions have ids; give ids=[...], or both as lists"
        )
    if len(lists) == 2 and len(predicted) != len(referred):
        raise MetricInputError(
            f"there are {len(predicted):,} predictions and {len(referred):,} references; two lists have the captions "
            "of an image at the same position"
        )
    if ids is not None and not lists:
        raise MetricInputError("ids are given with dictionaries, which have ids; leave them out")
    for name, value in lists.items():
        if ids is not None and len(ids) != len(value):
            raise MetricInputError(f"there are {len(ids):,} ids and {len(value):,} {name}; give one for each")
    if ids is not None and len(set(map(str, ids))) < len(ids):
        raise MetricInputError("an id occurs twice in ids; give every image once")
    if "predictions" in lists:
        predicted = dict(zip(range(len(predicted)) if ids is None else ids, predicted, strict=True))
    if "references" in lists:
        texts = [[value] if isinstance(value, str) else value for value in referred]
        referred = dict(zip(range(len(texts)) if ids is None else ids, texts, strict=True))
    return predicted, {image: _plain(texts) for image, texts in referred.items()}


def _file_captions(captions: Mapping[str, Any], by_line: bool) -> Any:
    return list(captions.values()) if by_line else captions


def _read_references(references: Captions, split: str | None) -> Any:
    paths = [references] if isinstance(references, (str, os.PathLike)) else references
    if isinstance(paths, (list, tuple)) and paths and all(isinstance(path, os.PathLike) for path in paths):
        return read_reference_files([Path(path) for path in paths], split)
    if split is not None and not isinstance(references, (str, os.PathLike)):
        raise MetricInputError(f"split is '{split}', which selects from a file; the references are no file")
    return _read(references, "references", lambda path: read_reference_files([path], split))


def _read(captions: Captions, what: str, read_file: Callable[[str], Any]) -> Any:
    """A dictionary, a list, or what a file holds."""
    if isinstance(captions, (str, os.PathLike)):
        path = os.fspath(captions)
        if isinstance(captions, str) and not Path(path).suffix and not os.path.lexists(path):
            raise MetricInputError(f"the {what} are {path[:60]!r}, and there is no such file; {_FORMS}")
        return read_file(path)
    if isinstance(captions, Mapping):
        return captions
    if hasattr(captions, "columns") and hasattr(captions, "index"):
        return _from_dataframe(captions, what)
    if hasattr(captions, "index") and hasattr(captions, "items"):
        return _from_series(captions, what)
    if isinstance(captions, Iterable):
        return list(captions)
    raise MetricInputError(f"the {what} are a {type(captions).__name__}; {_FORMS}")


def _from_series(series: Any, what: str) -> dict[Any, Any]:
    """A pandas Series, whose index has the ids; a repeated id has several references."""
    return _grouped(zip(series.index.tolist(), series.tolist(), strict=True), what)


def _from_dataframe(frame: Any, what: str) -> dict[Any, Any]:
    """A pandas DataFrame: its columns are called as in files; without an id column the index has the ids."""
    keys = PREDICTION_KEYS if what == "predictions" else REFERENCE_KEYS
    name = next((key for key in keys if key in frame.columns), None)
    if name is None:
        raise MetricInputError(
            f"the {what} are a DataFrame with the columns {', '.join(map(repr, frame.columns))}; call the column of "
            f"captions '{'caption' if what == 'predictions' else 'captions'}', or give the column itself"
        )
    id_name = next((key for key in ID_KEYS if key in frame.columns), None)
    ids = frame.index.tolist() if id_name is None else frame[id_name].tolist()
    return _grouped(zip(ids, frame[name].tolist(), strict=True), what)


def _grouped(rows: Iterable[tuple[Any, Any]], what: str) -> dict[Any, Any]:
    """Rows by id; a row of references may hold one or a list."""
    captions: dict[Any, Any] = {}
    for image, value in rows:
        if what == "references":
            captions.setdefault(image, []).extend([value] if isinstance(value, str) else _plain(value))
        elif captions.setdefault(image, value) is not value:
            raise MetricInputError(f"the predictions have image {image!r} twice; give one caption for an image")
    return captions


def _plain(texts: Any) -> Any:
    """Captions as a list where they are an array, which pandas and pyarrow give."""
    if isinstance(texts, (str, list, tuple)) or not hasattr(texts, "tolist"):
        return texts
    return texts.tolist()
