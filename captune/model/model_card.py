"""Model card and upload to the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCardData

from captune.common import error_text
from captune.errors import ToolError
from captune.model.configuration import MiniGPT4Config
from captune.model.processor import MiniGPT4Processor

__all__ = ["metrics_table", "model_card", "upload_folder"]


def model_card(
    config: MiniGPT4Config,
    processor: MiniGPT4Processor | None,
    *,
    metrics: Mapping[str, float] | None = None,
    signature: str | None = None,
) -> str:
    """The text of README.md in a model's folder.

    Args:
        config: of the model.
        processor: of the model; without it the card omits the prompt.
        metrics: name to value, as `captune.metrics` gives them.
        signature: of these values: data, split, prompt, decoding, protocol, tool versions. Values without a signature
            are omitted, since they cannot be compared.

    Returns:
        Markdown with the hub's YAML header.
    """
    header = ModelCardData(
        library_name="captune", pipeline_tag="image-to-text", tags=["captune", "image-captioning", "minigpt-4"]
    )
    lines = ["---", header.to_yaml(), "---", "", "# Image captioner", ""]
    bridge = "a Q-Former and " if config.qformer_config is not None else ""
    lines += [
        f"A {config.vision_config.model_type} vision encoder and a {config.text_config.model_type} language model, "
        f"joined by {bridge}a linear projection ({config.feature_size} to {config.text_width}). "
        f"An image takes {config.image_tokens} tokens.",
        "",
        "```python",
        "from captune import Captioner",
        "",
        'captioner = Captioner.from_pretrained("this/model")',
        'captioner(["photo.jpg"])',
        "```",
    ]
    if processor is not None:
        conversation = processor.layout.chat_template
        lines += [
            "",
            "## Prompt",
            "",
            f"- instruction: `{processor.instruction}`",
            f"- chat template: `{json.dumps(conversation.template, ensure_ascii=False)}`",
            f"- stop symbol: `{json.dumps(conversation.stop_symbol, ensure_ascii=False)}`",
        ]
    return "\n".join([*lines, *metrics_table(metrics, signature)]) + "\n"


def metrics_table(metrics: Mapping[str, float] | None, signature: str | None) -> list[str]:
    """Lines of a card with metrics; none without metrics or signature."""
    if not metrics or not signature:
        return []
    rows = [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
    return ["", "## Metrics", "", "| metric | value |", "|---|---|", *rows, "", f"Signature: `{signature}`"]


def upload_folder(folder: Path, repo_id: str, *, private: bool | None, token: str | bool | None, message: str) -> str:
    """Upload a folder to the hub.

    Args:
        folder: all its files are uploaded.
        repo_id: `user/name`; created if missing.
        private: whether a new repository is private; None is the setting of the account.
        token: of the hub; None is the one that `hf auth login` stored.
        message: of the commit.

    Returns:
        Address of the commit.

    Raises:
        ToolError: the hub refused.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        made = huggingface_hub.create_repo(repo_id, private=private, token=token, exist_ok=True)
        commit = huggingface_hub.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message=message, token=token
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise ToolError(f"The hub refused {repo_id}: {error_text(error)}") from error
    return str(commit.commit_url)
