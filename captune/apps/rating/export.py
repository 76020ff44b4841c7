"""A study's answers and results as files: CSV for statistics programs, JSON for the run's report."""

from __future__ import annotations

import io
import json
from pathlib import Path

from captune.apps.rating.judgements import points
from captune.apps.rating.store import Store
from captune.apps.rating.study_design import CRITERIA
from captune.apps.rating.study_results import Results
from captune.data import CsvWriter, check_output, output_file

__all__ = ["answers_csv", "check_results", "results_json", "write_results"]

FILES = ("results.json", "answers.csv")
"""What `write_results` writes."""

COLUMNS = (
    "rater",
    "position",
    "part",
    "kind",
    "image",
    "first_systems",
    "second_systems",
    "first_caption",
    "second_caption",
    "choice",
    *CRITERIA,
    "seconds",
    "time",
)


def answers_csv(store: Store) -> str:
    """All answers of a study as CSV, one per line, including checks and repeats.

    Several systems of one caption are joined by `|`. A text that a spreadsheet would read as a formula gets a
    leading apostrophe.
    """
    captions, images = store.captions(), [name for name, _ in store.images()]
    names = {rater.number: rater.name for rater in store.raters()}
    trials = {number: store.trials(number) for number in names}
    out = io.StringIO()
    writer = CsvWriter(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for answer in store.answers():
        trial = trials[answer.rater][answer.position]
        shown = [captions[index] for index in trial.captions]
        texts = [caption.text for caption in shown] + [""] * (2 - len(shown))
        systems = ["|".join(caption.systems) for caption in shown] + [""] * (2 - len(shown))
        rubric = trial.part == "rubric"
        cells = [
            names[answer.rater],
            answer.position,
            trial.part,
            trial.kind,
            images[trial.image],
            *systems,
            *texts,
            "" if rubric else answer.value,
            *(points(answer) if rubric else [""] * len(CRITERIA)),
            "" if answer.seconds is None else answer.seconds,
            round(answer.time, 3),
        ]
        writer.writerow(cells)
    return out.getvalue()


def write_results(folder: Path, store: Store, results: Results) -> list[Path]:
    """Write `results.json` and `answers.csv`.

    Args:
        folder: of the files; it is created if it does not exist.
        store: the open study.
        results: of it.

    Returns:
        The files.

    Raises:
        InputError: one of its files has another origin.
    """
    check_results(folder)
    contents = (results_json(results), answers_csv(store))
    for name, text in zip(FILES, contents, strict=True):
        with output_file(folder / name, newline="", command="rate") as stream:
            stream.write(text)
    return [folder / name for name in FILES]


def check_results(folder: Path) -> None:
    """Check that results can be written into a folder.

    Raises:
        InputError: one of its files has another origin.
    """
    for name in FILES:
        check_output(folder / name, command="rate")


def results_json(results: Results) -> str:
    """The results as one JSON object."""
    return json.dumps(results.to_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
