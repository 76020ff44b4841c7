"""What is evaluated: a protocol as a YAML file, and the images and references that it selects for a run.

A protocol defines which images are captioned, how captions are decoded, and what is scored against what; its signature
is part of every score. Images that a run was trained on are detected, and their scores are marked LEAK.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from captune.common import did_you_mean, listed
from captune.config import RunConfig, split_names
from captune.data import Sample, has_rotation, manifest_hash, read_manifest, resolve_image
from captune.data.leaks import ImageFile, find_leaks
from captune.errors import ConfigError, DataError, MetricInputError
from captune.events import Listener
from captune.metrics import (
    DEFAULT_BERT,
    DEFAULT_CLIP,
    DEFAULT_METRICS,
    ObjectVocabulary,
    check_metrics,
    truncate_caption,
)
from captune.parsing import load_yaml, validate

__all__ = [
    "ALLOWED",
    "PRETRAINED",
    "START",
    "Decoding",
    "EvaluationSet",
    "Protocol",
    "cut_reply",
    "evaluation_set",
    "image_files",
    "leak_reason",
    "load_protocol",
    "shipped_protocols",
    "split_references",
    "training_images",
]

logger = logging.getLogger(__name__)

PRETRAINED, START = "pretrained", "start"
"""Names of the row before training; the second in a run with `train.start`."""
_FOLDER = Path(__file__).parent / "protocols"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Decoding(_Section):
    """How captions are decoded; unset fields are as in the run's configuration."""

    max_new_tokens: int | None = Field(None, gt=0)
    """Longest caption in tokens."""
    beams: int | None = Field(None, gt=0)
    """Beams of beam search; 1 is greedy decoding."""
    length_penalty: float | None = None
    """Exponent on a beam's length."""
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    """Divides the scores of tokens generated before."""


class ObjectRules(_Section):
    """How `chair` finds hallucinated objects; the signature's field `chair` shows all of it."""

    vocabulary: Path | None = None
    """YAML of classes with their synonyms, relative to the protocol's file; null is COCO's 80 classes."""
    objects: Path | None = None
    """Objects of the images: COCO's instances or {image id: [names]}, relative to the protocol's file."""
    truth: Literal["references", "objects", "both"] | None = None
    """Where the objects of an image are from; null is both with objects, and references without."""
    truncate: str | None = None
    """The part of a caption that counts: words=N, complete=N or sentences=N; null is all of it."""

    @field_validator("truncate")
    @classmethod
    def _rule(cls, rule: str | None) -> str | None:
        try:
            truncate_caption("", rule)
        except MetricInputError as error:
            raise ValueError(str(error)) from None
        return rule

    def below(self, folder: Path) -> ObjectRules:
        """The rules with the files of a folder."""
        files = {"vocabulary": self.vocabulary, "objects": self.objects}
        return self.model_copy(update={name: folder / file for name, file in files.items() if file is not None})


class MetricModels(_Section):
    """Models of metrics, each a Hugging Face id or a folder, also relative to the protocol's file."""

    clip: str = Field(DEFAULT_CLIP, min_length=1)
    """CLIP of CLIPScore."""
    pac: str | None = Field(None, min_length=1)
    """CLIP with the weights of PAC-S."""
    bertscore: str = Field(DEFAULT_BERT, min_length=1)
    """Text encoder of BERTScore."""
    bertscore_layer: int | None = Field(None, ge=0)
    """Layer of BERTScore; null is that of the published table."""
    bertscore_idf: bool = False
    """Weight tokens by their rarity in the references."""
    bertscore_rescale: str | None = Field(None, min_length=1)
    """Language of the published baseline of BERTScore."""

    def below(self, folder: Path) -> MetricModels:
        """The models with the folders that exist relative to a folder."""
        models = {"clip": self.clip, "pac": self.pac, "bertscore": self.bertscore}
        local = {name: str(folder / model) for name, model in models.items() if model and (folder / model).is_dir()}
        return self.model_copy(update=local)


class Protocol(_Section):
    """What is evaluated and how; karpathy.yaml explains every field."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Its name in tables; the signature adds a hash for files that are not included in captune."""
    images: Literal["evaluation", "training"] = "evaluation"
    """The images of the evaluation manifest, or those that were trained on."""
    split: str | None = Field(None, min_length=1)
    """Split of the images; null is the run's."""
    share: float | None = Field(None, gt=0, le=1)
    """Share of the images in a random sample; null is all, in their order."""
    seed: int = Field(42, ge=0)
    """Seed of the sample."""
    references: Literal["separate", "cut_at_full_stops"] = "separate"
    """The captions unchanged, or joined and cut at every full stop."""
    reply: Literal["whole", "after_last_mark"] = "whole"
    """The part of a reply that is scored."""
    instruction: str | None = Field(None, min_length=1)
    """The instruction; null is that of training."""
    decoding: Decoding | None = None
    """How captions are decoded; null is as in the run's configuration."""
    metrics: tuple[str, ...] = Field(DEFAULT_METRICS, min_length=1)
    """Metrics of captune or of installed packages."""
    chair: ObjectRules | None = None
    """Vocabulary and truth of the metric chair; null is COCO's 80 classes and the references."""
    models: MetricModels | None = None
    """Models of CLIPScore, PAC-S and BERTScore; null are the published ones."""
    leak: str | None = Field(None, min_length=1)
    """Why every row is marked LEAK; null leaves the decision to the leak guard."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            check_metrics(names)
        except MetricInputError as error:
            raise ValueError(str(error)) from None
        return names

    @model_validator(mode="after")
    def _has_chair(self) -> Protocol:
        if self.chair is not None and "chair" not in self.metrics:
            raise ValueError("chair is set, and metrics does not have it; add chair to metrics or leave it out")
        return self

    @property
    def signature(self) -> str:
        """The name, with eight digits of a hash of all fields unless the protocol is included in captune."""
        if self.name in shipped_protocols() and self == load_protocol(self.name):
            return self.name
        # Files differ by folder, and the metrics' own fields of the signature identify their content.
        fields = self.model_dump_json(exclude={"chair", "models"})
        return f"{self.name}@{hashlib.sha256(fields.encode()).hexdigest()[:8]}"

    def scoring_options(self) -> dict[str, Any]:
        """The fields of `ScoringOptions` that the protocol sets."""
        sections = (section.model_dump() for section in (self.chair, self.models) if section is not None)
        return {"metrics": self.metrics} | {name: value for fields in sections for name, value in fields.items()}

    def applied(self, config: RunConfig) -> RunConfig:
        """A run's configuration with the instruction and the decoding of this protocol."""
        if self.decoding is not None:
            decoding = self.decoding.model_dump(exclude_none=True)
            config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=decoding)})
        if self.instruction is not None:
            model = config.model.model_copy(update={"instruction": self.instruction})
            config = config.model_copy(update={"model": model})
        return config


@cache
def shipped_protocols() -> tuple[str, ...]:
    """The names of the protocols that are included in captune."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_protocol(name: str) -> Protocol:
    """Read a protocol.

    Args:
        name: of an included one, or the path of a YAML file.

    Raises:
        ConfigError: there is none of this name, the file is no YAML, or a field of it is wrong.
    """
    path = Path(name)
    if name in shipped_protocols():
        path = _FOLDER / f"{name}.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        hint = did_you_mean(name, shipped_protocols(), f"there are {listed(shipped_protocols())}.")
        raise ConfigError(f"there is no protocol '{name}'; {hint} For one of your own give the path of a .yaml file.")
    try:
        content: Any = load_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"there is no protocol file '{path}'; give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the protocol '{path}' cannot be read as UTF-8 text: {error}.") from error
    except ValueError as error:
        raise ConfigError(f"the protocol '{path}' is not valid YAML: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the protocol '{path}' holds no fields; expected 'name:', 'images:', 'references:' ...")
    protocol = validate(content, Protocol, f"the protocol '{path}'", ConfigError)
    if protocol.models is not None:
        protocol = protocol.model_copy(update={"models": protocol.models.below(path.parent)})
    if protocol.chair is None:
        return protocol
    rules = protocol.chair.below(path.parent)
    try:
        if rules.vocabulary is not None:
            ObjectVocabulary.read(rules.vocabulary)
    except MetricInputError as error:
        raise ConfigError(f"the protocol '{path}': {error}") from error
    if rules.objects is not None and not rules.objects.is_file():
        raise ConfigError(f"the protocol '{path}': there is no file '{rules.objects}' of objects (chair.objects).")
    return protocol.model_copy(update={"chair": rules})


ALLOWED = "allowed by --allow-leaks"
"""Replaces the reason of a LEAK mark with --allow-leaks."""


def image_files(manifest: str | os.PathLike[str], images: Sequence[Sample]) -> list[ImageFile]:
    """Images of a manifest, as input of the leak guard."""
    folder = os.path.dirname(os.path.abspath(manifest))
    return [ImageFile(image.id, os.path.join(folder, image.image)) for image in images]


def leak_reason(
    config: RunConfig, trained: Sequence[ImageFile], evaluated: Sequence[ImageFile], listener: Listener | None = None
) -> str | None:
    """Search the evaluated images among the trained ones, and log a warning when some are among them.

    Args:
        config: of the run; `evaluate.allow_leaks` replaces the reason by `ALLOWED`.
        trained: the images that the run trains on.
        evaluated: the images that it is evaluated on.
        listener: receives the progress.

    Returns:
        Why the rows are marked LEAK, or None.

    Raises:
        MissingExtraError: the library of perceptual hashes is absent.
    """

    def on_progress(done: int, count: int) -> None:
        if listener is not None:
            listener({"event": "leaks", "done": done, "count": count})

    report = find_leaks(trained, evaluated, progress=on_progress)
    if report.reason is None:
        return None
    if config.evaluate.allow_leaks:
        return ALLOWED
    logger.warning(
        "The results are marked LEAK: %s. Remove these images from the training set (captune check --fix writes a "
        "manifest without them), or pass --allow-leaks to keep the mark but silence this warning.",
        report.reason,
    )
    return report.reason


_REPLY_MARKS = re.compile(r"### Assistant:|\[INST\]|<Img>|\[Img\]|<DESC>")


@dataclass(frozen=True)
class EvaluationSet:
    """The images and references that every checkpoint is scored on.

    Attributes:
        name: of the data, for signatures and file names.
        split: of the data.
        protocol: signature of the protocol.
        manifest: lists the images.
        images: the images, in a fixed order.
        references: image id to reference captions.
        leak: why the rows are marked LEAK, or None.
        rules: the protocol itself.
    """

    name: str
    split: str
    protocol: str
    manifest: Path
    images: tuple[Sample, ...]
    references: dict[str, list[str]]
    leak: str | None = None
    rules: Protocol = field(default_factory=lambda: load_protocol("karpathy"))

    @cached_property
    def has_rotated_images(self) -> bool:
        """Whether EXIF notes a rotation of some image."""
        return any(has_rotation(resolve_image(self.manifest, image.image)) for image in self.images)

    def reply(self, text: str) -> str:
        """The part of a generated text that is scored."""
        return cut_reply(text) if self.rules.reply == "after_last_mark" else text


def training_images(config: RunConfig) -> list[Sample]:
    """The images that a run trains on.

    Raises:
        DataError: the manifest is broken or has no such split.
    """
    images = read_manifest(config.data.train, config.data.train_splits)
    return images[: config.data.train_images]


def evaluation_set(
    config: RunConfig,
    listener: Listener | None = None,
    *,
    guard: bool = True,
    ancestors: Sequence[Mapping[str, Any]] = (),
) -> EvaluationSet:
    """The images that a run is evaluated on according to its protocol, and whether it was trained on them.

    Args:
        config: of the run.
        listener: receives the progress of the leak guard.
        guard: whether to search the images among those that the run trains on.
        ancestors: the checkpoints that the run started from, whose training images are searched too; see
            `CheckpointRecord`.

    Raises:
        ConfigError: there is no such protocol, or its file is wrong.
        DataError: the manifest is broken, has no such split, or leaves too few images.
        MetricInputError: `evaluate.metrics` has an unknown name.
    """
    protocol = load_protocol(config.evaluate.protocol)
    of_training = protocol.images == "training"
    manifest = config.data.train if of_training else config.evaluation_manifest
    split = protocol.split or (config.data.train_split if of_training else config.data.evaluate_split)
    if of_training and split == config.data.train_split:
        images = training_images(config)
    else:
        images = read_manifest(manifest, split)
    images = _sampled(images, protocol)[: config.data.evaluate_images]
    references = {image.id: _references(image, protocol) for image in images}
    empty = [image.id for image in images if not references[image.id]]
    if empty:
        raise DataError(f"{manifest}: image '{empty[0]}' ({len(empty)} in all) has no captions to score against.")
    if len(images) < 2:
        raise DataError(f"{manifest}: split '{split}' has {len(images)} image to evaluate; CIDEr needs at least two.")
    rules = protocol
    if config.evaluate.metrics is not None:
        check_metrics(config.evaluate.metrics)
        # No number depends on which other metrics are computed, so the protocol's signature stays.
        rules = protocol.model_copy(update={"metrics": config.evaluate.metrics})
    name = config.data.name or manifest.resolve().parent.name or manifest.stem
    leak = protocol.leak or (_leak(config, manifest, images, listener, ancestors) if guard else None)
    return EvaluationSet(name, split, protocol.signature, manifest, tuple(images), references, leak, rules)


def _sampled(images: list[Sample], protocol: Protocol) -> list[Sample]:
    """The random sample of a protocol, at least two images."""
    if protocol.share is None:
        return images
    count = max(2, int(len(images) * protocol.share))
    return random.Random(protocol.seed).sample(images, min(count, len(images)))


def _references(image: Sample, protocol: Protocol) -> list[str]:
    if protocol.references == "cut_at_full_stops":
        return split_references(" ".join(image.captions))
    return list(image.captions)


def _leak(
    config: RunConfig,
    manifest: Path,
    images: list[Sample],
    listener: Listener | None,
    ancestors: Sequence[Mapping[str, Any]],
) -> str | None:
    """Why the images are marked LEAK; only the first of torchrun's processes, which reports, searches."""
    if os.environ.get("RANK", "0") != "0":
        return None
    if not config.data.train.is_file():
        logger.warning(
            "the training manifest %s does not exist, so it is unknown whether images of %s were trained on.",
            config.data.train,
            manifest,
        )
        return None
    trained = image_files(config.data.train, training_images(config))
    for ancestor in ancestors:
        trained += _images_of_ancestor(ancestor)
    # Stages may share images.
    trained = list({(image.id, os.path.realpath(image.path)): image for image in trained}.values())
    return leak_reason(config, trained, image_files(manifest, images), listener)


def _images_of_ancestor(ancestor: Mapping[str, Any]) -> list[ImageFile]:
    """The training images of an earlier checkpoint; a warning if they are unknown."""
    manifest = ancestor.get("manifest")
    try:
        if manifest is not None and manifest_hash(manifest) == ancestor["manifest_hash"]:
            images = read_manifest(manifest, split_names(ancestor["split"]))
            return image_files(manifest, images[: ancestor["train_images"]])
    except (DataError, OSError):
        pass
    logger.warning(
        "the training images of %s, from which this run started, are unknown (%s), so they are not searched for leaks.",
        ancestor["checkpoint"],
        "its record names no manifest" if manifest is None else f"{manifest} is missing or has changed",
    )
    return []


def split_references(joined: str) -> list[str]:
    """Cut joined captions at every full stop, as the original's `convert_to_coco_format` does.

    "At 7.30 p.m. a dog  runs ." becomes four references, and a caption without a full stop runs into the next.
    """
    return [f"{piece.strip()}." for piece in joined.split(".") if piece.strip()]


def cut_reply(text: str) -> str:
    """Keep the text after the last marker of a prompt, as the original's `post_handle` does."""
    return _REPLY_MARKS.split(text)[-1].strip()
