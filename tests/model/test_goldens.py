"""The three original variants at tiny dimensions: what the original code computed is what comes out here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from captune.config import TrainConfig
from captune.model import MiniGPT4, TokenSequence
from captune.model.official import load_official
from captune.training.schedule import learning_rate
from captune.training.step import build_optimizer

VARIANTS = ("minigpt4_vicuna", "minigpt4_llama2", "minigpt_v2")
FORWARD_CASES = [(variant, case) for variant in VARIANTS[:2] for case in ("main", "student_grounding", "no_prompt")]
FORWARD_CASES += [("minigpt_v2", "main"), ("minigpt_v2", "text_only")]
HEADS = 4
LORA_ALPHA = 8


@dataclass(frozen=True)
class Golden:
    folder: Path
    model: MiniGPT4
    vision: dict[str, Tensor]

    def json(self, name: str) -> Any:
        return json.loads((self.folder / "expected" / f"{name}.json").read_text(encoding="utf-8"))

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / "expected" / f"{name}.safetensors")

    def rows(self, prompts: list[str], answers: list[str]) -> list[TokenSequence]:
        layout = self.model.processor.layout
        rows = []
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = layout.text_ids(prompt)
            rows.append(TokenSequence(ids + layout.target_ids(answer)[0], len(ids)))
        return rows

    def batch(self, prompts: list[str], answers: list[str]) -> dict[str, Tensor]:
        return self.model.processor.pad(self.rows(prompts, answers))


def load(shared: Path, variant: str) -> Golden:
    folder = shared / "goldens" / variant
    spec = json.loads((folder / "meta.json").read_text())["spec"]
    qformer = folder / "blip2_pretrained.pth"
    model = load_official(
        spec["arch"],
        llm=folder / "llama",
        vision=folder / "eva_vit.pth",
        qformer=qformer if qformer.exists() else None,
        checkpoint=folder / "pretrained_minigpt4.pth",
        dtype=torch.float32,
        vision_heads=HEADS,
        qformer_heads=HEADS,
        lora_alpha=LORA_ALPHA,
        max_target_tokens=spec["max_txt_len"],
    )
    return Golden(folder, model, load_file(folder / "expected" / "vision.safetensors"))


@cache
def loaded(shared: Path, variant: str) -> Golden:
    return load(shared, variant)


@pytest.fixture(params=VARIANTS)
def golden(request: pytest.FixtureRequest, shared: Path) -> Golden:
    return loaded(shared, request.param)


def test_image_tokens(golden: Golden) -> None:
    with torch.no_grad():
        image_tokens = golden.model.encode_images(golden.vision["pixel_values"])
    torch.testing.assert_close(image_tokens, golden.vision["image_tokens"], atol=2e-5, rtol=0)


def test_norm_epsilons(golden: Golden) -> None:
    """Only inputs of tiny variance tell one epsilon from another."""
    vision, small = golden.model.vision, golden.vision["probe_small_in"]
    torch.testing.assert_close(vision.post_layernorm(small), golden.vision["probe_ln_vision"], atol=1e-5, rtol=0)
    first = vision.encoder.layers[0].layer_norm1
    torch.testing.assert_close(first(small), golden.vision["probe_vit_block0_norm1"], atol=1e-5, rtol=0)
    if golden.model.qformer is not None:
        probe = golden.model.qformer.layernorm(golden.vision["probe_qformer_in"])
        torch.testing.assert_close(probe, golden.vision["probe_qformer_embeddings_LayerNorm"], atol=1e-5, rtol=0)


def test_token_ids(golden: Golden) -> None:
    tokenizer = golden.model.processor.tokenizer
    for case in golden.json("tokenization"):
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        # "$$" is a word here; the original took it for padding and dropped it.
        if "$$" not in case["text"]:
            assert tokenizer.decode(case["ids"]) == case["decoded_skip_special"], case["text"]


@pytest.mark.parametrize(("variant", "name"), FORWARD_CASES)
def test_loss_and_gradients(shared: Path, variant: str, name: str) -> None:
    golden = loaded(shared, variant)
    case, expected = golden.json("forward_cases")[name], golden.tensors(f"forward_{name}")
    prompts = case["prompts_passed_to_prompt_wrap"]
    if prompts is None:
        prompts = "<ImageHere>"
    if isinstance(prompts, str):
        prompts = [prompts] * len(case["answers"])
    pixels = None if case["images"] is None else golden.vision["pixel_values"][case["images"]]
    tensors = golden.batch(prompts, case["answers"])
    assert int((tensors["labels"] >= 0).sum()) == case["n_target_tokens"]
    golden.model.zero_grad()
    output = golden.model(**tensors, pixel_values=pixels)
    assert output.loss.item() == pytest.approx(case["loss"], abs=2e-5)
    # Where prompts differ in length the original pads longer than needed.
    width = tensors["input_ids"].shape[1]
    assert not expected["attention_mask"][:, width:].any()
    assert torch.equal(tensors["attention_mask"], expected["attention_mask"][:, :width].long())
    assert torch.equal(tensors["labels"], expected["targets"][:, :width])
    kept = tensors["attention_mask"].bool()
    image_tokens = None if pixels is None else golden.model.encode_images(pixels)
    embeddings = golden.model.embed(tensors["input_ids"], image_tokens)
    torch.testing.assert_close(embeddings[kept], expected["inputs_embeds"][:, :width][kept], atol=2e-5, rtol=0)
    if name == "main":
        logits = expected["logits_rows_0_1"][:, :width]
        torch.testing.assert_close(output.logits[:2][kept[:2]], logits[kept[:2]], atol=2e-4, rtol=0)
        output.loss.backward()
        for kind in ("weight", "bias"):
            wanted = expected[f"grad.llama_proj.{kind}"]
            gradient = golden.model.get_parameter(f"projection.{kind}").grad
            assert ((gradient - wanted).abs().max() / wanted.abs().max()).item() < 1e-4


def test_generated_ids(golden: Golden) -> None:
    portable = golden.json("generation_portability")["5.23.0"]
    layout = golden.model.processor.layout
    for name, case in golden.json("generation").items():
        rows = []
        for prompt in case["prompts"]:
            ids = layout.text_ids(prompt)
            # The original's evaluation prompt carries a second BOS.
            rows.append(TokenSequence((1, *ids) if prompt.startswith("<s>") else ids, 0))
        tensors = golden.model.processor.pad(rows, left=True)
        settings = {key: value for key, value in case["kwargs"].items() if key != "min_length"}
        if "repetition_penalty" in settings:
            continue
        new_ids = golden.model.generate(
            tensors["input_ids"],
            tensors["attention_mask"],
            pixel_values=golden.vision["pixel_values"],
            eos_token_id=2,
            pad_token_id=0,
            **settings,
        ).tolist()
        for row, (ids, wanted) in enumerate(zip(new_ids, case["new_ids"], strict=True)):
            if portable[name]["same_as_reference"][row]:
                assert ids[: len(wanted)] == wanted, (name, row)


def original_name(name: str) -> str:
    """What the original calls a trained tensor."""
    return name.replace("projection.", "llama_proj.").replace("llm.", "llama_model.", 1).replace(".default.", ".")


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_trajectory(shared: Path, variant: str) -> None:
    """Forty AdamW steps with the original's schedule end at the original's weights, LoRA included."""
    fresh = load(shared, variant)
    record, expected = fresh.json("train"), fresh.tensors("train")
    given = record["config"]
    config = TrainConfig(
        learning_rate=given["init_lr"],
        min_learning_rate=given["min_lr"],
        warmup_learning_rate=given["warmup_lr"],
        warmup_steps=given["warmup_steps"],
        weight_decay=given["weight_decay"],
    )
    samples = json.loads((shared / "goldens" / "samples.json").read_text())
    for name, parameter in fresh.model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("projection."))
    trained = dict(fresh.model.trained_parameters())
    optimizer = build_optimizer(list(trained.values()), config)
    fresh.model.train()
    for step, logged in enumerate(record["steps"]):
        rate = learning_rate(step, given["max_epoch"] * given["iters_per_epoch"], config)
        assert rate == pytest.approx(logged["lr"], rel=1e-12)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = [samples[index] for index in logged["batch"]]
        images = [int(sample["image"][4]) for sample in chosen]
        prompts = logged["prompt"] if isinstance(logged["prompt"], list) else [logged["prompt"]] * len(chosen)
        tensors = fresh.batch(prompts, [sample["answer"] for sample in chosen])
        loss = fresh.model(**tensors, pixel_values=fresh.vision["pixel_values"][images]).loss
        assert loss.item() == pytest.approx(logged["loss"], abs=2e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    final = {name.removeprefix("final."): tensor for name, tensor in expected.items() if name.startswith("final.")}
    assert set(final) == {original_name(name) for name in trained}
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.detach(), final[original_name(name)], atol=2e-5, rtol=0)
