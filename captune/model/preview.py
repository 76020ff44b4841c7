"""What a model is, without its weights: its configuration and its vocabulary."""

from __future__ import annotations

from captune.config import ModelConfig
from captune.errors import WeightsError
from captune.hub import check_model, resolve_model
from captune.model.build import preview_parts
from captune.model.configuration import MiniGPT4Config
from captune.model.processor import MiniGPT4Processor
from captune.model.prompt import OriginalFaults
from captune.weights.pointers import refuse_part
from captune.weights.strict import read_config, why_unread

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
    check_model(config)
    if config.llm is not None:
        found, processor = preview_parts(config.llm, str(config.vision))
    else:
        found, processor = _whole(config.path)
    if config.faults:
        processor.use(faults=OriginalFaults.under("slides", config.faults))
    return found, processor


def _whole(name: str) -> tuple[MiniGPT4Config, MiniGPT4Processor]:
    path = resolve_model(name)
    refuse_part(path)
    try:
        found = read_config(MiniGPT4Config.from_pretrained, path)
        if found.model_type != MiniGPT4Config.model_type:
            raise ValueError(f"it is a '{found.model_type}'")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"The configuration of the model {name} cannot be read: {why_unread(path, error)}"
        ) from error
    return found, MiniGPT4Processor.from_pretrained(path, found)
