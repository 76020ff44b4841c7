"""Record the inputs of the language model in a training step and in a generation, and compare them.

The real `TrainStep` and `Evaluation` run; only the model is small (a random one-layer LLaMA with the same vocabulary),
so a 70B configuration is explained in a second and without its weights. All results come from the inputs and outputs of
the language model:

- tokens: input vectors are looked up among the embeddings and the image tokens;
- the context of a target: the gradient of its logit, which is zero at masked tokens and padding;
- the end of decoding: the model is forced to output the targets and then more tokens.
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
from captune.explain.checks import Check, Decoded, Expected, InputToken, TargetToken, TargetTrace, checks
from captune.explain.llm_trace import LossRecorder, record_llm_inputs
from captune.model import HuggingFaceTokenizer, MiniGPT4, MiniGPT4Config, MiniGPT4Processor, Tokenizer, count_bos
from captune.training import CheckedObjective, TrainStep
from captune.transformers_compat import kv_cache_of

__all__ = ["Explanation", "explain", "small_copy"]

WIDTH = 32
"""Width of the small language model: wide enough that no two embeddings are equal."""
CERTAIN = 1e4
"""Logit of the token that the model is forced to output."""


@dataclass(frozen=True)
class Explanation:
    """One training sample and the generation for its image.

    Attributes:
        image: id of the image.
        caption: the target text.
        trace: inputs and targets of training.
        prompt: inputs of generation before its first new token.
        stop_symbol: text that ends an answer.
        checks: their results.
        tokenizer: of the language model.
        rendered: text of the prompt, as a chat template renders it; empty for a MiniGPT-4.
    """

    image: str
    caption: str
    trace: TargetTrace
    prompt: tuple[InputToken, ...]
    stop_symbol: str
    checks: tuple[Check, ...]
    tokenizer: Tokenizer
    rendered: str | None = ""

    @property
    def holds(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "FAIL" for check in self.checks)


def explain(config: RunConfig, model: MiniGPT4, image: Sample, caption: int = 0) -> Explanation:
    """Explain one caption of one image.

    Args:
        config: of the run.
        model: small enough to run here, as `small_copy` returns; its processor attached.
        image: the image with its captions.
        caption: index of the caption; not used if the configuration draws or joins captions.

    Returns:
        Both sides, and the results of the checks.

    Raises:
        DataError: the image has no such caption.
        ToolError: training used other captions than the data has.
    """
    processor = model.processor
    assert processor is not None
    if not 0 <= caption < len(image.captions):
        raise DataError(f"Image '{image.id}' has {len(image.captions)} captions; there is none with number {caption}.")
    features = torch.randn(1, model.config.image_tokens, model.config.feature_size)
    texts, traces = _record_training(config, model, image, features)
    if len(texts) != len(traces):
        raise ToolError(f"The training step has {len(texts)} captions of image '{image.id}' and {len(traces)} targets.")
    selected = texts.index(image.captions[caption]) if image.captions[caption] in texts else 0
    trace = traces[selected]
    prompt = _record_prompt(config, model, image, features)
    decoded = _decode_targets(trace.targets, len(prompt), config, model, image, features)
    layout = processor.layout
    expected = Expected(
        caption=texts[selected],
        image_tokens=model.config.image_tokens,
        stop_symbol=layout.chat_template.stop_symbol,
        stop_ids=layout.stop_ids,
        max_new_tokens=config.evaluate.max_new_tokens,
        bos=_expected_bos(model, processor),
    )
    results = checks(trace, prompt, decoded, expected, processor.tokenizer)
    return Explanation(
        image.id, texts[selected], trace, prompt, expected.stop_symbol, tuple(results), processor.tokenizer
    )


def _expected_bos(model: MiniGPT4, processor: MiniGPT4Processor) -> tuple[int, bool]:
    """The BOS tokens that a prompt must have: one at the start, or as in a chat model's own template."""
    if model.config.wrapping is None or not isinstance(processor.tokenizer, HuggingFaceTokenizer):
        return 1, True
    return count_bos(processor.tokenizer.library)


def small_copy(config: MiniGPT4Config, processor: MiniGPT4Processor) -> MiniGPT4:
    """A tiny model with the same layout, vocabulary and image tokens.

    Args:
        config: of the real model; its weights are not needed.
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


def _record_training(
    config: RunConfig, model: MiniGPT4, image: Sample, features: Tensor
) -> tuple[list[str], list[TargetTrace]]:
    """Take one optimizer step on all captions of an image; returns their texts and traces."""
    once = {"batch_size": max(len(image.captions), config.train.captions_per_image), "steps_per_epoch": None}
    train, prompt = config.train.model_copy(update=once), config.model.instruction
    dist = DistributedContext(torch.device("cpu"))
    trained = copy.deepcopy(model)
    trained.processor = model.processor
    trained.train()
    with record_llm_inputs(trained, features) as recorder, LossRecorder(recorder) as loss_recorder:
        objective = CheckedObjective(trained, prompt, train.enabled_optimizations)
        step = TrainStep(trained, objective, [image], features, train, seed=config.seed, dist=dist)
        step.run(0)
    texts = [text for sample in step.samples.batch(0) for text in sample.captions]
    return texts, _captions(loss_recorder.steps)


def _captions(steps: Sequence[TargetToken]) -> list[TargetTrace]:
    """Group targets by caption: a context that is not longer than the previous one starts a new caption."""
    captions: list[list[TargetToken]] = []
    for step in steps:
        if not captions or len(step.context) <= len(captions[-1][-1].context):
            captions.append([])
        captions[-1].append(step)
    return [TargetTrace(tuple(caption)) for caption in captions]


def _evaluation(config: RunConfig, image: Sample, max_new_tokens: int) -> Evaluation:
    """The run's evaluation of one image, decoding greedily."""
    decoding = {"max_new_tokens": max_new_tokens, "beams": 1, "repetition_penalty": 1.0}
    settings = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=decoding)})
    # Nothing is scored here, but CIDEr rejects a single image, and references without words.
    references = {name: ["a caption"] for name in (image.id, f"{image.id} again")}
    selected = EvaluationSet("explain", image.split, settings.evaluate.protocol, Path(), (image,), references)
    return Evaluation(settings, selected)


def _record_prompt(config: RunConfig, model: MiniGPT4, image: Sample, features: Tensor) -> tuple[InputToken, ...]:
    """The inputs of generation for one new token: the prompt."""
    with record_llm_inputs(model, features) as recorder:
        _evaluation(config, image, max_new_tokens=1).caption(model, features)
    return tuple(
        token
        for call in recorder.calls
        for token in recorder.tokens(call, 0, call.kept[0].nonzero().flatten().tolist())
    )


def _decode_targets(
    targets: Sequence[int], prompt_length: int, config: RunConfig, model: MiniGPT4, image: Sample, features: Tensor
) -> Decoded:
    """Decode with a model that outputs the targets and then repeats the first one."""

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
