"""Warnings, logs and progress bars of libraries stay off the screen; captune's own messages stay on it.

A library's warning tells its programmers what to change, not the user of a command. `python -W default -m captune ...`
or PYTHONWARNINGS=default shows them again.
"""

from __future__ import annotations

import logging
import os
import sys

__all__ = ["silence_libraries"]

_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Read by libraries at their import, also by those of worker processes."""

_OWN_HANDLERS = ("torch.utils._pytree",)
"""Loggers that write to the screen past the root logger."""


class _OwnMessages(logging.Filter):
    """Lets captune's messages through, and errors of any library."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.partition(".")[0] == "captune" or record.levelno >= logging.ERROR


def silence_libraries() -> None:
    """Keep libraries quiet in this process and its children; for a program's start, before heavy imports."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        os.environ["PYTHONWARNINGS"] = "ignore"  # of child processes; here warnings become log records
        logging.captureWarnings(True)
    for name in _OWN_HANDLERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    root = logging.getLogger()
    if not any(isinstance(own, _OwnMessages) for handler in root.handlers for own in handler.filters):
        handler = logging.StreamHandler()
        handler.addFilter(_OwnMessages())
        root.addHandler(handler)
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
