"""All metrics by name: those of captune, and those that installed packages register.

A package registers a metric by an entry point of the group `captune.metrics`, whose name is the metric's name and
whose value is its class:

    [project.entry-points."captune.metrics"]
    words = "my_package.words:WordCount"

Classes are imported when they are first used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from captune.common import did_you_mean
from captune.errors import MetricInputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from captune.metrics.metric import Column, Metric

__all__ = ["BUILT_IN", "ENTRY_POINTS", "METRICS", "check_metrics", "find_column", "iter_columns", "package_version"]

ENTRY_POINTS = "captune.metrics"

BUILT_IN = {
    "bleu": "captune.metrics.bleu:Bleu",
    "cider": "captune.metrics.cider:Cider",
    "cider-d": "captune.metrics.cider:CiderD",
    "cider-r": "captune.metrics.cider_r:CiderR",
    "rouge-l": "captune.metrics.rouge:RougeL",
    "meteor": "captune.metrics.external.meteor:Meteor",
    "spice": "captune.metrics.external.spice:Spice",
    "spider": "captune.metrics.external.spider:Spider",
    "bertscore": "captune.metrics.external.bertscore:BertScore",
    "chair": "captune.metrics.chair:Chair",
    "clipscore": "captune.metrics.external.clipscore:ClipScore",
    "clipscore-sentences": "captune.metrics.external.clipscore_sentences:ClipScoreSentences",
    "pac-s": "captune.metrics.external.pac_score:PacScore",
}


@cache
def _installed() -> dict[str, EntryPoint]:
    """Entry points of installed packages; a name of captune keeps its meaning."""
    from importlib.metadata import entry_points

    entries: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name not in BUILT_IN:
            entries.setdefault(entry.name, entry)
    return entries


@cache
def _load(name: str) -> type[Metric]:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        built_in: type[Metric] = getattr(import_module(module), attribute)
        return built_in
    from captune.metrics.metric import Column, Metric

    entry = _installed()[name]
    try:
        metric = entry.load()
    except Exception as error:  # code of another package
        raise MetricInputError(f"the metric '{name}' ({entry.value}) cannot be imported: {error}") from error
    columns = getattr(metric, "columns", ())
    if not (isinstance(metric, type) and issubclass(metric, Metric) and columns):
        raise MetricInputError(f"the metric '{name}' ({entry.value}) is not a subclass of Metric with columns")
    if not all(isinstance(column, Column) for column in columns):
        raise MetricInputError(f"the metric '{name}' ({entry.value}) has columns that are not of the class Column")
    return metric


class _Metrics(Mapping[str, "type[Metric]"]):
    """From a metric's name to its class."""

    def __getitem__(self, name: str) -> type[Metric]:
        if name not in self:
            raise KeyError(name)
        return _load(name)

    def __contains__(self, name: object) -> bool:
        return name in BUILT_IN or name in _installed()

    def __iter__(self) -> Iterator[str]:
        yield from BUILT_IN
        yield from _installed()

    def __len__(self) -> int:
        return len(BUILT_IN) + len(_installed())


METRICS: Mapping[str, type[Metric]] = _Metrics()


def check_metrics(names: Iterable[str], others: Iterable[str] = ()) -> None:
    """Check that metrics exist.

    Args:
        names: the names to check.
        others: names that are accepted besides.

    Raises:
        MetricInputError: a name is unknown.
    """
    for name in names:
        if name not in METRICS and name not in others:
            known = (*METRICS, *others)
            hint = did_you_mean(name, known, cutoff=0.7)
            start = f"{hint} The metrics are" if hint else "choose out of"
            raise MetricInputError(f"there is no metric '{name}'; {start} {', '.join(known)}")


def iter_columns() -> Iterator[tuple[str, Column]]:
    """Every metric's name with each of its columns; packages that cannot be imported are left out."""
    for name in METRICS:
        try:
            metric = METRICS[name]
        except MetricInputError:
            continue  # a broken package must not break the tables of other metrics
        for column in metric.columns:
            yield name, column


@cache
def find_column(name: str) -> Column | None:
    """The column of a name among all metrics, None if there is none."""
    return next((column for _, column in iter_columns() if column.name == name), None)


def package_version(name: str) -> str | None:
    """Version of the package that registers a metric; None for a metric of captune."""
    if name in BUILT_IN:
        return None
    package = _installed()[name].dist
    return "unknown" if package is None else package.version
