"""What a model is, without its weights: its configuration and its vocabulary."""

from __future__ import annotations

from captune.config import ModelConfig
from captune.errors import WeightsError
from captune.model.configuration import MiniGPT4Config
from captune.model.loading import resolve_model
from captune.model.processor import MiniGPT4Processor

__all__ = ["preview_model"]


def preview_model(config: ModelConfig) -> tuple[MiniGPT4Config, MiniGPT4Processor]:
    """Read a captune model's configuration and vocabulary.

    Args:
        config: which model.

    Returns:
        Its configuration, and the processor that training and evaluation would use.

    Raises:
        WeightsError: it is not there, is broken, or is no captune model.
    """
    path = resolve_model(config.path)
    try:
        found = MiniGPT4Config.from_pretrained(path)
        if found.model_type != MiniGPT4Config.model_type:
            raise ValueError(f"it is a '{found.model_type}'")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"The configuration of the model {config.path} cannot be read: {reason}") from error
    return found, MiniGPT4Processor.from_pretrained(path, found)
