"""The sections of a run's configuration: frozen and checked, every field with its help, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    "DataConfig",
    "EvaluateConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizationsConfig",
    "RunConfig",
    "TrainConfig",
    "split_names",
]


def split_names(text: str) -> tuple[str, ...]:
    """The splits in "train" or "train,restval", each once, in their order."""
    return tuple(dict.fromkeys(name for name in map(str.strip, text.split(",")) if name))


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(_Section):
    """The model that is tuned."""

    path: str = Field("toy", min_length=1)
    """Folder of a captune model, its hub id, or `toy` for the tiny model that comes with captune."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the frozen parts; auto is bfloat16 on a GPU and float32 on a CPU. What is trained is float32."""
    instruction: str = Field("Describe this image in detail.", min_length=1)
    """What the model is asked of every image, word for word the same in training and evaluation."""
    llm: str | None = Field(None, min_length=1)
    """Folder or hub id of a language model that a new projection joins with `vision`, instead of the model at path."""
    vision: str | None = Field(None, min_length=1)
    """Folder or hub id of a SigLIP, CLIP or BLIP-2 model in front of `llm`; for eva_vit_g.pth use `captune convert`."""
    quantization: Literal["int8", "nf4", "torchao-int8", "torchao-int4", "torchao-fp8"] | None = None
    """The language model in fewer bits: less memory, not less time; null is as it is. Needs the extra `quant`."""
    legacy_bugs: tuple[Literal["cut_stop_symbol", "clip_image", "double_bos", "pad_is_dollar_sign"], ...] = ()
    """Bugs of the original code to reproduce, under protocol slides only."""

    @property
    def name(self) -> str:
        """What the model is called in messages and records."""
        return self.path if self.llm is None else f"{self.vision} + {self.llm}"


def _joined_splits(value: object) -> object:
    """Several splits as one text, which is what records and signatures show."""
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
    train_split: Annotated[str, BeforeValidator(_joined_splits)] = "train"
    """Which of its splits is trained on; several as [train, restval], or "train,restval"."""
    evaluate: Path | None = None
    """Manifest that holds the evaluation images; by default the training manifest."""
    evaluate_split: str = "test"
    """Which of its splits is evaluated on."""
    train_images: int | None = Field(None, gt=0)
    """Train on the first so many images only; null is all."""
    evaluate_images: int | None = Field(None, gt=1)
    """Evaluate on the first so many images only; null is all."""
    exif_rotation: bool | None = None
    """Turn images upright as the camera noted in EXIF; null is true, but false under protocol slides, as the original
    reads images as they are stored."""
    features: Path | None = None
    """Folder where the towers' output is kept for all runs; null is `features` beside the training manifest."""

    @property
    def train_splits(self) -> tuple[str, ...]:
        """The splits that are trained on, each once."""
        return split_names(self.train_split)


class OptimizationsConfig(_Section):
    """Optimizations that do not change a gradient; each can be turned off."""

    shared_prefix: bool = True
    """Put the captions of an image behind one image and prompt, instead of repeating these for each caption; what
    captions begin with in common stands there once."""
    constant_prefix: bool = True
    """Compute the text in front of the image once for the run; off by itself where anything before it is trained."""
    target_logits: bool = True
    """Compute logits where a target is, instead of at every position; the two above need it."""
    length_buckets: bool = True
    """Bring samples of similarly many tokens together, within shuffled pools, so that less padding is computed."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the language model's layers (torch.compile), which takes a minute at the start; auto does it on a GPU.
    Where it is not false, float32 layers that are not compiled get norms and rotary positions of one operation each."""


class LoraConfig(_Section):
    """LoRA on the language model, trained with the projection."""

    rank: int = Field(64, gt=0)
    """Rank of the matrices."""
    alpha: float = Field(16.0, gt=0)
    """Their product is scaled by alpha / rank."""
    targets: tuple[str, ...] = Field(("q_proj", "v_proj"), min_length=1)
    """Last part of the names of the linear layers that get one."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On LoRA's input, drawn anew each step; captions that share a prefix share its draw."""


class TrainConfig(_Section):
    """The optimisation."""

    caption_targets: Literal["separate", "random", "joined"] = "separate"
    """Targets of an image with several captions: a separate one for each, one drawn at random for each pass, or all
    captions joined into one."""
    instructions: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Instructions that are mixed in training, one drawn for each sample and pass; empty is model.instruction alone,
    which evaluation asks in any case."""
    epochs: int = Field(5, gt=0)
    """Passes over the samples; after each one a checkpoint is saved and evaluated."""
    steps_per_epoch: int | None = Field(None, gt=0)
    """Optimiser steps of an epoch; null is one pass over all samples."""
    captions_per_image: int = Field(5, gt=0)
    """Captions of an image that one step learns together, with targets each."""
    batch_size: int = Field(40, gt=0)
    """Captions of an optimiser step, over all processes together, or the nearest number with images kept together."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Captions that a process works on at once; fewer save memory and change nothing else. null is its share."""
    learning_rate: float = Field(3e-5, gt=0)
    """Highest learning rate, reached at the end of the warm-up."""
    min_learning_rate: float = Field(1e-5, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_learning_rate: float = Field(1e-6, ge=0)
    """Learning rate of the first step."""
    warmup_steps: int = Field(200, ge=0)
    """Steps of the linear warm-up from the first step's rate to the highest."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's two decay rates."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Longest gradient that is applied as it is; longer ones are scaled down to it. null is no clipping."""
    max_nonfinite_steps: int = Field(20, ge=0)
    """Steps with an infinite or undefined loss that are skipped before the run is given up."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more work."""
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp shards the frozen language model's layers over the processes, for GPUs that cannot hold it; each layer is
    gathered when it is computed, which costs time."""
    lora: LoraConfig | None = None
    """LoRA beside the projection, as {rank: 64, alpha: 16, targets: [q_proj, v_proj]}; null is the projection alone."""
    optimizations: OptimizationsConfig = OptimizationsConfig()


class EvaluateConfig(_Section):
    """What is measured before the first epoch and after each."""

    protocol: str = Field("karpathy", min_length=1)
    """karpathy scores held-out images; slides does what the original scripts did and is marked LEAK; or the path of a
    YAML file of your own."""
    allow_leaks: bool = False
    """Evaluation images that were trained on mark a result LEAK; true prints the mark without the reason."""
    batch_size: int = Field(32, gt=0)
    """Images captioned at once."""
    train_subset: int = Field(64, ge=0)
    """Training images that each epoch is evaluated on besides, to tell over-fitting; 0 is none."""
    max_new_tokens: int = Field(40, gt=0)
    """Longest caption in tokens; decoding ends earlier at the stop symbol."""
    beams: int = Field(1, gt=0)
    """Beams of beam search; 1 is greedy decoding."""
    length_penalty: float = 1.0
    """Exponent on a beam's length; above 1 favours longer captions."""
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    """Divides the score of tokens that were already said; 1 is off."""
    compile: bool = False
    """Decode with compiled steps of one shape (torch.compile, CUDA graphs on a GPU): for large evaluations on a GPU."""


class RunConfig(_Section):
    """Everything that decides a run."""

    output: Path = Path("runs/captune")
    """Folder of the run: log, checkpoints, captions, scores, table, chart."""
    seed: int = Field(42, ge=0)
    """Decides the order of samples and every other draw."""
    log_every: int = Field(10, gt=0)
    """Steps between two lines of the log."""
    save_every: int = Field(200, gt=0)
    """Steps between two saved states, from which a killed run goes on; the end of an epoch is saved as well."""
    tracker: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Where curves are sent besides log.jsonl; needs the extra `track`, never an account for none or tensorboard."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _check_together(self) -> RunConfig:
        if self.train.min_learning_rate > self.train.learning_rate:
            raise ValueError(
                f"train.min_learning_rate is {self.train.min_learning_rate:g}, above train.learning_rate "
                f"{self.train.learning_rate:g}; the cosine goes down from the latter to the former"
            )
        fast = self.train.optimizations
        if not fast.target_logits and (fast.shared_prefix or fast.constant_prefix):
            raise ValueError(
                "train.optimizations.target_logits is off, which shared_prefix and constant_prefix need; turn these "
                "off as well"
            )
        if self.train.sharding == "fsdp" and self.model.quantization is not None:
            raise ValueError(
                f"train.sharding is fsdp and model.quantization is {self.model.quantization}, and a quantized language "
                "model cannot be divided; set train.sharding to none, or model.quantization to null"
            )
        if self.train.sharding == "fsdp" and self.evaluate.compile:
            raise ValueError(
                "train.sharding is fsdp and evaluate.compile is true, and a sharded language model is not compiled; "
                "set one of them to its default"
            )
        if (self.model.llm is None) != (self.model.vision is None):
            raise ValueError("model.llm and model.vision belong together; give both, or neither and model.path")
        if self.model.legacy_bugs and self.evaluate.protocol != "slides":
            raise ValueError(
                f"model.legacy_bugs repeat bugs of the original ({', '.join(self.model.legacy_bugs)}), which only "
                "protocol slides may; set evaluate.protocol to slides, or leave them out"
            )
        return self

    @property
    def exif_rotation(self) -> bool:
        """Whether images are turned upright as their EXIF data say."""
        if self.data.exif_rotation is not None:
            return self.data.exif_rotation
        return self.evaluate.protocol != "slides"

    @property
    def evaluation_manifest(self) -> Path:
        """Manifest that holds the evaluation images."""
        return self.data.evaluate if self.data.evaluate is not None else self.data.train
