"""`Scorer` and `score_captions`: references prepared once, any number of systems scored against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import numpy as np

from captune.errors import MetricInputError
from captune.metrics.encoding import Encoder, Rows
from captune.metrics.frequencies import DocumentFrequencies
from captune.metrics.inputs import ImageId, Predictions, References, check_predictions, check_references, in_order
from captune.metrics.parallel import encode_in_processes
from captune.metrics.references import ReferenceIndex
from captune.metrics.scores import Scores
from captune.metrics.signature import Signature, prompt_hash
from captune.metrics.tokenizers import tokenizer

__all__ = ["DEFAULT_METRICS", "Scorer", "score_captions"]

DEFAULT_METRICS = ("bleu", "cider", "rouge-l")
_COMPUTED = ("bleu", "cider", "cider-d", "rouge-l")
_COMPATIBILITIES = ("caption", "coco-caption")


class Scorer:
    """Scores captions against references that are prepared once.

    Args:
        references: for each image its reference captions, at least one.
        metrics: of "bleu" (BLEU-1 to BLEU-4), "cider" (coco-caption's CIDEr, which is CIDEr-D; "cider-d" is the same
            number under that name) and "rouge-l".
        compat: "caption" tokenizes every caption alone; "coco-caption" all captions of the call together, as the
            Java tool does, where the end of one line can depend on the next.
        tokenize: "ptb", or "zh-char", "zh-jieba", "13a", "none".
        document_frequencies: for CIDEr, those of another corpus; by default those of `references`.
        data: the data set's name, for the signature, like all that follow.
        split: its part.
        prompt: the prompt's text, which stands in the signature as a hash.
        decoding: how captions were decoded.
        protocol: the evaluation protocol.
        exif: "upright" or "stored", where EXIF notes a rotation of some images.
        leak: marks the numbers as LEAK.
        jobs: how many processes work at most; fewer do where more would not pay.

    Raises:
        MetricInputError: the references cannot be scored against; the sentence says why.
    """

    def __init__(
        self,
        references: References,
        metrics: Sequence[str] = DEFAULT_METRICS,
        compat: str = "caption",
        tokenize: str = "ptb",
        document_frequencies: DocumentFrequencies | None = None,
        *,
        data: str | None = None,
        split: str | None = None,
        prompt: str | None = None,
        decoding: str | None = None,
        protocol: str | None = None,
        exif: str | None = None,
        leak: bool = False,
        jobs: int = 1,
    ) -> None:
        self._options: dict[str, Any] = {
            "metrics": metrics,
            "compat": compat,
            "tokenize": tokenize,
            "document_frequencies": document_frequencies,
            "data": data,
            "split": split,
            "prompt": prompt,
            "decoding": decoding,
            "protocol": protocol,
            "exif": exif,
            "leak": leak,
            "jobs": jobs,
        }
        self._check_options()
        references = cast("Mapping[ImageId, Sequence[str]]", references)
        check_references(references)
        self._references = references
        self._ids = tuple(references)
        self._encoder = Encoder(tokenizer(tokenize))
        self._subset: Scorer | None = None
        captions_per_image = [len(captions) for captions in references.values()]
        offsets = np.zeros(len(references) + 1, np.int64)
        np.cumsum(captions_per_image, out=offsets[1:])
        tokens = self._encode(list(chain.from_iterable(references.values())))
        self._index = ReferenceIndex(
            self._encoder, tokens, offsets, self._ids, tuple(metrics), document_frequencies, jobs
        )
        fewest, most = min(captions_per_image), max(captions_per_image)
        self._signature = self._sign(str(most) if fewest == most else f"{fewest}-{most}")

    def _check_options(self) -> None:
        metrics = self._options["metrics"]
        if isinstance(metrics, str) or not metrics:
            raise MetricInputError(f"metrics are {metrics!r}; give a list of names out of {', '.join(_COMPUTED)}")
        for metric in metrics:
            if metric not in _COMPUTED:
                raise MetricInputError(f"the metric {metric!r} is not known; choose out of {', '.join(_COMPUTED)}")
        if not isinstance(self._options["jobs"], int) or self._options["jobs"] < 1:
            raise MetricInputError(f"jobs is {self._options['jobs']!r}; give a number of processes from 1 on")
        if self._options["compat"] not in _COMPATIBILITIES:
            raise MetricInputError(
                f"compat is {self._options['compat']!r}; choose one of {', '.join(_COMPATIBILITIES)}"
            )

    def _encode(self, captions: Sequence[str]) -> Rows:
        whole_call = self._options["compat"] == "coco-caption"
        return encode_in_processes(self._encoder, captions, self._options["jobs"], whole_call)

    def _sign(self, refs: str) -> Signature:
        options, tokens = self._options, self._encoder.tokenizer
        frequencies: DocumentFrequencies | None = options["document_frequencies"]
        whole_call = options["compat"] == "coco-caption" and tokens.tokenize_call is not None
        weighs = any(metric.startswith("cider") for metric in options["metrics"])
        source = "corpus" if frequencies is None else f"{frequencies.source}({frequencies.images})"
        return Signature(
            n=len(self._ids),
            refs=refs,
            tok=tokens.name + ("+call" if whole_call else ""),
            data=options["data"],
            split=options["split"],
            cider=f"D,df={source}" if weighs else None,
            prompt=None if options["prompt"] is None else prompt_hash(options["prompt"]),
            dec=options["decoding"],
            proto=options["protocol"],
            exif=options["exif"],
            leak=options["leak"],
        )

    def sign_prompt(self, prompt: str) -> None:
        """Put another prompt into the signature of the scores to come.

        Args:
            prompt: its text.
        """
        self._options["prompt"] = prompt
        self._signature = replace(self._signature, prompt=prompt_hash(prompt))
        self._subset = None

    def score(self, predictions: Predictions, *, subset: bool = False) -> Scores:
        """Score one system.

        Args:
            predictions: for each image one caption, in any order; an empty caption scores 0.
            subset: score the predicted images only, as if the others were not among the references.

        Raises:
            MetricInputError: predictions are missing, belong to no image, or cannot be compared.
        """
        predictions = cast("Mapping[ImageId, str]", predictions)
        check_predictions(predictions)
        places, images = in_order(predictions, self._ids, subset)
        if len(places) < len(self._ids):
            return self._restricted([self._ids[place] for place in places]).score(predictions)
        if self._options["compat"] == "coco-caption":
            # The call's lines stand in the order in which the predictions were given.
            rows = self._encode(list(predictions.values()))
            place_of = {image: place for place, image in enumerate(predictions)}
            tokens = rows.take([place_of[image] for image in images])
        else:
            tokens = self._encode([predictions[image] for image in images])
        return Scores(self._ids, self._index.statistics(tokens), self._signature)

    def _restricted(self, images: Sequence[ImageId]) -> Scorer:
        """The scorer of some images; the last one is kept, since checkpoints are scored on the same images."""
        if self._subset is None or self._subset._ids != tuple(images):
            chosen = {image: self._references[image] for image in images}
            self._subset = Scorer(chosen, **self._options)
        return self._subset


def score_captions(
    predictions: Predictions,
    references: References,
    metrics: Sequence[str] = DEFAULT_METRICS,
    compat: str = "caption",
    tokenize: str = "ptb",
    document_frequencies: DocumentFrequencies | None = None,
    *,
    subset: bool = False,
    data: str | None = None,
    split: str | None = None,
    prompt: str | None = None,
    decoding: str | None = None,
    protocol: str | None = None,
    leak: bool = False,
    jobs: int = 1,
) -> Scores:
    """Score captions: the numbers of coco-caption, without Java.

    To score several systems on the same references make one `Scorer`.

    Args:
        predictions: for each image one caption. An id is its text: 42 and "42" are the same image.
        references: for each image its reference captions, at least one.
        metrics: see `Scorer`, like all that follow but `subset`.
        compat: "caption" or "coco-caption".
        tokenize: the tokenizer.
        document_frequencies: of another corpus, for CIDEr.
        subset: score the predicted images only; otherwise a missing prediction is an error.
        data: for the signature.
        split: for the signature.
        prompt: for the signature.
        decoding: for the signature.
        protocol: for the signature.
        leak: for the signature.
        jobs: how many processes work at most; fewer do where more would not pay.

    Returns:
        Scores of the corpus and of each image, with their signature.

    Raises:
        MetricInputError: the input cannot be scored; the sentence says why and what to do.
    """
    predictions = cast("Mapping[ImageId, str]", predictions)
    references = cast("Mapping[ImageId, Sequence[str]]", references)
    check_predictions(predictions)
    check_references(references)
    if subset:
        places, _ = in_order(predictions, references, subset)
        ids = list(references)
        references = {ids[place]: references[ids[place]] for place in places}
    else:
        in_order(predictions, references, subset)
    scorer = Scorer(
        references,
        metrics,
        compat,
        tokenize,
        document_frequencies,
        data=data,
        split=split,
        prompt=prompt,
        decoding=decoding,
        protocol=protocol,
        leak=leak,
        jobs=jobs,
    )
    return scorer.score(predictions)
