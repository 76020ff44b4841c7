"""Model cards of tuned transformers models."""

from __future__ import annotations

from pathlib import Path

from captune.hub import TOY, is_hub_id
from captune.model import CardDetails, card_header, metrics_table
from captune.run_checkpoints import CheckpointRecord

__all__ = ["tuned_card"]


def tuned_card(record: CheckpointRecord, *, merged: bool = False, details: CardDetails | None = None) -> str:
    """The text of README.md next to trained tensors or a merged model.

    Args:
        record: of the checkpoint.
        merged: whether the folder holds a complete model.
        details: scores and license.

    Returns:
        Markdown with the hub's YAML header.
    """
    is_adapter = record.lora is not None and record.kind == "transformers" and not merged
    is_shared = is_hub_id(record.model) and record.model not in TOY and not Path(record.model).is_dir()
    base = record.model if is_shared else None
    details = details or CardDetails()
    name = f"Image captioner on {record.model if base else Path(record.model).name}"
    header = card_header(
        name,
        details,
        library="peft" if is_adapter else "transformers" if merged else "captune",
        task="image-text-to-text",
        tags=["captune", "image-captioning", *(["lora"] if is_adapter else [])],
        base_model=base,
    )
    default = "LoRA" if record.kind == "transformers" else "projection" + (", LoRA" if record.lora is not None else "")
    trained = ", ".join(part.replace("_", " ") for part in record.trained) or default
    state = "merged into the base model" if merged else "all other weights are those of the base model"
    lines = [*header, f"# {name}", ""]
    lines += [f"Trained parts: {trained}; {state}.", ""]
    lines += ["```python", "from captune import Captioner", ""]
    lines += ['captioner = Captioner.from_pretrained("this/model")', 'captioner(["photo.jpg"])', "```"]
    is_adapter = is_adapter and record.model not in TOY  # only captune knows these names
    if is_adapter or merged:
        lines += ["", "```python", *(["from peft import PeftModel"] if is_adapter else [])]
        lines += ["from transformers import AutoModelForImageTextToText", ""]
    if is_adapter:
        lines += [
            f'base = AutoModelForImageTextToText.from_pretrained("{record.model}")',
            'model = PeftModel.from_pretrained(base, "this/model")',
            "```",
        ]
    elif merged:
        lines += ['model = AutoModelForImageTextToText.from_pretrained("this/model")', "```"]
    lines += ["", "## Training", "", f"- instruction: `{record.instruction}`" if record.instruction else "- no prompt"]
    if record.lora is not None:
        targets = ", ".join(record.lora["targets"])
        lines += [f"- LoRA: rank {record.lora['r']}, alpha {record.lora['alpha']:g}, on {targets}"]
    for name, value in (("max_pixels", record.max_pixels), ("min_pixels", record.min_pixels)):
        lines += [] if value is None else [f"- {name}: {value}"]
    lines += [f"- base model: {record.model if base else Path(record.model).name}, weights {record.frozen}"]
    lines += [f"- training manifest: {record.manifest_hash}"] if record.manifest_hash else []
    lines += [f"- {details.training_images}"] if details.training_images else []
    lines += [f"- epoch {record.epoch}, optimizer step {record.step}, seed {record.seed}, captune {record.captune}"]
    return "\n".join([*lines, *metrics_table(details)]) + "\n"
