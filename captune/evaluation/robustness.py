"""The matrix of rows (checkpoint, prompt) and columns (data, domains, damage), with one load of the model.

Column after column: images are encoded once, then each checkpoint's trained tensors are swapped in and each prompt is
asked. Nothing but one column's features is held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from captune.config import RunConfig
from captune.data.atomic import temporary_folder
from captune.data.images import load_image
from captune.data.locks import folder_lock
from captune.data.manifest import resolve_image
from captune.decoding import Caption, generate_captions
from captune.errors import NonFiniteScoresError
from captune.evaluation.corruptions import corrupt
from captune.evaluation.output_folder import WRITER, check_destination, is_own_evaluation
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
from captune.evaluation.scoring import Evaluation, checkpoint_name, decoding_options, exif_mark, refuse_rows
from captune.events import Event, Listener
from captune.features import encode_images
from captune.metrics import Scorer, Scores, ScoringOptions
from captune.metrics.signature import prompt_hash
from captune.metrics.significance import confidence_intervals, paired_bootstrap
from captune.model import MiniGPT4
from captune.model.adapter import load_trained, read_record, trained_state, use_wrapping
from captune.model.loading import load_model, pick_device
from captune.report import write_report
from captune.report.chart import draw_heatmap
from captune.report.files import write_whole
from captune.report.matrix import (
    FILE,
    Cell,
    Column,
    Difference,
    Matrix,
    Row,
    matrix_csv,
    matrix_markdown,
    matrix_to_json,
)

__all__ = ["evaluate_matrix"]


@dataclass
class _Place:
    """A column while it is evaluated: images, references, and what makes its numbers."""

    name: str
    kind: str
    chosen: EvaluationSet
    ids: list[str]
    scorer: Scorer
    found: dict[str, Scores] = field(default_factory=dict)

    @property
    def references(self) -> list[str]:
        return [caption for image in self.ids for caption in self.chosen.references[image]]


def evaluate_matrix(
    config: RunConfig,
    checkpoints: Sequence[Path],
    data: Sequence[str],
    *,
    instructions: Sequence[str] = (),
    damages: Sequence[Corruption] = (),
    split: str | None = None,
    listener: Listener | None = None,
) -> Matrix:
    """Caption and score every checkpoint with every instruction on home, other data and damaged images of home.

    Args:
        config: of the run; its output folder receives what `evaluate_checkpoints` writes of home, and
            `matrix.{json,csv,md,png}`.
        checkpoints: folders that training wrote; the model before training comes first in any case.
        data: further manifests; see `evaluation_sets`.
        instructions: what the model is asked beside what it was trained with, one row each.
        damages: corruptions of home's images.
        split: of the further manifests.
        listener: is told how far it is.

    Raises:
        InputError: data, model or a checkpoint cannot be used.
    """
    check_destination(config, checkpoints)
    with folder_lock(config.output, WRITER):
        return _evaluate_matrix(config, checkpoints, data, instructions, damages, split, listener or _ignore)


def _evaluate_matrix(
    config: RunConfig,
    checkpoints: Sequence[Path],
    data: Sequence[str],
    instructions: Sequence[str],
    damages: Sequence[Corruption],
    split: str | None,
    tell: Listener,
) -> Matrix:
    """The same in a folder that no other process writes into."""
    sets = evaluation_sets(config, data, split, tell)
    records = [read_record(folder) for folder in checkpoints]
    applied = sets[0].rules.applied(config)
    # What it was trained with comes first: the home of a checkpoint is its own prompt on the run's own data.
    asked = list(dict.fromkeys([applied.model.instruction, *instructions]))
    model = load_model(config.model, pick_device())
    if records:
        use_wrapping(model, records[0].wrapping, checkpoints[0])
    versions = CheckpointSwapper(
        model, [(checkpoint_name(r.epoch), f) for r, f in zip(records, checkpoints, strict=True)]
    )
    rows = [
        Row(name if len(asked) == 1 else f"{name}, prompt {number}", name, instruction)
        for name in versions.names
        for number, instruction in enumerate(asked, 1)
    ]
    work = _Work(applied, model, versions, rows, tell)
    home = Evaluation(config, sets[0])
    home.ask_as(model)
    if is_own_evaluation(config, config.output, checkpoints):
        home.recall()
    epochs = {checkpoint_name(record.epoch): record.epoch for record in records}

    places: list[_Place] = []
    for number, chosen in enumerate(sets):
        whole = work.place(chosen, chosen.name, "data" if number else "home", [image.id for image in chosen.images])
        parts = [work.place(chosen, f"{chosen.name}/{name}", "domain", ids) for name, ids in domains_of(chosen).items()]
        files = [resolve_image(chosen.manifest, image.image) for image in chosen.images]
        captions = work.run(files, [whole, *parts], f"images of {chosen.name}")
        places += [whole, *parts]
        if not number:
            for row in rows:
                if row.instruction == asked[0] and row.name in captions:
                    home.score(epochs.get(row.checkpoint), captions[row.name])
    for damage in damages:
        place = work.place(sets[0], damage.name, "corruption", [image.id for image in sets[0].images])
        with temporary_folder("damage") as folder:
            files = _damaged(sets[0], damage, folder, config)
            work.run(files, [place], f"images with {damage.name}")
        places.append(place)
    matrix = work.matrix(places)
    for name in work.faulty:
        home.leave_out(name)
    home.write()
    _write(config.output, matrix)
    write_report(config.output, home.run_scores())
    refuse_rows(work.faulty, config.output)
    return matrix


class CheckpointSwapper:
    """The model before training and its checkpoints, any of which can be put into it."""

    def __init__(self, model: MiniGPT4, checkpoints: Sequence[tuple[str, Path]]) -> None:
        self._model = model
        self._initial = trained_state(model)
        self._folders = dict(checkpoints)
        self.names = [checkpoint_name(None), *self._folders]

    def use(self, name: str) -> None:
        """Put a version's tensors into the model."""
        if name in self._folders:
            load_trained(self._model, self._folders[name])
            return
        with torch.no_grad():
            for own, parameter in self._model.trained_parameters():
                # What a checkpoint brought along (LoRA) does nothing while it is zero.
                parameter.copy_(self._initial[own]) if own in self._initial else parameter.zero_()


@dataclass
class _Work:
    """What every column is evaluated with."""

    config: RunConfig
    model: MiniGPT4
    versions: CheckpointSwapper
    rows: list[Row]
    tell: Listener
    said: dict[tuple[str, str], list[Caption]] = field(default_factory=dict)
    faulty: list[str] = field(default_factory=list)

    def place(self, chosen: EvaluationSet, name: str, kind: str, ids: list[str]) -> _Place:
        """A column that scores some images of a set."""
        scorer = Scorer(
            {image: chosen.references[image] for image in ids},
            ScoringOptions(
                metrics=chosen.rules.metrics,
                data=_field(name if kind != "corruption" else f"{chosen.name}+{name.replace(' ', '')}"),
                split=_field(chosen.split),
                decoding=str(decoding_options(self.config)),
                protocol=chosen.protocol,
                exif=exif_mark(self.config, chosen),
                leak=chosen.leak is not None,
            ),
        )
        return _Place(name, kind, chosen, ids, scorer)

    def run(self, files: Sequence[Path], places: Sequence[_Place], what: str) -> Mapping[str, list[Caption]]:
        """Encode a set's images once, caption them with every row, and score every column made of them."""
        features = self._encoded(files, what)
        chosen = places[0].chosen
        captions: dict[str, list[Caption]] = {}
        for row in [*self.rows]:
            if row not in self.rows:
                continue
            self.versions.use(row.checkpoint)
            try:
                captions[row.name] = self._captions(features, chosen, row)
            except NonFiniteScoresError:
                self._leave_out(row.checkpoint)
                continue
            ids = [image.id for image in chosen.images]
            by_id = dict(zip(ids, captions[row.name], strict=True))
            for place in places:
                self.said[row.name, place.name] = [by_id[image] for image in place.ids]
                texts = {image: chosen.reply(by_id[image].text) for image in place.ids}
                place.found[row.name] = _asked(place.scorer.score(texts), self.model, row.instruction)
            corpus = dict(places[0].found[row.name].corpus)
            self.tell({"event": "cell", "row": row.name, "column": places[0].name, "scores": corpus})
        return captions

    def _leave_out(self, checkpoint: str) -> None:
        """Take a checkpoint out of the matrix, whose scores are not numbers.

        Raises:
            InputError: it is the one that all others are compared with.
        """
        if checkpoint == self.rows[0].checkpoint:
            refuse_rows([checkpoint], self.config.output, scored=False)
        self.faulty.append(checkpoint)
        self.rows[:] = [row for row in self.rows if row.checkpoint != checkpoint]

    def _encoded(self, files: Sequence[Path], what: str) -> Tensor:
        def encoded(done: int, count: int) -> None:
            self.tell({"event": "features", "what": what, "done": done, "count": count})

        return encode_images(
            self.model,
            files,
            batch_size=self.config.evaluate.batch_size,
            exif_rotation=self.config.exif_rotation,
            on_progress=encoded,
        )

    def _captions(self, features: Tensor, chosen: EvaluationSet, row: Row) -> list[Caption]:
        def captioned(done: int, count: int) -> None:
            self.tell({"event": "captions", "epoch": None, "what": row.name, "done": done, "count": count})

        return generate_captions(
            self.model,
            features,
            row.instruction,
            decoding_options(self.config),
            keys=[image.id for image in chosen.images],
            on_progress=captioned,
        )

    def matrix(self, places: Sequence[_Place]) -> Matrix:
        """All cells with their drops, gains and words."""
        home = places[0]
        words = {place.name: word_counts(place.references) for place in places}
        known = words[home.name]
        columns = tuple(
            Column(
                place.name,
                place.kind,
                len(place.ids),
                {}
                if place.kind == "corruption"
                else {
                    "unseen": unseen_share(words[place.name], known),
                    "divergence": divergence(words[place.name], known),
                },
            )
            for place in places
        )
        cells = tuple(self._cell(row, place, home, words) for row in self.rows for place in places)
        return Matrix(tuple(self.rows), columns, cells)

    def _cell(self, row: Row, place: _Place, home: _Place, words: Mapping[str, Mapping[str, int]]) -> Cell:
        scores, first = place.found[row.name], place.found[self.rows[0].name]
        said = self.said[row.name, place.name]
        own = word_counts(caption.text for caption in said)
        own_prompt = next(other for other in self.rows if other.checkpoint == row.checkpoint)
        at_home = place is home and row is own_prompt
        drops = {} if at_home else relative_drops(home.found[own_prompt.name], scores)
        gains = {} if row is self.rows[0] else paired_bootstrap(scores, first)
        return Cell(
            row=row.name,
            column=place.name,
            scores=scores.corpus,
            intervals={name: (interval.low, interval.high) for name, interval in confidence_intervals(scores).items()},
            drops=drops,
            gains={name: Difference(t.difference, t.low, t.high, paired=True) for name, t in gains.items()},
            words=len(own),
            divergence=divergence(own, Counter(words[place.name])),
            unfinished=sum(not caption.stopped for caption in said),
            signature=scores.signature,
            leak=place.chosen.leak,
        )


def _asked(scores: Scores, model: MiniGPT4, instruction: str) -> Scores:
    """Scores whose signature tells the prompt; the references of a column are prepared once for all prompts."""
    assert model.processor is not None
    details = replace(scores.details, prompt=prompt_hash(model.processor.layout.prompt_text(instruction)))
    return Scores(scores.ids, scores.statistics, details)


def _damaged(chosen: EvaluationSet, damage: Corruption, folder: Path, config: RunConfig) -> list[Path]:
    """Damaged copies of a set's images, without loss."""
    files = []
    for number, image in enumerate(chosen.images):
        picture = load_image(resolve_image(chosen.manifest, image.image), exif=config.exif_rotation)
        files.append(folder / f"{number}.png")
        damaged = corrupt(picture, damage.kind, damage.strength, image_id=image.id, seed=config.seed)
        damaged.save(files[-1], compress_level=1)
    return files


def _field(name: str) -> str:
    """A name as a signature may hold it."""
    return "".join(c if c.isprintable() and c != "|" else "_" for c in name) or "_"


def _write(folder: Path, matrix: Matrix) -> None:
    write_whole(folder / FILE, matrix_to_json(matrix))
    write_whole(folder / "matrix.csv", matrix_csv(matrix))
    write_whole(folder / "matrix.md", matrix_markdown(matrix))
    write_whole(folder / "matrix.png", draw_heatmap(matrix))


def _ignore(event: Event) -> None:
    """Listen to nothing."""
