"""Sets of judgements by name, each with its reader and the measure that the literature reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from captune.agreement.caption_pairs import has_pair_columns, read_caption_pairs, read_foil, read_pascal_50s
from captune.agreement.flickr8k import read_flickr8k_cf, read_flickr8k_expert
from captune.agreement.judgements import Judgements
from captune.agreement.measure import TAU_B, TAU_C
from captune.agreement.rated_captions import read_composite, read_rated_captions
from captune.errors import MetricInputError

__all__ = ["DATASETS", "Dataset", "ReadOptions", "read_judgements"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What the readers need to know.

    Attributes:
        references: file of references.
        split: of a table.
        seed: of random choices.
        reference_count: references of a pair of Pascal-50S.
    """

    references: Path | None = None
    split: str | None = None
    seed: int = 12345
    reference_count: int = 5


_Reader = Callable[[Sequence[Path], ReadOptions], list[Judgements]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A set of judgements.

    Attributes:
        title: its name in print.
        files: what the user gives.
        read: the reader.
        main: measure that the literature reports, for scored captions.
    """

    title: str
    files: str
    read: _Reader
    main: str = TAU_C


def _table(files: Sequence[Path], options: ReadOptions) -> list[Judgements]:
    title = files[0].name
    if has_pair_columns(files[0]):
        return [read_caption_pairs(files, options.references, title, split=options.split, seed=options.seed)]
    return [read_rated_captions(files, options.references, title, options.split)]


DATASETS: dict[str, Dataset] = {
    "flickr8k-expert": Dataset(
        "Flickr8k-Expert",
        "ExpertAnnotations.txt, with --references Flickr8k.token.txt",
        lambda files, options: [read_flickr8k_expert(files, options.references)],
    ),
    "flickr8k-cf": Dataset(
        "Flickr8k-CF",
        "CrowdFlowerAnnotations.txt, with --references Flickr8k.token.txt",
        lambda files, options: [read_flickr8k_cf(files, options.references)],
        TAU_B,
    ),
    "composite": Dataset(
        "Composite",
        "a table, or {8k,30k,coco}_correctness.csv with --references",
        lambda files, options: [read_composite(files, options.references, "Composite", options.split)],
    ),
    "pascal-50s": Dataset(
        "Pascal-50S",
        "pair_pascal.mat and consensus_pascal.mat, or their folder",
        lambda files, options: [read_pascal_50s(files, options.references, options.seed, options.reference_count)],
    ),
    "foil": Dataset(
        "FOIL",
        "foilv1.0_test_2017.json, with --references captions_val2014.json",
        lambda files, options: read_foil(files, options.references),
    ),
    "polaris": Dataset(
        "Polaris",
        "polaris_test.csv or its Parquet files",
        lambda files, options: [read_rated_captions(files, options.references, "Polaris", options.split)],
    ),
    "nebula": Dataset(
        "Nebula",
        "nebula_test.csv or its Parquet files",
        lambda files, options: [read_rated_captions(files, options.references, "Nebula", options.split)],
    ),
    "table": Dataset("table", "your own table of scored captions or of pairs", _table),
}


def read_judgements(
    name: str, files: Sequence[Path], references: Path | None = None, **options: object
) -> list[Judgements]:
    """Read judgements.

    Args:
        name: out of `DATASETS`.
        files: what the data set consists of.
        references: file of references, where the files have none.
        options: further fields of `ReadOptions`.

    Returns:
        One set of judgements, or one for each condition (FOIL).

    Raises:
        MetricInputError: there is no such data set, or a file has another layout.
        MissingExtraError: a file needs a package that is not installed.
    """
    if name not in DATASETS:
        raise MetricInputError(f"there is no data set '{name}'; choose one of {', '.join(DATASETS)}.")
    if not files:
        raise MetricInputError(f"no file was given; {DATASETS[name].title} is {DATASETS[name].files}.")
    if missing := next((path for path in files if not path.exists()), None):
        raise MetricInputError(f"there is no file '{missing}'.")
    return DATASETS[name].read(files, ReadOptions(references, **options))  # type: ignore[arg-type]
