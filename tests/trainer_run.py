"""Trainings with transformers' `Trainer` and a tiny LLaVA with LoRA, also in several processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from captune.integrations import CaptionEvaluation

STEPS = 4
PROMPT = "<|im_start|>user\n<image>Describe this image in detail.<|im_end|>\n<|im_start|>assistant\n"


def make_model(base: Path) -> Any:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=16, lora_dropout=0.1, target_modules=["q_proj", "v_proj", "down_proj"])
    return get_peft_model(model, config)


def rows_of(manifest: Path, split: str = "train") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    return [
        {"image": str(manifest.parent / row["image"]), "text": row["captions"][0]}
        for row in rows
        if row["split"] == split
    ]


def collate(processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    def call(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = processor(
            text=[PROMPT + row["text"] for row in rows],
            images=[Image.open(row["image"]) for row in rows],
            padding=True,
            return_tensors="pt",
        )
        return {**batch, "labels": batch["input_ids"].clone()}

    return call


def arguments(folder: Path, **others: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_steps": STEPS,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "seed": 1,
    }
    return values | others


def make_trainer(base: Path, manifest: Path, folder: Path, *callbacks: TrainerCallback, **others: Any) -> Trainer:
    processor = AutoProcessor.from_pretrained(base)
    rows = rows_of(manifest)
    trainer = Trainer(
        make_model(base),
        TrainingArguments(**arguments(folder, **others)),
        train_dataset=rows,
        eval_dataset=rows[:2],
        data_collator=collate(processor),
        processing_class=processor,
        callbacks=list(callbacks),
    )
    trainer.pop_callback(PrinterCallback)
    return trainer


def evaluation_of(manifest: Path, output: Path, *settings: str, **others: Any) -> CaptionEvaluation:
    return CaptionEvaluation(manifest, output, "test", settings=["evaluate.max_new_tokens=6", *settings], **others)


def main(model: Path, manifest: Path, folder: Path) -> None:
    """Train in this process, which may be one of torchrun's; writes its scores into `folder`."""
    torch.set_num_threads(1)
    evaluation = evaluation_of(manifest, folder / "scores")
    trainer = make_trainer(
        model, manifest, folder / "run", evaluation, max_steps=2, metric_for_best_model="captune_CIDEr"
    )
    caption, counts = evaluation._caption, []

    def counted(*parts: Any) -> Any:
        captions, prompt = caption(*parts)
        counts.append(len(captions))
        return captions, prompt

    evaluation._caption = counted  # type: ignore[method-assign]
    trainer.train()
    entries = [{name: entry[name] for name in entry if "captune" in name} for entry in trainer.state.log_history]
    result = {"scores": [entry for entry in entries if entry], "best": trainer.state.best_metric, "captions": counts}
    (folder / f"rank-{trainer.args.process_index}.json").write_text(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
