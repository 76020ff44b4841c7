"""What is evaluated as a row of a table: a model, an OpenAI-compatible endpoint, or a file of captions.

    llava-hf/llava-1.5-7b-hf              a model: folder or hub id, also of an adapter, a checkpoint or a run
    http://localhost:8000/v1#my-model     a model of an OpenAI-compatible endpoint
    results/blip.json                     captions of any program, in a format of `captune score`
    my lora=out/checkpoint-500            each of these with a label, its name in the table

Needs no torch, so that all of this is refused before its import.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from captune.config import RunConfig
from captune.data import plural
from captune.decoding import Caption
from captune.errors import ConfigError
from captune.evaluation.endpoint import Endpoint, EndpointOptions, is_endpoint
from captune.evaluation.protocol import EvaluationSet
from captune.evaluation.scoring import decoding_options
from captune.hub import TOY, takes_base
from captune.metrics import PredictionFile, ReferenceFile, align, match_stems, read_predictions
from captune.preflight import check_manifest, check_named_model, check_output_folder, require_extra
from captune.run_checkpoints import run_of, selected_checkpoint

__all__ = [
    "PreparedRow",
    "RowSource",
    "check_sources",
    "parse_source",
    "parse_sources",
    "prepare_rows",
    "split_settings",
]

Kind = Literal["model", "endpoint", "captions"]

_MOST_LABEL = 80
_CAPTION_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".gz")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt")
_MODEL_FILES = ("config.json", "adapter_config.json")
_SETTING = re.compile(r"[a-z_]+(\.[a-z_]+)*")
_EPOCH = re.compile(r"epoch-(\d+)")


@dataclass(frozen=True)
class RowSource:
    """Where the captions of a row come from.

    Attributes:
        kind: "model", "endpoint" or "captions", a file of captions.
        path: folder, hub id, address or file.
        label: the name of the row; None for one made of the path.
    """

    kind: Kind
    path: str
    label: str | None = None

    def names(self, served: str | None = None) -> list[str]:
        """Names of the row from short to long, of which the first one that no other row has is used.

        Args:
            served: name of an endpoint's model.
        """
        if self.label is not None:
            return [self.label]
        if self.kind == "endpoint":
            host = re.sub(r"^https?://|/v1/?$", "", self.path.partition("#")[0])
            return [str(served), f"{served} ({host})"]
        if self.kind == "captions":
            parts = Path(self.path).resolve().parts
            stem = re.sub(r"\.(json|jsonl|csv|tsv|txt)$", "", parts[-1].removesuffix(".gz")) or parts[-1]
            return ["/".join([*parts[-length:-1], stem]) for length in range(1, len(parts))]
        checkpoint = _checkpoint_of_run(self.path)
        if checkpoint is not None:
            run, epoch = checkpoint
            return [
                "/".join([*run.parts[-length:-1], f"{run.name}@epoch{epoch}"]) for length in range(1, len(run.parts))
            ]
        parts = Path(self.path).parts
        return ["/".join(parts[-length:]) for length in range(min(2, len(parts)), len(parts) + 1)]


def _checkpoint_of_run(path: str) -> tuple[Path, int] | None:
    """The folder of the run and the epoch of one of its checkpoints; None for another model."""
    selected = selected_checkpoint(path)
    folder = Path(os.path.realpath(path if selected is None else selected.folder))
    epoch = _EPOCH.fullmatch(folder.name)
    is_checkpoint = epoch is not None and folder.parent.name == "checkpoints" and folder.is_dir()
    return (folder.parent.parent, int(epoch.group(1))) if epoch is not None and is_checkpoint else None


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate rows (`MODEL`, `label=MODEL`) from settings (`section.key=value`).

    Returns:
        The rows and the settings. A text with a section or key of the configuration before its "=" is a setting, as is
        one that looks like it and names nothing that could be evaluated.

    Raises:
        ConfigError: a text may be either: a key of the configuration with something that can be evaluated.
    """
    for text in arguments:
        _refuse_ambiguous(text)
    settings = [text for text in arguments if _is_setting(text)]
    return [text for text in arguments if not _is_setting(text)], settings


def _is_setting(text: str) -> bool:
    key, equals, value = text.partition("=")
    if not equals or "/" in key or is_endpoint(text) or os.path.exists(text):
        return False
    if key.split(".")[0] in RunConfig.model_fields:
        return True
    # "sed=1" is a typo, "lora=out/checkpoint-500" is not.
    names_row = is_endpoint(value) or "/" in value or value in TOY or os.path.exists(value) or run_of(value) is not None
    return _SETTING.fullmatch(key) is not None and not names_row


def _refuse_ambiguous(text: str) -> None:
    """Refuse a row whose label is a key of the configuration, which would be read as a setting."""
    key, _, value = text.partition("=")
    field = RunConfig.model_fields.get(key)
    if field is None or not value or os.path.exists(text):
        return
    path = Path(value).expanduser()
    names_row = is_endpoint(value) or (path.is_file() and path.suffix.lower() in _CAPTION_SUFFIXES)
    names_row = names_row or any((path / name).is_file() for name in _MODEL_FILES)
    meaning = f"the setting {key}"
    if hasattr(field.annotation, "model_fields"):  # a section, whose value is no text
        names_row = names_row or value in TOY or path.exists() or run_of(value) is not None
        meaning = f"the section {key} of the configuration, whose settings are given as {key}.KEY=VALUE"
    if names_row:
        raise ConfigError(
            f"'{text}' may be {meaning}, or the row {value} with the label '{key}'; give the row another label, such "
            f"as my-{key}={value}."
        )


def parse_sources(texts: Sequence[str]) -> list[RowSource]:
    """The sources of several rows.

    Raises:
        ConfigError: two rows are equal or have one label, or a text is not as `parse_source` expects.
    """
    sources = [parse_source(text) for text in texts]
    if repeated := next((text for text, count in Counter(texts).items() if count > 1), None):
        raise ConfigError(f"{repeated} is named twice; name each model once.")
    labels = Counter(source.label for source in sources if source.label is not None)
    if repeated := next((label for label, count in labels.items() if count > 1), None):
        raise ConfigError(f"Two rows have the label '{repeated}'; give each a different one.")
    return sources


def parse_source(text: str) -> RowSource:
    """The source of a row: `MODEL`, an address or a file, or one of these after `label=`.

    Raises:
        ConfigError: the label cannot be a name, or there is no such file.
    """
    label, path = None, text
    key, equals, value = text.partition("=")
    if equals and "/" not in key and not is_endpoint(text) and not os.path.exists(text):
        label, path = key.strip(), value.strip()
        _check_label(label, text)
        if not path:
            raise ConfigError(f"'{text}' has a label and no model; give {label}=MODEL.")
    if is_endpoint(path):
        return RowSource("endpoint", path, label)
    file = Path(path).expanduser()
    if file.is_file():
        if file.suffix.lower() in _WEIGHT_SUFFIXES:
            raise ConfigError(f"{path} is a file of weights; give the folder of the model or adapter.")
        if file.suffix.lower() in (".yaml", ".yml"):
            raise ConfigError(f"{path} is a configuration and no row of a table; give the folder of its run.")
        return RowSource("captions", path, label)
    if file.suffix.lower() in _CAPTION_SUFFIXES and not file.exists() and path not in TOY:
        raise ConfigError(
            f"There is no file {path}; give a file of captions (coco-caption results, JSON Lines, CSV), a model, or "
            "the address of an endpoint."
        )
    return RowSource("model", path, label)


def _check_label(label: str, text: str) -> None:
    """Refuse a label that cannot be in tables and names of files."""
    if not label or not label.isprintable() or "\\" in label or label.startswith(".") or len(label) > _MOST_LABEL:
        raise ConfigError(
            f"'{text}' has no usable label; expected label=MODEL with a label of 1 to {_MOST_LABEL} printable "
            "characters, without slashes and without a dot at its start."
        )


def check_sources(
    config: RunConfig, sources: Sequence[RowSource], base: str | None = None, *, command: str = "captune evaluate"
) -> None:
    """Refuse what an evaluation without a run cannot use: libraries, manifest, output folder, models.

    Args:
        config: of the evaluation.
        sources: of its rows.
        base: folder or hub id of the base model of the adapters and checkpoints.
        command: in messages.

    Raises:
        InputError: names what is missing.
    """
    models = [source.path for source in sources if source.kind == "model"]
    require_extra(command, "train")
    check_manifest("data.evaluate", config.evaluation_manifest)
    check_output_folder(config.output)
    adapters = with_base(models, base)
    for model in models:
        check_named_model(model, base if model in adapters else None)


def with_base(models: Sequence[str], base: str | None) -> list[str]:
    """The models that `--base` is for: folders of adapters and checkpoints; a single model in any case.

    Raises:
        ConfigError: it is for none.
    """
    if base is None:
        return []
    adapters = list(models) if len(models) == 1 else [model for model in models if takes_base(model)]
    if not adapters:
        raise ConfigError(
            f"--base is {base}, and no model is the folder of an adapter or checkpoint, whose base model it could be; "
            "leave it out."
        )
    return adapters


@dataclass(frozen=True)
class PreparedRow:
    """A row that was checked as far as possible without a model.

    Attributes:
        source: of its captions.
        name: in tables; unique.
        captions: of a file, in the order of the images; None for other kinds.
        ends_known: whether the file says of every caption whether it ended at a length limit.
        notes: what a reader of the row must know.
        endpoint: of a row of this kind.
    """

    source: RowSource
    name: str
    captions: tuple[Caption, ...] | None = None
    ends_known: bool = True
    notes: tuple[str, ...] = ()
    endpoint: Endpoint | None = None


def prepare_rows(
    config: RunConfig,
    sources: Sequence[RowSource],
    images: EvaluationSet,
    options: EndpointOptions | None = None,
    *,
    match: str = "exact",
    taken: Sequence[str] = (),
) -> list[PreparedRow]:
    """Read the files of captions, contact the endpoints, and name all rows.

    Args:
        config: of the evaluation.
        sources: of the rows.
        images: that all rows are scored on.
        options: for requests to endpoints.
        match: "exact", or "stem" to join ids of files that differ by folder or image ending.
        taken: names of other rows.

    Raises:
        MetricInputError: a file cannot be used, or has no caption of some images.
        ConfigError: an endpoint serves no such model or cannot decode as configured, or names are not unique.
        InputError: an endpoint cannot be reached.
    """
    read = [_read_captions(source.path, images, match) if source.kind == "captions" else None for source in sources]
    endpoints = [
        Endpoint.open(source.path, decoding_options(images.rules.applied(config)), options)
        if source.kind == "endpoint"
        else None
        for source in sources
    ]
    served = [None if endpoint is None else endpoint.model for endpoint in endpoints]
    names = _unique([source.names(model) for source, model in zip(sources, served, strict=True)], taken)
    return [
        PreparedRow(source, name, endpoint=endpoint)
        if predictions is None
        else PreparedRow(source, name, *_in_order(predictions, images))
        for source, name, predictions, endpoint in zip(sources, names, read, endpoints, strict=True)
    ]


def _read_captions(path: str, images: EvaluationSet, match: str) -> PredictionFile:
    """The captions of a file, with those of all images.

    Raises:
        MetricInputError: some are missing.
        ConfigError: it is the manifest.
    """
    file = Path(path).expanduser()
    if file.samefile(images.manifest):
        raise ConfigError(f"{path} is the manifest of the evaluation and no file of generated captions; give one.")
    references = ReferenceFile(images.references, source=str(images.manifest))
    predictions = read_predictions(file)
    if match == "stem":
        predictions = match_stems(predictions, references)
    align(predictions, references, remedy="caption them: all rows of a table are scored on the same images")
    return predictions


def _in_order(predictions: PredictionFile, images: EvaluationSet) -> tuple[tuple[Caption, ...], bool, tuple[str, ...]]:
    """Captions in the order of the images, whether their ends are known, and the notes of the row."""
    ids = [image.id for image in images.images]
    extra = len(predictions.captions) - len(ids)
    notes = ["read from a file: how the captions were made (prompt, decoding, image processing) is not known"]
    notes += [f"{plural(extra, 'caption')} of other images left out"] if extra else []
    captions = [
        Caption(
            predictions.captions[image],
            0,
            predictions.finished.get(image, True),
            predictions.thinking.get(image, "none"),
        )
        for image in ids
    ]
    return tuple(captions), all(image in predictions.finished for image in ids), tuple(notes)


def _unique(candidates: Sequence[Sequence[str]], taken: Sequence[str]) -> list[str]:
    """The first candidate of each row that no other row has.

    Raises:
        ConfigError: there is none.
    """
    lengths = [0] * len(candidates)
    while True:
        names = [names[length] for names, length in zip(candidates, lengths, strict=True)]
        counts = Counter(names) + Counter(taken)
        repeated = [index for index, name in enumerate(names) if counts[name] > 1]
        if not repeated:
            return names
        longer = [index for index in repeated if lengths[index] + 1 < len(candidates[index])]
        if not longer:
            raise ConfigError(
                f"Two rows are called '{names[repeated[0]]}'; give one of them a label, as in LABEL=MODEL."
            )
        for index in longer:
            lengths[index] += 1
