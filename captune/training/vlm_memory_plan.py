"""Will a run that tunes a transformers model fit? Its memory and disk from the configuration, without its weights.

A micro-batch is one image with its captions: in one packed row, or in one row per caption. With `micro_batch_size`, it
is several packed rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from captune.config import DEFAULT_LORA, RunConfig, parse_config
from captune.data import image_size, resolve_image
from captune.errors import DataError
from captune.evaluation import training_images
from captune.hub import ResolvedModel, resolve_model
from captune.model import FLOAT32, RESERVE, MemoryEstimate, Part, compute_dtype, fed_tokens, saved_bytes
from captune.training.memory_plan import Measured, Plan, Proposal, halved, worst_case_batch
from captune.training.vlm_loss import images_at_once
from captune.training.vlm_model import load_image_text_for_training
from captune.vlm import ImageTextMemory

__all__ = ["ImageTextPlanner", "StoreForecast", "measure_image_text_memory"]

_SIZES = 32
"""Images whose sizes are read for lengths of prompts and sizes of features."""
_USUAL_SIZE = (500, 375)
"""Width and height of the image that is planned with if there is no data."""


@dataclass(frozen=True, slots=True)
class StoreForecast:
    """The disk that a feature store takes.

    Attributes:
        image_bytes: of an image, on average.
        images: number of training images.
        free: bytes of the disk that are free.
        used: whether `train.feature_store` stores features; auto needs twice their bytes.
    """

    image_bytes: int
    images: int
    free: int
    used: bool

    @property
    def total(self) -> int:
        """Bytes of all images."""
        return self.image_bytes * self.images


class ImageTextPlanner:
    """Predicts the memory of runs of one transformers model on one data set.

    Args:
        config: of the run.
        device: where it will run; its kind decides the number format and the reserve.
        processes: that share each step.
        caption_tokens: length of the longest captions, instead of the data's own.

    Attributes:
        device: as given.
        processes: as given.
        from_data: whether captions and sizes are the data's own.
        sizes: (width, height) of some training images.
    """

    def __init__(
        self, config: RunConfig, device: torch.device, *, processes: int = 1, caption_tokens: int | None = None
    ) -> None:
        self._config, self.device, self.processes = config, device, processes
        self._memories: dict[tuple[object, ...], ImageTextMemory] = {}
        captions = None if caption_tokens else worst_case_batch(config)
        self.from_data = captions is not None
        self._captions = captions[0] if captions else ()
        count = config.train.captions_per_image if config.train.caption_targets == "separate" else 1
        length = caption_tokens or 2 * config.evaluate.max_new_tokens
        # Rows of ids that share no beginning.
        self._made_up = [[number + 1] * length for number in range(count)]
        self.sizes, self._images = _image_sizes(config)

    def memory(self, config: RunConfig) -> ImageTextMemory:
        """The model in the configuration's number format and quantization, with its trained parts."""
        dtype = compute_dtype(config.model.dtype, self.device)
        complete = bool({"language_model", "vision_tower"} & set(config.train.parts))
        lora = None if complete else config.train.lora or DEFAULT_LORA
        key = (dtype, config.model.quantization, lora, config.train.parts)
        if key not in self._memories:
            # The default of the configuration is a sentence; some families have task prompts.
            instruction = self._config.model.instruction
            self._memories[key] = ImageTextMemory(
                resolve_model(config.model),
                dtype,
                lora=lora,
                parts=config.train.parts,
                instruction=instruction if "instruction" in self._config.model.model_fields_set else None,
            )
        return self._memories[key]

    def plan(self, config: RunConfig | None = None) -> Plan:
        """What a configuration takes; by default the run's own."""
        config = config or self._config
        memory = self.memory(config)
        reserve = RESERVE if self.device.type == "cuda" else 0
        kept = [Part("reserve", reserve, "CUDA context and fragmentation")] if reserve else []
        return Plan(
            MemoryEstimate("training", (*self._training(config, memory), *kept)),
            MemoryEstimate("generation", (*self._generation(config, memory), *kept)),
        )

    def targets(self, memory: ImageTextMemory) -> list[list[int]]:
        """Target ids of the longest sample's captions."""
        if not self._captions:
            return self._made_up
        return [list(memory.model.conversation.target_ids(text)) for text in self._captions]

    def largest_size(self, memory: ImageTextMemory) -> tuple[int, int]:
        """The size of the image with the longest prompt."""
        return max(self.sizes, key=memory.prompt_tokens)

    def plain_rows(self, config: RunConfig | None = None) -> int:
        """Bytes of activations with one row per caption instead of a packed row."""
        config = config or self._config
        memory = self.memory(config)
        rows, tokens, _ = self._rows(memory, config, packed=False)
        return memory.saved(rows, tokens, packed=False, padded=self._is_padded(memory))

    def is_packed(self, config: RunConfig | None = None) -> bool:
        """Whether captions are planned to share a row; the comparison at the start of the run decides."""
        config = config or self._config
        fast = config.train.enabled_optimizations
        return self.memory(config).packs and fast.shared_prefix and fast.target_logits

    def _rows(self, memory: ImageTextMemory, config: RunConfig, *, packed: bool) -> tuple[int, int, int]:
        """Rows, tokens of a row and targets of the largest micro-batch."""
        targets = self.targets(memory)
        prompt = memory.prompt_tokens(self.largest_size(memory))
        count = sum(map(len, targets))
        if packed:
            images = self._images_at_once(config, len(targets))
            return images, prompt + fed_tokens(targets), images * count
        return len(targets), prompt + max(map(len, targets)), count

    def _is_padded(self, memory: ImageTextMemory) -> bool:
        """Whether plain rows have a mask: their lengths differ, or image tokens see each other."""
        return len(set(map(len, self.targets(memory)))) > 1 or memory.has_token_types(self.sizes[0])

    def kept_for_backward(self, config: RunConfig) -> tuple[int, int]:
        """Bytes that autograd keeps of the decoder's layers and of the loss."""
        memory = self.memory(config)
        size = memory.size
        packed = self.is_packed(config)
        rows, tokens, targets = self._rows(memory, config, packed=packed)
        loss = targets * size.vocabulary * (FLOAT32 + (size.value_bytes if size.capped else 0))
        padded = not packed and self._is_padded(memory)
        if config.train.gradient_checkpointing:
            masks = tokens * tokens if packed or padded else 0
            return rows * (tokens * size.layers * size.width * size.value_bytes + masks), loss
        return memory.saved(rows, tokens, packed=packed, padded=padded), loss

    def _training(self, config: RunConfig, memory: ImageTextMemory) -> Iterator[Part]:
        size, packed = memory.size, self.is_packed(config)
        rows, tokens, targets = self._rows(memory, config, packed=packed)
        yield from self._weights(config, memory)
        # Values in float32 need no master copy.
        master = 0 if size.trained_bytes >= FLOAT32 else FLOAT32
        trained = size.trained * (size.trained_bytes + master + 2 * FLOAT32)
        names = ", ".join(config.train.parts or ("lora",))
        copies = "gradient, float32 master and AdamW" if master else "gradient and AdamW"
        yield Part("gradient and AdamW", trained, f"{copies} of {size.trained:,} values ({names})")
        kept, loss = self.kept_for_backward(config)
        where = f"{rows} row{'s' if rows > 1 else ''} x {tokens} tokens"
        how = "hidden states of" if config.train.gradient_checkpointing else "packed," if packed else "plain,"
        certain = "" if memory.traced else ", estimated from the dimensions"
        yield Part("activations", kept, f"{where}, {how} {size.layers} layers{certain}")
        image = self.largest_size(memory)
        prompt = memory.prompt_tokens(image)
        if {"projector", "vision_tower"} & set(config.train.parts):
            saved = 4 * prompt * size.width * size.value_bytes
            saved += memory.tower_saved(image) if "vision_tower" in config.train.parts else 0
            yield Part("activations before the decoder", saved, "of the image, estimated")
        at = f"{targets:,} positions x {size.vocabulary:,} words"
        values = targets * size.vocabulary
        yield Part("log-probabilities", loss, f"{at}, kept for the backward pass")
        yield Part("logits", values * (size.value_bytes + FLOAT32), f"{at}, and their gradient")
        padded = not packed and self._is_padded(memory)
        layer = memory.saved(rows, tokens, packed=packed, padded=padded) // max(1, size.layers)
        yield Part("active layer", layer, "the tensors of one layer while it is computed")
        if not self.store(config).used:
            yield Part("active tower layer", memory.tower_bytes(image), "of the image in the vision tower, estimated")

    def _generation(self, config: RunConfig, memory: ImageTextMemory) -> Iterator[Part]:
        size, evaluate = memory.size, config.evaluate
        rows = evaluate.batch_size * evaluate.beams
        image = self.largest_size(memory)
        prompt = memory.prompt_tokens(image)
        length = prompt + evaluate.max_new_tokens - 1
        yield from self._weights(config, memory)
        yield Part(
            "KV cache",
            rows * length * size.cache_bytes,
            f"{rows} rows x {length} tokens x {size.cache_bytes / 1024:.1f} KiB",
        )
        yield Part(
            "logits",
            rows * size.vocabulary * (size.value_bytes + 2 * FLOAT32),
            f"{rows} rows x {size.vocabulary:,} words, and their scores",
        )
        layer = rows * memory.saved(1, prompt, packed=False) // max(1, size.layers)
        yield Part("active layer", layer, "during prefill")
        tower = memory.tower_bytes(image, evaluate.batch_size)
        yield Part("active tower layer", tower, f"{evaluate.batch_size} images in the vision tower, estimated")

    def _weights(self, config: RunConfig, memory: ImageTextMemory) -> Iterator[Part]:
        size = memory.size
        quantized = f", quantized to {config.model.quantization}" if config.model.quantization else ""
        yield Part("language model", size.language, f"{size.layers} layers, {size.width} wide{quantized}")
        yield Part("vision tower and projector", size.vision, "stay loaded")
        if size.added:
            yield Part("LoRA", size.added * size.trained_bytes, f"weights of {size.added:,} values")

    def store(self, config: RunConfig | None = None) -> StoreForecast:
        """The disk that the feature store takes."""
        config = config or self._config
        memory = self.memory(config)
        each = sum(map(memory.feature_bytes, self.sizes)) // len(self.sizes)
        folder = config.feature_folder
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        trained = "vision_tower" in config.train.parts
        setting = config.train.feature_store
        used = not trained and (setting is True or (setting == "auto" and 2 * each * self._images < free))
        return StoreForecast(each, self._images, free, used)

    def propose(self, limit: int) -> Proposal | None:
        """The nearest configuration that fits.

        Args:
            limit: bytes of the card.

        Returns:
            The one with the fewest and mildest changes, None if none fits.
        """
        images, batch = len(self.micro_batch(self._config)), self._config.evaluate.batch_size
        for base in self._formats():
            for fewer in halved(images):
                overrides = base if fewer == images else (*base, self._micro_batch_setting(fewer))
                if self.plan(self._changed(overrides)).training.total <= limit:
                    break
            else:
                continue
            for count in halved(batch):
                both = overrides if count == batch else (*overrides, f"evaluate.batch_size={count}")
                plan = self.plan(self._changed(both))
                if plan.generation.total <= limit:
                    return Proposal(both, plan)
        return None

    def smallest(self) -> Plan:
        """What the smallest of the configurations takes."""
        single = (self._micro_batch_setting(1), "evaluate.batch_size=1")
        plans = [self.plan(self._changed((*base, *single))) for base in self._formats()]
        return min(plans, key=lambda plan: plan.peak)

    def _micro_batch_setting(self, images: int) -> str:
        return f"train.micro_batch_size={images * len(self._captions or self._made_up)}"

    def _formats(self) -> Iterator[tuple[str, ...]]:
        """Settings that need less memory for training, mildest first, each with those before it."""
        overrides: tuple[str, ...] = ()
        yield overrides
        current = self._config
        if compute_dtype(current.model.dtype, self.device) == torch.float32:
            overrides += ("model.dtype=bfloat16",)
            yield overrides
        if not current.train.gradient_checkpointing:
            overrides += ("train.gradient_checkpointing=true",)
            yield overrides
        complete = {"language_model", "vision_tower"} & set(current.train.parts)
        if current.model.quantization is None and self.device.type == "cuda" and not complete:
            yield (*overrides, "model.quantization=nf4")

    def _changed(self, overrides: Sequence[str]) -> RunConfig:
        return parse_config(self._config.model_dump(mode="json"), overrides) if overrides else self._config

    def micro_batch(self, config: RunConfig) -> list[tuple[str, ...]]:
        """The captions of the samples that are computed at once."""
        return [self._captions] * self._images_at_once(config, len(self._captions or self._made_up))

    def _images_at_once(self, config: RunConfig, captions: int) -> int:
        stores = self.is_packed(config) and config.train.feature_store is not False
        return images_at_once(config.train, captions) if stores else 1


def _image_sizes(config: RunConfig) -> tuple[list[tuple[int, int]], int]:
    """Sizes of training images across the data set, largest first, and the number of training images."""
    try:
        images = training_images(config)
    except DataError:
        return [_USUAL_SIZE], 0
    sizes = set()
    for image in images[:: max(1, len(images) // _SIZES)][:_SIZES]:
        path = Path(resolve_image(config.data.train, image.image))
        try:
            with path.open("rb") as stream:
                sizes.add(image_size(stream, str(path)))
        except (OSError, DataError):  # training reports images that cannot be read
            continue
    return sorted(sizes, key=lambda size: -size[0] * size[1]) or [_USUAL_SIZE], len(images)


def measure_image_text_memory(config: RunConfig, source: ResolvedModel, planner: ImageTextPlanner) -> list[Measured]:
    """Load the model, and compute the loss and gradient of the largest micro-batch on a grey image.

    Args:
        config: of the run.
        source: of the model.
        planner: that predicted.

    Returns:
        Each part, predicted and measured.
    """
    memory = planner.memory(config)
    device = planner.device
    instruction = config.model.instruction if "instruction" in config.model.model_fields_set else None
    model = load_image_text_for_training(source, config.train, instruction, config.seed, device)
    size = memory.size
    weights = {p.data_ptr(): p.nbytes for p in model.model.parameters()}
    predicted = size.language + size.vision + size.added * size.trained_bytes
    rows = [Measured("weights", predicted, sum(weights.values()))]
    image_of = planner.largest_size(memory)
    image = Image.new("RGB", image_of, (127, 127, 127))
    features = model.encode(image) if model.find_features() else None
    if features is not None:
        rows.append(Measured("features of an image", memory.feature_bytes(image_of), features.nbytes))
    targets = [tuple(ids) for ids in planner.targets(memory)]
    prompt = model.conversation.prompt(image)
    packed = planner.is_packed(config)
    images = len(planner.micro_batch(config)) if features is not None else 1

    def compute() -> Tensor:
        if images > 1 and features is not None:
            return model.losses.packed_batch([prompt] * images, [targets] * images, [features] * images)
        return (model.losses.packed if packed else model.losses.plain)(prompt, targets, features)

    model.train()
    compute()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    kept, loss = saved_bytes(compute, [*model.model.parameters(), *model.model.buffers()])
    loss.backward()
    rows.append(Measured("kept for the backward pass", sum(planner.kept_for_backward(config)), kept))
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        rows.append(Measured("peak of training", planner.plan(config).training.total, peak))
    return rows
