"""Explaining a run: it agrees with itself, and each way of breaking training or generation is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from captune.cli import app, call, run
from captune.config import RunConfig
from captune.data.manifest import Sample
from captune.decoding import Request, generate
from captune.errors import DataError
from captune.explain.explanation import Explanation, explain, small_copy
from captune.model import IMAGE_SLOT, LegacyBugs, MiniGPT4, MiniGPT4Processor, PromptLayout, packing
from captune.model.loading import load_config_and_processor
from captune.training import loss as loss_module

IMAGE = Sample("1", "1.jpg", ("A dog runs.", "Two men, one in a gray shirt.", "A dog on a stair."), "train")
WAYS = {
    "packed": [],
    "packed without cache": ["train.debug.constant_prefix=false"],
    "one row a caption": ["train.debug.shared_prefix=false"],
    "plain": [
        "train.debug.shared_prefix=false",
        "train.debug.constant_prefix=false",
        "train.debug.target_logits=false",
    ],
}


def explained(config: RunConfig, image: Sample = IMAGE, caption: int = 0, **settings: Any) -> Explanation:
    model_config, processor = load_config_and_processor(config.model)
    if settings:
        processor.configure(**settings)
    return explain(config, small_copy(model_config, processor), image, caption)


def failed(explanation: Explanation) -> set[str]:
    return {check.name for check in explanation.checks if check.status == "FAIL"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ["vicuna", "llama2", "v2"])
def test_training_and_generation_agree(make_config: Any, model: str, way: str) -> None:
    explanation = explained(make_config(model, *WAYS[way]), caption=1)
    assert explanation.holds, explanation.checks
    assert explanation.caption == IMAGE.captions[1]
    assert len(explanation.checks) == 9


def test_the_sequence_is_the_layouts(make_config: Any) -> None:
    """The language model's recorded inputs are what the layout says, in every way of training."""
    config = make_config()
    _, processor = load_config_and_processor(config.model)
    for way in WAYS.values():
        for number, caption in enumerate(IMAGE.captions):
            row = processor.layout.sample(config.model.instruction, caption)
            explanation = explained(make_config("vicuna", *way), caption=number)
            ids = [IMAGE_SLOT if token.slot is not None else token.id for token in explanation.trace.prompt]
            assert (*ids, *explanation.trace.targets) == row.ids


@pytest.mark.parametrize("targets", ["random", "joined"])
def test_other_targets(make_config: Any, targets: str) -> None:
    explanation = explained(make_config("vicuna", f"train.caption_targets={targets}"))
    assert explanation.holds
    assert explanation.caption in (*IMAGE.captions, " ".join(IMAGE.captions))


def test_two_bos_in_generation(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of the original evaluation."""
    right = generate.Request

    def request(number: int, prompt: tuple[int, ...], *rest: Any) -> Request:
        return right(number, (prompt[0], *prompt), *rest)

    monkeypatch.setattr(generate, "Request", request)
    explanation = explained(make_config())
    assert {"same prompt", "one BOS"} <= failed(explanation)
    reasons = {check.name: check.reason for check in explanation.checks}
    assert reasons["one BOS"] == "generation has 2 (at 0, 1)"
    assert reasons["same prompt"].startswith("at index 1 training has ")


def test_two_bos_on_both_sides(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = PromptLayout.text_ids
    monkeypatch.setattr(PromptLayout, "text_ids", lambda self, prompt: (1, *right(self, prompt)))
    assert failed(explained(make_config())) == {"one BOS"}


def test_another_prompt_in_training(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained without the wrapping that generation has, as the original project did."""
    right = packing.pack

    def pack(prompt: tuple[int, ...], *rest: Any, **kwargs: Any) -> packing.PackedBatch:
        return right(prompt[:-3], *rest, **kwargs)

    monkeypatch.setattr(loss_module, "pack", pack)
    assert failed(explained(make_config())) == {"same prompt"}


def test_captions_that_see_each_other(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_back(firsts: torch.Tensor, lasts: torch.Tensor, cached: int) -> torch.Tensor:
        width = firsts.shape[1]
        return torch.ones(len(firsts), 1, width, cached + width, dtype=torch.bool).tril(cached)

    monkeypatch.setattr(packing, "_attention_mask", look_back)
    # The first one in the row can attend to nothing but the prompt.
    second, first = (failed(explained(make_config(), caption=number)) for number in (0, 1))
    assert "loss mask" in second
    assert not first


def test_positions_that_continue(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = packing.pack

    def pack(*args: Any, **kwargs: Any) -> packing.PackedBatch:
        batch = right(*args, **kwargs)
        batch.position_ids[:] = torch.arange(kwargs["cached"], kwargs["cached"] + batch.position_ids.shape[1])
        return batch

    monkeypatch.setattr(loss_module, "pack", pack)
    assert failed(explained(make_config(), caption=0)) == {"positions"}


def test_labels_off_by_one(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = MiniGPT4Processor.pad

    def pad(self: MiniGPT4Processor, rows: Any, *, left: bool = False) -> dict[str, torch.Tensor]:
        batch = right(self, rows, left=left)
        batch["labels"] = batch["labels"].roll(1, dims=1)
        return batch

    monkeypatch.setattr(MiniGPT4Processor, "pad", pad)
    assert "loss mask" in failed(explained(make_config("vicuna", *WAYS["plain"])))


def test_image_tokens_in_another_order(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = MiniGPT4.embed
    monkeypatch.setattr(
        MiniGPT4, "embed", lambda self, ids, image=None: right(self, ids, None if image is None else image.flip(1))
    )
    assert failed(explained(make_config())) == {"image tokens"}


def test_image_tokens_that_are_none_of_the_image(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = MiniGPT4.embed
    monkeypatch.setattr(
        MiniGPT4, "embed", lambda self, ids, image=None: right(self, ids, None if image is None else image * 2)
    )
    assert failed(explained(make_config())) == {"image tokens"}


def test_no_stop_symbol(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = PromptLayout.target_ids

    def target_ids(self: PromptLayout, caption: str) -> tuple[tuple[int, ...], bool]:
        ids, truncated = right(self, caption)
        return ids[: -len(self.stop_ids)], truncated

    monkeypatch.setattr(PromptLayout, "target_ids", target_ids)
    failures = failed(explained(make_config()))
    assert {"stop symbol trained", "stop ends decoding"} <= failures
    assert "same prompt" not in failures


@pytest.mark.parametrize("model", ["vicuna", "llama2"])
def test_truncated_caption(make_config: Any, model: str) -> None:
    explanation = explained(make_config(model), caption=1, max_target_tokens=9)
    assert failed(explanation) == {"complete caption"}
    assert "at its end is missing" in explanation.checks[5].reason


def test_truncation_that_loses_the_stop_symbol(make_config: Any) -> None:
    bugs = LegacyBugs(cut_stop_symbol=True)
    explanation = explained(make_config(), caption=1, max_target_tokens=9, legacy_bugs=bugs)
    assert {"complete caption", "stop symbol trained", "stop ends decoding"} <= failed(explanation)


def test_a_caption_that_spells_the_stop_symbol(make_config: Any) -> None:
    image = Sample("1", "1.jpg", ("A dog ### runs.",), "train")
    explanation = explained(make_config(), image)
    assert failed(explanation) == {"complete caption", "stop ends decoding"}
    assert "decoding stops after" in explanation.checks[7].reason


def test_too_little_room_is_a_note(make_config: Any) -> None:
    explanation = explained(make_config("vicuna", "evaluate.max_new_tokens=3"))
    assert explanation.holds
    assert explanation.checks[-1].status == "note"


def test_absent_caption(make_config: Any) -> None:
    with pytest.raises(DataError, match="there is none with number 7"):
        explained(make_config(), caption=7)


def command(*arguments: object) -> int:
    return run(lambda: call(app, [str(argument) for argument in arguments]))


def test_command_line(yaml_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("explain", yaml_file, "--image", "1001") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.startswith("image 1001: 'A dog runs.', answers end with '###'\n")
    assert "11-16   6 x <image>       6 x <image>\n" in out
    assert "(continues from here)" in out
    assert out.endswith("Training and generation agree on every token.\n")


def test_command_line_json(yaml_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("explain", yaml_file, "--text", "A dog ### runs.", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert not answer["holds"]
    assert [entry["index"] for entry in answer["training"]] == list(range(len(answer["training"])))
    targets = [entry["target"] for entry in answer["training"]]
    assert targets == sorted(targets)
    assert {check["status"] for check in answer["checks"]} == {"ok", "FAIL"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--image", "absent"], "has no image 'absent' among its 2"),
        (["--text", " "], "--text is blank"),
        (["model.path=./nowhere"], "There is no model folder ./nowhere"),
        (["data.train=absent.jsonl"], "absent.jsonl"),
    ],
)
def test_command_line_errors(
    yaml_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert command("explain", yaml_file, *arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
