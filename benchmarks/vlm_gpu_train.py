"""LoRA at true size on a CUDA GPU: captions and TFLOP a second and memory, against TRL's `SFTTrainer`.

    python benchmarks/vlm_gpu_train.py [--shape llava|qwen2_5_vl] [--json]   on a GPU; without one it exits with 2
    python benchmarks/vlm_gpu_train.py --tiny                                 the same program at tiny dims anywhere

Random bfloat16 weights of LLaVA-1.5-7B's and Qwen2.5-VL-3B's dims are made on the card. The peer is `training_step` of
TRL's trainer, forward and backward with its fused head on targets, on batches that were collated before, with and
without gradient checkpointing, which is its default. Captune computes the captions of an image in one packed row after
stored features, all images of a step in one forward (`train.micro_batch_size`). Rows of the table compute one image at
a time, which has too few tokens for a GPU, or leave out the features. Neither takes an optimizer step. A first pass is
timed separately. Operations are counted by formula, useful ones of a packed row only: 4 a weight and token. The
gradient in bfloat16 differs by rounding noise; the comparison in float32 on a shortened copy, by which captune chooses
its computation, is printed.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_models import clocked, matmul_rate
from measuring import Output, median, options, relative
from vlm_train import END_OF_TURN, LENGTH, PER_IMAGE, RANK, SHAPES, Task, trainer_of

# isort: split
import torch
import trl
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText
from vision_families import save_processor

from captune.captioner import complete_settings, load_processor
from captune.config import LoraConfig
from captune.vlm import ImageTextModel, ProbeSample, choose_computation

PEER, PEER_DEFAULT = "TRL SFTTrainer", "TRL, checkpointing"
WAYS = {
    "captune": {"features": True, "batch": True},
    "captune, one image": {"features": True, "batch": False},
    "captune, pixels": {"features": False, "batch": False},
}
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "llava": {
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
        "text_config": {
            "vocab_size": 32064,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
        },
    },
    "qwen2_5_vl": {
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
    },
}
TINY: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}


class GpuTask(Task):
    """Images and captions of one step, and a model whose weights are made on the device.

    Args:
        shape: a name of `SHAPES`.
        folder: for the processor.
        images: how many.
        device: of the model.
        tiny: whether the model has tiny dims.
    """

    def __init__(self, shape: str, folder: Path, images: int, device: torch.device, *, tiny: bool) -> None:
        self.recipe = SHAPES[shape][0]()
        self.device = device
        for part, sizes in SIZES[shape].items():
            section = self.recipe.config[part]
            if not tiny:
                section.update(sizes)
            elif part == "text_config":
                section.update(TINY, num_attention_heads=2, num_key_value_heads=2)
            elif "out_hidden_size" in section:
                section["out_hidden_size"] = TINY["hidden_size"]
        (folder / "config.json").write_text("{}")
        super().__init__(shape, folder, images)
        settings = dict(self.recipe.config)
        self.config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        self.config.save_pretrained(folder)
        save_processor(self.recipe, folder)

    def model(self) -> ImageTextModel:
        """The model with LoRA whose second matrices are not zero."""
        processor = load_processor(str(self.folder), AutoConfig.from_pretrained(self.folder), self.folder.name)
        torch.manual_seed(0)
        with torch.device(self.device):
            model = AutoModelForImageTextToText.from_config(self.config, dtype=torch.bfloat16)
        complete_settings(processor, model)
        model.generation_config.pad_token_id = 0
        model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(END_OF_TURN)
        prompt = " ".join(str(i) for i in range(20, 31))
        tuned = ImageTextModel(model, processor, name=self.folder.name, instruction=prompt)
        tuned.add_lora(LoraConfig(rank=RANK, alpha=2 * RANK, targets=("all-linear",)))
        with torch.no_grad():
            for key, parameter in tuned.trained_parameters():
                if "lora_B" in key:
                    parameter.normal_(0, 0.01)
        return tuned


def peer_step(model: ImageTextModel, task: Task, rows: int, *, checkpointing: bool) -> Callable[[], object]:
    """TRL's forward and backward of the first rows of a task."""
    trainer = trainer_of(model, task, checkpointing=checkpointing, rows=rows, on_cpu=task.device.type == "cpu")
    trainer.current_gradient_accumulation_steps = 1
    batch = next(iter(trainer.get_train_dataloader()))

    def step() -> None:
        model.model.zero_grad(set_to_none=True)
        # The step removes labels.
        trainer.training_step(trainer.model, dict(batch))

    return step


def captune_step(model: ImageTextModel, task: Task, count: int, *, features: bool, batch: bool) -> Callable[[], object]:
    """Captune's forward and backward of the first images of a task."""
    images: list[Any] = [model.encode(image) for image in task.images[:count]] if features else task.images[:count]
    captions = task.captions[:count]
    targets = count * PER_IMAGE * LENGTH

    def step() -> None:
        model.model.zero_grad(set_to_none=True)
        model.train()
        if batch:
            (model.batch_loss(images, captions, [None] * count) / targets).backward()
            return
        for image, texts in zip(images, captions, strict=True):
            (model.loss(image, texts, packed=True) / targets).backward()

    return step


def gradient(model: ImageTextModel) -> Tensor:
    """The gradient of the last step, on the CPU."""
    return torch.cat([p.grad.detach().float().flatten().cpu() for _, p in model.trained_parameters()])


def compare(shape: str, output: Output, device: torch.device, arguments: Any, folder: Path) -> float:
    """Run all ways by turns, print, and return captune's ratio."""
    on_gpu = device.type == "cuda"
    images = 2 if arguments.tiny else arguments.images
    task = GpuTask(shape, folder, images, device, tiny=arguments.tiny)
    model = task.model()
    samples = [ProbeSample(task.images[0], tuple(task.captions[0]))]
    computation = choose_computation(model, samples)
    peer_images = 2 if arguments.tiny else arguments.peer_images
    count = peer_images * PER_IMAGE
    # Captune first: TRL's wrappers change the forward of the model that they share.
    ways = {name: captune_step(model, task, images, **way) for name, way in WAYS.items()}
    first, peaks, gradients = {}, {}, {}
    seconds: dict[str, list[float]] = {}

    def measure(name: str, run: Callable[[], object]) -> None:
        first[name] = clocked(run, device)
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        run()
        peaks[name] = torch.cuda.max_memory_allocated() if on_gpu else 0
        seconds[name] = []

    # The gradient of the same images by both.
    captune_step(model, task, peer_images, features=True, batch=True)()
    gradients["captune"] = gradient(model)
    for name, run in ways.items():
        measure(name, run)
    ways[PEER] = peer_step(model, task, count, checkpointing=False)
    measure(PEER, ways[PEER])
    gradients[PEER] = gradient(model)
    for _ in range(arguments.rounds):
        for name, run in ways.items():
            seconds[name].append(clocked(run, device))
    ways[PEER_DEFAULT] = peer_step(model, task, count, checkpointing=True)
    measure(PEER_DEFAULT, ways[PEER_DEFAULT])
    seconds[PEER_DEFAULT] = [clocked(ways[PEER_DEFAULT], device) for _ in range(arguments.rounds)]
    rate = matmul_rate(device, 8192 if on_gpu else 512)
    prompt = model.conversation.prompt_of_size(task.images[0].size).length
    tokens = prompt + PER_IMAGE * (LENGTH - 1)
    assert model.decoder is not None
    weights = sum(p.numel() for p in model.decoder.layers.parameters())
    head = 4.0 * PER_IMAGE * LENGTH * model.model.get_output_embeddings().weight.numel()
    useful = (4.0 * weights * tokens + head) / PER_IMAGE
    done = {name: count if name.startswith("TRL") else images * PER_IMAGE for name in ways}
    speed = {name: done[name] / taken for name, taken in median(seconds).items()}
    output.say(f"\n{shape}: packed rows of {tokens} tokens; {images} images a step, TRL {peer_images}")
    rows = []
    for name in (PEER, PEER_DEFAULT, *WAYS):
        result = {
            "captions_per_s": speed[name],
            "ratio": speed[name] / speed[PEER],
            "useful_tflops": speed[name] * useful / 1e12,
            "of_matmul": speed[name] * useful / 1e12 / rate,
            "peak_gb": peaks[name] / 1e9,
            "first_pass_s": first[name],
        }
        output.line(kind="way", shape=shape, way=name, **result)
        rows.append([name, *(f"{value:,.4g}" for value in result.values())])
    output.table(["", "captions/s", "ratio", "useful TFLOP/s", "of matmul", "peak GB", "first pass s"], rows)
    difference = relative(gradients["captune"], gradients[PEER])
    output.say(f"Gradient of {peer_images} images in bfloat16, relative difference from TRL's: {difference:.2g}")
    output.say(f"Computation, by gradients of a shortened copy in float32: {computation.describe()}")
    output.line(kind="gradient", shape=shape, difference=difference, computation=computation.describe())
    return speed["captune"] / speed[PEER]


def main() -> int:
    """Compare the shapes."""
    warnings.simplefilter("ignore")
    parser = options(__doc__, rounds=5)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="by default both")
    parser.add_argument("--images", type=int, default=8, help="images of a step of captune, five captions each")
    parser.add_argument("--peer-images", type=int, default=2, help="images of a step of TRL")
    parser.add_argument("--tiny", action="store_true", help="tiny dims, on a CPU where there is no GPU: a test run")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        print("This benchmark needs a CUDA GPU, and torch finds none; --tiny tries it at tiny dims.", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else None
    output = Output(arguments.json, f"LoRA of rank {RANK}, random bfloat16 weights; TRL {trl.__version__}", name)
    ratios = {}
    for shape in arguments.shape or SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            ratios[shape] = compare(shape, output, device, arguments, Path(folder))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    output.line(kind="ratio", **ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
