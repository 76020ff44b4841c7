"""`scores.json`: what an evaluation hands to the report, as frozen records and a strict reader.

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
         "train_slice": {"CIDEr": 0.9}},                                      optional
        ...]}

Rows stand in the order of training, the pretrained model first. `epoch` counts from 0 and is null for the
pretrained model; `leak` is null or says why the row must carry the mark LEAK; scores are on coco-caption's
scale (CIDEr 0-10, others 0-1), and null stands for not a number. An interval holds the confidence bounds of a
corpus score; a p-value and the bounds of a difference belong to the paired test of this row against the
pretrained one or the one before. `unfinished` lists images whose caption ended at the length limit, without the
stop symbol; `train_slice` holds the row's scores on a fixed slice of the training images, which tell over-fitting.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captune.errors import InputError
from captune.parsing import load_json
from captune.report.columns import order_metrics
from captune.report.fields import Fields, first_repeated
from captune.report.files import write_whole

__all__ = [
    "FORMAT",
    "RIVALS",
    "CheckpointScores",
    "RunScores",
    "read_scores",
    "scores_from_json",
    "scores_to_json",
    "write_scores",
]

FORMAT = 1
"""Version of the file; a reader refuses any other."""

RIVALS = ("pretrained", "previous")
"""What a row may be tested against."""


@dataclass(frozen=True, slots=True)
class CheckpointScores:
    """One row: everything measured about one checkpoint.

    Attributes:
        name: "pretrained", "epoch0", ...; unique in the run.
        epoch: which epoch ended with this checkpoint, from 0; None for the pretrained model.
        signature: how the scores were computed; empty when unknown.
        leak: why the row is marked LEAK, or None.
        corpus: metric -> corpus score.
        per_image: image id -> metric -> score.
        captions: image id -> what the checkpoint wrote.
        intervals: metric -> (low, high) of the corpus score.
        p_values: metric -> {"pretrained": p, "previous": p}, either may be missing.
        differences: metric -> {"pretrained": (low, high), "previous": (low, high)} of this row's score minus the
            other's, paired on the same images.
        unfinished: images whose caption ended at the length limit; None when that is not known.
        train_slice: metric -> corpus score on a fixed slice of the training images.
    """

    name: str
    corpus: Mapping[str, float]
    epoch: int | None = None
    signature: str = ""
    leak: str | None = None
    per_image: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    p_values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    unfinished: tuple[str, ...] | None = None
    train_slice: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunScores:
    """All rows of a run, in the order of training, and what they were measured on.

    Attributes:
        data: name of the evaluated data; for a bare table the name of its file.
        checkpoints: the rows, at least one.
        split: the evaluated split; empty for a bare table.
        protocol: "karpathy", "slides", ...; empty for a bare table.
        images: how many images every row was scored on; None for a bare table.
        references: image id -> its reference captions, where the evaluation gave them.
    """

    data: str
    checkpoints: tuple[CheckpointScores, ...]
    split: str = ""
    protocol: str = ""
    images: int | None = None
    references: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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


def read_scores(path: Path) -> RunScores:
    """Read and check a `scores.json`.

    Args:
        path: the file, or the run directory that holds it.

    Raises:
        InputError: there is no such file, it is not JSON, or a part of it is not as the format says.
    """
    file = path / "scores.json" if path.is_dir() else path
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f"{file} does not exist; give a run directory that `captune evaluate` has written to."
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}); evaluate again to write it.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    return scores_from_json(text, str(file))


def scores_from_json(text: str, source: str = "scores.json") -> RunScores:
    """Parse and check the text of a `scores.json`.

    Args:
        text: the file's text.
        source: what error messages call it.

    Raises:
        InputError: the text is not JSON, or a part of it is not as the format says.
    """
    try:
        tree = load_json(text, object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{source} is not JSON (line {error.lineno}: {error.msg}); evaluate again to write it."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not a valid score file: {error}.") from None
    top = Fields(tree, source, "the file")
    version = top.integer("format")
    if version != FORMAT:
        raise InputError(f"{source} has format {version}, but this captune reads format {FORMAT}; evaluate again.")
    rows = tuple(
        _checkpoint(Fields(row, source, f"checkpoints[{index}]"))
        for index, row in enumerate(top.sequence("checkpoints"))
    )
    if not rows:
        raise InputError(f"{source} holds no checkpoint; evaluate at least one.")
    if (repeated := first_repeated(row.name for row in rows)) is not None:
        raise InputError(f"{source} holds two checkpoints called {repeated!r}; names must be unique.")
    run = RunScores(
        data=top.text("data"),
        split=top.text("split"),
        protocol=top.text("protocol"),
        images=top.integer("images", least=1),
        references=top.mapping("references", Fields.texts) if "references" in top else {},
        checkpoints=rows,
    )
    top.finish()
    return run


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


def write_scores(run: RunScores, path: Path) -> Path:
    """Write a `scores.json` that is whole under its name or not there at all.

    Args:
        run: what to write; its NaN become null.
        path: the file, or the run directory.

    Raises:
        ToolError: the file cannot be written.
    """
    return write_whole(path / "scores.json" if path.is_dir() else path, scores_to_json(run))


def _checkpoint(fields: Fields) -> CheckpointScores:
    """Check one element of `checkpoints`."""
    row = CheckpointScores(
        name=fields.text("name", empty=False),
        epoch=fields.integer("epoch") if fields.get("epoch") is not None else None,
        signature=fields.text("signature"),
        leak=fields.text("leak", empty=False) if fields.get("leak") is not None else None,
        corpus=fields.mapping("corpus", Fields.score),
        per_image=fields.mapping("per_image", Fields.scores),
        captions=fields.mapping("captions", Fields.caption),
        intervals=fields.mapping("intervals", Fields.interval) if "intervals" in fields else {},
        p_values=fields.mapping("p_values", Fields.probabilities) if "p_values" in fields else {},
        differences=fields.mapping("differences", Fields.named_intervals) if "differences" in fields else {},
        unfinished=fields.texts("unfinished", fields.get("unfinished")) if "unfinished" in fields else None,
        train_slice=fields.mapping("train_slice", Fields.score) if "train_slice" in fields else {},
    )
    if not row.corpus:
        raise fields.wrong("corpus", "at least one metric")
    for part, given in (("intervals", row.intervals), ("p_values", row.p_values), ("differences", row.differences)):
        if stray := next((name for name in given if name not in row.corpus), None):
            raise fields.wrong(part, f"only metrics of 'corpus' (got {stray!r})")
    for part, pairs in (("p_values", row.p_values), ("differences", row.differences)):
        if stray := next((rival for tests in pairs.values() for rival in tests if rival not in RIVALS), None):
            raise fields.wrong(part, f"'pretrained' and 'previous' as names (got {stray!r})")
    fields.finish()
    return row


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
    if row.intervals:
        tree["intervals"] = {name: list(bounds) for name, bounds in row.intervals.items()}
    if row.p_values:
        tree["p_values"] = {name: dict(tests) for name, tests in row.p_values.items()}
    if row.differences:
        tree["differences"] = {
            name: {rival: list(bounds) for rival, bounds in tests.items()} for name, tests in row.differences.items()
        }
    if row.unfinished is not None:
        tree["unfinished"] = list(row.unfinished)
    if row.train_slice:
        tree["train_slice"] = _numbers(row.train_slice)
    return tree


def _numbers(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Scores as JSON can say them: null for what is not a number."""
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, refusing a name that stands in it twice (JSON would keep the last in silence)."""
    built = dict(pairs)
    if len(built) != len(pairs):
        raise ValueError(f"the name {first_repeated(name for name, _ in pairs)!r} stands twice in an object")
    return built
