"""Forty steps of captune and of TRL's `SFTTrainer` from the same LoRA matrices end at the same weights.

Captune's `TrainStep` computes the captions of an image in one packed row after stored image features, two images in one
forward pass or in two; TRL runs the model's own forward on pixels, one padded row per caption. What TRL 1.16 does
otherwise by default, and how it is set here:

* Rows. From conversations, TRL takes everything after the prompt as the completion, so that the newline of ChatML after
  the end of the turn is a target. It is never generated, and captune does not train on it. Here TRL gets the prompt and
  the completion as texts, which end with the end of the turn.
* PaliGemma. TRL's collator renders completions without images, which PaliGemma's processor refuses. Here a collator
  makes the documented call with `suffix`, which sets token types (the prefix attends both ways) and labels.
* `max_length` is 1024 and cuts image tokens off; None here, since captune never truncates.
* `bf16` and `gradient_checkpointing` are on; off here. The second changes no number.
* Schedule: linear; a cosine to 0 without warm-up here, which is the same formula in both. Weight decay is 0 in TRL and
  0.05 in captune; 0.05 here. Betas (0.9, 0.999), epsilon 1e-8 and the clip norm of 1 are the same.
* Order: random; sequential here.

The same by default: the loss is on the completion only, and is the sum over all targets of a batch divided by their
number, not a mean of means over rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText
from vision_families import save_family

from captune.captioner import complete_settings, load_processor
from captune.config import LoraConfig, TrainConfig
from captune.data import Sample
from captune.distributed import DistributedContext
from captune.training.sample_order import TrainingSamples
from captune.training.trainer import TrainStep
from captune.training.vlm_loss import ImageTextObjective
from captune.vlm import Computation, ImageFeatures, ImageTextModel

pytest.importorskip("trl", reason="TRL is not installed")
# PaliGemma's processor makes an array of a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS, IMAGES, CAPTIONS = 40, 2, 3
INSTRUCTION, END_OF_TURN = "What is it?", "<|im_end|>"
SIZES = [(40, 30), (64, 64), (30, 60), (50, 20)]
WORDS = ["a dog", "two dogs run", "on grass", "red", "the sea at night", "a man", "with a hat"]
CONFIG = TrainConfig(
    steps_per_epoch=STEPS,
    epochs=1,
    batch_size=IMAGES * CAPTIONS,
    captions_per_image=CAPTIONS,
    learning_rate=2e-3,
    min_learning_rate=0.0,
    warmup_steps=0,
)


@dataclass
class Task:
    """Images and their captions."""

    pixels: list[Image.Image]
    samples: list[Sample]


def make_task() -> Task:
    draws = np.random.default_rng(0)

    def caption() -> str:
        return " ".join(draws.choice(WORDS, draws.integers(1, 4))).capitalize() + "."

    pixels = [
        Image.fromarray(draws.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for size in SIZES * 4
    ]
    captions = [tuple(caption() for _ in range(CAPTIONS)) for _ in pixels]
    return Task(pixels, [Sample(str(n), f"{n}.png", texts, "train") for n, texts in enumerate(captions)])


class Stored:
    """Features in memory, with the interface of those on disk."""

    def __init__(self, features: list[ImageFeatures]) -> None:
        self.features = features

    def __getitem__(self, indices: list[int]) -> Stored:
        return Stored([self.features[index] for index in indices])

    def __iter__(self) -> Iterator[ImageFeatures]:
        return iter(self.features)

    def to(self, device: torch.device) -> Stored:
        return self


def tiny_model(folder: Path) -> ImageTextModel:
    processor = load_processor(str(folder), AutoConfig.from_pretrained(folder), folder.name)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    complete_settings(processor, model)
    if processor.tokenizer.chat_template or getattr(processor, "chat_template", None):
        # Generation ends at the end of the turn, as in models that were trained on turns.
        model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(END_OF_TURN)
    tuned = ImageTextModel(model, processor, name=str(folder), instruction=INSTRUCTION)
    tuned.add_lora(LoraConfig(rank=4, targets=("all-linear",)))
    return tuned


def steps_of(model: ImageTextModel, task: Task, images_at_once: int) -> TrainStep:
    """Captune's steps on packed rows and stored features."""
    assert model.find_features()
    objective = ImageTextObjective(model, Computation(True, True), images_at_once)
    features = Stored([model.encode(image) for image in task.pixels])
    dist = DistributedContext(torch.device("cpu"))
    return TrainStep(model, objective, task.samples, features, CONFIG, seed=1, dist=dist)


def paligemma_batch(model: ImageTextModel, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The documented call of PaliGemma's processor for training."""
    return dict(
        model.processor(
            text=[f"<image>{row['prompt']}" for row in rows],
            images=[[image] for row in rows for image in row["images"]],
            suffix=[row["completion"] for row in rows],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
    )


def train_with_trl(model: ImageTextModel, task: Task, samples: TrainingSamples, folder: Path) -> list[float]:
    """Train with TRL on the rows of captune's steps in their order; the loss of each step."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    is_paligemma = model.model.config.model_type == "paligemma"
    # The prompt that the chat template renders, and the end of the turn.
    prompt = INSTRUCTION if is_paligemma else model.conversation.inputs.prompt(INSTRUCTION)
    end = "" if is_paligemma else END_OF_TURN
    rows = [
        {"images": [task.pixels[sample.image]], "prompt": prompt, "completion": text + end}
        for step in range(STEPS)
        for sample in samples.batch(step)
        for text in sample.captions
    ]
    arguments = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=IMAGES * CAPTIONS,
        num_train_epochs=1,
        learning_rate=CONFIG.learning_rate,
        lr_scheduler_type="cosine",
        weight_decay=CONFIG.weight_decay,
        max_grad_norm=CONFIG.clip_norm,
        max_length=None,
        bf16=False,
        activation_checkpointing=False,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = SFTTrainer(
        model.adapter,
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=model.processor,
        data_collator=(lambda rows: paligemma_batch(model, rows)) if is_paligemma else None,
    )
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def joined(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([state[name].flatten().double() for name in sorted(state)])


@pytest.mark.parametrize(("family", "images_at_once"), [("qwen2_5_vl", IMAGES), ("idefics3", 1), ("paligemma", 1)])
def test_forty_steps_equal_those_of_trl(family: str, images_at_once: int, tmp_path: Path) -> None:
    task = make_task()
    folder = save_family(family, tmp_path / family)
    captune, trl = tiny_model(folder), tiny_model(folder)
    start = joined(captune.trained_state())
    step = steps_of(captune, task, images_at_once)
    losses = [step.run(number).loss for number in range(STEPS)]
    assert train_with_trl(trl, task, step.samples, tmp_path / "trl") == pytest.approx(losses, rel=1e-5)
    ended, expected = joined(captune.trained_state()), joined(trl.trained_state())
    assert torch.linalg.vector_norm(ended - expected) <= 1e-5 * torch.linalg.vector_norm(expected)
    # Also of the update: it is a good part of the weights.
    update = torch.linalg.vector_norm(expected - start)
    assert update > 0.1 * torch.linalg.vector_norm(start)
    assert torch.linalg.vector_norm(ended - expected) <= 1e-4 * update


def test_trl_trains_on_the_newline_after_the_turn_of_a_conversation(tmp_path: Path) -> None:
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    model = tiny_model(save_family("qwen2_5_vl", tmp_path))
    collator = DataCollatorForVisionLanguageModeling(model.processor, completion_only_loss=True)
    example = {
        "images": [make_task().pixels[0]],
        "prompt": [{"role": "user", "content": INSTRUCTION}],
        "completion": [{"role": "assistant", "content": "Red."}],
    }
    labels = collator([example])["labels"]
    newline = model.processor.tokenizer("\n").input_ids
    assert labels[labels != -100].tolist() == [*model.conversation.target_ids("Red."), *newline]


def test_trl_renders_no_completion_of_paligemma(tmp_path: Path) -> None:
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    model = tiny_model(save_family("paligemma", tmp_path))
    collator = DataCollatorForVisionLanguageModeling(model.processor, completion_only_loss=True)
    example = {"images": [make_task().pixels[0]], "prompt": f"<image>{INSTRUCTION}", "completion": "Red."}
    with pytest.raises(ValueError, match="images"):
        collator([example])
