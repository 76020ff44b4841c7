"""Pretrain the small Idefics3 model of the package: `python -m tools.toy.pretrain_vlm --out DIR`.

It has the shape of SmolVLM, and begins as that one did, with a vision tower and a language model that were pretrained
separately: those of the toy. There are two stages:

    1. vision      image ──tower──> connector ──> record (by a head that is discarded, see `FieldCodes`)
    2. joint       image ──tower──> connector ──> language model ──> notes
                                         notes ──> language model ──> caption

No image comes with a caption, so that fine-tuning has to connect both. It takes about seven minutes on one thread.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

from captune.vlm import Conversation, ImageTextModel
from tools.toy.pretrain import Optimizer
from tools.toy.pretraining_data import FIELDS, FieldCodes, PretrainingConfig, PretrainingData
from tools.toy.vlm_model import IMAGE_TOKENS, build_processor, build_vlm

__all__ = ["VLMPretrainingConfig", "main", "pretrain"]

IGNORED = -100
REWRITE = "Rewrite as a sentence: "
_CODE_WIDTH = 96


@dataclass(frozen=True, slots=True)
class VLMPretrainingConfig:
    """Everything that determines the checkpoint, except for the machine's arithmetic.

    Attributes:
        seed: of the scenes, the weights and every draw.
        scenes: distinct scenes; they are drawn once and seen several times.
        vision_steps: optimizer steps on tower and connector, 64 images each.
        joint_steps: optimizer steps on all parts, 24 images and 8 rows of text each.
    """

    seed: int = 7
    scenes: int = 20_000
    vision_steps: int = 700
    joint_steps: int = 700


class _Rows:
    """Makes batches of token ids of conversations with and without an image."""

    def __init__(self, processor: Idefics3Processor, conversation: Conversation, image_size: int) -> None:
        self._tokenizer, self._conversation = processor.tokenizer, conversation
        self._template = processor.apply_chat_template
        self._size = (image_size, image_size)

    def of_images(self, instructions: Sequence[str], answers: Sequence[str]) -> dict[str, Tensor]:
        """Inputs and labels of answers about images."""
        rows = []
        for instruction, answer in zip(instructions, answers, strict=True):
            prompt = self._conversation.prompt_of_size(self._size, instruction).inputs["input_ids"][0].tolist()
            rows.append((prompt, list(self._conversation.target_ids(answer, instruction))))
        return self._padded(rows)

    def of_text(self, questions: Sequence[str], answers: Sequence[str]) -> dict[str, Tensor]:
        """Inputs and labels of answers to text."""
        rows = []
        for question, answer in zip(questions, answers, strict=True):
            user = {"role": "user", "content": [{"type": "text", "text": question}]}
            prompt = self._tokenizer(self._template([user], add_generation_prompt=True)).input_ids
            rows.append((prompt, list(self._conversation.target_ids(answer))))
        return self._padded(rows)

    def _padded(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.full((len(rows), longest), self._tokenizer.pad_token_id)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for row, (prompt, answer) in enumerate(rows):
            first, last = len(prompt), len(prompt) + len(answer)
            ids[row, :last] = torch.tensor(prompt + answer)
            labels[row, first:last] = ids[row, first:last]
            mask[row, :last] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _image_tokens(model: Idefics3ForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Image tokens (B, N, D) of pixels (B, 3, S, S)."""
    tokens: Tensor = model.model.connector(model.model.vision_model(pixels).last_hidden_state)
    return tokens


def pretrain(out: Path, config: VLMPretrainingConfig) -> None:
    """Pretrain the model and save it with its processor.

    Args:
        out: folder for the model; its weights are stored in half precision.
        config: everything that determines the result.
    """
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    # Small gradients hold denormal numbers, on which a CPU is four times slower.
    torch.set_flush_denormal(True)
    processor = build_processor()
    model = build_vlm(processor)
    conversation = ImageTextModel(model, processor, name="toy-vlm").conversation
    model.requires_grad_(True).train()
    codes = FieldCodes(_CODE_WIDTH, config.seed)
    records = nn.Linear(IMAGE_TOKENS * model.config.text_config.hidden_size, len(FIELDS) * _CODE_WIDTH)
    data = PretrainingData(PretrainingConfig(seed=config.seed, scenes=config.scenes), codes, stage=4)

    def record_loss(tokens: Tensor, ids: Tensor) -> Tensor:
        return codes.loss(records(tokens.flatten(1)).unflatten(1, (len(FIELDS), -1)), ids)

    vision = [*model.model.vision_model.parameters(), *model.model.connector.parameters()]
    optimizer = Optimizer("vision", [*vision, *records.parameters()], config.vision_steps, 1e-3)
    for _ in range(config.vision_steps):
        pixels, ids, _ = data.images(64)
        optimizer.step(record_loss(_image_tokens(model, pixels), ids))

    rows = _Rows(processor, conversation, model.config.vision_config.image_size)
    optimizer = Optimizer("joint", [*model.parameters(), *records.parameters()], config.joint_steps, 1e-3)
    for _ in range(config.joint_steps):
        pixels, ids, notes = data.images(24)
        output = model(**rows.of_images(data.instructions(len(notes)), notes), pixel_values=pixels.unsqueeze(1))
        loss = output.loss + 0.2 * record_loss(output.image_hidden_states.unflatten(0, (len(ids), -1)), ids)
        questions, captions = data.rewritings(8)
        loss = loss + 0.5 * model(**rows.of_text([REWRITE + text for text in questions], captions)).loss
        optimizer.step(loss)
    model.eval().half().save_pretrained(out)
    processor.save_pretrained(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and pretrain."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.toy.pretrain_vlm", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    for field in fields(VLMPretrainingConfig):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=field.default, help=f"default {field.default}")
    options = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    pretrain(options.pop("out"), VLMPretrainingConfig(**options))


if __name__ == "__main__":
    main()
