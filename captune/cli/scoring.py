"""What `captune score` and `captune compare` share: the way from files to scores, and from answers to paper."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune.cli.scoring_options import CIDERS, COMPUTED, Options

if TYPE_CHECKING:
    from captune.metrics import Scorer, Scores
    from captune.metrics.files import Predictions, References

__all__ = ["System", "check_out", "load_system", "make_scorer", "score_system", "to_json", "warn", "write"]


@dataclass
class System:
    """One system: its captions beside the references of the same images, and what was noticed."""

    name: str
    predictions: dict[str, str]
    references: dict[str, list[str]]
    finished: dict[str, bool]
    pictures: dict[str, Path]
    file_names: dict[str, str]
    warnings: list[str] = field(default_factory=list)


def warn(sentence: str) -> None:
    """Say something on stderr that does not stop the command."""
    print(f"captune: warning: {sentence}", file=sys.stderr)


def load_system(references: References, predictions: Predictions, name: str, options: Options) -> System:
    """Match the captions of one system with the references and notice what is odd.

    Raises:
        MetricInputError: they do not belong together.
    """
    from captune.metrics.alignment import align, caption_warnings
    from captune.metrics.languages import language_warning

    aligned = align(predictions, references, subset=options.subset)
    warnings = list(aligned.warnings) + caption_warnings(aligned.predictions, aligned.references)
    if options.tokenize == "ptb":
        for captions, whose in (
            ([caption for group in aligned.references.values() for caption in group], "references"),
            (list(aligned.predictions.values()), "predictions"),
        ):
            if sentence := language_warning(captions):
                warnings.append(f"In the {whose}: {sentence}")
                break
    for key in ("meteor", "spice"):
        if key in options.metrics and options.tokenize != "ptb":
            warnings.append(f"{key.upper()} knows English only, whatever --tokenize says.")
    finished = {image: predictions.finished[image] for image in aligned.predictions if image in predictions.finished}
    pictures = {image: references.images[image] for image in aligned.predictions if image in references.images}
    file_names = {
        image: references.file_names[image] for image in aligned.predictions if image in references.file_names
    }
    return System(name, aligned.predictions, aligned.references, finished, pictures, file_names, warnings)


def make_scorer(system: System, options: Options) -> tuple[Scorer, tuple[str, ...]]:
    """Prepare the references of a system.

    CIDEr of a single image is undefined (every n-gram has the weight ln 1 = 0): it is left out with a warning, and
    is an error where nothing else was asked for.

    Returns:
        The scorer, and which of the metrics that it computes are to be shown.

    Raises:
        MetricInputError: only CIDEr was asked for, of one image.
    """
    from captune.errors import MetricInputError
    from captune.metrics import DocumentFrequencies, Scorer

    keys = [key for key in options.metrics if key in COMPUTED]
    frequencies = None
    if options.document_frequencies is not None:
        frequencies = DocumentFrequencies.load(options.document_frequencies)
    if len(system.references) == 1 and frequencies is None and any(key in CIDERS for key in keys):
        sentence = "CIDEr of one image is undefined, since it weighs n-grams by how many images hold them"
        advice = "give more images, or --document-frequencies of a corpus"
        keys = [key for key in keys if key not in CIDERS]
        if set(options.metrics) <= set(CIDERS):
            raise MetricInputError(f"{sentence}; {advice}.")
        system.warnings.append(f"{sentence}; it is left out ({advice}).")
    scorer = Scorer(
        system.references,
        tuple(keys) or ("rouge-l",),  # the cheapest, where only numbers from elsewhere are wanted beside a signature
        options.compat,
        options.tokenize,
        frequencies,
        data=options.data,
        split=options.split,
        prompt=options.prompt,
        decoding=options.decoding,
        protocol=options.protocol,
        jobs=options.jobs,
    )
    return scorer, tuple(keys)


def score_system(system: System, scorer: Scorer, keys: tuple[str, ...], options: Options) -> Scores:
    """All scores of one system that have statistics of images; diversity and failures are reported apart."""
    from captune.cli.external_metrics import ADD_EXTERNAL

    scores = scorer.score(system.predictions)
    scores = replace(scores, statistics={key: scores.statistics[key] for key in keys})
    for key, add in ADD_EXTERNAL.items():
        if key in options.metrics:
            scores = add(scores, system, options)
    return scores


def to_json(answer: dict[str, Any]) -> str:
    """One JSON object; numbers that JSON does not have become null."""
    import json
    import math

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): finite(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(answer), allow_nan=False)


def check_out(out: Path | None, command: str, reads: list[Path | str | None]) -> None:
    """See that an answer may be written; of what is read, options that were left out are None.

    Raises:
        InputError: it may not.
    """
    from captune.data.outputs import check_output

    if out is not None:
        check_output(out, command=command, reads=[read for read in reads if read is not None])


def write(text: str, out: Path | None, command: str) -> None:
    """Print the answer, or put it into a file that is there whole or not at all."""
    if out is None:
        print(text)
        return
    from captune.data.outputs import output_file

    with output_file(out, command=command) as stream:
        stream.write(text + "\n")
