"""`Scores`: scores of a corpus and of its images, with their statistics and their signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from captune.common import __version__, html_table
from captune.errors import MetricInputError, MissingExtraError
from captune.metrics.inputs import ImageId
from captune.metrics.registry import METRICS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

__all__ = ["Scores", "Signature", "prompt_hash"]


# The signature: everything that must be equal for two numbers to be comparable, in one line.

# Fields in print; those of metrics that other packages register follow "chair".
_ORDER = (
    "data",
    "split",
    "n",
    "refs",
    "tok",
    "cider",
    "meteor",
    "spice",
    "clip",
    "chair",
    "prompt",
    "dec",
    "proto",
    "exif",
    "pixels",
    "source",
    "v",
)
_OF_CAPTIONS = ("prompt", "dec", "exif", "pixels", "source")
"""Fields about how captions were made; all others say how they were scored."""


def prompt_hash(prompt: str) -> str:
    """The first 8 hexadecimal digits of a prompt's SHA-256, which identify it in a signature."""
    import hashlib  # slow to import, and not needed for scoring

    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a score was made of; `str` gives `data:flickr30k|split:test|n:1000|refs:5|tok:ptb3.4.1|...`.

    Unknown fields are left out. Fields hold neither "|" nor line breaks.

    Attributes:
        data: the data set.
        split: its part.
        n: how many images were scored.
        refs: references per image, "5" or "4-6".
        tok: the tokenizer with its version; "+call" is added when all captions of a call were tokenized in one pass.
        cider: the variant of CIDEr and where its document frequencies come from: "D,df=corpus" is coco-caption's.
        meteor: the version of METEOR.
        spice: the version of SPICE and of its parser.
        clip: the CLIP model of CLIPScore.
        chair: vocabulary, truth, images and truncation of CHAIR.
        prompt: `prompt_hash` of the prompt.
        dec: how captions were decoded, as in "beam5" or "greedy".
        proto: the evaluation protocol.
        exif: "upright" or "stored": how images were shown of which EXIF notes a rotation; None where there are none.
        pixels: "3136-1003520", limits on the pixels of an image that differ from the processor's.
        source: "endpoint" or "file" where captune did not generate the captions; None where it did, or if unknown.
        v: captune's version.
        leak: the test images were seen in training, or its references were changed; prints as LEAK.
        others: fields of metrics that other packages register, with their versions.
    """

    n: int
    refs: str
    tok: str
    data: str | None = None
    split: str | None = None
    cider: str | None = None
    meteor: str | None = None
    spice: str | None = None
    clip: str | None = None
    chair: str | None = None
    prompt: str | None = None
    dec: str | None = None
    proto: str | None = None
    exif: str | None = None
    pixels: str | None = None
    source: str | None = None
    v: str = __version__
    leak: bool = False
    others: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name, _ in self.others:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise MetricInputError(f"the signature's field {name!r} is not a word")
        for name, value in self._values().items():
            if isinstance(value, str) and ("|" in value or not value.isprintable() or not value):
                raise MetricInputError(
                    f"the signature's field '{name}' is {value!r}; give a name without '|' and line breaks"
                )

    def _values(self) -> dict[str, object]:
        """All fields by name, with those of other packages."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "others"} | dict(
            self.others
        )

    def with_fields(self, values: Mapping[str, str]) -> Signature:
        """The same signature with the fields of metrics added."""
        known = {name: value for name, value in values.items() if name in _ORDER}
        others = {name: value for name, value in values.items() if name not in _ORDER}
        return replace(self, others=tuple((dict(self.others) | others).items()), **known)  # type: ignore[arg-type]

    def with_captions_of(self, other: Signature) -> Signature:
        """The same signature with the fields of another one about how captions were made."""
        return replace(self, **{name: getattr(other, name) for name in _OF_CAPTIONS})

    def __str__(self) -> str:
        after = _ORDER.index("chair") + 1
        order = (*_ORDER[:after], *dict(self.others), *_ORDER[after:])
        values = self._values()
        parts = [f"{name}:{values[name]}" for name in order if values[name] is not None]
        return "|".join([*parts, "LEAK"] if self.leak else parts)

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Read what `str` wrote.

        Raises:
            MetricInputError: the text is no signature.
        """
        parts = text.split("|")
        leak = parts[-1] == "LEAK"
        pairs = [part.split(":", 1) for part in (parts[:-1] if leak else parts)]
        values = {pair[0]: pair[-1] for pair in pairs}
        complete = all(len(pair) == 2 for pair in pairs) and {"n", "refs", "tok", "v"} <= values.keys()
        if not complete or not values["n"].isdigit() or {"leak", "others"} & values.keys():
            raise MetricInputError(
                f"{text!r} is no signature; one looks like data:coco|n:5000|refs:5|tok:ptb3.4.1|v:1.0"
            )
        count, refs, tok = int(values.pop("n")), values.pop("refs"), values.pop("tok")
        return cls(n=count, refs=refs, tok=tok, leak=leak).with_fields(values)

    def differences(self, other: Signature) -> list[str]:
        """The fields in which another signature differs, as "tok: ptb3.4.1 and 13a"."""
        first, second = self._values(), other._values()
        return [
            f"{name}: {first.get(name)} and {second.get(name)}"
            for name in {**first, **second}
            if first.get(name) != second.get(name)
        ]


_FORMAT = "captune scores 1"


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Scores of one system on one set of references; a notebook displays them as a table.

    Attributes:
        ids: the images, as the references name them.
        statistics: for each metric's key one row of numbers for an image, (N, K).
        details: the signature as a record.
        notes: what a reader must know besides, such as captions that a metric cut.
    """

    ids: tuple[ImageId, ...]
    statistics: Mapping[str, NDArray[Any]]
    details: Signature
    notes: tuple[str, ...] = ()

    @property
    def signature(self) -> str:
        """Data, images, references, tokenizer and all else that the numbers depend on, in one line."""
        return str(self.details)

    @cached_property
    def corpus(self) -> dict[str, float]:
        """Every score of the complete set, on coco-caption's scale: CIDEr 0 to 10, the others 0 to 1."""
        return {
            name: value
            for key, rows in self.statistics.items()
            for name, value in zip(METRICS[key].names(), METRICS[key].corpus(rows).tolist(), strict=True)
        }

    @cached_property
    def image_scores(self) -> dict[str, NDArray[np.float64]]:
        """Every score of every image, (N,) float64 each, in the order of `ids`."""
        return {
            name: values
            for key, rows in self.statistics.items()
            for name, values in zip(METRICS[key].names(), METRICS[key].per_image(rows).T, strict=True)
        }

    @cached_property
    def per_image(self) -> dict[ImageId, dict[str, float]]:
        """Every score of every image, by image."""
        names = tuple(self.image_scores)
        columns = [values.tolist() for values in self.image_scores.values()]
        return {
            image: dict(zip(names, row, strict=True))
            for image, row in zip(self.ids, zip(*columns, strict=True), strict=True)
        }

    def __str__(self) -> str:
        return "\n".join([self.format(), self.signature, *self.notes])

    def __repr__(self) -> str:
        return f"Scores({self.format()}, {self.signature})"

    def _repr_html_(self) -> str:
        columns = {column.name: column for key in self.statistics for column in METRICS[key].columns}
        rows = [[name, f"{value:.4f}", columns[name].scale] for name, value in self.corpus.items()]
        return html_table(["Metric", "Score", "Scale"], rows, notes=[self.signature, *self.notes])

    def to_dataframe(self, *, corpus: bool = False) -> DataFrame:
        """The scores as a pandas DataFrame with a column for each score.

        Args:
            corpus: one row, "corpus", with the scores of the complete set, instead of a row for each image. They are
                not always means of the images' scores: BLEU adds up n-grams first.

        Returns:
            A row for each image; the index, "image", has their ids in the order of the references.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise MissingExtraError("Scores.to_dataframe", "notebook") from error
        if corpus:
            return pandas.DataFrame([self.corpus], index=["corpus"])
        return pandas.DataFrame(dict(self.image_scores), index=pandas.Index(self.ids, name="image"))

    def format(self, names: Sequence[str] | None = None, digits: int = 4) -> str:
        """One line of names and numbers, "BLEU-1 0.5794  BLEU-2 0.4044 ...".

        Args:
            names: the scores to print, all by default.
            digits: digits after the point.
        """
        printed = self.corpus if names is None else {name: self.corpus[name] for name in names}
        return "  ".join(f"{name} {value:.{digits}f}" for name, value in printed.items())

    def to_dict(self, *, images: bool = True) -> dict[str, Any]:
        """A record for JSON, from which `from_dict` makes equal scores.

        Args:
            images: whether scores and statistics of single images are in it; without them there is no bootstrap.
        """
        record: dict[str, Any] = {"format": _FORMAT, "signature": self.signature, "corpus": self.corpus}
        if self.notes:
            record["notes"] = list(self.notes)
        if images:
            record["ids"] = list(self.ids)
            record["per_image"] = {str(image): scores for image, scores in self.per_image.items()}
            record["statistics"] = {key: rows.tolist() for key, rows in self.statistics.items()}
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Scores:
        """Read what `to_dict` made.

        Raises:
            MetricInputError: the record is something else or holds no statistics of images.
        """
        if record.get("format") != _FORMAT:
            raise MetricInputError(
                f"this is no record of scores; its 'format' is {record.get('format')!r}, not {_FORMAT!r}"
            )
        if "statistics" not in record or "ids" not in record:
            raise MetricInputError("this record of scores holds the corpus only; write it with to_dict(images=True)")
        statistics = {key: np.array(rows) for key, rows in record["statistics"].items()}
        if "refclipscore" in statistics:  # a separate metric in older records
            references = statistics.pop("refclipscore")
            statistics["clipscore"] = np.concatenate([statistics["clipscore"], references], axis=1)
        unknown = [key for key in statistics if key not in METRICS]
        if unknown:
            raise MetricInputError(f"this record holds the unknown metrics {', '.join(sorted(unknown))}")
        if any(rows.ndim != 2 or len(rows) != len(record["ids"]) for rows in statistics.values()):
            raise MetricInputError("this record of scores does not have one row of statistics for each image")
        return cls(
            tuple(record["ids"]), statistics, Signature.parse(record["signature"]), tuple(record.get("notes", ()))
        )
