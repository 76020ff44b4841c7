"""Generation of captions from image features, with the decoding engine or transformers' `generate`."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Literal

import torch
from torch import Tensor

from captune.common import split_thinking
from captune.decoding.capabilities import unsupported_reason
from captune.decoding.engine import DecodingEngine, SharedPrefix
from captune.decoding.oom import halve_on_oom, in_batches, is_out_of_memory
from captune.decoding.options import (
    Caption,
    DecodingOptions,
    FeatureRows,
    Progress,
    Request,
    StopRule,
    common_prefix,
    raise_if_faulty,
)
from captune.decoding.transformers_generate import generate_with_transformers
from captune.errors import ConfigError, NonFiniteScoresError
from captune.model import MiniGPT4, MiniGPT4Processor, is_batch_invariant

__all__ = ["Engine", "as_caption", "generate_captions", "generate_ids", "prompt_embeddings"]

logger = logging.getLogger(__name__)

Engine = Literal["captune", "transformers"]
"""What decodes: `DecodingEngine`, or transformers' `generate`."""


@torch.inference_mode()
def generate_captions(
    model: MiniGPT4,
    features: FeatureRows,
    instruction: str | Sequence[str],
    options: DecodingOptions,
    *,
    keys: Sequence[str] | None = None,
    engine: Engine = "captune",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Caption]:
    """Caption images from their stored features.

    Args:
        model: with its processor.
        features: output of the frozen part for N images, a tensor (N, Q, F) or an object that reads it from disk.
        instruction: the instruction for all images, or one for each.
        options: decoding options.
        keys: one for each image, such as its id, to select its random numbers for sampling; by default all share them.
        engine: what decodes; the captions are the same.
        on_progress: called with (done, N) when captions end.

    Returns:
        N captions in the order of the features; in float32 a caption does not depend on its batch.

    Raises:
        NonFiniteScoresError: the features or scores of some images are not finite; it has the captions of the others.
    """
    processor = _processor(model)
    instructions = [instruction] * len(features) if isinstance(instruction, str) else list(instruction)
    row_keys = keys if keys is not None else [""] * len(features)
    requests = [
        Request(
            number, processor.layout.prompt(text).ids, partial(features.__getitem__, slice(number, number + 1)), key
        )
        for number, (text, key) in enumerate(zip(instructions, row_keys, strict=True))
    ]
    faulty: set[int] = set()
    try:
        rows = generate_ids(model, requests, options, engine=engine, on_progress=on_progress)
    except NonFiniteScoresError as error:
        rows, faulty = [row or [] for row in error.captions], set(error.reasons)
    captions = [as_caption(processor, row) for row in rows]
    raise_if_faulty(captions, faulty)
    return captions


@torch.inference_mode()
def generate_ids(
    model: MiniGPT4,
    requests: Sequence[Request],
    options: DecodingOptions,
    *,
    stop_symbol: bool = True,
    engine: Engine = "captune",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue prompts.

    Args:
        model: with its processor.
        requests: N prompts of any lengths; their numbers are ignored.
        options: decoding options; `batch_size` is halved if memory runs out.
        stop_symbol: whether the stop symbol ends a row; otherwise only EOS does.
        engine: what decodes. A language model that the static KV cache does not support (linear attention, a narrow
            window) is decoded by transformers, with a warning.
        on_progress: called with (done, N) as rows end.

    Returns:
        N lists of new ids, up to the token that ended them.

    Raises:
        torch.OutOfMemoryError: a single row does not fit.
        NonFiniteScoresError: the scores of some rows are not finite; it has the other rows.
    """
    if not requests:
        return []
    numbered = [replace(request, number=number) for number, request in enumerate(requests)]
    if engine == "captune":
        longest = max(len(request.prompt) for request in requests) + options.max_new_tokens
        reason = unsupported_reason(model.llm, longest)
        if reason is not None:
            logger.warning("decoding with transformers' generate, which is slower: %s", reason)
            engine = "transformers"
    if engine == "captune":
        work = _with_engine(model, numbered, options, stop_symbol)
    else:
        work = _with_transformers(model, numbered, options, stop_symbol)
    rows: list[list[int]] = [[] for _ in requests]
    faulty: set[int] = set()
    done = 0
    for ended in work:
        for progress in ended:
            rows[progress.number] = list(progress.ids)
            if progress.faulty:
                faulty.add(progress.number)
        done += len(ended)
        if on_progress is not None and ended:
            on_progress(done, len(rows))
    raise_if_faulty(rows, faulty)
    return rows


def as_caption(processor: MiniGPT4Processor, ids: Sequence[int]) -> Caption:
    """The caption of a row of new ids."""
    answer = processor.trim_at_end(ids)
    text = processor.tokenizer.decode(answer)
    symbol = processor.layout.stop_text
    stopped = len(answer) < len(ids) or (symbol != "" and symbol in text)
    written = split_thinking(processor.layout.text_before_stop(text))
    return Caption(written.text, len(ids), stopped, written.thinking)


def _with_engine(
    model: MiniGPT4, requests: Sequence[Request], options: DecodingOptions, stop_symbol: bool
) -> Iterator[list[Progress]]:
    """The captions that ended in each step."""
    stop = StopRule(_processor(model), symbol=stop_symbol)
    waiting = deque(requests)
    # For a single row, a forward for the shared prefix would cost more than it saves.
    shared = common_prefix([request.prompt for request in requests]) if len(requests) > 1 else ()
    prefix = SharedPrefix(model, shared)
    longest = max(len(request.prompt) for request in requests)
    # Compiled steps keep their shape for fewer captions.
    slots = options.batch_size if options.compiled else min(options.batch_size, len(requests))
    decoder: DecodingEngine | None = None
    active: list[Request] = []
    while waiting or active:
        try:
            if decoder is None:
                decoder = DecodingEngine(model, options, stop, slots=slots, longest_prompt=longest, prefix=prefix)
            if waiting and decoder.has_capacity:
                new = [waiting[index] for index in range(min(decoder.free, len(waiting)))]
                active = [*decoder.requests, *new]
                decoder.admit(new)
                for _ in new:
                    waiting.popleft()
            ended = [progress for progress in decoder.step() if progress.ended]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or slots == 1:
                raise
            decoder = None
        if decoder is None:
            slots = halve_on_oom(slots)
            # Captions in progress begin again; those that ended before are kept.
            started = {request.number for request in active}
            waiting = deque([*active, *(request for request in waiting if request.number not in started)])
            active = []
            continue
        active = decoder.requests
        if ended:
            yield ended


def _with_transformers(
    model: MiniGPT4, requests: Sequence[Request], options: DecodingOptions, stop_symbol: bool
) -> Iterator[list[Progress]]:
    """The captions of each batch."""

    def run(batch: Sequence[Request]) -> tuple[list[list[int]], set[int]]:
        return generate_with_transformers(model, batch, options, stop_symbol=stop_symbol)

    # The library's condition in `generate`, which raises a bare ValueError.
    if "inputs_embeds" not in signature(model.llm.prepare_inputs_for_generation).parameters:
        raise ConfigError(
            f"transformers generates no text after embeddings for a '{model.llm.config.model_type}' language model, "
            "so it cannot caption images; give another one."
        )
    size = options.batch_size
    if len(requests) > 1 and not is_batch_invariant(model.llm, padded=len({len(one.prompt) for one in requests}) > 1):
        logger.warning("captions are generated one by one: in a batch, this language model generates other ones.")
        size = 1
    for batch, (rows, faulty) in in_batches(requests, size, run):
        yield [Progress(batch[n].number, row, True, n in faulty) for n, row in enumerate(rows)]


def _processor(model: MiniGPT4) -> MiniGPT4Processor:
    if model.processor is None:
        raise ValueError("The model has no processor; load it with from_pretrained or load_official.")
    return model.processor


@torch.inference_mode()
def prompt_embeddings(model: MiniGPT4, features: FeatureRows, instruction: str) -> Tensor:
    """Complete prompts as embeddings, for engines that take them instead of token ids, such as vLLM's `EmbedsPrompt`.

    Args:
        model: with its processor.
        features: output of the frozen part for N images.
        instruction: the instruction for all images.

    Returns:
        (N, T, D), BOS and image included, on the CPU in the language model's number format.
    """
    processor = _processor(model)
    device = model.projection.weight.device
    rows = features[0 : len(features)].to(device)
    ids = torch.tensor([processor.layout.prompt(instruction).ids], device=device).expand(len(rows), -1)
    return model.embed(ids, model.project(rows)).cpu()
