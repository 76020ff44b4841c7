"""The text of a run's prompts, fixed when it begins: a chat template may be another one when the run is resumed."""

from __future__ import annotations

import json
from pathlib import Path

from captune.data.atomic import atomic_file
from captune.errors import WeightsError
from captune.model import MiniGPT4
from captune.model.adapter import use_wrapping
from captune.parsing import load_json

__all__ = ["keep_prompt", "use_prompt"]

NAME = "prompt.json"


def keep_prompt(output: Path, model: MiniGPT4) -> None:
    """Write into a run's folder what is put around its instruction."""
    content = {"conversation": model.config.conversation, "wrapping": model.config.wrapping}
    with atomic_file(output / NAME, "w") as stream:
        stream.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def use_prompt(output: Path, model: MiniGPT4) -> None:
    """Ask a model what a run's folder says; one without the file is of a conversation that is known by its name.

    Raises:
        WeightsError: the file is missing where it is needed, or cannot be used.
    """
    path = output / NAME
    wrapping = None
    if path.is_file():
        try:
            wrapping = load_json(path.read_text(encoding="utf-8"))["wrapping"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{path} is broken: {error!r}; begin the run again with --overwrite.") from error
    use_wrapping(model, wrapping, output)
