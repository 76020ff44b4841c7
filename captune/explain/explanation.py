"""Watches what one training step and one generation really feed to the language model.

The model's own classes run, `TrainStep` and `Evaluation` as they are; only the sizes are small (the language model is a
random one-layer LLaMA over the same vocabulary), so that a 70B configuration is explained in a second and without its
weights. Everything is read off at the language model's door:

- which tokens: the vectors that come in are looked up among the embeddings and the image's tokens;
- what a target depends on: the gradient of its logit, which is zero wherever masks and padding forbid to look;
- where decoding ends: the model is made to say the targets and then to go on talking.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from captune.config import RunConfig
from captune.data import Sample
from captune.distributed import DistributedContext
from captune.errors import DataError, ToolError
from captune.evaluation import Evaluation, EvaluationSet
from captune.explain.checks import Check, Decoded, Expected, FedToken, Taught, TaughtStep, checks
from captune.explain.llm_trace import LossRecorder, record_llm_inputs
from captune.model import HuggingFaceTokenizer, MiniGPT4, MiniGPT4Config, MiniGPT4Processor, Tokenizer, count_bos
from captune.training import TrainStep
from captune.transformers_compat import kv_cache_of

__all__ = ["Explanation", "explain", "stand_in"]

WIDTH = 32
"""Width of the stand-in's language model: wide enough that no two embeddings are equal."""
CERTAIN = 1e4
"""Logit of the token that the model is made to say."""


@dataclass(frozen=True)
class Explanation:
    """One training sample and the generation for its image.

    Attributes:
        image: id of the image.
        caption: what is learnt.
        taught: what training feeds and asks for.
        prompt: what generation feeds before its first new token.
        stop_symbol: text that ends an answer.
        checks: what has to hold, and whether it does.
        tokenizer: vocabulary of the language model.
    """

    image: str
    caption: str
    taught: Taught
    prompt: tuple[FedToken, ...]
    stop_symbol: str
    checks: tuple[Check, ...]
    tokenizer: Tokenizer

    @property
    def holds(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "FAIL" for check in self.checks)


def explain(config: RunConfig, model: MiniGPT4, image: Sample, caption: int = 0) -> Explanation:
    """Explain one caption of one image.

    Args:
        config: of the run.
        model: small enough to run here, such as `stand_in` gives; its processor attached.
        image: the image with its captions.
        caption: which of them, from 0; not used where a run draws or joins captions itself.

    Returns:
        Both sides, and what holds of them.

    Raises:
        DataError: the image has no such caption.
        ToolError: training asked for other captions than the data has.
    """
    processor = model.processor
    assert processor is not None
    if not 0 <= caption < len(image.captions):
        raise DataError(f"Image '{image.id}' has {len(image.captions)} captions; there is none with number {caption}.")
    features = torch.randn(1, model.config.image_tokens, model.config.feature_size)
    texts, taught = _watch_training(config, model, image, features)
    if len(texts) != len(taught):
        raise ToolError(f"Training was given {len(texts)} captions of image '{image.id}' and taught {len(taught)}.")
    selected = texts.index(image.captions[caption]) if image.captions[caption] in texts else 0
    lesson = taught[selected]
    prompt = _watch_prompt(config, model, image, features)
    decoded = _say(lesson.targets, len(prompt), config, model, image, features)
    layout = processor.layout
    expected = Expected(
        caption=texts[selected],
        image_tokens=model.config.image_tokens,
        stop_symbol=layout.chat_template.stop_symbol,
        stop_ids=layout.stop_ids,
        max_new_tokens=config.evaluate.max_new_tokens,
        beginnings=_beginnings(model, processor),
    )
    results = checks(lesson, prompt, decoded, expected, processor.tokenizer)
    return Explanation(
        image.id, texts[selected], lesson, prompt, expected.stop_symbol, tuple(results), processor.tokenizer
    )


def _beginnings(model: MiniGPT4, processor: MiniGPT4Processor) -> tuple[int, bool]:
    """The beginnings of text that a prompt has to have: one at the start, or what a chat model's own template says."""
    if model.config.wrapping is None or not isinstance(processor.tokenizer, HuggingFaceTokenizer):
        return 1, True
    return count_bos(processor.tokenizer.library)


def stand_in(config: MiniGPT4Config, processor: MiniGPT4Processor) -> MiniGPT4:
    """A model of the same layout, vocabulary and image tokens, but tiny.

    Args:
        config: of the real model, which is not needed itself.
        processor: of the real model.
    """
    small = copy.deepcopy(config)
    vocabulary = max(int(getattr(config.text_config, "vocab_size", 0)), processor.tokenizer.vocabulary_size)
    small.text_config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8192,
    )
    if config.lora is not None:
        small.lora = {"r": 1, "alpha": 1, "targets": ["q_proj"]}
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    for name, size in sizes.items():
        setattr(small.vision_config, name, size)
        if small.qformer_config is not None:
            setattr(small.qformer_config, name, size)
    if small.qformer_config is not None:
        small.qformer_config.encoder_hidden_size = sizes["hidden_size"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MiniGPT4(small)
    model.processor = processor
    model.eval()
    return model


def _watch_training(
    config: RunConfig, model: MiniGPT4, image: Sample, features: Tensor
) -> tuple[list[str], list[Taught]]:
    """Take one optimiser step on all captions of an image; gives their texts and what was taught of each."""
    once = {"batch_size": max(len(image.captions), config.train.captions_per_image), "steps_per_epoch": None}
    train, prompt = config.train.model_copy(update=once), config.model.instruction
    dist = DistributedContext(torch.device("cpu"))
    trained = copy.deepcopy(model)
    trained.processor = model.processor
    trained.train()
    with record_llm_inputs(trained, features) as recorder, LossRecorder(recorder) as loss_recorder:
        step = TrainStep(trained, [image], features, train, prompt=prompt, seed=config.seed, dist=dist)
        step.run(0)
    texts = [text for sample in step.samples.batch(0) for text in sample.captions]
    return texts, _captions(loss_recorder.steps)


def _captions(steps: Sequence[TaughtStep]) -> list[Taught]:
    """Targets as captions: what a caption's first target sees is shorter than what the target before it saw."""
    captions: list[list[TaughtStep]] = []
    for step in steps:
        if not captions or len(step.seen) <= len(captions[-1][-1].seen):
            captions.append([])
        captions[-1].append(step)
    return [Taught(tuple(caption)) for caption in captions]


def _evaluation(config: RunConfig, image: Sample, max_new_tokens: int) -> Evaluation:
    """The run's evaluation of one image, decoding greedily."""
    decoding = {"max_new_tokens": max_new_tokens, "beams": 1, "repetition_penalty": 1.0}
    settings = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=decoding)})
    # Nothing is scored here, but CIDEr refuses a single image, and references without words.
    references = {name: ["a caption"] for name in (image.id, f"{image.id} again")}
    selected = EvaluationSet("explain", image.split, settings.evaluate.protocol, Path(), (image,), references)
    return Evaluation(settings, selected)


def _watch_prompt(config: RunConfig, model: MiniGPT4, image: Sample, features: Tensor) -> tuple[FedToken, ...]:
    """All that generation feeds for one new token: the prompt."""
    with record_llm_inputs(model, features) as recorder:
        _evaluation(config, image, max_new_tokens=1).caption(model, features)
    return tuple(
        token
        for call in recorder.calls
        for token in recorder.tokens(call, 0, call.kept[0].nonzero().flatten().tolist())
    )


def _say(
    targets: Sequence[int], prompt_length: int, config: RunConfig, model: MiniGPT4, image: Sample, features: Tensor
) -> Decoded:
    """Decode with a model that says the targets and then repeats the first of them for ever."""

    def script(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        generated = int(kv_cache_of(output).get_seq_length()) - prompt_length
        token = targets[generated] if 0 <= generated < len(targets) else targets[0]
        output.logits = torch.zeros_like(output.logits)
        output.logits[..., token] = CERTAIN
        return output

    handle = model.llm.register_forward_hook(script, with_kwargs=True)
    try:
        evaluation = _evaluation(config, image, max_new_tokens=len(targets) + len(targets) // 2 + 8)
        generated = evaluation.caption(model, features)[0]
    finally:
        handle.remove()
    return Decoded(generated.text, generated.tokens, generated.stopped)
