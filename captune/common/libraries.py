"""Silence of libraries while captune uses them inside another program, such as a notebook."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_imports", "quiet_libraries"]

_ENVIRONMENT = {"HF_HUB_VERBOSITY": "error", "TORCH_CPP_LOG_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error"}
"""Read by libraries when they are imported."""
_LOGGERS = ("accelerate", "bitsandbytes", "huggingface_hub", "peft", "torch.utils._pytree", "torchao", "transformers")


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Hide warnings and logs of libraries in the block, in which they are imported, then restore the settings.

    Warnings that the program has a filter for are treated as it says, so that `-W error` still finds them.
    """
    absent = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(absent)
    # A level that the program has set stays.
    loggers = [logger for name in _LOGGERS if not (logger := logging.getLogger(name)).level]
    if "TRANSFORMERS_VERBOSITY" not in absent:
        # transformers sets its level from the environment when it is imported, and it is not reset.
        loggers = [logger for logger in loggers if logger.name != "transformers"]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Last in the list: it applies where no other filter does.
            warnings.simplefilter("ignore", append=True)
            yield
    finally:
        for name in absent:
            os.environ.pop(name, None)
        for logger in loggers:
            logger.setLevel(logging.NOTSET)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide progress bars of libraries too, but not those of downloads from the hub; see `quiet_imports`.

    transformers must be installed, and is imported.
    """
    with quiet_imports(), _without_bars():
        yield


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide progress bars of transformers, but not those of downloads."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    if not transformers_logging.is_progress_bar_enabled():
        yield
        return
    downloads = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
        if not downloads:
            disable_progress_bars()
