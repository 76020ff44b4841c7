"""Packed rows give the loss and the gradient of plain rows, or are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SIZES, VOCABULARY, tiny_minigpt4
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from captune.config import OptimizationsConfig
from captune.model import MiniGPT4, language_model
from captune.model.layer_call import LayerCall
from captune.model.packing import fed_tokens, pack, row_multiple
from captune.training import loss as loss_module
from captune.training.equivalence import check_packing, truncated_copy
from captune.training.loss import Objective
from captune.training.sample_order import TrainingSample

SAMPLES = [
    TrainingSample(0, ("a dog runs", "two dogs run on the grass", "a brown dog")),
    TrainingSample(1, ("a red car", "one car stands in front of a house")),
    TrainingSample(2, ("x",)),
]
INSTRUCTION = "Describe this image."
PIECES = {
    "separate rows": OptimizationsConfig(shared_prefix=False, constant_prefix=False),
    "shared prefix": OptimizationsConfig(constant_prefix=False),
    "shared prefix behind cached text": OptimizationsConfig(),
    "separate rows behind cached text": OptimizationsConfig(shared_prefix=False),
}
PLAIN = OptimizationsConfig(shared_prefix=False, constant_prefix=False, target_logits=False)

EXACT_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None, "num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "phi3": {"pad_token_id": 0},
    "granite": {"logits_scaling": 4.0, "num_key_value_heads": 2},
    "cohere": {"logit_scale": 0.25},
    "gpt_neox": {},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48},
}
WRONG_FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 24, "num_key_value_heads": 2},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "expansion_ratio": 2},
    "mamba": {"state_size": 8},
    "bloom": {"n_layer": 2, "n_head": 4, "hidden_size": 32},
}


def family(name: str, settings: dict[str, Any]) -> MiniGPT4:
    return tiny_minigpt4(AutoConfig.for_model(name, **{**SIZES, **settings}))


def features(model: MiniGPT4) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(len(SAMPLES), 4, 24, dtype=model.projection.weight.dtype)


def loss_and_gradient(model: MiniGPT4, fast: OptimizationsConfig) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = Objective(model, INSTRUCTION, fast).loss(SAMPLES, features(model))
    loss.backward()
    gradient = torch.cat([p.grad.reshape(-1) for _, p in model.trained_parameters()])
    return loss.item(), gradient


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture
def strict_float64() -> Iterator[None]:
    """RMSNorm as its formula says, in the precision of its input; transformers casts to float32 there."""
    from transformers.models.llama import modeling_llama

    def norm(self: Any, states: torch.Tensor) -> torch.Tensor:
        variance = states.pow(2).mean(-1, keepdim=True)
        return self.weight * states * torch.rsqrt(variance + self.variance_epsilon)

    original = modeling_llama.LlamaRMSNorm.forward
    modeling_llama.LlamaRMSNorm.forward = norm
    yield
    modeling_llama.LlamaRMSNorm.forward = original


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("name", EXACT_FAMILIES)
def test_packing_changes_nothing(name: str, pieces: OptimizationsConfig) -> None:
    model = family(name, EXACT_FAMILIES[name])
    loss, gradient = loss_and_gradient(model, PLAIN)
    packed_loss, packed_gradient = loss_and_gradient(model, pieces)
    assert packed_loss == pytest.approx(loss, rel=1e-6)
    assert relative(packed_gradient, gradient) < 1e-5


@pytest.mark.parametrize("name", [*EXACT_FAMILIES, "gemma2"])
def test_logits_in_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever follows a family's head, and where the last chunk is shorter than the others."""
    settings = {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 0.5}
    model = family(name, EXACT_FAMILIES.get(name, settings))
    separate = PIECES["separate rows"]
    loss, gradient = loss_and_gradient(model, separate)
    monkeypatch.setattr(loss_module, "VALUES_AT_ONCE", 7 * model.llm.get_output_embeddings().weight.shape[0])
    chunked_loss, chunked_gradient = loss_and_gradient(model, separate)
    assert chunked_loss == pytest.approx(loss, rel=1e-6)
    assert relative(chunked_gradient, gradient) < 1e-5
    # The decoder is itself again.
    monkeypatch.undo()
    assert loss_and_gradient(model, separate)[0] == loss


def test_few_logits_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_minigpt4()
    monkeypatch.setattr(loss_module, "VALUES_AT_ONCE", 5 * VOCABULARY)
    sizes: list[int] = []
    model.llm.lm_head.register_forward_hook(lambda module, states, output: sizes.append(output.numel()))
    loss_and_gradient(model, PIECES["shared prefix"])
    assert max(sizes) == 5 * VOCABULARY


@pytest.mark.usefixtures("strict_float64")
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_packing_is_exact_in_float64(pieces: OptimizationsConfig) -> None:
    model = tiny_minigpt4().double()
    # The plain path computes its cross-entropy in float32; one packed row a caption is its float64 form.
    loss, gradient = loss_and_gradient(model, PIECES["separate rows"])
    packed_loss, packed_gradient = loss_and_gradient(model, pieces)
    assert packed_loss == pytest.approx(loss, rel=1e-13)
    assert relative(packed_gradient, gradient) < 1e-12


def test_lora_gradients_are_the_same() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_minigpt4()
    model.llm = get_peft_model(model.llm, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("projection."))
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    loss, gradient = loss_and_gradient(model, PLAIN)
    packed_loss, packed_gradient = loss_and_gradient(model, OptimizationsConfig())
    assert packed_loss == pytest.approx(loss, rel=1e-6)
    assert relative(packed_gradient, gradient) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXACT_FAMILIES)
def test_probe_trusts_exact_families(name: str, dtype: torch.dtype) -> None:
    model = family(name, EXACT_FAMILIES[name])
    model.llm.to(dtype)
    objective = Objective(model, INSTRUCTION, OptimizationsConfig())
    assert check_packing(objective, SAMPLES, features(model)) is None
    assert objective.shared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WRONG_FAMILIES)
def test_probe_catches_wrong_families(name: str, dtype: torch.dtype) -> None:
    """Silently wrong or raising, training continues with plain rows and their gradient.

    ALiBi bends the gradient by 4 %, which rounding to bfloat16 would hide.
    """
    model = family(name, WRONG_FAMILIES[name])
    model.llm.to(dtype)
    objective = Objective(model, INSTRUCTION, OptimizationsConfig())
    reason = check_packing(objective, SAMPLES, features(model))
    assert reason is not None
    assert not objective.packed
    plain = Objective(model, INSTRUCTION, PLAIN).loss(SAMPLES, features(model))
    assert torch.equal(objective.loss(SAMPLES, features(model)), plain)


def test_a_last_layer_that_must_not_be_cut_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing continues without it."""

    def refuse(*args: Any) -> Any:
        raise NotImplementedError("the layer takes no cache")

    model = tiny_minigpt4()
    monkeypatch.setattr(LayerCall, "fill_cache", refuse)
    objective = Objective(model, INSTRUCTION, OptimizationsConfig())
    assert check_packing(objective, SAMPLES, features(model)) is None
    assert objective.packed
    assert not objective.skips_unused
    objective.loss(SAMPLES, features(model))


def test_a_short_copy_has_every_kind_of_layer_and_takes_none() -> None:
    kinds = ["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 2
    settings = {"num_hidden_layers": 6, "layer_types": kinds, "head_dim": 8, "num_key_value_heads": 1}
    model = family("gemma3_text", settings)
    model.llm.to(torch.bfloat16)
    short = truncated_copy(model)
    assert short is not None
    assert len(short.llm.model.layers) == short.llm.config.num_hidden_layers == 4
    assert {parameter.dtype for parameter in short.llm.parameters()} == {torch.float32}
    assert short.projection is model.projection
    assert len(model.llm.model.layers) == model.llm.config.num_hidden_layers == 6
    assert {parameter.dtype for parameter in model.llm.parameters()} == {torch.bfloat16}
    objective = Objective(model, INSTRUCTION, OptimizationsConfig())
    assert check_packing(objective, SAMPLES, features(model)) is None


def test_no_copy_of_what_is_quantized() -> None:
    model = tiny_minigpt4()
    model.llm.is_quantized = True
    assert truncated_copy(model) is None


def test_memory_that_runs_out_leaves_the_model_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_minigpt4(AutoConfig.for_model("llama", **{**SIZES, "num_hidden_layers": 5}))

    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(language_model, "copy", SimpleNamespace(deepcopy=full))
    assert truncated_copy(model) is None
    assert len(model.llm.model.layers) == 5


def test_layout_of_a_row() -> None:
    batch = pack([1, -1, -1, 5], [[[7, 8, 2], [9, 2]]], cached=1)
    assert batch.input_ids[0, :6].tolist() == [-1, -1, 5, 7, 8, 9]
    assert batch.position_ids[0, :6].tolist() == [1, 2, 3, 4, 5, 4]
    assert batch.targets.tolist() == [7, 8, 2, 9, 2]
    assert batch.columns.tolist() == [2, 3, 4, 2, 5]
    sees = batch.attention_mask[0, 0].int().tolist()
    assert sees[4][:7] == [1, 1, 1, 1, 1, 1, 0]  # the second token of caption one
    assert sees[5][:7] == [1, 1, 1, 1, 0, 0, 1]  # the second caption does not see the first
    assert sees[7][:3] == [1, 1, 0]  # padding sees something, so that nothing is undefined


def test_what_captions_begin_with_is_fed_once() -> None:
    batch = pack([1, -1, 5], [[[7, 8, 9, 2], [6, 2], [7, 8, 2], [7, 8, 9, 2]]], multiple=1)
    assert batch.input_ids[0].tolist() == [1, -1, 5, 6, 7, 8, 9]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 3, 4, 5]
    # Targets are in the order of the captions; a repeated one counts twice.
    assert batch.targets.tolist() == [7, 8, 9, 2, 6, 2, 7, 8, 2, 7, 8, 9, 2]
    assert batch.columns.tolist() == [2, 4, 5, 6, 2, 3, 2, 4, 5, 2, 4, 5, 6]
    assert fed_tokens([[7, 8, 9, 2], [6, 2]]) == 4


def test_every_target_is_predicted_from_its_caption() -> None:
    """Whatever captions have in common: its state sees the prompt and the caption before it, at their positions."""
    random = np.random.default_rng(0)
    prompt = [1, -1, -1, 5]
    for _ in range(60):
        rows = [
            [(*random.integers(6, 9, random.integers(0, 6)).tolist(), 2) for _ in range(random.integers(1, 7))]
            for _ in range(3)
        ]
        cached = int(random.integers(0, 2))
        batch = pack(prompt, rows, cached=cached, multiple=int(random.choice([1, 8])))
        expected = [
            (row, [*prompt, *caption[:index]], target)
            for row, captions in enumerate(rows)
            for caption in captions
            for index, target in enumerate(caption)
        ]
        predicted = []
        for row, column, target in zip(batch.rows, batch.columns, batch.targets, strict=True):
            seen = batch.attention_mask[row, 0, column].nonzero().flatten()
            assert seen[:cached].tolist() == list(range(cached))
            suffix = seen[cached:] - cached
            assert batch.position_ids[row, suffix].tolist() == list(range(cached, cached + len(suffix)))
            predicted.append((int(row), prompt[:cached] + batch.input_ids[row, suffix].tolist(), int(target)))
        assert predicted == expected


def test_rows_are_padded_for_a_gpu_only() -> None:
    widths = {
        kind: pack([1, -1, -1, 5], [[[7, 8, 2], [9, 2]]], multiple=row_multiple(torch.device(kind))).input_ids.shape[1]
        for kind in ("cpu", "cuda")
    }
    assert widths == {"cpu": 7, "cuda": 8}


def test_tokens_are_saved() -> None:
    """The packed batch feeds the prompt once an image and leaves out every last token."""
    model = tiny_minigpt4()
    layout = model.processor.layout
    prompt = layout.prompt(INSTRUCTION).ids
    rows = [[layout.target_ids(caption)[0] for caption in sample.captions] for sample in SAMPLES]
    fed = (pack(prompt, rows).attention_mask.sum(-1) > 0).sum()
    plain = sum(len(prompt) + len(caption) for row in rows for caption in row)
    assert fed < plain


@pytest.mark.parametrize("pieces", PIECES)
def test_mixed_instructions_give_the_loss_and_gradient_of_plain_rows(pieces: str) -> None:
    model = family("llama", {})
    mixed = [replace(sample, instruction=one) for sample, one in zip(SAMPLES, ("Say.", None, "Say."), strict=True)]
    images = features(model)
    gradients = []
    for fast in (PIECES[pieces], PLAIN):
        objective = Objective(model, INSTRUCTION, fast)
        loss = objective.loss(mixed, images)
        gradients.append((loss.detach(), *torch.autograd.grad(loss, [p for _, p in model.trained_parameters()])))
    for packed, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-4)
    same = Objective(model, INSTRUCTION, PLAIN).loss(SAMPLES, images)
    assert not torch.isclose(gradients[0][0], same.detach())


@pytest.mark.parametrize("chunked", [False, True], ids=["at once", "in chunks"])
def test_a_gradient_is_summed_in_one_order(chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last prompt state has a gradient from every caption of its image; threads must not race to add them up."""
    model = tiny_minigpt4()
    if chunked:
        monkeypatch.setattr(loss_module, "VALUES_AT_ONCE", 7 * VOCABULARY)
    called: list[str] = []

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names = [argument.name for argument in function._schema.arguments]
            arguments = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            if "index_put" in function.name() and arguments.get("accumulate"):
                called.append(function.name())
            return function(*args, **(kwargs or {}))

    with Operations():
        loss_and_gradient(model, OptimizationsConfig())
    assert not called


def windowed(window: int) -> MiniGPT4:
    """A Mistral whose window is narrower than what its captions could be."""
    return tiny_minigpt4(AutoConfig.for_model("mistral", **{**SIZES, "num_key_value_heads": 2}, sliding_window=window))


@pytest.mark.parametrize("window", [75, 100])
def test_a_window_that_the_tried_samples_do_not_reach(window: int) -> None:
    """What is longer than the window is computed plainly, the rest stays packed, and all of it is exact."""
    model = windowed(window)
    objective = Objective(model, INSTRUCTION, OptimizationsConfig())
    shortest = [TrainingSample(0, ("a", "b"))]
    prompt = objective.lengths(shortest[0]).plain - objective.target_count(shortest) // 2
    images = features(model)[:1]
    reason = check_packing(objective, shortest, images)
    assert reason is not None
    assert "rows of more than" in reason
    assert objective.packed
    assert objective.limits is not None
    # The last token of a row is predicted and not fed.
    assert prompt < objective.limits.plain <= window + 1
    plain = Objective(model, INSTRUCTION, OptimizationsConfig(target_logits=False, shared_prefix=False))
    for length in (1, window - prompt - 4, window - prompt + 4, 50):
        sample = TrainingSample(0, ("a" * length, "b" * 2))
        gradients = [
            torch.autograd.grad(one.loss([sample], images), model.projection.weight)[0] for one in (objective, plain)
        ]
        assert torch.allclose(*gradients, rtol=1e-3, atol=1e-5 * float(gradients[1].abs().max()))
    both = [TrainingSample(0, ("a",)), TrainingSample(0, ("a" * 50,))]
    assert objective.packing_groups(both) == [[0], [1]]


def test_a_window_wider_than_any_caption_keeps_rows_packed() -> None:
    model = windowed(200)
    objective = Objective(model, INSTRUCTION, OptimizationsConfig())
    assert check_packing(objective, [TrainingSample(0, ("a",))], features(model)[:1]) is None
    assert objective.packed
    assert objective.limits is None
