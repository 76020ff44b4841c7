"""SPICE 1.0 through its original jar: with a time limit, on any Java, with models that are fetched on request only.

Source: Anderson et al., "SPICE: Semantic Propositional Image Caption Evaluation" (ECCV 2016). Three obstacles to
running the jar on a current Java are handled here:

- Java 9 and later close the classes that its cache serializes: opened by flags (`java.Java.flags`).
- Java 15 and later have no JavaScript, which it uses to indent its answer: `spice_java/PlainJson` replaces it.
- Its cache is a native library that some processors lack: there is no cache unless one is requested.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from captune.data import temporary_folder
from captune.errors import ExternalToolError, MetricInputError
from captune.metrics.external.corenlp import CORENLP_VERSION, find_models
from captune.metrics.external.java import JavaProcess, coco_caption_folder, find_java
from captune.metrics.metric import Column, MeanOfImages
from captune.metrics.options import ScoringOptions
from captune.metrics.references import PredictionBatch

__all__ = ["CATEGORIES", "SPICE_VERSION", "Spice", "SpiceResult", "spice"]

SPICE_VERSION = f"1.0,corenlp{CORENLP_VERSION}"
SPICE_JAR = "spice-1.0.jar"
SPICE_MAIN = "edu.anu.spice.SpiceScorer"
CATEGORIES = ("Object", "Attribute", "Relation", "Cardinality", "Color", "Size")
STAND_IN = Path(__file__).parent / "spice_java"


class Spice(MeanOfImages):
    """SPICE: the mean F-score of scene-graph tuples."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column("SPICE", description="Objects, attributes and relations in common with the references."),
    )
    needs: ClassVar[frozenset[str]] = frozenset({"java"})
    english_only: ClassVar[bool] = True

    @classmethod
    def check_requirements(cls, options: ScoringOptions) -> None:
        """Raise if Java, the jar or the parser's models are not installed."""
        find_java(options.java)
        coco_caption_folder("spice")
        find_models(options.spice_models)

    def statistics(self, predictions: PredictionBatch) -> NDArray[np.float64]:
        """SPICE of each image, (N, 1)."""
        scores: NDArray[np.float64] = predictions.shared("spice", lambda: self._run(predictions))
        return scores[:, None]

    def _run(self, predictions: PredictionBatch) -> NDArray[np.float64]:
        return spice(
            predictions.tokenized,
            predictions.tokenized_references,
            models=self.options.spice_models,
            java=self.options.java,
            memory=self.options.java_memory or "8G",
            timeout=self.options.time_limit or 3600.0,
            cache=self.options.spice_cache,
        ).per_image

    def signature(self) -> Mapping[str, str]:
        """The version of SPICE and of its parser."""
        return {"spice": SPICE_VERSION}


@dataclass(frozen=True)
class SpiceResult:
    """SPICE of a corpus and of each image, 0 to 1.

    Args:
        corpus: mean of the images.
        per_image: float64 (images,), F-score of all tuples.
        categories: for each kind of tuple float64 (images,); nan where neither references nor prediction have one.
    """

    corpus: float
    per_image: NDArray[np.float64]
    categories: dict[str, NDArray[np.float64]]


def spice(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    models: str | os.PathLike[str] | None = None,
    java: str | os.PathLike[str] | None = None,
    memory: str = "8G",
    timeout: float = 3600.0,
    threads: int | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> SpiceResult:
    """Score captions that are already tokenized (words joined by one space), as coco-caption passes them.

    Args:
        predictions: one caption an image; an empty one scores 0.
        references: the references of each image, at least one.
        models: folder of the two CoreNLP jars; found automatically by default (see `corenlp.find_models`).
        java: a `java` program; found automatically by default.
        memory: largest heap of the Java machine.
        timeout: seconds for the complete run; the parser does some 10 to 50 captions a second.
        threads: parser threads; by default one for each processor.
        cache: folder that keeps parsed captions for the next run; needs a native library (Linux and Windows on
            x86-64, older Macs).

    Raises:
        MetricInputError: the two differ in length, an image has no reference, or the models are not there.
        MissingExtraError: Java or the jar is not installed.
        ExternalToolError: the program failed, ran out of time, or answered something else.
    """
    if len(predictions) != len(references):
        raise MetricInputError(f"SPICE got {len(predictions)} predictions for {len(references)} images.")
    if any(not group for group in references):
        raise MetricInputError("SPICE needs at least one reference for every image.")
    scored = [row for row, prediction in enumerate(predictions) if prediction.strip()]
    scores = np.zeros((1 + len(CATEGORIES), len(predictions)))
    if scored:
        questions = [{"image_id": row, "test": predictions[row], "refs": list(references[row])} for row in scored]
        runtime = find_java(java)
        flags = [*runtime.flags(memory), "-cp", _class_path(find_models(models))]
        options = ["-subset", "-silent"]
        if threads is not None:
            options += ["-threads", str(threads)]
        if cache is not None:
            Path(cache).mkdir(parents=True, exist_ok=True)
            options += ["-cache", str(Path(cache).absolute())]
        answers = _run([str(runtime.path), *flags, SPICE_MAIN], options, questions, timeout)
        scores[:, scored] = _parse(answers, scored)
    mean = float(scores[0].mean()) if len(predictions) else 0.0
    return SpiceResult(mean, scores[0], dict(zip(CATEGORIES, scores[1:], strict=True)))


def _class_path(models: tuple[Path, Path]) -> str:
    parts = [STAND_IN, *models, coco_caption_folder("spice") / SPICE_JAR]
    if unusable := next((part for part in parts if os.pathsep in str(part)), None):
        raise MetricInputError(f"Java cannot read the path '{unusable}', which holds '{os.pathsep}'; move the file.")
    return os.pathsep.join(map(str, parts))


def _run(command: list[str], options: list[str], questions: list[dict[str, Any]], timeout: float) -> object:
    """Run SPICE on captions in a file and read the file that it writes."""
    with temporary_folder("spice") as folder:
        source, target = Path(folder, "captions.json"), Path(folder, "scores.json")
        source.write_text(json.dumps(questions), encoding="ascii")  # escapes: Java 17 reads in the locale's encoding
        arguments = [*command, str(source), "-out", str(target), *options]
        with JavaProcess("SPICE", arguments, timeout=timeout) as process:
            process.finish()
        try:
            answers: object = json.loads(target.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ExternalToolError("SPICE ended without writing its scores.") from None
        except ValueError:
            raise ExternalToolError("SPICE wrote something else than JSON where its scores were expected.") from None
    return answers


def _parse(answers: object, scored: Sequence[int]) -> NDArray[np.float64]:
    """F-scores of all tuples and of each category, (1 + categories, scored), in the order of the questions."""
    column = {image: number for number, image in enumerate(scored)}
    scores = np.full((1 + len(CATEGORIES), len(scored)), np.nan)
    seen: set[int] = set()
    try:
        assert isinstance(answers, list)
        for answer in answers:
            image = int(answer["image_id"])
            seen.add(image)
            for row, category in enumerate(("All", *CATEGORIES)):
                value = answer["scores"][category]["f"]
                scores[row, column[image]] = np.nan if value is None else float(value)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ExternalToolError(f"SPICE answered in a form that is not known ({error!r}).") from None
    if len(seen) != len(scored) or len(answers) != len(scored):
        raise ExternalToolError(f"SPICE scored {len(seen)} of {len(scored)} images.")
    scores[0] = np.nan_to_num(scores[0], nan=0.0)
    return scores
