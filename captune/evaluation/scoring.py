"""One set of images on which any number of checkpoints is captioned and scored; imports torch when a model captions."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from captune.captioner import Captioner
from captune.common import RemovedThinking, __version__
from captune.config import RunConfig
from captune.data import atomic_file, resolve_image
from captune.decoding import (
    NON_FINITE_SCORES,
    Caption,
    CollectedCaptions,
    DecodingOptions,
    cached_captions,
    collect_captions,
    has_captions,
    stored_identities,
)
from captune.errors import InputError, MetricInputError, NonFiniteScoresError, RefusedImagesError
from captune.evaluation.protocol import PRETRAINED, START, EvaluationSet
from captune.metrics import (
    METRICS,
    Comparison,
    Scorer,
    Scores,
    ScoringOptions,
    Signature,
    confidence_intervals,
    find_hallucinations,
    paired_bootstrap,
    paragraph_warning,
    prompt_hash,
    tokenizer_for,
)
from captune.report import CheckpointScores, RunScores, read_scores, write_scores, write_thumbnails

if TYPE_CHECKING:
    from torch import Tensor

    from captune.features import StoredFeatures
    from captune.model import MiniGPT4

__all__ = [
    "CaptionOrigin",
    "Evaluation",
    "checkpoint_name",
    "decoding_options",
    "exif_mark",
    "pixels_mark",
    "refuse_rows",
]

logger = logging.getLogger(__name__)

_IMAGES_AT_ONCE = 128
"""Images of a model in training that are decoded at once."""


def checkpoint_name(epoch: int | None, config: RunConfig) -> str:
    """The name of a checkpoint in tables: `epoch0`, `epoch1`, ...; before training `pretrained`, or `start` in a run
    with `train.start`."""
    if epoch is not None:
        return f"epoch{epoch}"
    return PRETRAINED if config.train.start is None else START


def decoding_options(config: RunConfig) -> DecodingOptions:
    """The decoding options of a run."""
    return DecodingOptions(
        max_new_tokens=config.evaluate.max_new_tokens,
        beams=config.evaluate.beams,
        length_penalty=config.evaluate.length_penalty,
        repetition_penalty=config.evaluate.repetition_penalty,
        batch_size=config.evaluate.batch_size,
        compiled=config.evaluate.compile,
    )


def exif_mark(config: RunConfig, images: EvaluationSet) -> str | None:
    """The signature's field for EXIF rotation; None where no image has one, since scores do not depend on it."""
    if not images.has_rotated_images:
        return None
    return "upright" if config.exif_rotation else "stored"


def pixels_mark(config: RunConfig) -> str | None:
    """The signature's field for pixel limits; None where they are the processor's."""
    limits = config.model.min_pixels, config.model.max_pixels
    return None if limits == (None, None) else "-".join("" if limit is None else str(limit) for limit in limits)


def refuse_rows(faulty: Sequence[str], output: Path, *, scored: bool = True) -> None:
    """Fail where the scores of some rows are not numbers.

    Args:
        faulty: names of these rows.
        output: folder of the evaluation.
        scored: whether there are other rows.

    Raises:
        InputError: there are such rows.
    """
    if faulty:
        others = f" The other rows are in {output}." if scored else ""
        missing = "it has" if len(faulty) == 1 else "they have"
        raise InputError(f"{', '.join(faulty)}: {NON_FINITE_SCORES}; {missing} no row.{others}")


class ImageCaptioner(Protocol):
    """A captioner of images or features."""

    @property
    def instruction(self) -> str | None:
        """The default instruction."""
        ...

    def generate(
        self, images: Sequence[Any], instruction: str | None = None, options: DecodingOptions | None = None
    ) -> list[Caption]:
        """Caption images; see `CaptionBackend.generate`."""
        ...


@dataclass(frozen=True)
class CaptionOrigin:
    """Where the captions of a row come from, if captune did not generate them.

    Attributes:
        source: field of the signature, "endpoint" or "file".
        decoding: how they were decoded; None if unknown.
        notes: what a reader of the row must know.
        ends_known: whether it is known which captions ended at a length limit.
    """

    source: str
    decoding: str | None = None
    notes: tuple[str, ...] = ()
    ends_known: bool = True


class Evaluation:
    """One set of images on which any number of checkpoints is captioned and scored.

    Args:
        config: of the run; its output folder receives captions and scores.
        images: the images and their references.

    Attributes:
        rows: the scored rows so far, in order.
    """

    def __init__(self, config: RunConfig, images: EvaluationSet) -> None:
        config = images.rules.applied(config)
        self.images = images
        self.rows: list[CheckpointScores] = []
        self._config = config
        self._options = decoding_options(config)
        self._scores: list[Scores | None] = []
        self._earlier: dict[str, CheckpointScores] = {}
        self._written = 0
        self._scorer = Scorer(
            images.references,
            ScoringOptions(
                **images.rules.scoring_options(),
                tokenize=config.evaluate.tokenizer or "ptb",
                data=images.name,
                split=images.split,
                prompt=config.model.instruction,
                decoding=str(self._options),
                protocol=images.protocol,
                exif=exif_mark(config, images),
                pixels=pixels_mark(config),
                leak=images.leak is not None,
            ),
            image_files={image.id: file for image, file in zip(images.images, self.image_files, strict=True)},
        )
        if sentence := paragraph_warning(images.references, images.rules.metrics):
            logger.warning("%s: %s", images.name, sentence)
        captions = [caption for group in images.references.values() for caption in group]
        if config.evaluate.tokenizer is None and (tokenizer := tokenizer_for(captions)) is not None:
            logger.warning(
                "%s: the captions are not in Latin letters, and their scores use a tokenizer for English; set "
                "evaluate.tokenizer=%s, or =ptb to keep it.",
                images.name,
                tokenizer,
            )

    @property
    def options(self) -> DecodingOptions:
        """How captions are decoded."""
        return self._options

    @property
    def config(self) -> RunConfig:
        """The configuration of the run, with the instruction and the decoding of the protocol."""
        return self._config

    @property
    def instruction(self) -> str:
        """The instruction of the protocol, or the configured one."""
        return self._config.model.instruction

    @property
    def output(self) -> Path:
        """Folder of the run."""
        return self._config.output

    @property
    def image_files(self) -> list[Path]:
        """The image files, in the set's order."""
        manifest = self.images.manifest
        return [resolve_image(manifest, image.image) for image in self.images.images]

    def caption(
        self,
        model: MiniGPT4,
        features: Tensor | StoredFeatures,
        on_progress: Callable[[int, int], None] | None = None,
        *,
        instruction: str | None = None,
        keys: Sequence[str] | None = None,
    ) -> list[Caption]:
        """Caption N images from their features, with the options of the run and by default with its instruction."""
        from captune.decoding import generate_captions  # imports torch

        text = self.instruction if instruction is None else instruction
        return generate_captions(model, features, text, self._options, keys=keys, on_progress=on_progress)

    def caption_images(
        self,
        captioner: ImageCaptioner,
        images: Any,
        on_progress: Callable[[int, int], None] | None = None,
        *,
        instruction: str | None = None,
    ) -> list[Caption]:
        """Caption N images with the prompt of a model in training; an image that it refuses gets an empty caption.

        Args:
            captioner: captions with the model.
            images: an image source, or a batch of images or features.
            on_progress: called with (done, N) as captions are ready.
            instruction: for every image; by default the captioner's.

        Raises:
            NonFiniteScoresError: the scores of some images are not numbers.
        """
        text = captioner.instruction if instruction is None else instruction
        captions: list[Caption] = []
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            batch = list(images[start : start + _IMAGES_AT_ONCE])
            try:
                captions += captioner.generate(batch, text, self._options)
            except NonFiniteScoresError:
                raise
            except RefusedImagesError as error:
                logger.warning("%s Their captions count as empty.", error)
                captions += [Caption("", 0, False) if caption is None else caption for caption in error.captions]
            if on_progress is not None:
                on_progress(len(captions), len(images))
        return captions

    def sign_prompt(self, prompt: str | None) -> None:
        """Put the prompt of a model into the signature."""
        self._scorer.sign_prompt(prompt)

    def sign_prompt_of(self, model: MiniGPT4) -> None:
        """Put the prompt of a model into the signature: in a chat template it is more than the instruction."""
        assert model.processor is not None
        self._scorer.sign_prompt(model.processor.layout.prompt_text(self._config.model.instruction))

    def cached(
        self, fingerprint: str, instruction: str | None, generate: Callable[[list[int]], list[Caption]]
    ) -> list[Caption]:
        """Captions of all images; those in the cache of the run's folder are not generated again.

        Args:
            fingerprint: of the captioner.
            instruction: the instruction, or None.
            generate: captions the images with some indices in the set.
        """
        identity = (fingerprint, instruction or "", str(self._options), __version__)
        return cached_captions(self._cache, identity, self.image_files, generate)

    def collected(
        self,
        fingerprint: str,
        instruction: str,
        request: Callable[[list[int], Callable[[int, Caption, Mapping[str, str]], None]], None],
    ) -> CollectedCaptions:
        """Captions of all images that arrive one by one from elsewhere; see `captune.decoding.collect_captions`."""
        return collect_captions(self._cache, self._identity(fingerprint, instruction), self.image_files, request)

    def has_collected(self, fingerprint: str, instruction: str, *, every: bool = False) -> bool:
        """Whether `collected` has stored captions of a model: of some image, or of every image."""
        images = self.image_files if every else None
        return has_captions(self._cache, self._identity(fingerprint, instruction), images)

    def collected_fingerprints(self, instruction: str) -> list[str]:
        """Fingerprints of which `collected` has stored captions with an instruction, the last used first."""
        same = self._identity("", instruction)[1:]
        return [first for first, *others in stored_identities(self._cache) if tuple(others) == same]

    def _identity(self, fingerprint: str, instruction: str) -> tuple[str, ...]:
        return fingerprint, instruction, str(self._options), "upright" if self._config.exif_rotation else "stored"

    @property
    def _cache(self) -> Path:
        return self.output / "cache" / "captions"

    def instruction_for(self, captioner: Captioner) -> str | None:
        """The instruction for another captioner: the run's, or its default if it follows no instructions."""
        return self._config.model.instruction if captioner.follows_instructions else captioner.instruction

    def caption_with(
        self,
        captioner: Captioner,
        instruction: str | None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Caption]:
        """Caption the images with any captioner; an image that it refuses gets an empty caption, which is logged.

        Args:
            captioner: of the images.
            instruction: the instruction, or None.
            on_progress: called with (done, N) as captions are ready.

        Raises:
            NonFiniteScoresError: the scores of some images are not numbers.
        """
        files = self.image_files

        def generate(indices: list[int]) -> list[Caption]:
            paths = [files[index] for index in indices]
            try:
                return captioner.caption_files(paths, instruction, self._options, on_progress=on_progress)
            except NonFiniteScoresError:
                raise
            except RefusedImagesError as error:
                logger.warning("%s Their captions count as empty.", error)
                return [Caption("", 0, False) if caption is None else caption for caption in error.captions]

        return self.cached(captioner.fingerprint, instruction, generate)

    def add(
        self, epoch: int | None, captions: Sequence[Caption], train_slice: Mapping[str, float] | None = None
    ) -> CheckpointScores:
        """Score one checkpoint's captions and write them into the run's folder; see `score`."""
        row = self.score(epoch, captions, train_slice)
        self.write()
        return row

    def score(
        self,
        epoch: int | None,
        captions: Sequence[Caption],
        train_slice: Mapping[str, float] | None = None,
        *,
        name: str | None = None,
        instruction: str | None = None,
        origin: CaptionOrigin | None = None,
        leak: str | None = None,
    ) -> CheckpointScores:
        """Score one checkpoint's captions.

        Args:
            epoch: which epoch ended with this checkpoint, or None for the pretrained model.
            captions: one for each image, in the set's order.
            train_slice: the checkpoint's scores on a slice of the training images.
            name: of the row, for captions of another captioner.
            instruction: of that captioner, or None.
            origin: of captions that captune did not generate.
            leak: why the row of another captioner is marked LEAK; None leaves that to the images.

        Returns:
            The row, the last one so far.
        """
        written = {image.id: caption for image, caption in zip(self.images.images, captions, strict=True)}
        texts = {image: self.images.reply(caption.text) for image, caption in written.items()}
        unfinished = None
        if origin is None or origin.ends_known:
            unfinished = tuple(image for image, caption in written.items() if not caption.stopped)
        thinking = {image: caption.thinking for image, caption in written.items() if caption.thinking != "none"}
        earlier = self._earlier.pop(name if name is not None else checkpoint_name(epoch, self._config), None)
        if train_slice is None and earlier is not None and dict(earlier.captions) == texts:
            train_slice = earlier.train_slice
        if epoch is not None:
            self._keep_earlier([row for row in self._earlier.values() if row.epoch is not None and row.epoch < epoch])
        row = self._append(epoch, texts, unfinished, thinking, train_slice or {}, name)
        return row if name is None else self._with_origin(row, instruction, origin, leak)

    def fail(self, name: str, reason: str) -> CheckpointScores:
        """Add a row that was not scored: it has no captions, and no number for any metric.

        Args:
            name: of the row.
            reason: one sentence.
        """
        columns = [column for metric in self.images.rules.metrics for column in METRICS[metric].names()]
        corpus = dict.fromkeys(columns, math.nan)
        row = CheckpointScores(name=name, corpus=corpus, leak=self.images.leak, error=reason)
        return self._add_row(row, None)

    def recall(self) -> None:
        """Keep rows of the run's `scores.json` for these images that are not scored now.

        These are the scores on training images of checkpoints with the same captions as before, and rows of other
        captioners and of checkpoints that no longer exist.
        """
        try:
            scores = read_scores(self.output)
        except InputError:
            return
        images = {image.id for image in self.images.images}
        if (scores.data, scores.split, scores.protocol) == (self.images.name, self.images.split, self.images.protocol):
            self._earlier = {row.name: row for row in scores.checkpoints if set(row.captions) == images}

    def _keep_earlier(self, rows: Sequence[CheckpointScores]) -> None:
        self.restore(rows)
        for row in rows:
            del self._earlier[row.name]

    def restore(self, rows: Sequence[CheckpointScores]) -> None:
        """Add rows of an earlier part of the same run; their captions are scored again.

        The signatures say how these captions were made, and how they are scored now.
        """
        for row in rows:
            if row.error is not None:
                self._add_row(row, None)
                continue
            self._append(row.epoch, dict(row.captions), row.unfinished, row.thinking, row.train_slice, row.name)
            signature = _signature_of_captions(row.signature, self.rows[-1].signature)
            self.rows[-1] = replace(self.rows[-1], signature=signature)
            if row.name != checkpoint_name(row.epoch, self._config):
                # The notes of another captioner say where its captions come from.
                self.rows[-1] = replace(self.rows[-1], notes=row.notes)

    def leave_out(self, name: str) -> None:
        """Remove the earlier scores of a row that cannot be scored now."""
        self._earlier.pop(name, None)

    def compare(self, epoch: int | None, other: int | None) -> dict[str, Comparison]:
        """Paired bootstrap of two scored epochs, by metric; None is the row before training."""
        # Rows of other captioners, which have no epoch either, follow the row before training.
        pairs = reversed([*zip(self.rows, self._scores, strict=True)])
        scores = {row.epoch: scores for row, scores in pairs if scores is not None}
        return paired_bootstrap(scores[epoch], scores[other])

    def has(self, epoch: int | None) -> bool:
        """Whether the checkpoint of this epoch is scored already."""
        return any(row.epoch == epoch for row in self.rows)

    def _append(
        self,
        epoch: int | None,
        texts: dict[str, str],
        unfinished: tuple[str, ...] | None,
        thinking: Mapping[str, RemovedThinking],
        train_slice: Mapping[str, float],
        name: str | None = None,
    ) -> CheckpointScores:
        scores = self._scorer.score(texts)
        tests = self._paired_tests(scores)
        row = CheckpointScores(
            name=name if name is not None else checkpoint_name(epoch, self._config),
            epoch=epoch,
            signature=scores.signature,
            leak=self.images.leak,
            corpus=scores.corpus,
            per_image={str(image): values for image, values in scores.per_image.items()},
            captions=texts,
            intervals={name: (interval.low, interval.high) for name, interval in confidence_intervals(scores).items()},
            p_values={name: {rival: test.p_value for rival, test in of.items()} for name, of in tests.items()},
            differences={
                name: {rival: (test.low, test.high) for rival, test in of.items()} for name, of in tests.items()
            },
            unfinished=unfinished,
            thinking=thinking,
            train_slice=train_slice,
            hallucinations=self._hallucinations(texts),
            notes=tuple(note.removesuffix(".") for note in scores.notes),
        )
        return self._add_row(row, scores)

    def _add_row(self, row: CheckpointScores, scores: Scores | None) -> CheckpointScores:
        self.rows.append(row)
        self._scores.append(scores)
        return row

    def _hallucinations(self, texts: Mapping[str, str]) -> dict[str, tuple[tuple[str, int, int], ...]]:
        """The hallucinated objects of each caption that has one, where chair is a metric."""
        if "chair" not in self.images.rules.metrics:
            return {}
        wrong = find_hallucinations(texts, self.images.references, self._scorer.options)
        return {
            str(image): tuple((name, start, end) for name, start, end in mentions) for image, mentions in wrong.items()
        }

    def _with_origin(
        self, row: CheckpointScores, instruction: str | None, origin: CaptionOrigin | None, leak: str | None
    ) -> CheckpointScores:
        """The last row with the prompt and the origin of its captions in the signature."""
        hashed = None if instruction is None else prompt_hash(instruction)
        signature = replace(Signature.parse(row.signature), prompt=hashed, pixels=None)
        if leak is not None and row.leak is None:
            row, signature = replace(row, leak=leak), replace(signature, leak=True)
        if origin is not None:
            exif = signature.exif if origin.source == "endpoint" else None
            signature = replace(signature, source=origin.source, dec=origin.decoding, exif=exif)
            row = replace(row, notes=tuple(dict.fromkeys((*row.notes, *origin.notes))))
        self.rows[-1] = replace(row, signature=str(signature))
        return self.rows[-1]

    def _paired_tests(self, scores: Scores) -> dict[str, dict[str, Comparison]]:
        """For each metric, tests of a checkpoint against the first one and against the one before."""
        rivals = {PRETRAINED: self._scores[0], "previous": self._scores[-1]} if self._scores else {}
        compared = {rival: paired_bootstrap(scores, other) for rival, other in rivals.items() if other is not None}
        return {
            name: {rival: tests[name] for rival, tests in compared.items() if tests[name].is_tested}
            for name in scores.corpus
        }

    def replaces_no_other_row(self) -> bool:
        """Whether the output folder holds no scores, or only rows that `write` keeps or replaces."""
        try:
            earlier = read_scores(self.output)
        except InputError:
            return not (self.output / "scores.json").exists()
        return {row.name for row in earlier.checkpoints} <= {row.name for row in self.rows} | set(self._earlier)

    def write(self, *, thumbnails: bool = True) -> None:
        """Write the rows scored since the last call: captions first, and the scores of all rows last.

        Args:
            thumbnails: write the small pictures of the page with the first rows.
        """
        self._keep_earlier(list(self._earlier.values()))
        folder = self.output
        if not self._written:
            _write_json(folder / "captions" / f"{self.images.name}-references.json", self._annotations())
            if thumbnails:
                ids = (image.id for image in self.images.images)
                write_thumbnails(
                    folder, dict(zip(ids, self.image_files, strict=True)), exif_rotation=self._config.exif_rotation
                )
        files = self.run_scores().caption_files
        for row, file in list(zip(self.rows, files, strict=True))[self._written :]:
            if row.error is not None:
                continue
            results = [
                {"image_id": image, "caption": text}
                # So that captions of the file are flagged as those of the row.
                | ({"thinking": row.thinking[image]} if image in row.thinking else {})
                for image, text in row.captions.items()
            ]
            _write_json(folder / "captions" / file, results)
        self._written = len(self.rows)
        write_scores(self.run_scores(), folder)

    def run_scores(self) -> RunScores:
        """All rows so far, as `scores.json` holds them."""
        return RunScores(
            data=self.images.name,
            split=self.images.split,
            protocol=self.images.protocol,
            images=len(self.images.images),
            references={image: tuple(captions) for image, captions in self.images.references.items()},
            checkpoints=tuple(self.rows),
            select=self._config.train.select or "",
        )

    def _annotations(self) -> dict[str, Any]:
        """The references as coco-caption reads them, so that its own tools can check every number."""
        pairs = [(image, caption) for image, captions in self.images.references.items() for caption in captions]
        return {
            "info": {},
            "licenses": [],
            "type": "captions",
            "images": [{"id": image.id, "file_name": image.image} for image in self.images.images],
            "annotations": [
                {"id": number, "image_id": image, "caption": caption} for number, (image, caption) in enumerate(pairs)
            ],
        }


def _signature_of_captions(made: str, scored: str) -> str:
    """A signature with the prompt, decoding and origin of one, and everything else of another one."""
    try:
        return str(Signature.parse(scored).with_captions_of(Signature.parse(made)))
    except MetricInputError:
        return made or scored  # of an older version, or of a file that was changed


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "w") as stream:
        json.dump(content, stream, ensure_ascii=False)
        stream.write("\n")
