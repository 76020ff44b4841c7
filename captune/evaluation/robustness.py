"""The robustness matrix: rows (checkpoint, prompt) on columns (data sets, domains, corruptions), with one model load.

Column by column, images are encoded once, then each checkpoint's trained tensors are swapped in and each prompt is
tried. Only one column's features are in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from captune.config import RunConfig
from captune.data import folder_lock, load_image, resolve_image, temporary_folder
from captune.decoding import Caption
from captune.errors import NonFiniteScoresError
from captune.evaluation.checkpoints import ignore_event
from captune.evaluation.corruptions import corrupt
from captune.evaluation.destination import LOCK_NAME, check_destination, is_own_evaluation
from captune.evaluation.protocol import EvaluationSet
from captune.evaluation.robustness_columns import (
    Corruption,
    divergence,
    domains_of,
    evaluation_sets,
    relative_drops,
    unseen_share,
    word_counts,
)
from captune.evaluation.run_models import RunModel, load_run_model
from captune.evaluation.scoring import Evaluation, checkpoint_name, exif_mark, pixels_mark, refuse_rows
from captune.events import Listener
from captune.metrics import Scorer, Scores, ScoringOptions, confidence_intervals, paired_bootstrap, prompt_hash
from captune.report import (
    MATRIX_FILE,
    Cell,
    Column,
    Difference,
    Matrix,
    Row,
    atomic_write,
    draw_heatmap,
    matrix_csv,
    matrix_markdown,
    matrix_to_json,
    write_report,
)
from captune.run_checkpoints import read_record

__all__ = ["evaluate_matrix"]


@dataclass
class _EvaluationColumn:
    """A column during evaluation: images, references, and the scores of each row."""

    name: str
    kind: str
    images: EvaluationSet
    ids: list[str]
    scorer: Scorer
    scores: dict[str, Scores] = field(default_factory=dict)

    @property
    def references(self) -> list[str]:
        return [caption for image in self.ids for caption in self.images.references[image]]


def evaluate_matrix(
    config: RunConfig,
    checkpoints: Sequence[str | Path],
    data: Sequence[str],
    *,
    instructions: Sequence[str] = (),
    corruptions: Sequence[Corruption] = (),
    split: str | None = None,
    listener: Listener | None = None,
    base: str | None = None,
) -> Matrix:
    """Caption and score every checkpoint with every prompt in domain, on other data and on corrupted images.

    Args:
        config: of the run; its output folder receives what `evaluate_checkpoints` writes of the in-domain images, and
            `matrix.{json,csv,md,png}`.
        checkpoints: folders that training wrote; the model before training is always the first row.
        data: further manifests; see `evaluation_sets`.
        instructions: prompts in addition to the one of training, one row each.
        corruptions: of the in-domain images.
        split: of the further manifests.
        listener: receives the progress.
        base: folder or hub id of the run's model, if it has moved.

    Raises:
        InputError: data, model or a checkpoint cannot be used.
    """
    folders = [Path(folder) for folder in checkpoints]
    check_destination(config, folders)
    with folder_lock(config.output, LOCK_NAME):
        return _evaluate_matrix(config, folders, data, instructions, corruptions, split, listener or ignore_event, base)


def _evaluate_matrix(
    config: RunConfig,
    checkpoints: Sequence[Path],
    data: Sequence[str],
    instructions: Sequence[str],
    corruptions: Sequence[Corruption],
    split: str | None,
    on_event: Listener,
    base: str | None,
) -> Matrix:
    """The same in a locked folder."""
    records = [read_record(folder) for folder in checkpoints]
    sets = evaluation_sets(config, data, split, on_event, ancestors=records[0].ancestors if records else ())
    in_domain = Evaluation(config, sets[0])
    on_event({"event": "stage", "what": "Loading the model"})
    located = config if base is None else config.with_model(base)
    model = load_run_model(located, in_domain, checkpoints, stored=False)
    # The prompt of training comes first: the in-domain score of a checkpoint is that of this prompt on the run's data.
    prompts = list(dict.fromkeys([model.instruction or "", *instructions]))
    folders = {checkpoint_name(None, config): None} | {
        checkpoint_name(record.epoch, config): folder for record, folder in zip(records, checkpoints, strict=True)
    }
    rows = [
        Row(name if len(prompts) == 1 else f"{name}, prompt {number}", name, prompt)
        for name in folders
        for number, prompt in enumerate(prompts, 1)
    ]
    context = _Context(in_domain, model, folders, rows, on_event)
    in_domain.sign_prompt(model.prompt_text(model.instruction))
    if is_own_evaluation(config, config.output, checkpoints):
        in_domain.recall()
    epochs = {checkpoint_name(record.epoch, config): record.epoch for record in records}

    columns: list[_EvaluationColumn] = []
    for number, images in enumerate(sets):
        ids = [image.id for image in images.images]
        complete = context.column(images, images.name, "data" if number else "home", ids)
        domains = [
            context.column(images, f"{images.name}/{name}", "domain", domain_ids)
            for name, domain_ids in domains_of(images).items()
        ]
        files = [resolve_image(images.manifest, image.image) for image in images.images]
        captions = context.run(files, [complete, *domains], f"images of {images.name}")
        columns += [complete, *domains]
        if not number:
            for row in rows:
                if row.instruction == prompts[0] and row.name in captions:
                    in_domain.score(epochs.get(row.checkpoint), captions[row.name])
    for corruption in corruptions:
        column = context.column(sets[0], corruption.name, "corruption", [image.id for image in sets[0].images])
        with temporary_folder("corruption") as folder:
            files = _corrupted(sets[0], corruption, folder, config)
            context.run(files, [column], f"images with {corruption.name}")
        columns.append(column)
    matrix = context.matrix(columns)
    for name in context.faulty:
        in_domain.leave_out(name)
    in_domain.write()
    _write(config.output, matrix)
    write_report(config.output, in_domain.run_scores())
    refuse_rows(context.faulty, config.output)
    return matrix


@dataclass
class _Context:
    """What every column is evaluated with."""

    evaluation: Evaluation
    model: RunModel
    folders: Mapping[str, Path | None]
    rows: list[Row]
    on_event: Listener
    captions: dict[tuple[str, str], list[Caption]] = field(default_factory=dict)
    faulty: list[str] = field(default_factory=list)

    def column(self, images: EvaluationSet, name: str, kind: str, ids: list[str]) -> _EvaluationColumn:
        """A column that scores some images of a set."""
        scorer = Scorer(
            {image: images.references[image] for image in ids},
            ScoringOptions(
                **images.rules.scoring_options(),
                tokenize=self.evaluation.config.evaluate.tokenizer or "ptb",
                data=_signature_field(name if kind != "corruption" else f"{images.name}+{name.replace(' ', '')}"),
                split=_signature_field(images.split),
                decoding=str(self.evaluation.options),
                protocol=images.protocol,
                exif=exif_mark(self.evaluation.config, images),
                pixels=pixels_mark(self.evaluation.config),
                leak=images.leak is not None,
            ),
        )
        return _EvaluationColumn(name, kind, images, ids, scorer)

    def run(
        self, files: Sequence[Path], columns: Sequence[_EvaluationColumn], what: str
    ) -> Mapping[str, list[Caption]]:
        """Encode a set's images once, caption them with every row, and score every column made of them."""
        pixels = self._images(files, what)
        images = columns[0].images
        captions: dict[str, list[Caption]] = {}
        for row in [*self.rows]:
            if row not in self.rows:
                continue
            self.model.load(self.folders[row.checkpoint])
            try:
                captions[row.name] = self._generate(pixels, images, row)
            except NonFiniteScoresError:
                self._leave_out(row.checkpoint)
                continue
            by_id = dict(zip([image.id for image in images.images], captions[row.name], strict=True))
            for column in columns:
                self.captions[row.name, column.name] = [by_id[image] for image in column.ids]
                texts = {image: images.reply(by_id[image].text) for image in column.ids}
                column.scores[row.name] = _signed(column.scorer.score(texts), self.model, row.instruction)
            corpus = dict(columns[0].scores[row.name].corpus)
            self.on_event({"event": "cell", "row": row.name, "column": columns[0].name, "scores": corpus})
        return captions

    def _leave_out(self, checkpoint: str) -> None:
        """Remove a checkpoint whose scores are not numbers from the matrix.

        Raises:
            InputError: it is the one that all others are compared with.
        """
        if checkpoint == self.rows[0].checkpoint:
            refuse_rows([checkpoint], self.evaluation.output, scored=False)
        self.faulty.append(checkpoint)
        self.rows[:] = [row for row in self.rows if row.checkpoint != checkpoint]

    def _images(self, files: Sequence[Path], what: str) -> Any:
        def encoded(done: int, count: int) -> None:
            self.on_event({"event": "features", "what": what, "done": done, "count": count})

        return self.model.images(files, encoded)

    def _generate(self, pixels: Any, images: EvaluationSet, row: Row) -> list[Caption]:
        def captioned(done: int, count: int) -> None:
            self.on_event({"event": "captions", "epoch": None, "what": row.name, "done": done, "count": count})

        keys = [image.id for image in images.images]
        return self.model.caption(self.evaluation, pixels, row.instruction or None, captioned, keys=keys)

    def matrix(self, columns: Sequence[_EvaluationColumn]) -> Matrix:
        """All cells with their drops, gains and word statistics."""
        words = {column.name: word_counts(column.references) for column in columns}
        known = words[columns[0].name]
        shifts: list[dict[str, float]] = [
            {}
            if column.kind == "corruption"
            else {
                "unseen": unseen_share(words[column.name], known),
                "divergence": divergence(words[column.name], known),
            }
            for column in columns
        ]
        described = tuple(
            Column(column.name, column.kind, len(column.ids), shift)
            for column, shift in zip(columns, shifts, strict=True)
        )
        cells = tuple(self._cell(row, column, columns[0], words) for row in self.rows for column in columns)
        return Matrix(tuple(self.rows), described, cells)

    def _cell(
        self, row: Row, column: _EvaluationColumn, in_domain: _EvaluationColumn, words: Mapping[str, Mapping[str, int]]
    ) -> Cell:
        scores, first = column.scores[row.name], column.scores[self.rows[0].name]
        captions = self.captions[row.name, column.name]
        caption_words = word_counts(caption.text for caption in captions)
        first_prompt = next(other for other in self.rows if other.checkpoint == row.checkpoint)
        is_reference = column is in_domain and row is first_prompt
        drops = {} if is_reference else relative_drops(in_domain.scores[first_prompt.name], scores)
        gains = {} if row is self.rows[0] else paired_bootstrap(scores, first)
        return Cell(
            row=row.name,
            column=column.name,
            scores=scores.corpus,
            intervals={name: (interval.low, interval.high) for name, interval in confidence_intervals(scores).items()},
            drops=drops,
            gains={name: Difference(t.difference, t.low, t.high, paired=True) for name, t in gains.items()},
            words=len(caption_words),
            divergence=divergence(caption_words, Counter(words[column.name])),
            unfinished=sum(not caption.stopped for caption in captions),
            signature=scores.signature,
            leak=column.images.leak,
        )


def _signed(scores: Scores, model: RunModel, instruction: str) -> Scores:
    """Scores with the prompt in their signature; the references of a column are prepared once for all prompts."""
    prompt = model.prompt_text(instruction or None)
    details = replace(scores.details, prompt=None if prompt is None else prompt_hash(prompt))
    return Scores(scores.ids, scores.statistics, details)


def _corrupted(images: EvaluationSet, corruption: Corruption, folder: Path, config: RunConfig) -> list[Path]:
    """Corrupted copies of a set's images, stored without loss."""
    files = []
    for number, image in enumerate(images.images):
        original = load_image(resolve_image(images.manifest, image.image), exif=config.exif_rotation)
        files.append(folder / f"{number}.png")
        corrupted = corrupt(original, corruption.kind, corruption.strength, image_id=image.id, seed=config.seed)
        corrupted.save(files[-1], compress_level=1)
    return files


def _signature_field(name: str) -> str:
    """A name with the characters that a signature allows."""
    return "".join(c if c.isprintable() and c != "|" else "_" for c in name) or "_"


def _write(folder: Path, matrix: Matrix) -> None:
    atomic_write(folder / MATRIX_FILE, matrix_to_json(matrix))
    atomic_write(folder / "matrix.csv", matrix_csv(matrix))
    atomic_write(folder / "matrix.md", matrix_markdown(matrix))
    atomic_write(folder / "matrix.png", draw_heatmap(matrix))
