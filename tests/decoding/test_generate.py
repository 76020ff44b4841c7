"""Captions are the same whatever their batch is, and the same as transformers' `generate` gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import SIZES, tiny_minigpt4
from torch import Tensor
from transformers import AutoConfig

from captune.decoding import DecodingOptions, Request, generate_captions, generate_ids
from captune.decoding.capabilities import unsupported_reason
from captune.decoding.engine import DecodingEngine, SharedPrefix
from captune.decoding.options import StopRule, common_prefix
from captune.errors import ConfigError
from captune.model import MiniGPT4

INSTRUCTIONS = ("Describe it.", "What is this, and where?", "Say", "Name the colours of all that you can see here.")
WAYS = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.3},
    "beams": {"beams": 3, "length_penalty": 0.6},
    "penalised beams": {"beams": 4, "length_penalty": -0.5, "repetition_penalty": 1.2},
    "sampled": {"temperature": 0.1, "top_k": 20, "top_p": 0.9, "seed": 5},
}


def options(way: str, **changes: Any) -> DecodingOptions:
    return DecodingOptions(**{"max_new_tokens": 14, "batch_size": 5, **WAYS[way], **changes})


def mixed(model: MiniGPT4, features: Tensor) -> list[Request]:
    """Requests of four prompt lengths, the constant text in front of the image the same."""
    layout = model.processor.layout
    texts = itertools.cycle(INSTRUCTIONS)
    return [
        Request(n, layout.prompt(next(texts)).ids, features[n : n + 1], key=f"image {n}") for n in range(len(features))
    ]


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_equals_single_images_and_transformers(model: MiniGPT4, features: Tensor, way: str) -> None:
    requests = mixed(model, features)
    alone = [generate_ids(model, [request], options(way))[0] for request in requests]
    assert len({len(row) for row in alone}) > 2, "the rows end at different places, or nothing is tested"
    for size in (1, 2, 5, 32):
        assert generate_ids(model, requests, options(way, batch_size=size)) == alone, size
    assert generate_ids(model, requests[::-1], options(way))[::-1] == alone
    assert generate_ids(model, requests, options(way), engine="transformers") == alone
    assert [generate_ids(model, [r], options(way), engine="transformers")[0] for r in requests[:4]] == alone[:4]


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_without_the_stop_symbol_rows_continue(model: MiniGPT4, features: Tensor, way: str) -> None:
    requests = mixed(model, features)
    through = generate_ids(model, requests, options(way), stop_symbol=False)
    assert through == generate_ids(model, requests, options(way), stop_symbol=False, engine="transformers")
    assert through != generate_ids(model, requests, options(way))


def test_captions_say_how_they_ended(model: MiniGPT4, features: Tensor) -> None:
    captions = generate_captions(model, features, "Describe it.", options("greedy"))
    reference = generate_captions(model, features, "Describe it.", options("greedy"), engine="transformers")
    assert captions == reference
    assert {caption.stopped for caption in captions} == {True, False}
    assert all(caption.tokens == 14 for caption in captions if not caption.stopped)
    assert all(caption.tokens <= 14 and "###" not in caption.text for caption in captions)


def test_each_image_may_have_another_instruction(model: MiniGPT4, features: Tensor) -> None:
    questions = list(itertools.islice(itertools.cycle(INSTRUCTIONS), len(features)))
    batched = generate_captions(model, features, questions, options("greedy"))
    alone = [
        generate_captions(model, features[n : n + 1], question, options("greedy"))[0]
        for n, question in enumerate(questions)
    ]
    assert batched == alone


@pytest.mark.parametrize("way", WAYS)
def test_fixed_shapes_change_nothing(model: MiniGPT4, features: Tensor, way: str) -> None:
    requests = mixed(model, features)
    expected = generate_ids(model, requests, options(way))
    prefix = SharedPrefix(model, common_prefix([request.prompt for request in requests]))
    longest = max(len(request.prompt) for request in requests)
    stop = StopRule(model.processor)
    loop = DecodingEngine(model, options(way), stop, slots=5, longest_prompt=longest, prefix=prefix, static_shape=True)
    generated, waiting, shapes = {}, list(requests), set()
    handle = model.llm.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.add(tuple(kwargs["inputs_embeds"].shape)), with_kwargs=True
    )
    while waiting or loop.active:
        # One at a time, so that rows of every age share a batch.
        if waiting and loop.free:
            loop.admit([waiting.pop(0)])
        generated.update({p.number: list(p.ids) for p in loop.step() if p.ended})
    handle.remove()
    assert [generated[n] for n in range(len(requests))] == expected
    rows = 5 * options(way).beams
    assert {shape for shape in shapes if shape[1] == 1} == {(rows, 1, 32)}


def test_the_constant_text_is_read_once(model: MiniGPT4, features: Tensor) -> None:
    requests = mixed(model, features)
    text = common_prefix([request.prompt for request in requests])
    assert len(text) > 5
    fed: list[int] = []
    handle = model.llm.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["inputs_embeds"].shape[0] * kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    rows = generate_ids(model, [requests[0]] * 12, options("greedy", batch_size=12))
    handle.remove()
    prompt = len(requests[0].prompt)
    new = sum(map(len, rows))
    assert sum(fed) == len(text) + 12 * (prompt - len(text) - 1) + new, "no token is computed twice, none for nothing"


def test_prompts_that_share_no_text(model: MiniGPT4, features: Tensor) -> None:
    tokenizer = model.processor.tokenizer
    prompts = [tuple(tokenizer.encode(text)) for text in ("abc", "xyzzy, a longer one", "a", "abd")]
    requests = [Request(n, prompt) for n, prompt in enumerate(prompts)]
    assert common_prefix(prompts) == ()
    for way in ("greedy", "beams"):
        batched = generate_ids(model, requests, options(way))
        assert batched == [generate_ids(model, [request], options(way))[0] for request in requests]
        assert batched == generate_ids(model, requests, options(way), engine="transformers")


def test_memory_runs_out(model: MiniGPT4, features: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    """Above three rows the model has no memory; the captions are those of a large machine."""
    requests = mixed(model, features)
    expected = generate_ids(model, requests, options("greedy", batch_size=12))

    def small(module: Any, args: Any, kwargs: Any) -> None:
        inputs = kwargs.get("inputs_embeds", kwargs.get("input_ids"))
        if len(inputs) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    handle = model.llm.register_forward_pre_hook(small, with_kwargs=True)
    try:
        for engine in ("captune", "transformers"):
            caplog.clear()
            generated = generate_ids(model, requests, options("greedy", batch_size=12), engine=engine)
            assert generated == expected
            assert "continuing with 3 at once" in caplog.text
        with pytest.raises(torch.OutOfMemoryError):
            generate_ids(model, requests, options("beams", beams=4, batch_size=12), engine="transformers")
    finally:
        handle.remove()


def test_memory_runs_out_in_the_middle(model: MiniGPT4, features: Tensor) -> None:
    """What had ended is kept, what was under way is begun again, and nothing is reported twice."""
    requests = mixed(model, features)
    expected = generate_ids(model, requests, options("greedy"))
    calls = itertools.count()

    def sometimes(module: Any, args: Any, kwargs: Any) -> None:
        if next(calls) in (9, 31):
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )

    handle = model.llm.register_forward_pre_hook(sometimes, with_kwargs=True)
    reported: list[int] = []
    try:
        rows = generate_ids(model, requests, options("greedy"), on_progress=lambda done, count: reported.append(done))
    finally:
        handle.remove()
    assert rows == expected
    assert reported == sorted(set(reported))
    assert reported[-1] == 12


def test_other_errors_are_not_taken_for_memory(model: MiniGPT4, features: Tensor) -> None:
    def broken(module: Any, args: Any, kwargs: Any) -> None:
        raise RuntimeError("a shape is wrong")

    handle = model.llm.register_forward_pre_hook(broken, with_kwargs=True)
    try:
        with pytest.raises(RuntimeError, match="a shape is wrong"):
            generate_captions(model, features, "Say", options("greedy"))
    finally:
        handle.remove()


def test_draws_belong_to_the_image(model: MiniGPT4, features: Tensor) -> None:
    same = features[:1].expand(6, -1, -1)
    keys = ["a", "b", "c", "a", "d", "e"]
    texts = [c.text for c in generate_captions(model, same, "Say", options("sampled"), keys=keys)]
    assert texts[0] == texts[3]
    assert len(set(texts)) > 2
    other = [c.text for c in generate_captions(model, same, "Say", options("sampled", seed=6), keys=keys)]
    assert other != texts
    unnamed = {c.text for c in generate_captions(model, same, "Say", options("sampled"))}
    assert len(unnamed) == 1


def test_draws_follow_the_distribution(model: MiniGPT4) -> None:
    from captune.decoding.sampling import sample, warp_logits

    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0, 0.0]]).expand(20_000, -1)
    settings = DecodingOptions(temperature=0.8, top_k=4, top_p=0.95)
    numbers = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frequencies = sample(warp_logits(logits, settings), numbers).bincount(minlength=5) / 20_000
    expected = (torch.tensor([2.0, 1.0, 0.5, -torch.inf, 0.0]) / 0.8).softmax(0)
    # top_p drops the tokens after 95 percent.
    kept = expected.sort(descending=True).values.cumsum(0) - expected.sort(descending=True).values < 0.95
    least = expected.sort(descending=True).values[kept].min()
    expected = torch.where(expected >= least, expected, 0.0)
    torch.testing.assert_close(frequencies, expected / expected.sum(), atol=0.012, rtol=0)


def test_restrictions_are_those_of_transformers() -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    from captune.decoding.sampling import warp_logits

    scores = torch.randn(7, 50, generator=torch.Generator().manual_seed(1)) * 3
    for temperature, top_k, top_p in itertools.product((0.5, 1.7), (0, 1, 12, 80), (0.1, 0.8, 1.0)):
        expected = TemperatureLogitsWarper(temperature)(None, scores)
        expected = TopKLogitsWarper(top_k)(None, expected) if top_k else expected
        expected = TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
        warped = warp_logits(scores, DecodingOptions(temperature=temperature, top_k=top_k, top_p=top_p))
        assert torch.equal(warped, expected)


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama with shared heads": lambda: AutoConfig.for_model("llama", **SIZES, num_key_value_heads=2),
    "qwen2": lambda: AutoConfig.for_model("qwen2", **SIZES, num_key_value_heads=2),
    "qwen3": lambda: AutoConfig.for_model("qwen3", **SIZES, num_key_value_heads=2, head_dim=8),
    "gemma2, eager": lambda: AutoConfig.for_model(
        "gemma2", **SIZES, num_key_value_heads=2, head_dim=8, attn_implementation="eager"
    ),
    "opt": lambda: AutoConfig.for_model("opt", **SIZES, ffn_dim=48, word_embed_proj_dim=32),
    "gpt2": lambda: AutoConfig.for_model(
        "gpt2", vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
    ),
    "mpt, no position ids": lambda: AutoConfig.for_model(
        "mpt", vocab_size=96, d_model=32, n_heads=4, n_layers=2, max_seq_len=256
    ),
    "gpt_neox": lambda: AutoConfig.for_model("gpt_neox", **SIZES),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_language_models_of_other_families(family: str, features: Tensor) -> None:
    other = tiny_minigpt4(FAMILIES[family](), scale=2.0)
    assert unsupported_reason(other.llm, 100) is None
    requests = mixed(other, features[:6])
    for way in ("greedy", "beams"):
        expected = [generate_ids(other, [request], options(way), engine="transformers")[0] for request in requests]
        assert generate_ids(other, requests, options(way)) == expected, way


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        (lambda: AutoConfig.for_model("mistral", **SIZES, num_key_value_heads=2, sliding_window=24), "narrower"),
        (
            lambda: AutoConfig.for_model(
                "mamba", vocab_size=96, hidden_size=32, num_hidden_layers=2, bos_token_id=1, eos_token_id=2
            ),
            "",
        ),
    ],
)
def test_what_does_not_fit_slots_goes_through_transformers(
    family: Callable[[], Any], reason: str, features: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    other = tiny_minigpt4(family())
    message = unsupported_reason(other.llm, 100)
    assert message is not None
    assert reason in message
    requests = mixed(other, features[:3])
    captions = [generate_ids(other, [request], options("greedy"))[0] for request in requests]
    assert "decoding with transformers' generate" in caplog.text
    assert captions == [
        generate_ids(other, [request], options("greedy"), engine="transformers")[0] for request in requests
    ]


def test_no_images_no_captions(model: MiniGPT4, features: Tensor) -> None:
    assert generate_captions(model, features[:0], "Say", options("greedy")) == []
    assert len(generate_captions(model, features[:1], "Say", options("greedy", max_new_tokens=1))) == 1


def test_the_loop_refuses_what_does_not_fit(model: MiniGPT4, features: Tensor) -> None:
    loop = DecodingEngine(model, options("greedy"), StopRule(model.processor), slots=1, longest_prompt=8)
    with pytest.raises(ValueError, match="longer than `longest_prompt`"):
        loop.admit([Request(0, tuple(range(3, 20)))])
    loop.admit([Request(0, (5, 6))])
    with pytest.raises(ValueError, match="1 captions were passed, and 0 slots are free"):
        loop.admit([Request(1, (5, 6))])


@pytest.mark.parametrize(
    "wrong",
    [
        {"beams": 0},
        {"max_new_tokens": 0},
        {"batch_size": -1},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.2},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"beams": 2, "temperature": 0.5},
    ],
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DecodingOptions(**wrong)


def test_signatures() -> None:
    assert str(DecodingOptions()) == "greedy,max40"
    assert str(DecodingOptions(beams=3, length_penalty=0.6, repetition_penalty=1.5)) == "beam3,lp0.6,rp1.5,max40"
    assert str(DecodingOptions(temperature=0.7, top_p=0.9, seed=3)) == "sample,t0.7,p0.9,seed3,max40"
