"""The three original variants at tiny dimensions: what the original code computed is what comes out here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import reference_captions
from torch import Tensor

from captune.config import TrainConfig
from captune.data.images import load_image
from captune.decoding import DecodingOptions, Request, generate_ids
from captune.errors import ConfigError
from captune.model import LegacyBugs, MiniGPT4
from captune.model.official import load_official
from captune.model.packing import pack
from captune.training.loss import target_loss
from captune.training.optimizer import build_optimizer, learning_rate

VARIANTS = ("minigpt4_vicuna", "minigpt4_llama2", "minigpt_v2")
MINIGPT4_CASES = ("main", "student_grounding", "no_prompt", "context_clip", "truncated")
MINIGPT_V2_CASES = ("main", "text_only", "conversation", "truncated")
FORWARD_CASES = [(variant, case) for variant in VARIANTS[:2] for case in MINIGPT4_CASES]
FORWARD_CASES += [("minigpt_v2", case) for case in MINIGPT_V2_CASES]
BUGS = LegacyBugs(cut_stop_symbol=True, clip_image=True, double_bos=True, pad_is_dollar_sign=True)
HEADS = 4


@dataclass(frozen=True)
class Golden:
    folder: Path
    model: MiniGPT4
    vision: dict[str, Tensor]

    def json(self, name: str) -> Any:
        return json.loads((self.folder / "expected" / f"{name}.json").read_text(encoding="utf-8"))

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / "expected" / f"{name}.safetensors")

    def batch(self, prompts: list[str], answers: list[str]) -> dict[str, Tensor]:
        return dict(self.model.processor(None, prompts, answers, literal=True))

    @contextmanager
    def faulty(self, case: dict[str, Any]) -> Iterator[None]:
        """The original's limits and bugs while one case is repeated."""
        processor, before = self.model.processor, self.model.processor.layout
        attributes = case["attrs"]
        processor.configure(
            legacy_bugs=BUGS,
            max_target_tokens=attributes.get("max_txt_len"),
            max_prompt_tokens=attributes.get("max_context_len"),
        )
        yield
        processor.layout = before

    def forward_batch(self, case: dict[str, Any]) -> dict[str, Tensor]:
        """A recorded forward case as a batch."""
        processor = self.model.processor
        if "conv_q" in case:
            turns = (
                [q.split(case["connect_sym"]) for q in case["conv_q"]],
                [a.split(case["connect_sym"]) for a in case["conv_a"]],
            )
            pairs = [list(zip(q, a, strict=True)) for q, a in zip(*turns, strict=True)]
            return processor.pad([processor.layout.dialogue(pair) for pair in pairs])
        prompts = case["prompts_passed_to_prompt_wrap"] or "<ImageHere>"
        return self.batch([prompts] * len(case["answers"]) if isinstance(prompts, str) else prompts, case["answers"])


def load(shared: Path, variant: str, checkpoint: str = "pretrained_minigpt4.pth") -> Golden:
    folder = shared / "goldens" / variant
    spec = json.loads((folder / "meta.json").read_text())["spec"]
    qformer = folder / "blip2_pretrained.pth"
    model = load_official(
        spec["arch"],
        llm=folder / "llama",
        vision=folder / "eva_vit.pth",
        qformer=qformer if qformer.exists() else None,
        checkpoint=folder / checkpoint,
        dtype=torch.float32,
        vision_heads=HEADS,
        qformer_heads=HEADS,
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
    """Only inputs of tiny variance distinguish one epsilon from another."""
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
    """The original's numbers at every position, padding included, with its bugs switched on."""
    golden = loaded(shared, variant)
    model = golden.model
    case, expected = golden.json("forward_cases")[name], golden.tensors(f"forward_{name}")
    pixels = None if case["images"] is None else golden.vision["pixel_values"][case["images"]]
    with golden.faulty(case):
        tensors = golden.forward_batch(case)
        model.zero_grad()
        output = model(**tensors, pixel_values=pixels)
        image_tokens = None if pixels is None else model.encode_images(pixels)
        embeddings = model.embed(tensors["input_ids"], image_tokens)
    assert int((tensors["labels"] >= 0).sum()) == case["n_target_tokens"]
    assert torch.equal(tensors["attention_mask"], expected["attention_mask"].long())
    assert torch.equal(tensors["labels"], expected["targets"])
    torch.testing.assert_close(embeddings, expected["inputs_embeds"], atol=2e-5, rtol=0)
    assert output.loss.item() == pytest.approx(case["loss"], abs=2e-5)
    if name == "main":
        sound = model(**golden.forward_batch(case), pixel_values=pixels)
        assert sound.loss.item() == pytest.approx(case["loss"], abs=2e-5)
        kept = tensors["attention_mask"][:2].bool()
        torch.testing.assert_close(output.logits[:2][kept], expected["logits_rows_0_1"][kept], atol=2e-4, rtol=0)
        output.loss.backward()
        trained = dict(model.trained_parameters())
        assert {f"grad.{original_name(key)}" for key in trained} == {key for key in expected if "grad." in key}
        for key, parameter in trained.items():
            gradient = expected[f"grad.{original_name(key)}"]
            assert ((parameter.grad - gradient).abs().max() / gradient.abs().max()).item() < 1e-4


def test_legacy_bugs_are_off_by_default(shared: Path) -> None:
    """Without the switches the stop symbol and the image survive every limit."""
    processor = load(shared, "minigpt4_vicuna").model.processor
    processor.configure(max_target_tokens=9)
    row = processor.layout.sample("What is this?", "A man in a blue shirt is sleeping on the grass on a sunny day.")
    assert row.truncated
    assert row.target_count == 9
    assert row.ids[-len(processor.layout.stop_ids) :] == processor.layout.stop_ids
    assert processor.layout.text_ids("<s>[INST] a [/INST]").count(1) == 1
    processor.configure(max_prompt_tokens=12)
    with pytest.raises(ConfigError, match="shorten the instruction"):
        processor.layout.prompt("What is this?")


def test_dollars(shared: Path) -> None:
    """The word "$$" is a word here; the original took it for padding and dropped it."""
    processor = load(shared, "minigpt4_vicuna").model.processor
    cases = json.loads((shared / "goldens/minigpt4_vicuna/expected/tokenization.json").read_text())
    dollars = [case for case in cases if "$$" in case["text"]]
    assert dollars
    for bugs, key in ((LegacyBugs(), "text"), (BUGS, "decoded_skip_special")):
        processor.configure(legacy_bugs=bugs)
        for case in dollars:
            assert processor.layout.decode(case["ids"]).split() == case[key].split()


def test_images_in_captions_out(golden: Golden, shared: Path) -> None:
    """The way of a stranger: files in, the same pixels and the same first words as the original."""
    files = [shared / "goldens" / "images" / f"img_{index}.png" for index in range(6)]
    processor = golden.model.processor
    assert torch.equal(processor.pixels(files), golden.vision["pixel_values"])
    assert torch.equal(processor.pixels(np.array(load_image(files[0])))[0], golden.vision["pixel_values"][0])
    case = golden.json("generation")["correct.greedy"]
    with golden.faulty({"attrs": {}}):
        batch = processor(files, case["prompts"], literal=True)
        new_ids = golden.model.generate(**batch, max_new_tokens=20, do_sample=False)
        assert processor.batch_decode(new_ids) == case["text_cut_like_Chat_answer"]
    captions = reference_captions(golden.model, files, "What is this?", max_new_tokens=5)
    images = [load_image(file) for file in files]
    assert captions == [reference_captions(golden.model, [i], "What is this?", max_new_tokens=5)[0] for i in images]


def test_generated_ids(golden: Golden) -> None:
    portable = golden.json("generation_portability")["5.23.0"]
    processor = golden.model.processor
    for name, case in golden.json("generation").items():
        # The original's evaluation prompts carry a second BOS.
        with golden.faulty({"attrs": {}}):
            batch = processor(None, case["prompts"], literal=True)
        settings = {key: value for key, value in case["kwargs"].items() if key != "min_length"}
        output = golden.model.generate(**batch, pixel_values=golden.vision["pixel_values"], **settings)
        for row, (ids, expected) in enumerate(zip(output.tolist(), case["new_ids"], strict=True)):
            if portable[name]["same_as_reference"][row]:
                assert ids[: len(expected)] == expected, (name, row)


def test_captunes_loop_generates_the_ids(golden: Golden) -> None:
    """The loop that captions collections, with rows that leave and enter, generates what the original generated."""
    portable = golden.json("generation_portability")["5.23.0"]
    with torch.inference_mode():
        features = golden.model.encode_features(golden.vision["pixel_values"])
    for name, case in golden.json("generation").items():
        with golden.faulty({"attrs": {}}):
            batch = golden.model.processor(None, case["prompts"], literal=True)
        prompts = [
            tuple(ids[mask.bool()].tolist())
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        requests = [Request(n, prompt, features[n : n + 1]) for n, prompt in enumerate(prompts)]
        kwargs = case["kwargs"]
        options = DecodingOptions(
            kwargs["max_new_tokens"],
            kwargs.get("num_beams", 1),
            kwargs.get("length_penalty", 1.0),
            kwargs.get("repetition_penalty", 1.0),
            batch_size=4,
        )
        generated = generate_ids(golden.model, requests, options, stop_symbol=False)
        for row, (ids, expected) in enumerate(zip(generated, case["new_ids"], strict=True)):
            if portable[name]["same_as_reference"][row]:
                assert ids == expected, (name, row)


def original_name(name: str) -> str:
    """What the original calls a trained tensor."""
    name = name.replace("projection.", "llama_proj.").replace("llm.", "llama_model.base_model.model.", 1)
    return name.replace(".default.", ".")


def packed_loss(model: MiniGPT4, batch: dict[str, Tensor], features: Tensor) -> Tensor:
    """The loss of a batch as training computes it: logits at targets only, each row after its prompt."""
    total, targets = torch.zeros(()), 0
    for row, image in enumerate(features.split(1)):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        learnt = batch["labels"][row][batch["attention_mask"][row].bool()] != -100
        start = int(learnt.nonzero()[0])
        assert learnt[start:].all()
        total = total + target_loss(model, pack(ids[:start].tolist(), [[ids[start:].tolist()]]), image)
        targets += len(ids) - start
    return total / targets


@pytest.mark.parametrize("fast", [False, True], ids=["plain rows", "packed rows"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_trajectory(shared: Path, variant: str, fast: bool) -> None:
    """Forty AdamW steps with the original's schedule end at the original's weights, LoRA included."""
    fresh = load(shared, variant)
    record, expected = fresh.json("train"), fresh.tensors("train")
    original = record["config"]
    config = TrainConfig(
        learning_rate=original["init_lr"],
        min_learning_rate=original["min_lr"],
        warmup_learning_rate=original["warmup_lr"],
        warmup_steps=original["warmup_steps"],
        weight_decay=original["weight_decay"],
    )
    samples = json.loads((shared / "goldens" / "samples.json").read_text())
    for name, parameter in fresh.model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("projection."))
    trained = dict(fresh.model.trained_parameters())
    optimizer = build_optimizer(list(trained.values()), config)
    fresh.model.train()
    for step, logged in enumerate(record["steps"]):
        rate = learning_rate(step, original["max_epoch"] * original["iters_per_epoch"], config)
        assert rate == pytest.approx(logged["lr"], rel=1e-12)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = [samples[index] for index in logged["batch"]]
        images = [int(sample["image"][4]) for sample in batch]
        prompts = logged["prompt"] if isinstance(logged["prompt"], list) else [logged["prompt"]] * len(batch)
        tensors = fresh.batch(prompts, [sample["answer"] for sample in batch])
        pixels = fresh.vision["pixel_values"][images]
        if fast:
            loss = packed_loss(fresh.model, tensors, fresh.model.encode_features(pixels))
        else:
            loss = fresh.model(**tensors, pixel_values=pixels).loss
        assert loss.item() == pytest.approx(logged["loss"], abs=2e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    final = {name.removeprefix("final."): tensor for name, tensor in expected.items() if name.startswith("final.")}
    assert set(final) == {original_name(name) for name in trained}
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.detach(), final[original_name(name)], atol=2e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_original_trainings_checkpoint(shared: Path, variant: str) -> None:
    """What the original's training saved after forty steps gives the loss that it had then."""
    fresh = load(shared, variant, checkpoint="trained/checkpoint_1.pth")
    case = fresh.json("forward_cases")["main"]
    pixels = fresh.vision["pixel_values"][case["images"]]
    with torch.no_grad():
        loss = fresh.model(**fresh.forward_batch(case), pixel_values=pixels).loss.item()
    assert loss == pytest.approx(fresh.json("train")["loss_on_forward_main_after_training"], abs=2e-4)
