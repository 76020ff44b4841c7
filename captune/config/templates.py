"""The configurations of model families that come with captune, with the memory and the license in their comments."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from captune.common import did_you_mean
from captune.config.sections import TrainConfig
from captune.errors import ConfigError
from captune.parsing import load_yaml

__all__ = ["LEARNING_RATES", "Template", "find_template", "model_schedule", "read_templates", "scale_schedule"]

_FOLDER = "train_configs"
_MEMORY = re.compile(r"^# Memory, an estimate for .*?: ([\d.]+) GB, of which weights ([\d.]+) GB;", re.MULTILINE)
_LICENSE = re.compile(r"^# License: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Template:
    """A configuration that comes with captune.

    Attributes:
        name: of the file, without ending.
        text: of the file.
        settings: its sections and keys.
    """

    name: str
    text: str
    settings: dict[str, Any]

    @property
    def title(self) -> str:
        """What it tunes, from the first comment."""
        return self.text.partition("\n")[0].removeprefix("# ").rstrip(".")

    @property
    def model(self) -> str:
        """Folder or hub id of the model."""
        return str(self.settings.get("model", {}).get("path", "toy"))

    @property
    def memory(self) -> int | None:
        """Bytes of GPU memory that training takes with short captions; None where no estimate is stated."""
        return self._bytes(1)

    @property
    def weights(self) -> int | None:
        """Bytes of the weights, and about those of the download; None where no estimate is stated."""
        return self._bytes(2)

    @property
    def license(self) -> str | None:
        """The license of the model, up to the first mark of punctuation."""
        match = _LICENSE.search(self.text)
        return None if match is None else re.split(r"[,;:]|\.(?= |$)", match[1])[0]

    def text_for(self, path: Path) -> str:
        """The text for a copy at another path, whose comments name that path in commands."""
        return self.text.replace(f"{_FOLDER}/{self.name}.yaml", path.as_posix())

    def _bytes(self, group: int) -> int | None:
        match = _MEMORY.search(self.text)
        return None if match is None else int(float(match[group]) * 10**9)


def read_templates() -> dict[str, Template]:
    """The templates by name, in alphabetical order."""
    templates = {}
    for file in sorted(_template_files(), key=lambda file: file.name):
        text = file.read_text(encoding="utf-8")
        name = file.name.removesuffix(".yaml")
        templates[name] = Template(name, text, load_yaml(text) or {})
    return templates


def find_template(name: str) -> Template:
    """The template of a name.

    Raises:
        ConfigError: there is none.
    """
    templates = read_templates()
    if name not in templates:
        hint = did_you_mean(name, templates, f"there are {', '.join(templates)}.")
        raise ConfigError(f"There is no template '{name}'; {hint}")
    return templates[name]


def _template_files() -> Iterator[Traversable]:
    # A wheel has them in the package; in a repository they are next to it.
    folder = files("captune") / _FOLDER
    if not folder.is_dir():
        folder = Path(str(files("captune"))).parent / _FOLDER
    for file in folder.iterdir():
        if file.name.endswith(".yaml"):
            yield file


_STEPS_PER_EPOCH = 25
_SMALLEST_BATCH = 4


def scale_schedule(train: dict[str, Any], captions: int) -> dict[str, Any]:
    """Adapt a schedule to a small data set.

    The batch is halved until an epoch has 25 steps, and the warm-up takes at most a tenth of the steps: with a few
    dozen images the default of 40 captions is one step, and the default warm-up of 200 steps never ends.

    Args:
        train: keys of the section `train` that differ from the defaults.
        captions: that are trained on.

    Returns:
        the keys, with `batch_size` and `warmup_steps` where they change.
    """
    defaults = TrainConfig()
    batch = usual_batch = int(train.get("batch_size", defaults.batch_size))
    while captions < _STEPS_PER_EPOCH * batch and batch > _SMALLEST_BATCH:
        batch = max(_SMALLEST_BATCH, batch // 2)
    steps = int(train.get("epochs", defaults.epochs)) * math.ceil(captions / batch)
    usual_warmup = int(train.get("warmup_steps", defaults.warmup_steps))
    warmup = min(usual_warmup, max(1, steps // 10))
    changed = dict(train)
    if batch != usual_batch:
        changed["batch_size"] = batch
    if warmup != usual_warmup:
        changed["warmup_steps"] = warmup
    return changed


LEARNING_RATES = ("learning_rate", "min_learning_rate", "warmup_learning_rate")
"""Keys of the section `train` that `model_schedule` sets for the models that come with captune."""
_TOYS = {"toy": "toy", "toy-vlm": "toy_vlm"}
"""Models that come with captune, and their templates."""
_TOY_RATES = dict(zip(LEARNING_RATES, (3e-3, 3e-4, 3e-4), strict=True))
"""Of the toy on few captions; the rate of its template, for drawn scenes, hardly changes captions there."""


def model_schedule(model: str, train: dict[str, Any], captions: int) -> dict[str, Any]:
    """The schedule of a model on a data set: `scale_schedule`, and learning rates at which the toys learn.

    Args:
        model: folder, hub id, toy or toy-vlm.
        train: keys of the section `train` that differ from the defaults; those of a toy's template are added.
        captions: that are trained on.

    Returns:
        the keys, with those of the schedule where they change.
    """
    usual = _template_schedule(_TOYS[model]) if model in _TOYS else {}
    scaled = scale_schedule({**usual, **train}, captions)
    if model == "toy" and "batch_size" in scaled:  # a small data set
        scaled |= _TOY_RATES
    return scaled


@cache
def _template_schedule(template: str) -> dict[str, Any]:
    return dict(find_template(template).settings["train"])
