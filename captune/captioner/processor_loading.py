"""The processor of a transformers model: images and words to tensors.

Some processors (Qwen-VL, SmolVLM) bring one for videos, which needs torchvision. Images do without it.
"""

from __future__ import annotations

from typing import Any

from captune.errors import InputError, WeightsError

__all__ = ["load_processor"]


def load_processor(path: str, config: Any, name: str) -> Any:
    """Load the processor that lies beside a model's weights.

    Args:
        path: folder or hub id.
        config: the model's configuration.
        name: what messages call the model.

    Raises:
        WeightsError: there is none, or it takes no images.
        InputError: it needs a library that is not installed.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except (ImportError, OSError, ValueError, KeyError, TypeError) as error:
        if "torchvision" in str(error).lower():
            processor = _without_videos(path, config, name)
        elif isinstance(error, ImportError):
            raise _missing(name, error) from error
        else:
            raise WeightsError(
                f"The processor of {name} cannot be loaded: {' '.join(str(error).split())[:200]}; expected "
                "processor_config.json or preprocessor_config.json and a tokenizer beside the weights."
            ) from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise WeightsError(f"The processor of {name} is a {type(processor).__name__}, which does not take images.")
    return processor


def _without_videos(path: str, config: Any, name: str) -> Any:
    """The same, with nothing in the place of what processes videos."""
    from transformers import AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    from captune.captioner.no_videos import NoVideos, images_only

    try:
        kind = images_only(PROCESSOR_MAPPING[type(config)])
        makers: dict[str, Any] = {
            "tokenizer": lambda: AutoTokenizer.from_pretrained(path, trust_remote_code=False),
            "image_processor": lambda: AutoImageProcessor.from_pretrained(path, trust_remote_code=False),
            "video_processor": NoVideos,
        }
        settings, _ = kind.get_processor_dict(path)
        return kind.from_args_and_dict([makers[part]() for part in kind.get_attributes()], settings)
    except ImportError as error:
        raise _missing(name, error) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"The processor of {name} cannot be loaded without torchvision ({' '.join(str(error).split())[:200]}); "
            "install torchvision for your build of torch."
        ) from error


def _missing(name: str, error: ImportError) -> InputError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return InputError(f"The processor of {name} needs a library that is not installed: {' '.join(lines)[:300]}")
