"""The configuration of a run: a YAML file in, `section.key=value` overrides, frozen and checked.

Every field carries its help here, once; `commented_yaml` writes it out as comments, which is how the files in
`train_configs/` are made.
"""

from __future__ import annotations

import difflib
import logging
import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from captune.errors import ConfigError
from captune.lavis import is_lavis, translate

__all__ = [
    "DataConfig",
    "EvaluateConfig",
    "FastConfig",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "commented_yaml",
    "convert_config",
    "load_config",
    "parse_config",
]

logger = logging.getLogger(__name__)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(_Section):
    """The model that is tuned."""

    path: str = Field("toy", min_length=1)
    """Folder of a captune model, its hub id, or `toy` for the tiny model that comes with captune."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the frozen parts; auto is bfloat16 on a GPU and float32 on a CPU. What is trained is float32."""
    instruction: str = Field("Describe this image in detail.", min_length=1)
    """What the model is asked of every image, word for word the same in training and evaluation."""


class DataConfig(_Section):
    """The images and captions, as manifests that `captune prepare` writes."""

    train: Path = Path("flickr30k/manifest.jsonl")
    """Manifest that holds the training images."""
    train_split: str = "train"
    """Which of its splits is trained on."""
    evaluate: Path | None = None
    """Manifest that holds the evaluation images; by default the training manifest."""
    evaluate_split: str = "test"
    """Which of its splits is evaluated on."""
    train_images: int | None = Field(None, gt=0)
    """Train on the first so many images only; null is all."""
    evaluate_images: int | None = Field(None, gt=1)
    """Evaluate on the first so many images only; null is all."""


class FastConfig(_Section):
    """What makes training cheaper without changing a gradient; each can be turned off."""

    shared_prefix: bool = True
    """Put the captions of an image behind one image and prompt, instead of repeating these for each caption."""
    constant_prefix: bool = True
    """Compute the text in front of the image once for the run; off by itself where anything before it is trained."""
    target_logits: bool = True
    """Compute logits where a target is, instead of at every position; the two above need it."""
    length_buckets: bool = True
    """Bring samples of similar length together, within shuffled pools, so that less padding is computed."""


class TrainConfig(_Section):
    """The optimisation."""

    targets: Literal["each", "one", "joined"] = "each"
    """What a step learns of an image's captions: each one as a sample, one drawn per epoch, or all joined into one."""
    epochs: int = Field(5, gt=0)
    """Passes over the samples; after each one a checkpoint is saved and evaluated."""
    steps_per_epoch: int | None = Field(None, gt=0)
    """Optimiser steps of an epoch; null is one pass over all samples."""
    captions_per_image: int = Field(5, gt=0)
    """Captions of an image that one step learns together, with targets each."""
    batch_size: int = Field(40, gt=0)
    """Captions of an optimiser step, over all processes together."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Captions that a process works on at once; fewer save memory and change nothing else. null is its share."""
    learning_rate: float = Field(3e-5, gt=0)
    """Highest learning rate, reached at the end of the warm-up."""
    min_learning_rate: float = Field(1e-5, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_learning_rate: float = Field(1e-6, ge=0)
    """Learning rate of the first step."""
    warmup_steps: int = Field(200, ge=0)
    """Steps of the linear warm-up from the first step's rate to the highest."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's two decay rates."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Longest gradient that is applied as it is; longer ones are scaled down to it. null is no clipping."""
    max_nonfinite_steps: int = Field(20, ge=0)
    """Steps with an infinite or undefined loss that are skipped before the run is given up."""
    fast: FastConfig = FastConfig()


class EvaluateConfig(_Section):
    """What is measured before the first epoch and after each."""

    protocol: str = Field("karpathy", min_length=1)
    """karpathy scores held-out images; slides does what the original scripts did and is marked LEAK; or the path of a
    YAML file of your own."""
    allow_leaks: bool = False
    """Evaluation images that were trained on mark a result LEAK; true prints the mark without the reason."""
    batch_size: int = Field(32, gt=0)
    """Images captioned at once."""
    max_new_tokens: int = Field(40, gt=0)
    """Longest caption in tokens; decoding ends earlier at the stop symbol."""
    beams: int = Field(1, gt=0)
    """Beams of beam search; 1 is greedy decoding."""
    length_penalty: float = 1.0
    """Exponent on a beam's length; above 1 favours longer captions."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Divides the score of tokens that were already said; 1 is off."""


class RunConfig(_Section):
    """Everything that decides a run."""

    output: Path = Path("runs/captune")
    """Folder of the run: log, checkpoints, captions, scores, table, chart."""
    seed: int = Field(42, ge=0)
    """Decides the order of samples and every other draw."""
    log_every: int = Field(10, gt=0)
    """Steps between two lines of the log."""
    save_every: int = Field(200, gt=0)
    """Steps between two saved states, from which a killed run goes on; the end of an epoch is saved as well."""
    track: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Where curves are sent besides log.jsonl; needs the extra `track`, never an account for none or tensorboard."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _check_rates(self) -> RunConfig:
        if self.train.min_learning_rate > self.train.learning_rate:
            raise ValueError(
                f"train.min_learning_rate is {self.train.min_learning_rate:g}, above train.learning_rate "
                f"{self.train.learning_rate:g}; the cosine goes down from the latter to the former"
            )
        fast = self.train.fast
        if not fast.target_logits and (fast.shared_prefix or fast.constant_prefix):
            raise ValueError(
                "train.fast.target_logits is off, which shared_prefix and constant_prefix need; turn these off as well"
            )
        return self

    @property
    def evaluation_manifest(self) -> Path:
        """Manifest that holds the evaluation images."""
        return self.data.evaluate if self.data.evaluate is not None else self.data.train


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, captune's own or one of the original code.

    Args:
        path: the file.
        overrides: `section.key=value` strings; values are YAML. For a file of the original also in its words.

    Returns:
        The checked configuration. Relative paths in it are relative to the working directory.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is not of the kind expected.
    """
    content = _read_yaml(Path(path))
    if not is_lavis(content):
        return parse_config(content, overrides, source=str(path))
    config, notes = _from_lavis(content, overrides, str(path), int(os.environ.get("WORLD_SIZE", "1")))
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            logger.warning("%s: %s", path, note)
    return config


def convert_config(
    path: str | Path, overrides: Sequence[str] = (), *, processes: int = 1
) -> tuple[RunConfig, list[str]]:
    """Read a YAML file of the original code.

    Args:
        path: the file, with `model:`, `datasets:` and `run:`.
        overrides: `section.key=value` strings, in its words or captune's.
        processes: with which it was run; its batch size is that of each.

    Returns:
        The same run in captune's words, and what there is to say of keys that have no counterpart.

    Raises:
        ConfigError: the file cannot be read, is none of the original's, or asks for what captune does not do.
    """
    content = _read_yaml(Path(path))
    if not is_lavis(content):
        raise ConfigError(f"{path} is no configuration of the original; expected the sections model, datasets and run.")
    return _from_lavis(content, overrides, str(path), processes)


def _from_lavis(
    content: dict[str, Any], overrides: Sequence[str], source: str, processes: int
) -> tuple[RunConfig, list[str]]:
    translation = translate(content, overrides, source=source, processes=processes)
    return parse_config(translation.settings, translation.overrides, source=source), translation.notes


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration {path}; give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {problem}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; expected sections such as 'model:' and 'train:'.")
    return content


def parse_config(
    content: dict[str, Any], overrides: Sequence[str] = (), *, source: str = "the configuration"
) -> RunConfig:
    """Check a dictionary as a configuration.

    Args:
        content: sections and keys, as YAML gives them.
        overrides: `section.key=value` strings that win over `content`.
        source: what error messages call it.

    Raises:
        ConfigError: a key is unknown, or a value is not of the kind expected.
    """
    for override in overrides:
        content = _override(content, override)
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        sentences = [_sentence(dict(problem)) for problem in error.errors()]
        raise ConfigError(f"{source}: {' '.join(sentences)}") from None


def commented_yaml(config: RunConfig, heading: str = "") -> str:
    """Write a configuration as YAML in which every field carries its help as a comment."""
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    lines.extend(_section_lines(config, ""))
    return "\n".join(lines) + "\n"


def _section_lines(section: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield ""
            yield f"{indent}# {(type(value).__doc__ or '').strip()}"
            yield f"{indent}{name}:"
            yield from _section_lines(value, indent + "  ")
            continue
        for line in textwrap.wrap(field.description or "", width=100):
            yield f"{indent}# {line}"
        plain = section.model_dump(mode="json")[name]
        scalar = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()
        yield f"{indent}{name}: {scalar}"


def _override(content: dict[str, Any], override: str) -> dict[str, Any]:
    name, separator, value = override.partition("=")
    keys = name.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"'{override}' is not an override; expected section.key=value, such as train.epochs=3.")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    merged = dict(content)
    node = merged
    for key in keys[:-1]:
        inner = node.get(key)
        node[key] = dict(inner) if isinstance(inner, dict) else {}
        node = node[key]
    node[keys[-1]] = parsed
    return merged


def _sentence(problem: dict[str, Any]) -> str:
    """One problem that pydantic found, as a sentence a person can act on."""
    place = [str(part) for part in problem["loc"]]
    name = ".".join(place)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(place[:-1])
        close = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys are: {', '.join(known)}."
        return f"there is no key '{name}'; {hint}"
    given = problem.get("input")
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not place:
        return f"{message}."
    return f"{name} is {given!r}: {message[0].lower()}{message[1:]}."


def _known_keys(place: list[str]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for name in place:
        annotation = section.model_fields[name].annotation if name in section.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return list(section.model_fields)
