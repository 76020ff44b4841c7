"""Model card and upload to the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from captune.common import error_text
from captune.errors import ToolError
from captune.model.configuration import MiniGPT4Config
from captune.model.processor import MiniGPT4Processor

__all__ = ["CardDetails", "card_header", "metrics_table", "model_card", "upload_folder"]

_NEGLIGIBLE = 1e-6
"""Scores below this, and not 0, are the smoothing of BLEU."""


@dataclass(frozen=True)
class CardDetails:
    """What a card says besides the model.

    Attributes:
        metrics: name to value.
        signature: of these values: data, split, prompt, decoding, protocol, tool versions. Values without a signature
            are omitted, since they cannot be compared.
        intervals: 95 % confidence intervals of the metrics.
        data: name of the evaluated data set.
        split: of the data set.
        images: number of evaluated images.
        leak: why the scores are marked LEAK, or None.
        license: identifier such as apache-2.0; None leaves the field out.
        training_images: how many were used and left out; empty if all were used.
        better_before: the row before training and its score, if it is better than every epoch; else empty.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    signature: str | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    data: str = ""
    split: str = ""
    images: int = 0
    leak: str | None = None
    license: str | None = None
    training_images: str = ""
    better_before: str = ""


def card_header(
    name: str, details: CardDetails, *, library: str, task: str, tags: Sequence[str], base_model: str | None = None
) -> list[str]:
    """Lines of a card's YAML header, which the hub reads; scores without a LEAK mark become evaluation results.

    Scores that are nothing but smoothing are left out.

    Args:
        name: of the model.
        details: scores and license.
        library: that loads the model.
        task: `pipeline_tag` of the hub.
        tags: on the hub.
        base_model: hub id of the base model.
    """
    results = [
        EvalResult(
            task_type=task,
            dataset_type=details.data,
            dataset_name=details.data,
            dataset_split=details.split or None,
            metric_type=metric.lower(),
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in (details.metrics.items() if details.signature and not details.leak else ())
        if details.data and (value == 0 or abs(value) >= _NEGLIGIBLE)
    ]
    header = ModelCardData(
        base_model=base_model,
        library_name=library,
        pipeline_tag=task,
        tags=list(tags),
        license=details.license,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return ["---", header.to_yaml(), "---", ""]


def model_card(
    config: MiniGPT4Config,
    processor: MiniGPT4Processor | None,
    *,
    details: CardDetails | None = None,
) -> str:
    """The text of README.md in a model's folder.

    Args:
        config: of the model.
        processor: of the model; without it the card omits the prompt.
        details: scores and license.

    Returns:
        Markdown with the hub's YAML header.
    """
    details = details or CardDetails()
    tags = ["captune", "image-captioning", "minigpt-4"]
    lines = card_header("Image captioner", details, library="captune", task="image-to-text", tags=tags)
    lines += ["# Image captioner", ""]
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
    return "\n".join([*lines, *metrics_table(details)]) + "\n"


def metrics_table(details: CardDetails) -> list[str]:
    """Lines of a card with metrics; none without metrics or signature."""
    lines = [] if details.license else ["", "## License", "", "That of the base model applies; see its card."]
    if not details.metrics or not details.signature:
        return lines
    if details.data:
        images = f", {details.images:,} images" if details.images else ""
        lines += ["", "## Metrics", "", f"On {details.data}, split {details.split}{images}:", ""]
    else:
        lines += ["", "## Metrics", ""]
    if details.better_before:
        lines += [f"No epoch of this training is better than the model before it: {details.better_before}.", ""]
    if details.leak:
        lines += [f"LEAK: the model was trained on evaluated images ({details.leak}).", ""]
    if details.intervals:
        lines += ["| metric | value | 95 % interval |", "|---|---|---|"]
    else:
        lines += ["| metric | value |", "|---|---|"]
    for name, value in details.metrics.items():
        low, high = details.intervals.get(name, (None, None))
        interval = "" if not details.intervals else f" {low:.4f} to {high:.4f} |" if low is not None else " |"
        lines.append(f"| {name} | {value:.4f} |{interval}")
    return [*lines, "", f"Signature: `{details.signature}`"]


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
