"""A protocol as data: what a YAML file of it may say, and how it is read."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from captune.common import did_you_mean, listed
from captune.config import RunConfig
from captune.errors import ConfigError
from captune.parsing import load_yaml

__all__ = ["Decoding", "Protocol", "load_protocol", "shipped_protocols"]

_FOLDER = Path(__file__).parent
_METRICS = ("bleu", "cider", "rouge-l")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Decoding(_Section):
    """How captions are decoded; what is not said is as the run says."""

    max_new_tokens: int | None = Field(None, gt=0)
    """Longest caption in tokens."""
    beams: int | None = Field(None, gt=0)
    """Beams of beam search; 1 is greedy decoding."""
    length_penalty: float | None = None
    """Exponent on a beam's length."""
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    """Divides the score of tokens that were already said."""


class Protocol(_Section):
    """What is evaluated and how; karpathy.yaml explains every field."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """What it is called in tables; the signature adds a hash for files that do not ship with captune."""
    images: Literal["evaluation", "training"] = "evaluation"
    """Whether the images are those of the evaluation manifest or those that were trained on."""
    split: str | None = Field(None, min_length=1)
    """Split of the images; null is the run's."""
    share: float | None = Field(None, gt=0, le=1)
    """Share of the images that is drawn; null is all, in their order."""
    seed: int = Field(42, ge=0)
    """Decides which share."""
    references: Literal["separate", "cut_at_full_stops"] = "separate"
    """The captions as they are, or joined and cut at every full stop."""
    reply: Literal["whole", "after_last_mark"] = "whole"
    """What is scored of a reply."""
    instruction: str | None = Field(None, min_length=1)
    """What the model is asked; null is what it was trained with."""
    decoding: Decoding | None = None
    """How captions are decoded; null is as the run says."""
    metrics: tuple[str, ...] = Field(_METRICS, min_length=1)
    """Metrics of coco-caption, without Java."""
    leak: str | None = Field(None, min_length=1)
    """Why every row is marked LEAK; null leaves the question to the leak guard."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in _METRICS:
                raise ValueError(f"the metric '{name}' is not known; choose out of {', '.join(_METRICS)}")
        return names

    @property
    def signature(self) -> str:
        """The name, with eight digits of a hash of everything it says unless it is one that ships."""
        if self.name in shipped_protocols() and self == load_protocol(self.name):
            return self.name
        return f"{self.name}@{hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]}"

    def applied(self, config: RunConfig) -> RunConfig:
        """A run's configuration with the instruction and the decoding that this protocol asks for."""
        if self.decoding is not None:
            asked = self.decoding.model_dump(exclude_none=True)
            config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=asked)})
        if self.instruction is not None:
            model = config.model.model_copy(update={"instruction": self.instruction})
            config = config.model_copy(update={"model": model})
        return config


@cache
def shipped_protocols() -> tuple[str, ...]:
    """The names of the protocols that come with captune."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_protocol(name: str) -> Protocol:
    """Read a protocol.

    Args:
        name: of one that ships, or the path of a YAML file.

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
    try:
        return Protocol.model_validate(content)
    except ValidationError as error:
        problems = " ".join(_sentence(dict(problem)) for problem in error.errors())
        raise ConfigError(f"the protocol '{path}': {problems}") from None


def _sentence(problem: dict[str, Any]) -> str:
    """One thing that pydantic found, as a sentence."""
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = list(Decoding.model_fields if len(problem["loc"]) > 1 else Protocol.model_fields)
        hint = did_you_mean(str(problem["loc"][-1]), known, f"known are {', '.join(known)}.")
        return f"there is no field '{place}'; {hint}"
    if problem["type"] == "missing":
        return f"the field '{place}' is missing."
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{place} is {problem.get('input')!r}: {message[0].lower()}{message[1:]}."
