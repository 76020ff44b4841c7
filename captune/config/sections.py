"""The sections of a run's configuration: frozen, validated, each field with its help."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    "DEFAULT_LORA",
    "DataConfig",
    "EvaluateConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizationsConfig",
    "RunConfig",
    "TrainConfig",
    "changed_settings",
    "split_names",
]


def split_names(text: str) -> tuple[str, ...]:
    """The splits in "train" or "train,restval", without repetitions, in their order."""
    return tuple(dict.fromkeys(name for name in map(str.strip, text.split(",")) if name))


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(_Section):
    """The model that is tuned."""

    path: str = Field("toy", min_length=1)
    """Folder or hub id of a captune model or of any image-text-to-text model of transformers (Qwen-VL, Gemma, SmolVLM,
    PaliGemma, InternVL, LLaVA, BLIP-2, ...); `toy` and `toy-vlm` are tiny models that come with captune."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the frozen parts; auto is bfloat16 on a GPU and float32 on a CPU. What is trained is float32."""
    instruction: str = Field("Describe this image in detail.", min_length=1)
    """Instruction for every image, the same in training and evaluation."""
    llm: str | None = Field(None, min_length=1)
    """Folder or hub id of a language model to connect to `vision` with a new projection, instead of `path`."""
    vision: str | None = Field(None, min_length=1)
    """Folder or hub id of a SigLIP, CLIP or BLIP-2 model for `llm`; for eva_vit_g.pth use `captune convert`."""
    quantization: Literal["int8", "nf4", "torchao-int8", "torchao-int4", "torchao-fp8"] | None = None
    """Quantize the language model: less memory, not less time; null does not. Needs the extra `quant`."""
    max_pixels: int | None = Field(None, gt=0)
    """Largest number of pixels of an image, for models whose processor has such a limit (Qwen-VL and relatives); larger
    images are scaled down, and have fewer tokens. null is the processor's limit."""
    min_pixels: int | None = Field(None, gt=0)
    """Smallest number of pixels of an image, to which smaller images are scaled up; null is the processor's limit."""
    legacy_bugs: tuple[Literal["cut_stop_symbol", "clip_image", "double_bos", "pad_is_dollar_sign"], ...] = ()
    """Bugs of the original code to reproduce, under protocol slides only."""

    @property
    def name(self) -> str:
        """Name of the model in messages and records."""
        return self.path if self.llm is None else f"{self.vision} + {self.llm}"

    @property
    def custom_instruction(self) -> str | None:
        """The instruction if it is not the default; with the default a transformers model has its family's prompt."""
        # Compared by value, since the stored configuration of a run sets every key.
        default = type(self).model_fields["instruction"].default
        return None if self.instruction == default else self.instruction


def _joined_splits(value: object) -> object:
    """Several splits as one text, as records and signatures show them."""
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        value = ",".join(value)
    if not isinstance(value, str):
        return value
    names = split_names(value)
    if not names:
        raise ValueError("a split is expected, such as train, or several, such as [train, restval]")
    return ",".join(names)


class DataConfig(_Section):
    """The images and captions, as manifests that `captune prepare` writes."""

    train: Path = Path("flickr30k/manifest.jsonl")
    """Manifest that holds the training images."""
    train_split: Annotated[str, BeforeValidator(_joined_splits, json_schema_input_type=str | list[str])] = "train"
    """Split to train on; several as [train, restval], or "train,restval"."""
    evaluate: Path | None = None
    """Manifest that holds the evaluation images; null is the training manifest."""
    evaluate_split: str = "test"
    """Split to evaluate on."""
    name: str | None = Field(None, pattern=r"^[^/\\\x00-\x1f]+$", max_length=100)
    """Name of the evaluated data in tables, pages and signatures; null is that of the manifest's folder."""
    train_images: int | None = Field(None, gt=0)
    """Train on the first N images only; null is all."""
    evaluate_images: int | None = Field(None, gt=1)
    """Evaluate on the first N images only; null is all."""
    exif_rotation: bool | None = None
    """Rotate images according to their EXIF orientation; null is true, but false under protocol slides, as the original
    ignores it."""
    features: Path | None = None
    """Folder of the feature store, shared by all runs; null is `features` next to the training manifest."""

    @property
    def train_splits(self) -> tuple[str, ...]:
        """The splits to train on, without repetitions."""
        return split_names(self.train_split)


class OptimizationsConfig(_Section):
    """The parts of `train.optimizations`, each of which can be turned off for debugging."""

    shared_prefix: bool = True
    """Put all captions of an image into one row after a single copy of image and prompt, instead of repeating these for
    each caption; a common beginning of captions is stored once too."""
    constant_prefix: bool = True
    """Compute the text before the image once per run; automatically off if LoRA or gradient checkpointing is used."""
    target_logits: bool = True
    """Compute logits at target positions only; shared_prefix and constant_prefix require it."""
    length_buckets: bool = True
    """Batch samples of similar length, within shuffled pools, which reduces padding."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the language model's layers (torch.compile), which takes a minute at the start; auto is on a GPU only."""


_NO_OPTIMIZATIONS = dict.fromkeys(OptimizationsConfig.model_fields, False)


class LoraConfig(_Section):
    """LoRA on the language model; a MiniGPT-4 trains its projection as well."""

    rank: int = Field(64, gt=0)
    """Rank of the LoRA matrices."""
    alpha: float = Field(16.0, gt=0)
    """The product of the matrices is scaled by alpha / rank."""
    targets: tuple[str, ...] = Field(("q_proj", "v_proj"), min_length=1)
    """Linear layers to adapt, by the last part of their names; [all-linear] is all of a transformers model."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of LoRA; captions that share a prefix share its dropout mask."""


DEFAULT_LORA = LoraConfig(rank=16, alpha=32.0, targets=("all-linear",))
"""LoRA of a transformers model where `train.lora` is null."""


class TrainConfig(_Section):
    """Training."""

    caption_targets: Literal["separate", "random", "joined"] = "separate"
    """Targets for an image with several captions: each caption separately, one caption drawn at random in each pass, or
    all captions joined into one."""
    instructions: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Instructions to mix in training, one drawn per sample and pass; empty is model.instruction only, which evaluation
    always uses."""
    epochs: int = Field(5, gt=0)
    """Number of epochs; a checkpoint is saved and evaluated after each. A higher number continues a run in its folder,
    with the learning-rate schedule of the longer run."""
    start: str | None = Field(None, min_length=1)
    """Start from the trained weights of a checkpoint on the same model: a folder such as
    runs/stage1/checkpoints/epoch-003, a run (its best epoch, or RUN@epoch1), an adapter of peft, or the hub id of a
    pushed checkpoint or an adapter. The run may train more parts than it. null is none."""
    select: str | None = Field(None, min_length=1)
    """Metric that selects the best epoch, to which the link checkpoints/best points; null is CIDEr, or the first metric
    of a protocol without it."""
    early_stop: int | None = Field(None, gt=0)
    """Stop after N epochs in a row without a significant improvement of the selected metric over the last epoch that
    had one, or over the checkpoint of train.start; null is off."""
    keep: int | None = Field(None, gt=0)
    """Keep the checkpoints of the N newest epochs and of the best one, and delete the others; null is all."""
    steps_per_epoch: int | None = Field(None, gt=0)
    """Optimizer steps per epoch; null is one pass over all samples."""
    captions_per_image: int = Field(5, gt=0)
    """Captions of an image in one sample."""
    batch_size: int = Field(40, gt=0)
    """Captions per optimizer step over all processes, or the nearest number that does not split a sample."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Captions per forward and backward pass of a process; fewer save memory and change nothing else. null is all, and
    one image of a transformers model."""
    learning_rate: float = Field(3e-5, gt=0)
    """Peak learning rate, reached at the end of the warm-up."""
    min_learning_rate: float = Field(1e-5, ge=0)
    """Learning rate at the end of the cosine schedule."""
    warmup_learning_rate: float = Field(1e-6, ge=0)
    """Learning rate of the first step."""
    warmup_steps: int = Field(200, ge=0)
    """Steps of the linear warm-up from warmup_learning_rate to learning_rate."""
    weight_decay: float = Field(0.05, ge=0)
    """Weight decay of AdamW, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of AdamW."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Maximum norm of the gradient; larger gradients are scaled down to it. null is no clipping."""
    max_nonfinite_steps: int = Field(20, ge=0)
    """Steps with an infinite or undefined loss to skip before the run fails."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, a third more computation."""
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp shards the layers of the frozen language model over the processes, for GPUs that cannot hold the model;
    gathering each layer when it is computed costs time."""
    parts: tuple[Literal["lora", "projector", "language_model", "vision_tower"], ...] = ()
    """Parts of a transformers model to train: lora, projector with it, or complete parts: language_model, vision_tower.
    Empty is [lora]. A MiniGPT-4 always trains its projection, and LoRA if `lora` is set."""
    lora: LoraConfig | None = None
    """LoRA, as {rank: 64, alpha: 16, targets: [q_proj, v_proj]}. null is the projection only for a MiniGPT-4, and
    {rank: 16, alpha: 32, targets: [all-linear]} for a transformers model."""
    feature_store: Literal["auto"] | bool = "auto"
    """Compute image features once and store them on disk, if they are not trained. A MiniGPT-4 always does. auto stores
    those of a transformers model if the disk has at least twice the room that they need."""
    optimizations: bool = True
    """Skip redundant computation (docs/training.md, "Optimizations"); gradients are equal except for rounding."""
    debug: OptimizationsConfig = OptimizationsConfig()

    @property
    def enabled_optimizations(self) -> OptimizationsConfig:
        """The optimizations to use."""
        return self.debug if self.optimizations else OptimizationsConfig(**_NO_OPTIMIZATIONS)


class EvaluateConfig(_Section):
    """Evaluation, before the first epoch and after each."""

    protocol: str = Field("karpathy", min_length=1)
    """karpathy scores held-out images; slides repeats the original scripts and is marked LEAK; or the path of a custom
    protocol in YAML."""
    metrics: tuple[str, ...] | None = Field(None, min_length=1)
    """Metrics to compute, such as [bleu, cider, meteor, clipscore]; null is those of the protocol."""
    tokenizer: (
        Literal["ptb", "13a", "intl", "char", "zh-char", "zh-jieba", "ja-mecab", "ko-mecab", "th-newmm", "none"] | None
    ) = None
    """Tokenizer of the metrics, as zh-char for Chinese captions; null is ptb, which is made for English."""
    allow_leaks: bool = False
    """Results on images that were trained on are marked LEAK; true keeps the mark and silences the
    warning."""
    batch_size: int = Field(32, gt=0)
    """Images per batch."""
    train_slice: int = Field(64, ge=0)
    """Number of training images to evaluate too, which shows overfitting; 0 is none."""
    max_new_tokens: int = Field(40, gt=0)
    """Maximum caption length in tokens; decoding ends earlier at the stop symbol."""
    beams: int = Field(1, gt=0)
    """Number of beams; 1 is greedy decoding."""
    length_penalty: float = 1.0
    """Exponent of the length in a beam's score; above 1 favours longer captions."""
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    """Divides the score of tokens that the caption already contains; 1 is off."""
    compile: bool = False
    """Decode with torch.compile and, on a GPU, CUDA graphs: for large evaluations on a GPU."""


class RunConfig(_Section):
    """The complete configuration of a run."""

    output: Path = Path("runs/captune")
    """Output folder: log, checkpoints, captions, scores, table, chart."""
    seed: int = Field(42, ge=0)
    """Random seed, of the order of samples and everything else that is random."""
    log_every: int = Field(10, gt=0)
    """Steps between log entries."""
    save_every: int = Field(200, gt=0)
    """Steps between saved states, from which a killed run resumes; a state is saved at the end of an epoch too."""
    tracker: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Experiment tracker, in addition to log.jsonl; needs the extra `track`."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def with_model(self, path: str) -> RunConfig:
        """The same run with the model in another folder."""
        return self.model_copy(update={"model": self.model.model_copy(update={"path": path})})

    @model_validator(mode="after")
    def _check_combinations(self) -> RunConfig:
        if self.train.min_learning_rate > self.train.learning_rate:
            raise ValueError(
                f"train.min_learning_rate is {self.train.min_learning_rate:g}, above train.learning_rate "
                f"{self.train.learning_rate:g}; the cosine goes down from the latter to the former"
            )
        parts = self.train.debug
        if not parts.target_logits and (parts.shared_prefix or parts.constant_prefix):
            raise ValueError(
                "train.debug.target_logits is off, which shared_prefix and constant_prefix require; turn these off as "
                "well"
            )
        if parts.compile is True and not self.train.optimizations:
            raise ValueError(
                "train.debug.compile is true and train.optimizations is false, which turns compilation off; set one of "
                "them to its default"
            )
        complete = {"language_model", "vision_tower"} & set(self.train.parts)
        if complete and {"lora", "projector"} & set(self.train.parts):
            raise ValueError(
                f"train.parts is [{', '.join(self.train.parts)}], and LoRA changes a part that is trained completely; "
                "set it to [lora], to [lora, projector], or to some of [language_model, vision_tower]"
            )
        if self.train.parts == ("projector",):
            raise ValueError("train.parts is [projector], which is trained with LoRA only; set it to [lora, projector]")
        if complete and self.model.quantization is not None:
            raise ValueError(
                f"train.parts trains the complete {sorted(complete)[0]}, and model.quantization is "
                f"{self.model.quantization}; quantized weights are not trained, so set one of them to its default"
            )
        if self.model.min_pixels and self.model.max_pixels and self.model.min_pixels > self.model.max_pixels:
            raise ValueError(
                f"model.min_pixels is {self.model.min_pixels:,}, above model.max_pixels {self.model.max_pixels:,}; "
                "swap them"
            )
        if self.train.sharding == "fsdp" and self.model.quantization is not None:
            raise ValueError(
                f"train.sharding is fsdp and model.quantization is {self.model.quantization}, and a quantized language "
                "model cannot be sharded; set train.sharding to none, or model.quantization to null"
            )
        if self.train.sharding == "fsdp" and self.evaluate.compile:
            raise ValueError(
                "train.sharding is fsdp and evaluate.compile is true, and a sharded language model is not compiled; "
                "set one of them to its default"
            )
        if (self.model.llm is None) != (self.model.vision is None):
            raise ValueError("model.llm and model.vision must be set together; set both, or neither and model.path")
        if self.model.legacy_bugs and self.evaluate.protocol != "slides":
            raise ValueError(
                f"model.legacy_bugs repeat bugs of the original ({', '.join(self.model.legacy_bugs)}), which only "
                "protocol slides allows; set evaluate.protocol to slides, or remove them"
            )
        return self

    @property
    def exif_rotation(self) -> bool:
        """Whether images are rotated according to their EXIF orientation."""
        if self.data.exif_rotation is not None:
            return self.data.exif_rotation
        return self.evaluate.protocol != "slides"

    @property
    def evaluation_manifest(self) -> Path:
        """Manifest that holds the evaluation images."""
        return self.data.evaluate if self.data.evaluate is not None else self.data.train

    @property
    def feature_folder(self) -> Path:
        """Folder of the feature store: as configured, or next to the training manifest, or, read-only, in the run's."""
        if self.data.features is not None:
            return self.data.features
        default = self.data.train.parent / "features"
        existing = next(folder for folder in (default, default.parent, Path()) if folder.is_dir())
        return default if os.access(existing, os.W_OK) else self.output / "features"


def changed_settings(before: BaseModel, after: BaseModel) -> dict[str, tuple[Any, Any]]:
    """The settings that differ between two configurations.

    Args:
        before: a configuration, or a section of one.
        after: another one of the same class.

    Returns:
        The complete key, such as `train.learning_rate`, to the values before and after, as JSON has them.
    """
    return dict(_differences("", before.model_dump(mode="json"), after.model_dump(mode="json")))


def _differences(name: str, before: Any, after: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if before == after:
        return
    if not (isinstance(before, dict) and isinstance(after, dict)):
        yield name, (before, after)
        return
    for key in before | after:
        yield from _differences(f"{name}.{key}".lstrip("."), before.get(key), after.get(key))
