"""Compare training with generation for a transformers model, without its weights.

The real code of both sides runs: `ImageTextModel.loss` for training, `TransformersBackend.generate` for evaluation.
Only the model's forward and `generate` are replaced by ones that record their inputs, so that a 70B model is explained
in a second:

- the tokens and other inputs of training and of generation are the arguments of `forward` and of `generate`;
- the targets are those of the cross entropy, and each logit carries the index of the state that it belongs to;
- `generate` outputs exactly the targets and then more tokens, and stops as the model's generation configuration says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import GenerationMixin

from captune.config import RunConfig
from captune.data import Sample
from captune.decoding import DecodingOptions
from captune.errors import DataError
from captune.explain.checks import Decoded, Expected, InputToken, TargetToken, TargetTrace, piece_text
from captune.explain.conversation_checks import Sides, conversation_checks
from captune.explain.explanation import Explanation
from captune.model import HuggingFaceTokenizer
from captune.vlm import ImageTextModel

__all__ = ["explain_conversation"]


def explain_conversation(
    config: RunConfig,
    model: ImageTextModel,
    sample: Sample,
    image: Image.Image,
    caption: int = 0,
    *,
    others: Sequence[str] = (),
) -> Explanation:
    """Explain one caption of one image.

    Args:
        config: of the run.
        model: of the run; its weights are not used, see `captune.vlm.weightless_model`.
        sample: the image's row of the manifest.
        image: the image.
        caption: index of the caption.
        others: further captions, whose conversations are checked too.

    Returns:
        Both sides, and the results of the checks.

    Raises:
        DataError: the image has no such caption.
        WeightsError: the model has no prompt that a caption can follow.
    """
    if not 0 <= caption < len(sample.captions):
        raise DataError(
            f"Image '{sample.id}' has {len(sample.captions)} captions; there is none with number {caption}."
        )
    text = sample.captions[caption]
    tokenizer = HuggingFaceTokenizer(model.processor.tokenizer)
    image_ids = image_token_ids(model)
    training = _record_loss(model, image, text)
    stops = stop_ids(model)
    generation, decoded = _record_generation(model, image, [target for _, target in training.targets], stops)
    trace = _trace(model, training, image_ids)
    prompt = tuple(_tokens(_ids(generation)[0].tolist(), image_ids))
    symbol = piece_text(tokenizer, trace.targets[-1])
    expected = Expected(
        caption=text,
        image_tokens=sum(token.slot is not None for token in prompt),
        stop_symbol=symbol,
        stop_ids=tuple(sorted(stops)),
        max_new_tokens=config.evaluate.max_new_tokens,
    )
    sides = Sides(model, image, sample.captions, trace, prompt, training.inputs, generation, decoded, expected)
    results = conversation_checks(sides, tokenizer, others)
    rendered = model.conversation.inputs.prompt(model.conversation.instruction)
    return Explanation(sample.id, text, trace, prompt, symbol, tuple(results), tokenizer, rendered)


def image_token_ids(model: ImageTextModel) -> frozenset[int]:
    """Ids that image features replace; empty if the model puts them before the text."""
    config, processor = model.model.config, model.processor
    values = [getattr(config, name, None) for name in ("image_token_id", "image_token_index")]
    values.append(getattr(processor, "image_token_id", None))
    token = getattr(processor, "image_token", None)
    if token is not None:
        values.append(processor.tokenizer.convert_tokens_to_ids(str(getattr(token, "content", token))))
    return frozenset(value for value in values if isinstance(value, int) and value >= 0)


def stop_ids(model: ImageTextModel) -> frozenset[int]:
    """Ids at which `generate` stops."""
    inner = model.model
    configs = [getattr(inner, "generation_config", None)]
    if type(inner).generate is not GenerationMixin.generate:
        # Such as BLIP-2, where the language model generates.
        configs += [getattr(part, "generation_config", None) for part in inner.modules()]
    values: set[int] = set()
    for config in configs:
        value = getattr(config, "eos_token_id", None)
        values |= set(value if isinstance(value, (list, tuple)) else [] if value is None else [int(value)])
    return frozenset(values)


@dataclass
class _Recorded:
    """The inputs of one forward, and (index of a state, target id) for each target."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    targets: list[tuple[int, int]] = field(default_factory=list)


class _Targets(TorchFunctionMode):
    """Records the targets of cross entropies; the first logit of each is the index of its state."""

    def __init__(self, recorded: _Recorded) -> None:
        super().__init__()
        self._recorded = recorded

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        settings = kwargs or {}
        if func is F.cross_entropy:
            ignored = settings.get("ignore_index", -100)
            states, targets = args[0][:, 0].tolist(), args[1].tolist()
            self._recorded.targets += [
                (int(state), target) for state, target in zip(states, targets, strict=True) if target != ignored
            ]
        return func(*args, **settings)


def _record_loss(model: ImageTextModel, image: Image.Image, caption: str) -> _Recorded:
    """Compute the loss of one caption with a forward that records its inputs."""
    recorded = _Recorded()
    inner = model.model
    head = inner.get_output_embeddings()
    words = int(head.weight.shape[0]) if head is not None else int(inner.config.get_text_config().vocab_size)

    def logits(states: Tensor) -> Tensor:
        """(..., V) values, the first of which is the state's index."""
        values = torch.zeros(*states.shape[:-1], words, dtype=torch.float64)
        values[..., 0] = states[..., 0]
        return values

    def forward(**inputs: Any) -> Any:
        recorded.inputs = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        shape = inputs["labels"].shape if "labels" in inputs else inputs["input_ids"].shape
        states = torch.arange(shape.numel(), dtype=torch.float64).reshape(*shape, 1)
        return SimpleNamespace(logits=logits(states) if head is None or "labels" in inputs else head(states))

    with _replaced(inner, "forward", forward), _Targets(recorded), torch.no_grad():
        if head is None:
            model.loss(image, [caption])
        else:
            with _replaced(head, "forward", logits):
                model.loss(image, [caption])
    return recorded


def _record_generation(
    model: ImageTextModel, image: Image.Image, targets: list[int], stops: frozenset[int]
) -> tuple[dict[str, Tensor], Decoded]:
    """Caption an image with a `generate` that records its inputs and outputs the targets, then the first one again."""
    recorded: dict[str, Tensor] = {}
    script = [*targets, *[targets[0]] * (len(targets) // 2 + 8)]

    def generate(**settings: Any) -> Tensor:
        recorded.update({name: value for name, value in settings.items() if isinstance(value, Tensor)})
        start = getattr(model.model.generation_config, "decoder_start_token_id", None)
        row = [int(start or 0)] if model.conversation.is_encoder_decoder else _ids(recorded)[0].tolist()
        for number, token in enumerate(script):
            for observer in settings["logits_processor"]:
                observer(torch.tensor([row]), torch.zeros(1, 1))
            row.append(token)
            if token in stops or number + 1 == settings["max_new_tokens"]:
                break
        return torch.tensor([row])

    with _replaced(model.model, "generate", generate):
        caption = model.backend.generate([image], None, DecodingOptions(max_new_tokens=len(script)))[0]
    return recorded, Decoded(caption.text, caption.tokens, caption.stopped)


def _trace(model: ImageTextModel, recorded: _Recorded, image_ids: frozenset[int]) -> TargetTrace:
    """The targets with the tokens that each is predicted from."""
    row = _ids(recorded.inputs)[0].tolist()
    mask = recorded.inputs.get("attention_mask")
    visible = [True] * len(row) if mask is None else mask[0].bool().tolist()
    tokens = _tokens(row, image_ids)
    steps: list[TargetToken] = []
    for state, target in recorded.targets:
        if model.conversation.is_encoder_decoder:
            # The library feeds the labels before this one to the decoder.
            before = [InputToken(step.target, None, len(row) + number) for number, step in enumerate(steps)]
            steps.append(TargetToken((*tokens, *before), target))
        else:
            seen = [token for token, yes in zip(tokens[: state + 1], visible, strict=False) if yes]
            steps.append(TargetToken(tuple(seen), target))
    return TargetTrace(tuple(steps))


def _tokens(ids: Sequence[int], image_ids: frozenset[int]) -> list[InputToken]:
    made, slot = [], 0
    for position, token in enumerate(ids):
        is_image = token in image_ids
        made.append(InputToken(token, slot if is_image else None, position))
        slot += is_image
    return made


def _ids(inputs: dict[str, Tensor]) -> Tensor:
    ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    return torch.zeros(1, 0, dtype=torch.int64) if ids is None else ids


@contextmanager
def _replaced(module: Any, name: str, function: Any) -> Iterator[None]:
    """Replace a method of a module within the block."""
    setattr(module, name, function)
    try:
        yield
    finally:
        delattr(module, name)
