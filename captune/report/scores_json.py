"""`scores.json`: the results of an evaluation as frozen records, with a strict reader.

The file is one JSON object:

    {"format": 1,
     "data": "flickr30k", "split": "test", "protocol": "karpathy", "images": 1000,
     "references": {"<image id>": ["...", ...]},                              optional
     "checkpoints": [
        {"name": "pretrained", "epoch": null, "signature": "...", "leak": null,
         "corpus":    {"BLEU-1": 0.31, ..., "CIDEr": 0.44, "ROUGE-L": 0.58},
         "per_image": {"<image id>": {"BLEU-4": 0.2, "CIDEr": 0.5}},
         "captions":  {"<image id>": "a dog runs"},
         "intervals": {"CIDEr": [0.40, 0.47]},                                optional
         "p_values":  {"CIDEr": {"pretrained": 0.001, "previous": 0.2}},      optional
         "differences": {"CIDEr": {"pretrained": [0.05, 0.11]}},              optional
         "unfinished": ["<image id>", ...],                                   optional
         "thinking": {"<image id>": "removed"},                               optional, or "unclosed"
         "error": "why it was not scored",                                    optional, with null for every score
         "train_slice": {"CIDEr": 0.9},                                       optional
         "notes": ["read from a file: ...", ...]},                            optional
        ...]}

Rows are in the order of training, the pretrained model first. Scores are on coco-caption's scale (CIDEr 0-10, others
0-1); null is not a number.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, Strict

from captune.common import RemovedThinking
from captune.config import load_run_config
from captune.errors import ConfigError
from captune.parsing import first_repeated
from captune.report.columns import order_metrics
from captune.report.files import StrictRecord, atomic_write, parse_versioned_json, read_text

__all__ = [
    "BASELINES",
    "FORMAT",
    "MAX_SCORE",
    "CheckpointScores",
    "Integer",
    "Interval",
    "RunScores",
    "Score",
    "Text",
    "read_scores",
    "scores_from_json",
    "scores_to_json",
    "write_scores",
]

FORMAT = 1
"""Version of the file; a reader refuses any other."""

BASELINES = ("pretrained", "previous")
"""Rows that a row may be tested against."""

MAX_SCORE = 1e9
"""No score of captions comes near it; a larger one is a defect of the file and would break every chart."""

_NOT_PORTABLE = re.compile(r'[<>:"|?*\\]')
"""Characters that names of files cannot have on Windows."""
_REQUIRED = ("name", "epoch", "signature", "leak", "corpus", "per_image", "captions")


def _score(value: object) -> float:
    """A number, or NaN for null."""
    if value is None:
        return math.nan
    # A bool is an int in Python; Python's own writer spells a missing score NaN.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > MAX_SCORE:
        raise ValueError(f"expected null or a number of at most {MAX_SCORE:.0e}")
    return float(value)


def _interval(value: object) -> tuple[float, float]:
    if isinstance(value, list) and len(value) == 2:
        low, high = map(_score, value)
        if low <= high:
            return low, high
    raise ValueError("expected [low, high] with low <= high")


def _baseline(name: str) -> str:
    if name not in BASELINES:
        raise ValueError(f"expected {BASELINES[0]!r} or {BASELINES[1]!r}")
    return name


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("expected a text that is not empty")
    return text


def _require_fields(row: Any) -> Any:
    """Defaults are for rows that are built in Python; the file has these fields."""
    if isinstance(row, dict) and (missing := next((name for name in _REQUIRED if name not in row), None)):
        raise ValueError(f"the key '{missing}' is missing")
    return row


def _require_known_metrics(row: CheckpointScores) -> CheckpointScores:
    for name, metrics in (("intervals", row.intervals), ("p_values", row.p_values), ("differences", row.differences)):
        if unknown := next((metric for metric in metrics if metric not in row.corpus), None):
            raise ValueError(f"'{name}' may have only metrics of 'corpus' (got {unknown!r})")
    return row


def _require_unique_names(rows: tuple[CheckpointScores, ...]) -> tuple[CheckpointScores, ...]:
    if not rows:
        raise ValueError("expected at least one checkpoint")
    if (repeated := first_repeated(row.name for row in rows)) is not None:
        raise ValueError(f"two checkpoints called {repeated!r}; names must be unique")
    return rows


Text: TypeAlias = Annotated[str, Strict()]
Integer: TypeAlias = Annotated[int, Strict()]
Name: TypeAlias = Annotated[str, Strict(), AfterValidator(_not_blank)]
Score: TypeAlias = Annotated[float, PlainValidator(_score)]
Interval: TypeAlias = Annotated[tuple[float, float], PlainValidator(_interval)]
Probability: TypeAlias = Annotated[float, Strict(), Field(ge=0, le=1)]
Baseline: TypeAlias = Annotated[str, AfterValidator(_baseline)]


@dataclass(frozen=True, slots=True)
class CheckpointScores(StrictRecord):
    """One row: everything measured about one checkpoint.

    Attributes:
        name: "pretrained", "epoch0", ...; unique in the run.
        corpus: metric -> corpus score.
        epoch: the epoch that ended with this checkpoint, from 0; None for the pretrained model.
        signature: how the scores were computed; empty when unknown.
        leak: why the row is marked LEAK, or None.
        per_image: image id -> metric -> score.
        captions: image id -> the checkpoint's caption.
        intervals: metric -> confidence interval (low, high) of the corpus score.
        p_values: metric -> {"pretrained": p, "previous": p} of the paired tests; either may be missing.
        differences: metric -> {"pretrained": (low, high), "previous": (low, high)} of this row's score minus the
            other's, paired on the same images.
        unfinished: images whose caption ended at the length limit, without the stop symbol; None when unknown.
        thinking: image id -> "removed" where thinking text was removed from the caption, "unclosed" where it never
            ended; only images whose caption had some.
        hallucinations: image id -> the class, start and end of each hallucinated object in the caption, of images that
            have one; empty without the metric chair.
        train_slice: metric -> corpus score on a fixed slice of the training images, which shows over-fitting.
        notes: what a reader of the row must know, such as that a server processed the images.
        error: why the evaluation failed; such a row has neither captions nor scores, NaN for every metric. None for a
            row that was scored.
    """

    name: Name
    corpus: Annotated[Mapping[str, Score], Field(min_length=1)]
    epoch: Annotated[Integer, Field(ge=0)] | None = None
    signature: Text = ""
    leak: Name | None = None
    per_image: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    captions: Mapping[str, Text] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    p_values: Mapping[str, Mapping[Baseline, Probability]] = field(default_factory=dict)
    differences: Mapping[str, Mapping[Baseline, Interval]] = field(default_factory=dict)
    unfinished: tuple[Text, ...] | None = None
    thinking: Mapping[str, RemovedThinking] = field(default_factory=dict)
    train_slice: Mapping[str, Score] = field(default_factory=dict)
    hallucinations: Mapping[str, tuple[tuple[Text, Integer, Integer], ...]] = field(default_factory=dict)
    notes: tuple[Name, ...] = ()
    error: Name | None = None

    @property
    def thinking_counts(self) -> dict[str, int]:
        """`thinking`: captions that had thinking text, `unclosed`: those in which it never ended; empty if none had."""
        kinds = list(self.thinking.values())
        return {"thinking": len(kinds), "unclosed": kinds.count("unclosed")} if kinds else {}


Rows: TypeAlias = Annotated[
    tuple[
        Annotated[CheckpointScores, BeforeValidator(_require_fields), AfterValidator(_require_known_metrics)],
        ...,
    ],
    AfterValidator(_require_unique_names),
]


@dataclass(frozen=True, slots=True)
class RunScores(StrictRecord):
    """All rows of a run, in the order of training, and the data they were measured on.

    Attributes:
        data: name of the evaluated data; for a bare table the name of its file.
        checkpoints: the rows, at least one.
        split: the evaluated split; empty for a bare table.
        protocol: "karpathy", "slides", ...; empty for a bare table.
        images: number of images that every row was scored on; None for a bare table.
        references: image id -> its reference captions, where the evaluation recorded them.
        select: metric that selects the best epoch (`train.select` of the run); empty is CIDEr. Not in the file.
    """

    data: Text
    checkpoints: Rows
    split: Text = ""
    protocol: Text = ""
    images: Annotated[Integer, Field(ge=1)] | None = None
    references: Mapping[str, tuple[Text, ...]] = field(default_factory=dict)
    select: Text = ""

    @property
    def scored(self) -> RunScores:
        """The rows that were scored, for everything but the table; all rows if none was."""
        rows = tuple(row for row in self.checkpoints if row.error is None)
        return self if len(rows) in (0, len(self.checkpoints)) else replace(self, checkpoints=rows)

    @property
    def caption_files(self) -> list[str]:
        """Names of the rows' files in the folder `captions`.

        Every system can write them, and they differ where case is ignored.
        """
        taken, files = {"references"}, []
        for row in self.checkpoints:
            file = _NOT_PORTABLE.sub("_", row.name)
            if file != row.name or _caseless(file) in taken:
                file += f"-{hashlib.sha256(row.name.encode()).hexdigest()[:6]}"
            taken.add(_caseless(file))
            files.append(f"{self.data}-{file}.json")
        return files

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics present, those of the slides first."""
        return order_metrics(name for row in self.checkpoints for name in row.corpus)

    def values(self, metric: str) -> list[float | None]:
        """The metric's score in every row; None where a row has none, NaN where it is not a number."""
        return [row.corpus.get(metric) for row in self.checkpoints]

    def finite(self, metric: str) -> list[float]:
        """The metric's finite scores, in the order of the rows."""
        return [value for value in self.values(metric) if value is not None and math.isfinite(value)]


def _caseless(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def read_scores(path: str | Path) -> RunScores:
    """Read and check a `scores.json`.

    Args:
        path: the file, or the run directory that holds it.

    Raises:
        InputError: there is no such file, it is not JSON, or a part of it is not as the format says.
    """
    path = Path(path)
    file = path / "scores.json" if path.is_dir() else path
    text = read_text(
        file,
        missing="give a run directory that `captune evaluate` has written to",
        undecodable="evaluate again to write it",
    )
    scores = scores_from_json(text, str(file))
    try:
        select = load_run_config(file.parent / "config.yaml").train.select
    except ConfigError:
        return scores  # of an evaluation, or with a damaged configuration
    return scores if select is None else replace(scores, select=select)


def scores_from_json(text: str, source: str = "scores.json") -> RunScores:
    """Parse and check the text of a `scores.json`.

    Args:
        text: the file's text.
        source: what error messages call it.

    Raises:
        InputError: the text is not JSON, or a part of it is not as the format says.
    """
    return parse_versioned_json(
        text,
        RunScores,
        source,
        version=FORMAT,
        remedy="evaluate again to write it",
        required=("data", "split", "protocol", "images", "checkpoints"),
    )


def scores_to_json(run: RunScores) -> str:
    """The run as the text of a `scores.json`: strict JSON, the same text for the same run."""
    tree: dict[str, Any] = {
        "format": FORMAT,
        "data": run.data,
        "split": run.split,
        "protocol": run.protocol,
        "images": run.images,
    }
    if run.references:
        tree["references"] = {image: list(captions) for image, captions in run.references.items()}
    tree["checkpoints"] = [_checkpoint_tree(row) for row in run.checkpoints]
    return json.dumps(tree, ensure_ascii=False, allow_nan=False) + "\n"


def write_scores(run: RunScores, path: str | Path) -> Path:
    """Write a `scores.json`, complete or not at all.

    Args:
        run: what to write; its NaN become null.
        path: the file, or the run directory.

    Raises:
        ToolError: the file cannot be written.
    """
    path = Path(path)
    return atomic_write(path / "scores.json" if path.is_dir() else path, scores_to_json(run))


def _checkpoint_tree(row: CheckpointScores) -> dict[str, Any]:
    """One row as JSON values."""
    tree: dict[str, Any] = {
        "name": row.name,
        "epoch": row.epoch,
        "signature": row.signature,
        "leak": row.leak,
        "corpus": _numbers(row.corpus),
        "per_image": {image: _numbers(scores) for image, scores in row.per_image.items()},
        "captions": dict(row.captions),
    }
    optional = {"intervals": row.intervals, "p_values": row.p_values, "differences": row.differences}
    tree |= {name: value for name, value in optional.items() if value}
    if row.unfinished is not None:
        tree["unfinished"] = row.unfinished
    if row.thinking:
        tree["thinking"] = dict(row.thinking)
    if row.train_slice:
        tree["train_slice"] = _numbers(row.train_slice)
    if row.error is not None:
        tree["error"] = row.error
    if row.hallucinations:
        tree["hallucinations"] = dict(row.hallucinations)
    if row.notes:
        tree["notes"] = list(row.notes)
    return tree


def _numbers(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Scores with null for what is not a number, which JSON does not have."""
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}
