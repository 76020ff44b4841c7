"""Captions trained a second: captune against transformers' BLIP-2 under transformers' Trainer, on the same weights.

    python benchmarks/train_step.py [--json]

The peer is `Blip2ForConditionalGeneration` with a LLaMA text model, everything frozen but `language_projection`,
trained by `Trainer` with dropout 0: one row a caption, the tower for each of them in every epoch, logits everywhere.
Captune trains the same module objects on the same batches in the same order: it decodes the image files and runs the
tower once (counted), keeps the features on disk and reads them from there, for five epochs. The peer's pixels are
decoded in memory, which is in its favour. The steps are taken by turns, one of each way, so that a busy neighbour of
the machine is in the way of all of them. Dims: language model 512 x 8, tower 192 x 6 at 257 tokens, 8 images x 5
captions of 14 tokens a step, vocabulary 4,096; the tower takes a fifth of the peer's work, as ViT-g does with
Vicuna-7B.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from measuring import INSTRUCTION, Output, captions, median, options, relative, use_numbers

# isort: split
import numpy as np
import torch
from PIL import Image
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from captune.config import RunConfig, parse_config
from captune.data import content_ids
from captune.data.images import load_image, to_pixels
from captune.data.manifest import Sample
from captune.distributed import DistributedContext
from captune.features import FeatureStore, TowerIdentity, encode_missing
from captune.model import IMAGE_SLOT, MiniGPT4, MiniGPT4Config
from captune.training.equivalence import CheckedObjective
from captune.training.loss import Objective
from captune.training.optimizer import build_optimizer, learning_rate
from captune.training.sample_order import TrainingSamples
from captune.training.trainer import TrainStep

VOCABULARY, WIDTH, LAYERS, QUERIES, PER_STEP, PER_IMAGE = 4096, 512, 8, 32, 8, 5
IMAGE_ID = VOCABULARY - 1
PIECES = {
    "captune": {},
    "captune, plain rows": {"shared_prefix": False, "constant_prefix": False, "target_logits": False},
}


def build_peer() -> Blip2ForConditionalGeneration:
    """BLIP-2 with random weights, large enough in the language model that attention is far from uniform."""
    torch.manual_seed(0)
    vision = Blip2VisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=224,
        patch_size=14,
    )
    qformer = Blip2QFormerConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=6,
        encoder_hidden_size=192,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 43 // 16,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 64,
        max_position_embeddings=512,
    )
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=IMAGE_ID,
    )
    peer = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        peer.query_tokens.normal_()
        for parameter in peer.language_model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    for name, parameter in peer.named_parameters():
        parameter.requires_grad_(name.startswith("language_projection."))
    return peer.eval()


def same_parts(peer: Blip2ForConditionalGeneration) -> MiniGPT4:
    """Captune's model of the peer's modules, with a copy of its projection."""
    # A copy, because making a model of a configuration changes it.
    config = copy.deepcopy(peer.config)
    model = MiniGPT4(
        MiniGPT4Config(
            vision_config=config.vision_config,
            qformer_config=config.qformer_config,
            text_config=config.text_config,
            query_tokens=QUERIES,
        ),
        parts=(),
    )
    model.vision, model.qformer, model.llm = peer.vision_model, peer.qformer, peer.language_model
    model.query_tokens = peer.query_tokens
    assert model.llm.config._attn_implementation == "sdpa"
    model.projection.load_state_dict(peer.language_projection.state_dict())
    return use_numbers(model.freeze().eval())


def with_copied_projection(model: MiniGPT4) -> MiniGPT4:
    """A model of the same modules except for a copy of the projection."""
    other = copy.copy(model)
    other._modules = {**model._modules, "projection": copy.deepcopy(model.projection)}
    return other


class Task:
    """One training, for both: files, captions, order and schedule."""

    def __init__(self, folder: Path, images: int, epochs: int, lengths: tuple[int, int]) -> None:
        random = np.random.default_rng(0)
        self.files = [folder / f"{n}.png" for n in range(images)]
        for file in self.files:
            small = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8))
            small.resize((320, 240), Image.Resampling.BICUBIC).save(file)
        self.pixels = torch.from_numpy(np.stack([to_pixels(load_image(file), 224) for file in self.files]))
        texts = captions(images * PER_IMAGE, lengths, IMAGE_ID)
        rows = [tuple(texts[n * PER_IMAGE : (n + 1) * PER_IMAGE]) for n in range(images)]
        pairs = zip(self.files, rows, strict=True)
        self.images = [Sample(str(n), file.name, row, "train") for n, (file, row) in enumerate(pairs)]
        self.folder, self.epochs = folder, epochs
        self.config = self.settings()
        self.samples = TrainingSamples(self.images, self.config.train, 0)
        self.captions = images * PER_IMAGE * epochs

    def settings(self, **fast: bool) -> RunConfig:
        """The configuration of the run, with these optimizations set."""
        return parse_config(
            {
                "model": {"instruction": INSTRUCTION},
                "train": {
                    "epochs": self.epochs,
                    "batch_size": PER_STEP * PER_IMAGE,
                    "captions_per_image": PER_IMAGE,
                    "learning_rate": 1e-3,
                    "warmup_steps": 2,
                    "debug": fast,
                },
            }
        )


class Peer:
    """The Trainer's side."""

    def __init__(self, peer: Blip2ForConditionalGeneration, task: Task, layout: Any) -> None:
        self.model, self._task = peer, task
        self._start = {name: value.clone() for name, value in peer.language_projection.state_dict().items()}
        prompt = [IMAGE_ID if i == IMAGE_SLOT else i for i in layout.prompt(INSTRUCTION).ids]
        self.rows = []
        for step in range(task.samples.total_steps):
            for sample in task.samples.batch(step):
                for caption in sample.captions:
                    ids = layout.target_ids(caption)[0]
                    row = {"input_ids": [*prompt, *ids], "labels": [-100] * len(prompt) + list(ids)}
                    self.rows.append({**row, "image": sample.image})

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A padded batch of rows, with the pixels of their images."""
        width = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, filler: int) -> torch.Tensor:
            return torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in rows])

        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
        pixels = self._task.pixels[[row["image"] for row in rows]]
        return {
            "pixel_values": pixels,
            "input_ids": padded("input_ids", 0),
            "attention_mask": mask,
            "labels": padded("labels", -100),
        }

    def gradient(self) -> tuple[float, torch.Tensor]:
        """Loss and gradient of the first step by the model's forward."""
        self.reset()
        loss = self.model(**self.collate(self.rows[: PER_STEP * PER_IMAGE])).loss
        return float(loss.detach()), torch.autograd.grad(loss, self.model.language_projection.weight)[0]

    def reset(self) -> None:
        """Set the projection to its initial weights."""
        self.model.language_projection.load_state_dict(self._start)

    def train(self, between: TrainerCallback) -> list[float]:
        """All steps under the Trainer; the loss of each.

        Args:
            between: called after every step.
        """
        self.reset()
        train = self._task.config.train
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = build_optimizer(parameters, train.model_copy(update={"learning_rate": 1.0}))
        steps = self._task.samples.total_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps, train))
        arguments = TrainingArguments(
            output_dir=str(self._task.folder / "peer"),
            per_device_train_batch_size=PER_STEP * PER_IMAGE,
            num_train_epochs=1,
            max_grad_norm=train.clip_norm,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            self.model,
            arguments,
            data_collator=self.collate,
            train_dataset=self.rows,
            optimizers=(optimizer, schedule),
            callbacks=[between],
        )
        trainer.pop_callback(PrinterCallback)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train(
    model: MiniGPT4, task: Task, start: dict[str, torch.Tensor], fast: dict[str, bool]
) -> Generator[float, None, None]:
    """The loss of each step of captune; the features of every image are made before the first."""
    model.projection.load_state_dict(start)
    with tempfile.TemporaryDirectory(dir=task.folder) as root:
        identity = TowerIdentity("", "", "", torch.float32, QUERIES, model.config.feature_size)
        store = FeatureStore(Path(root), identity)
        contents = [bytes(content) for content in content_ids(task.files, Path(root))]
        encode_missing(model.eval(), task.files, contents, store, store.missing(contents), batch_size=PER_STEP)
        store.refresh()
        config = task.settings(**fast)
        features, dist = store.read(contents), DistributedContext(torch.device("cpu"))
        objective = CheckedObjective(model, INSTRUCTION, config.train.enabled_optimizations)
        step = TrainStep(model.train(), objective, task.images, features, config.train, seed=0, dist=dist)
        for number in range(step.samples.total_steps):
            yield step.run(number).loss


class ByTurns(TrainerCallback):
    """After each step of the Trainer one of every other way.

    Args:
        ways: each gives its losses.

    Attributes:
        losses: of the steps taken, by way.
        seconds: of processor time that they took, by way.
    """

    def __init__(self, ways: dict[str, Generator[float, None, None]]) -> None:
        self._ways = ways
        self.losses: dict[str, list[float]] = {name: [] for name in ways}
        self.seconds = dict.fromkeys(ways, 0.0)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Take and time one step of every other way."""
        for name, steps in self._ways.items():
            began = time.process_time()
            self.losses[name].append(next(steps))
            self.seconds[name] += time.process_time() - began


def gradient(model: MiniGPT4, task: Task, fast: dict[str, bool]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of the first step of captune."""
    batch = task.samples.batch(0)
    with torch.no_grad():
        features = model.encode_features(task.pixels[[sample.image for sample in batch]])
    objective = Objective(model, INSTRUCTION, task.settings(**fast).train.enabled_optimizations)
    loss = objective.loss(batch, features) / objective.target_count(batch)
    return float(loss.detach()), torch.autograd.grad(loss, model.projection.weight)[0]


def main() -> int:
    """Train both ways by turns and compare rates, losses and weights."""
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs=2, default=(14, 14), help="fewest and most tokens of a caption")
    arguments = parser.parse_args()
    title = f"{arguments.images} images x {PER_IMAGE} captions, {arguments.epochs} epochs, features included"
    output = Output(arguments.json, title)
    with tempfile.TemporaryDirectory() as folder:
        task = Task(Path(folder), arguments.images, arguments.epochs, tuple(arguments.lengths))
        blip2 = build_peer()
        model = same_parts(blip2)
        # The order in which captune's `TrainStep` deals them.
        objective = Objective(model, INSTRUCTION, task.config.train.enabled_optimizations)
        task.samples = TrainingSamples(task.images, task.config.train, 0, objective.row_tokens)
        peer = Peer(blip2, task, model.processor.layout)
        start = {name: value.clone() for name, value in model.projection.state_dict().items()}
        peer_loss, peer_gradient = peer.gradient()
        first = {name: gradient(model, task, fast) for name, fast in PIECES.items()}
        models = {name: with_copied_projection(model) for name in PIECES}
        seconds: dict[str, list[float]] = {name: [] for name in ("peer", *PIECES)}
        for _ in range(arguments.rounds):
            turns = ByTurns({name: train(models[name], task, start, fast) for name, fast in PIECES.items()})
            began = time.process_time()
            losses = {"peer": peer.train(turns), **turns.losses}
            seconds["peer"].append(time.process_time() - began - sum(turns.seconds.values()))
            for name, taken in turns.seconds.items():
                seconds[name].append(taken)
    weights = {name: models[name].projection.weight.detach() for name in PIECES}
    weights["peer"] = blip2.language_projection.weight.detach()
    rate = {name: task.captions / value for name, value in median(seconds).items()}
    update = (weights["peer"] - start["weight"]).norm()
    each_round = [f"{a / b:.2f}" for a, b in zip(seconds["peer"], seconds["captune"], strict=True)]
    rows = []
    for name in seconds:
        loss, first_gradient = first.get(name, (peer_loss, peer_gradient))
        values = {
            "captions_per_s": round(rate[name], 2),
            "ratio": round(rate[name] / rate["peer"], 3),
            "loss_difference": abs(loss - peer_loss) / peer_loss,
            "gradient_relative_difference": relative(first_gradient, peer_gradient),
            "largest_loss_difference": max(abs(a - b) / b for a, b in zip(losses[name], losses["peer"], strict=True)),
            "trajectory_difference": float((weights[name] - weights["peer"]).norm() / update),
        }
        rows.append(values)
        label = "transformers Blip2 + Trainer" if name == "peer" else name
        output.line(kind="way", way=label, **values)
    head = ["", "captions/s", "ratio", "loss diff.", "gradient diff.", f"in {len(losses['peer'])} steps", "weights"]
    labels = ["transformers Blip2 + Trainer", *PIECES]
    output.table(
        head,
        [
            [
                label,
                f"{row['captions_per_s']:.1f}",
                f"{row['ratio']:.2f}",
                *(f"{v:.1e}" for v in list(row.values())[2:]),
            ]
            for label, row in zip(labels, rows, strict=True)
        ],
    )
    output.say(
        f"\nRatio of captune in each round: {', '.join(each_round)}.\n"
        "Differences are relative to the peer: loss and projection gradient of the first step, the largest loss\n"
        "difference of any step, and the final weights' distance over the length of the whole update."
    )
    output.line(kind="result", **rows[1])
    return 0 if rows[1]["gradient_relative_difference"] < 1e-5 and rows[1]["loss_difference"] < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
