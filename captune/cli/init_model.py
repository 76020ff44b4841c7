"""The model of `captune init`: the machine, the models that fit it, and the memory that a run takes."""

from __future__ import annotations

import os
import shutil
import subprocess
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from captune.cli.output import print_message
from captune.errors import InputError

if TYPE_CHECKING:
    from captune.config import Template

__all__ = ["Machine", "ModelChoice", "choose_model", "fit_memory", "named_model"]

_TOYS = ("toy_vlm", "toy")
"""Templates of the models that come with captune, the proposed one first."""
_PREFERRED = ("qwen3_vl_2b", "smolvlm2_2b", "gemma3_4b", "qwen2_5_vl_3b", "paligemma2_3b", "blip2_opt_2_7b")
"""Templates of models on the hub in the order of the proposal: permissive licenses and chat models first."""
_HUB_SETTINGS: dict[str, Any] = {
    "model": {"instruction": "Describe the image in one sentence."},
    "train": {"epochs": 3, "learning_rate": 1e-4},
}
"""For a transformers model without a template."""


@dataclass(frozen=True)
class Machine:
    """What a run can use.

    Attributes:
        memory: bytes of the GPU; None without one.
        name: of the GPU.
        free: bytes of the disk of the working directory.
        is_here: whether it is this machine, and not one that the user described.
    """

    memory: int | None
    name: str
    free: int
    is_here: bool = True

    @classmethod
    def detect(cls, gpu: str | None) -> Machine:
        """This machine, or one with the GPU that the user named."""
        from captune.cli.plan import card_bytes

        free = shutil.disk_usage(".").free
        if gpu is not None:
            return cls(card_bytes(gpu), "a GPU", free, is_here=False)
        # Asking the driver takes a fraction of a second, importing torch several.
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
            return cls(None, "", free)
        try:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
            name, _, mebibytes = answer.splitlines()[0].rpartition(",")
            return cls(int(mebibytes) << 20, name.strip(), free)
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            return cls(None, "", free)

    def in_words(self) -> str:
        """One line for a person."""
        from captune.cli.plan import size_in_words

        gpu = "no NVIDIA GPU" if self.memory is None else f"{self.name} of {size_in_words(self.memory)}"
        return f"{gpu}; {size_in_words(self.free)} of disk free"


@dataclass(frozen=True)
class ModelChoice:
    """A model and the settings that it is tuned with.

    Attributes:
        name: hub id, folder, toy or toy-vlm.
        settings: sections of the configuration.
        memory: bytes that training is estimated to take; None where it is unknown.
        license: of the model, where it is known.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    memory: int | None = None
    license: str | None = None

    @classmethod
    def of_template(cls, template: Template) -> ModelChoice:
        """The model of a template, without its data and output."""
        settings = {key: value for key, value in template.settings.items() if key not in ("output", "data")}
        return cls(template.model, settings, template.memory, template.license)


def named_model(name: str) -> ModelChoice:
    """The model that the user named: a template, the model of one, a hub id or a folder.

    Raises:
        ConfigError: there is no such template, folder or model of the hub.
        WeightsError: the name has the form of a path, and there is no such model.
    """
    import json

    from captune.config import read_templates
    from captune.hub import locate_model

    templates = read_templates()
    template = templates.get(name.lower().replace("-", "_"))
    template = template or next((item for item in templates.values() if item.model.lower() == name.lower()), None)
    if template is not None and not Path(name).is_dir():
        return ModelChoice.of_template(template)
    folder = Path(locate_model(name))
    if not folder.is_dir():
        _check_hub_id(name)
    else:
        try:
            is_of_transformers = "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            is_of_transformers = (folder / "adapter_config.json").is_file()
        if not is_of_transformers:  # a MiniGPT-4, whose settings are the defaults
            return ModelChoice(name, {"model": {"path": name}})
    settings = deepcopy(_HUB_SETTINGS)
    settings["model"] = {"path": name, **settings["model"]}
    return ModelChoice(name, settings)


def _check_hub_id(name: str) -> None:
    """Refuse a hub id that cannot be one, or that the hub does not have; say so where that is unknown.

    Raises:
        ConfigError: suggests a template, a model or a folder of a similar name.
    """
    from captune.common import did_you_mean
    from captune.config import read_templates
    from captune.errors import ConfigError
    from captune.hub import is_on_hub

    templates = read_templates()
    models = {template.model for template in templates.values()}
    parent = Path(name).parent
    folders = [str(path) for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    hint = did_you_mean(name, [*models, *folders], cutoff=0.7)
    hint = hint or did_you_mean(name.lower().replace("-", "_"), templates)
    if "/" not in name:
        raise ConfigError(
            f"There is no template and no folder {name}; {hint or 'captune init --list shows the templates.'} "
            "A model of the hub has the form USER/MODEL."
        )
    there = is_on_hub(name)
    if there is False:
        raise ConfigError(f"The hub has no model {name}, and there is no such folder; {hint or 'check the name.'}")
    if there is None:
        print_message(
            f"{name} is taken for a model of the hub. This is not verified, since the hub cannot be reached and the "
            f"model is not in the cache{f'; {hint}' if hint else '.'}"
        )


def choose_model(machine: Machine, *, ask: bool) -> ModelChoice:
    """The proposed model, or the one that the user chooses from a list."""
    from captune.cli.plan import size_in_words
    from captune.common import text_table
    from captune.config import read_templates

    templates = read_templates()
    names = [*_TOYS, *_PREFERRED] if machine.memory is None else [*_PREFERRED, *_TOYS]
    remarks = {name: _remark(templates[name], machine) for name in names}
    proposed = next((name for name in _PREFERRED if remarks[name] == "fits"), _TOYS[0])
    names.sort(key=lambda name: name != proposed)
    choice = ModelChoice.of_template(templates[proposed])
    if not ask:
        return choice
    rows = []
    for number, name in enumerate(names, 1):
        memory = templates[name].memory
        needs = "" if memory is None else size_in_words(memory)
        rows.append([str(number), templates[name].model, needs, remarks[name]])
    table = text_table(["", "model", "GPU memory", ""], rows, numbers=False)
    print_message("\n".join(f"  {line}" for line in table.splitlines()))
    while True:
        answer = typer.prompt("Which model (a number, a hub id or a folder)?", default="1", err=True).strip()
        if answer.isdecimal() and 1 <= int(answer) <= len(names):
            return ModelChoice.of_template(templates[names[int(answer) - 1]])
        if answer.isdecimal():
            print_message(f"Give a number from 1 to {len(names)}, or the name of a model.")
            continue
        try:
            return named_model(answer)
        except InputError as error:
            print_message(str(error))


def _remark(template: Template, machine: Machine) -> str:
    """Whether a model can be tuned on this machine."""
    from captune.errors import WeightsError
    from captune.hub import require_available

    if template.memory is None:
        return "tiny, comes with captune"
    if machine.memory is None:
        return "needs a GPU"
    if template.memory > machine.memory:
        return "needs a larger GPU"
    if not machine.is_here:
        return "fits"
    try:
        require_available(template.model)
    except WeightsError:
        return "fits, but the hub is offline"
    if template.weights is not None and template.weights > machine.free:
        return "fits, but not the disk"
    return "fits"


def fit_memory(settings: dict[str, Any], choice: ModelChoice, machine: Machine) -> tuple[bool, str]:
    """Predict the memory of the run as `captune plan` does, and add settings that make it fit.

    Returns:
        False if it is known that the run does not fit, and a sentence for the summary.
    """
    from captune.cli.plan import size_in_words
    from captune.config import find_template
    from captune.errors import CaptuneError
    from captune.hub import TOY

    if choice.name in TOY:
        real = find_template(_PREFERRED[0])
        return True, (
            "This model is tiny and only shows the steps; its captions of photos are of no use. "
            f"{real.model} (--model {real.name}) needs {size_in_words(real.memory or 0)} of GPU memory."
        )
    if machine.memory is None:
        needs = "" if choice.memory is None else f" (training takes about {size_in_words(choice.memory)} of its memory)"
        return True, f"There is no GPU here; take the files and the images to a machine with one{needs}."
    try:
        peak, overrides = _predict(settings, machine.memory)
    except CaptuneError:
        estimate = "" if choice.memory is None else f"; the estimate is {size_in_words(choice.memory)}"
        return True, f"Its memory cannot be predicted yet, since the model is not on this machine{estimate}."
    for override in overrides:
        _override(settings, override)
    changed = f" with {' '.join(overrides)}" if overrides else ""
    if peak > machine.memory:
        return (
            False,
            f"It does not fit {size_in_words(machine.memory)}: it takes {size_in_words(peak)}; use a smaller model.",
        )
    return True, f"It fits {size_in_words(machine.memory)}{changed}: the predicted peak is {size_in_words(peak)}."


def _predict(settings: dict[str, Any], limit: int) -> tuple[int, tuple[str, ...]]:
    """The predicted peak in bytes, and the overrides with which it is below a limit, if that is possible."""
    from captune.cli.plan import planner_of
    from captune.config import parse_config
    from captune.preflight import check_configured_model, extra_imports, require_extra

    config = parse_config(settings)
    require_extra("captune plan", "train")
    check_configured_model(config.model)
    print_message("Predicting the memory of the run ...")
    with extra_imports("captune plan", "train"):
        import torch

        planner = planner_of(config, torch.device("cuda"))
    peak = planner.plan().peak
    if peak <= limit:
        return peak, ()
    proposal = planner.propose(limit)
    return (peak, ()) if proposal is None else (proposal.plan.peak, proposal.overrides)


def _override(settings: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in sections."""
    from captune.parsing import load_yaml

    name, _, value = override.partition("=")
    *sections, key = name.split(".")
    node = settings
    for section in sections:
        node = node.setdefault(section, {})
    node[key] = load_yaml(value)
