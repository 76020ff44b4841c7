"""What other programs save of a tiny LLaVA: adapters, merged models, checkpoints of transformers and of TRL."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from trainer_run import PROMPT, arguments, collate, make_model, rows_of
from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback, Trainer, TrainingArguments
from vlm_run import cards, write_rows

TARGETS = ["q_proj", "v_proj", "down_proj"]
FAST = {"max_steps": 2, "save_steps": 2, "eval_strategy": "no", "learning_rate": 0.05}


def write_manifest(folder: Path, *, test: int = 4) -> Path:
    """A manifest of 8 training and some test images."""
    folder.mkdir(parents=True)
    return write_rows(folder, cards(folder, train=8, test=test))


def load_base(base: Path) -> Any:
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)


def perturb(model: Any) -> Any:
    """Change the trained tensors, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def peft_model(base: Path, **settings: Any) -> Any:
    """The base model with a trained adapter of peft's."""
    config = LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS, **settings)
    return perturb(get_peft_model(load_base(base), config)).eval()


def save_merged(model: Any, base: Path, folder: Path) -> Path:
    """A complete model without adapter, with the processor of its base model."""
    model.merge_and_unload().save_pretrained(folder)
    AutoProcessor.from_pretrained(base).save_pretrained(folder)
    return folder


def trainer_checkpoint(base: Path, manifest: Path, folder: Path, *, full: bool = False, processor: Any = None) -> Path:
    """`checkpoint-2` of transformers' `Trainer`, with optimizer, scheduler and random states.

    Args:
        base: the base model.
        manifest: of its training images.
        folder: of the training.
        full: train all weights and not a LoRA.
        processor: `processing_class` of the trainer, which it saves with every checkpoint.
    """
    trainer = Trainer(
        load_base(base) if full else make_model(base),
        TrainingArguments(**arguments(folder, **FAST)),
        train_dataset=rows_of(manifest),
        data_collator=collate(AutoProcessor.from_pretrained(base)),
        processing_class=processor,
    )
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    return folder / "checkpoint-2"


def sft_checkpoint(base: Path, manifest: Path, folder: Path) -> Path:
    """`checkpoint-2` of TRL's `SFTTrainer`."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"images": [Image.open(row["image"]).convert("RGB")], "prompt": PROMPT, "completion": row["text"]}
        for row in rows_of(manifest)
    ]
    trainer = SFTTrainer(
        make_model(base),
        SFTConfig(**arguments(folder, max_length=None, bf16=False, activation_checkpointing=False, **FAST)),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoProcessor.from_pretrained(base),
    )
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    return folder / "checkpoint-2"


def without_processor(folder: Path, copy: Path) -> Path:
    """A copy of a checkpoint as a trainer without `processing_class` saves it."""
    names = ("*processor*", "token*", "special_tokens*", "chat_template*", "vocab*", "merges*")
    return Path(shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*names)))


def generated(model: Any, processor: Any, manifest: Path, *, new_tokens: int) -> dict[str, str]:
    """The captions of the test images by transformers' own `generate`, one image at a time."""
    captions = {}
    for line in manifest.read_text().splitlines():
        row = json.loads(line)
        if row["split"] != "test":
            continue
        inputs = processor(text=PROMPT, images=Image.open(manifest.parent / row["image"]), return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        captions[row["id"]] = processor.decode(answer, skip_special_tokens=True).strip()
    return captions
