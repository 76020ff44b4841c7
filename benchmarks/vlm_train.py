"""Captions trained a second with LoRA: captune against TRL's `SFTTrainer`, on the same model and rows.

    python benchmarks/vlm_train.py [--shape llava|qwen2_5_vl] [--json]

The peer is TRL's trainer as it is: `train()` of its own loop, collator and optimizer included, without gradient
checkpointing, which is its default and would slow it down. One row a caption, the vision tower for each of them. On a
CPU its head computes every position; a second row of the table restricts it to the targets, as it does on a GPU.
Captune computes the captions of an image in one packed row after stored image features; the rows below leave out one of
both. All ways take one step by turns, so that a busy neighbour of the machine is in the way of all of them. The first
step is not timed. Features are encoded before; what that adds to an epoch is printed.

Shapes: a decoder of 512 x 8 with 25 million parameters, LoRA of rank 16 on all of its linear layers, vocabulary 4,096,
5 captions of 14 tokens an image. `llava`: CLIP tower of a fiftieth of the decoder's size, 24 x 24 = 576 image tokens,
as LLaVA-1.5-7B. `qwen2_5_vl`: tower of a tenth of it and 4 patches a token, 340 image tokens, as Qwen2.5-VL-7B.

The floor is the time of a packed row's operations, counted by formula, at the rate of a matrix product of this run: 4 a
weight and token (forward, and backward to the activations), 12 a pair of tokens and channel for attention. Memory is
the largest resident size of a separate process that takes three steps, and how much of it the steps added.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

from measuring import Output, captions, options, relative

# isort: split
import numpy as np
import torch
import trl.trainer.utils
import vision_families
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from captune.captioner import complete_settings, load_processor
from captune.config import LoraConfig, TrainConfig
from captune.training.optimizer import build_optimizer, learning_rate
from captune.vlm import ImageTextModel

VOCABULARY, WIDTH, LAYERS, RANK, PER_IMAGE, LENGTH = 4096, 512, 8, 16, 5, 14
END_OF_TURN = "<|im_end|>"
SETTINGS = TrainConfig(learning_rate=2e-4, min_learning_rate=0.0, warmup_steps=0)
WAYS = {
    "captune": {"features": True, "packed": True},
    "captune, pixels": {"features": False, "packed": True},
    "captune, plain rows": {"features": True, "packed": False},
}
PEER, PEER_TARGETS = "TRL SFTTrainer", "TRL, head on targets"


def words(*special: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are numbers."""
    names = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant"]
    vocabulary = {str(i): i for i in range(len(names), VOCABULARY - 16)}
    backend = Tokenizer(models.WordLevel({**dict(zip(names, range(len(names)), strict=True)), **vocabulary}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", END_OF_TURN, *special]})
    return tokenizer


def decoder(kind: str, **more: Any) -> dict[str, Any]:
    """Settings of the language model."""
    heads = WIDTH // 64
    return {
        **({"model_type": kind} if kind else {}),
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH * 43 // 16,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **more,
    }


def llava() -> vision_families.Recipe:
    """LLaVA-1.5's shape."""
    tokenizer = words("<image>")
    side = {"height": 336, "width": 336}
    tower = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 2}
    return vision_families.Recipe(
        {
            "model_type": "llava",
            "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, **tower},
            "text_config": decoder("llama"),
            "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
            "image_seq_length": 576,
        },
        tokenizer,
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336}, "crop_size": side},
        "LlavaProcessor",
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        vision_families.chat("<image>\n"),
    )


def qwen2_5_vl() -> vision_families.Recipe:
    """Qwen2.5-VL's shape."""
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    tokenizer = words(*(f"<|{name}|>" for name in names))
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names}
    rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
    return vision_families.Recipe(
        {
            "model_type": "qwen2_5_vl",
            "vision_config": {
                "depth": 6,
                "hidden_size": 192,
                "intermediate_size": 512,
                "num_heads": 3,
                "out_hidden_size": WIDTH,
                "fullatt_block_indexes": [2, 5],
            },
            "text_config": decoder("", rope_parameters=rotary),
            "image_token_id": ids["image_pad"],
            "video_token_id": ids["video_pad"],
            "vision_start_token_id": ids["vision_start"],
            "vision_end_token_id": ids["vision_end"],
        },
        tokenizer,
        {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14},
        "Qwen2_5_VLProcessor",
        template=vision_families.chat("<|vision_start|><|image_pad|><|vision_end|>"),
    )


SHAPES = {"llava": (llava, (500, 375)), "qwen2_5_vl": (qwen2_5_vl, (560, 476))}


class Task:
    """One training, for all ways: one image with its captions a step.

    Args:
        shape: a name of `SHAPES`.
        folder: for the model.
        steps: how many.
    """

    def __init__(self, shape: str, folder: Path, steps: int) -> None:
        recipe, size = SHAPES[shape]
        vision_families.FAMILIES[f"{shape} of middle size"] = recipe
        self.folder, self.steps = folder, steps
        if not (folder / "config.json").exists():
            vision_families.save_family(f"{shape} of middle size", folder)
        random = np.random.default_rng(0)
        self.images = [
            Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
            for _ in range(steps)
        ]
        texts = captions(steps * PER_IMAGE, (LENGTH, LENGTH), VOCABULARY - 16)
        self.captions = [texts[n * PER_IMAGE : (n + 1) * PER_IMAGE] for n in range(steps)]

    def model(self) -> ImageTextModel:
        """The model with LoRA whose second matrices are not zero."""
        name = self.folder.name
        processor = load_processor(str(self.folder), AutoConfig.from_pretrained(self.folder), name)
        model = AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32)
        complete_settings(processor, model)
        model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(END_OF_TURN)
        prompt = " ".join(str(i) for i in range(20, 31))
        tuned = ImageTextModel(model, processor, name=name, instruction=prompt)
        tuned.add_lora(LoraConfig(rank=RANK, alpha=2 * RANK, targets=("all-linear",)))
        torch.manual_seed(0)
        with torch.no_grad():
            for key, parameter in tuned.trained_parameters():
                if "lora_B" in key:
                    parameter.normal_(0, 0.01)
        assert tuned.find_features()
        return tuned


def trainer_of(
    model: ImageTextModel, task: Task, *, checkpointing: bool = False, rows: int = PER_IMAGE, on_cpu: bool = True
) -> SFTTrainer:
    """TRL's trainer on the captions of a task, so many rows a step."""
    assert model.conversation.instruction is not None
    prompt = model.conversation.inputs.prompt(model.conversation.instruction)
    examples = [
        {"images": [image], "prompt": prompt, "completion": f"{text}{END_OF_TURN}"}
        for image, texts in zip(task.images, task.captions, strict=True)
        for text in texts
    ]
    arguments = SFTConfig(
        output_dir=str(task.folder / "trl"),
        per_device_train_batch_size=rows,
        num_train_epochs=1,
        learning_rate=SETTINGS.learning_rate,
        lr_scheduler_type="cosine",
        weight_decay=SETTINGS.weight_decay,
        max_grad_norm=SETTINGS.clip_norm,
        max_length=None,
        bf16=False,
        activation_checkpointing=checkpointing,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=on_cpu,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = Dataset.from_list(examples)
    trainer = SFTTrainer(model.adapter, arguments, train_dataset=data, processing_class=model.processor)
    trainer.pop_callback(PrinterCallback)
    return trainer


def step_by_step(trainer: SFTTrainer, task: Task) -> Generator[float, None, None]:
    """The steps of TRL's trainer with the head on targets only: its `training_step`, clipping and optimizer."""
    trainer.create_optimizer_and_scheduler(task.steps)
    trainer.current_gradient_accumulation_steps = 1
    batches = iter(trainer.get_train_dataloader())
    for _ in range(task.steps):
        patched = trl.trainer.utils._use_triton
        trl.trainer.utils._use_triton = lambda device: True
        loss = trainer.training_step(trainer.model, next(batches))
        trl.trainer.utils._use_triton = patched
        nn.utils.clip_grad_norm_([p for p in trainer.model.parameters() if p.requires_grad], SETTINGS.clip_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.optimizer.zero_grad()
        yield float(loss)


def train(model: ImageTextModel, task: Task, *, features: bool, packed: bool) -> Generator[float, None, None]:
    """The loss of each step of captune."""
    images: list[Any] = [model.encode(image) for image in task.images] if features else task.images
    parameters = [parameter for _, parameter in model.trained_parameters()]
    optimizer = build_optimizer(parameters, SETTINGS)
    model.train()
    for step, (image, texts) in enumerate(zip(images, task.captions, strict=True)):
        targets = sum(len(model.conversation.target_ids(text)) for text in texts)
        optimizer.zero_grad()
        loss = model.loss(image, texts, packed=packed) / targets
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, SETTINGS.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, task.steps, SETTINGS)
        optimizer.step()
        yield float(loss.detach())


class ByTurns(TrainerCallback):
    """After each step of TRL's trainer one of every other way.

    Args:
        ways: each gives its losses.

    Attributes:
        seconds: of processor time of every step, by way.
        losses: of the steps, by way.
    """

    def __init__(self, ways: dict[str, Generator[float, None, None]]) -> None:
        self._ways = ways
        self.seconds: dict[str, list[float]] = {name: [] for name in (PEER, *ways)}
        self.losses: dict[str, list[float]] = {name: [] for name in ways}
        self._began = time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Take and time one step of every other way."""
        self.seconds[PEER].append(time.process_time() - self._began)
        for name, steps in self._ways.items():
            began = time.process_time()
            self.losses[name].append(next(steps))
            self.seconds[name].append(time.process_time() - began)
        self._began = time.process_time()


def gradient(model: ImageTextModel, task: Task, **way: bool) -> Tensor:
    """The gradient of the first step by captune."""
    image = model.encode(task.images[0]) if way["features"] else task.images[0]
    loss = model.loss(image, task.captions[0], packed=way["packed"]) / (PER_IMAGE * LENGTH)
    parameters = [parameter for _, parameter in model.trained_parameters()]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])


def peer_gradient(trainer: SFTTrainer) -> Tensor:
    """The gradient of the first step by TRL."""
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer.compute_loss(trainer.model, inputs)
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])


def floor(model: ImageTextModel, task: Task) -> tuple[int, float, float]:
    """Tokens and operations of a packed row, and operations per second of a matrix product of its size."""
    prompt = model.conversation.prompt_of_size(task.images[0].size).length
    # The last target is not read.
    tokens = prompt + PER_IMAGE * (LENGTH - 1)
    assert model.decoder is not None
    linear = sum(p.numel() for p in model.decoder.layers.parameters() if p.ndim > 1 and not p.requires_grad)
    adapters = sum(p.numel() for p in model.decoder.layers.parameters() if p.requires_grad)
    count = 4.0 * linear * tokens + 6.0 * adapters * tokens + 12.0 * tokens**2 * WIDTH * LAYERS
    count += 4.0 * VOCABULARY * WIDTH * PER_IMAGE * LENGTH
    one, other = torch.randn(tokens, WIDTH), torch.randn(WIDTH, WIDTH * 43 // 16)
    seconds = []
    for _ in range(30):
        began = time.process_time()
        one @ other
        seconds.append(time.process_time() - began)
    return tokens, count, 2.0 * tokens * other.numel() / statistics.median(seconds)


def resident(field: str) -> float:
    """Resident memory of this process in MB, `VmRSS` or the largest since `clear_refs`, `VmHWM`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def memory(way: str, shape: str, folder: Path) -> tuple[float, float]:
    """The largest resident memory in MB of a process that takes two steps, and what the steps added."""
    command = [sys.executable, __file__, "--shape", shape, "--memory", way, "--folder", str(folder)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak, before = json.loads(shown.splitlines()[-1])
    return peak, peak - before


def measure_this_process(way: str, task: Task) -> None:
    """Take the steps of a way and print the largest resident memory and that before the steps."""
    model = task.model()
    checkpointing = way.endswith("checkpointing")
    if way.startswith("TRL"):
        run = trainer_of(model, task, checkpointing=checkpointing).train
    else:
        if checkpointing:
            model.checkpoint_activations()

        def run() -> None:
            list(train(model, task, **WAYS["captune"]))

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    run()
    print(json.dumps([resident("VmHWM"), before]))


def compare(shape: str, output: Output, folder: Path, rounds: int) -> float:
    """Train all ways by turns, print, and return captune's ratio."""
    task = Task(shape, folder, rounds + 1)
    first = task.model()
    tokens, operations, rate = floor(first, task)
    expected = peer_gradient(trainer_of(task.model(), task))
    differences = {name: relative(gradient(first.train(), task, **way), expected) for name, way in WAYS.items()}
    start = first.trained_state()
    tuned_models = {name: task.model() for name in WAYS}
    peers = {name: task.model() for name in (PEER, PEER_TARGETS)}
    ways = {name: train(model, task, **WAYS[name]) for name, model in tuned_models.items()}
    turns = ByTurns({PEER_TARGETS: step_by_step(trainer_of(peers[PEER_TARGETS], task), task), **ways})
    trainer = trainer_of(peers[PEER], task)
    trainer.add_callback(turns)
    trainer.train()
    # The last step of a generator is followed by nothing that would be timed.
    began = time.process_time()
    first.encode(task.images[0])
    encoding = time.process_time() - began
    weights = {name: joined(model.trained_state()) for name, model in {**peers, **tuned_models}.items()}
    update = (weights[PEER] - joined(start)).norm()
    taken = {name: statistics.median(seconds[1:]) for name, seconds in turns.seconds.items()}
    peak = {name: memory(name, shape, folder) for name in (PEER, "captune")}
    names = (PEER, PEER_TARGETS, *WAYS)
    title = f"\n{shape}: row of {tokens} tokens with all captions; {rounds} steps of 1 image x {PER_IMAGE} captions"
    output.say(title)
    rows = []
    for name in names:
        ratios = [a / b for a, b in zip(turns.seconds[PEER][1:], turns.seconds[name][1:], strict=True)]
        ratio = statistics.median(ratios)
        moved = float((weights[name] - weights[PEER]).norm() / update)
        shown = [f"{taken[name]:.2f}", f"{PER_IMAGE / taken[name]:.2f}", f"{ratio:.2f}"]
        shown += [f"{min(ratios):.2f}-{max(ratios):.2f}"]
        shown += [f"{differences[name]:.1e}" if name in differences else "-", f"{moved:.1e}"]
        rows.append([name, *shown])
        output.line(kind="way", shape=shape, name=name, seconds=turns.seconds[name][1:], ratio=ratio, weights=moved)
    output.table(["", "s a step", "captions/s", "ratio", "range", "gradient diff.", "weights diff."], rows)
    count = f"{operations / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s"
    lowest = operations / rate
    output.say(f"Floor of a packed row: {count} = {lowest:.2f} s; captune takes {taken['captune'] / lowest:.2f} of it.")
    included = taken["captune"] + encoding / 3
    output.say(
        f"Encoding an image once takes {encoding:.2f} s; with it, over 3 epochs, the ratio is "
        f"{taken[PEER] / included:.2f}."
    )
    extra = {name: memory(name, shape, folder) for name in (f"{PEER}, checkpointing", "captune, checkpointing")}
    for name, (largest, added) in {**peak, **extra}.items():
        output.say(f"Peak memory of {name}: {largest:.0f} MB, of which the steps added {added:.0f} MB.")
        output.line(kind="memory", shape=shape, name=name, peak=largest, added=added)
    return statistics.median(
        [a / b for a, b in zip(turns.seconds[PEER][1:], turns.seconds["captune"][1:], strict=True)]
    )


def joined(state: dict[str, Tensor]) -> Tensor:
    """All tensors of a state as one vector, in float64."""
    return torch.cat([state[name].flatten().double() for name in sorted(state)])


def main() -> int:
    """Compare both shapes."""
    warnings.simplefilter("ignore")
    parser = options(__doc__, rounds=5)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="by default both")
    parser.add_argument("--memory", help="measure this way in this process")
    parser.add_argument("--folder", type=Path, help="of the model, with --memory")
    arguments = parser.parse_args()
    if arguments.memory:
        torch.set_num_threads(1)
        measure_this_process(arguments.memory, Task(arguments.shape[0], arguments.folder, 3))
        return 0
    output = Output(arguments.json, f"LoRA of rank {RANK}, float32; TRL {trl.__version__}")
    ratios = {}
    for shape in arguments.shape or SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            ratios[shape] = compare(shape, output, Path(folder), arguments.rounds)
    output.say(
        "\nTime is processor time of one thread; ratio and its range are to TRL's step of the same turn.\n"
        "Differences are relative to TRL: the gradient of the first step, and the final weights over the length of\n"
        "the complete update."
    )
    output.line(kind="ratio", **ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
