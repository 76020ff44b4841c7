"""Models that think before they answer: captions have the answer alone, wherever they are made or read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import captioner_models
import pytest
import torch
from PIL import Image
from tiny import Characters
from tokenizers import AddedToken
from vlm_run import data_of

import captune as captune_package
from captune.captioner import Captioner, TransformersBackend
from captune.cli import app, call, run
from captune.common import has_marks, opened_block, special_marks, split_thinking
from captune.config import ModelConfig
from captune.decoding import Caption, DecodingOptions, cached_captions
from captune.decoding.generate import as_caption
from captune.decoding.text_stream import TextStream
from captune.hub import resolve_model
from captune.metrics import find_failures, read_predictions
from captune.report import read_scores
from captune.vlm import CaptionGenerator, load_image_text_model

HARMONY = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>A dog.<|return|>"
ANSWER = ["A dog", " runs", " fast."]


@pytest.mark.parametrize(
    ("text", "answer", "thinking"),
    [
        ("A dog runs.", "A dog runs.", "none"),
        (" A dog <b>runs</b> [1]", " A dog <b>runs</b> [1]", "none"),
        ("<think>hm</think>\n\nA dog.", "A dog.", "removed"),
        ("<think>\n\n</think>\n\nA dog.", "A dog.", "none"),
        ("<think>hm", "", "unclosed"),
        (" \n<think>hm</think>\n<think>hm</think>\nA dog.", "A dog.", "removed"),
        ("hm.\n</think>\n\nA dog.", "A dog.", "removed"),
        ("hm </think>\n\nA dog.", "A dog.", "removed"),
        ("hm. </think> A dog.", "A dog.", "removed"),
        ("hm </think><answer>A dog.</answer>", "A dog.", "removed"),
        ("hm\n</think>", "", "removed"),
        ("hm</think>", "", "removed"),
        ("</think>\n\nA dog.", "A dog.", "none"),
        ("<longcat_think>hm</longcat_think>A dog.", "A dog.", "removed"),
        ("<think>hm</think>A sign says </think> in red.", "A sign says </think> in red.", "removed"),
        ("hm</think>A dog.", "A dog.", "removed"),
        ("<think>a <think>b</think> c</think>A dog.", "A dog.", "removed"),
        ("<think>[/THINK]</think>A dog.", "A dog.", "removed"),
        ("<seed:think>hm</seed:think>A dog.", "A dog.", "removed"),
        ("<thought>hm</thought>A dog.", "A dog.", "removed"),
        ("[THINK]hm[/THINK]A dog.", "A dog.", "removed"),
        ("◁think▷hm◁/think▷A dog.", "A dog.", "removed"),
        ("<|channel>thought\nhm<channel|>A dog.", "A dog.", "removed"),
        ("<|channel>thought\n<channel|>A dog.", "A dog.", "none"),
        ("<|channel>thought\nhm", "", "unclosed"),
        ("<unused94>thought\nhm<unused95>A dog.", "A dog.", "removed"),
        ("<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>A dog.<|END_RESPONSE|>", "A dog.", "removed"),
        ("<|inner_prefix|>hm<|inner_suffix|>A dog.", "A dog.", "removed"),
        ("<think>hm</think><answer>A dog.</answer>", "A dog.", "removed"),
        ("<answer>A dog.</answer>", "<answer>A dog.</answer>", "none"),
        (HARMONY, "A dog.", "removed"),
        ("<|channel|>final<|message|>A dog.<|return|>", "A dog.", "none"),
        ("<|channel|>analysis<|message|>hm", "", "unclosed"),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>analysis<|message|>hm", "", "unclosed"),
        ("<|channel|>commentary<|message|>Look.<|end|><|channel|>final<|message|>A dog.", "A dog.", "none"),
        ("A dog.<|end|>", "A dog.<|end|>", "none"),
    ],
)
def test_the_answer_without_its_thinking_text(text: str, answer: str, thinking: str) -> None:
    written = split_thinking(text)
    assert (written.text, written.thinking) == (answer, thinking)
    # What remains has no marks, so that nothing is removed twice.
    assert split_thinking(answer).text == answer
    assert ("thinking" in find_failures([text]).of(0)) == (thinking == "unclosed")


@pytest.mark.parametrize(
    "caption",
    [
        "A whiteboard that says </think> : a dog.",
        " A woman on a screen with <think> written on it. ",
        "A page with <think>hm</think> in its source.",
        'A sign that reads "</think>"',
        'A sign with the words "</think>."',
        "A sign that says </think>",
        "<overthinking> sign",
        "<overthinking>a</overthinking> dog",
        "x <a:think> y",
        "<a:think>a</a:think> dog",
        "An HTML page showing <reasoning>",
        "A slide about [THINK] and [/THINK] marks",
        "A screen with <|START_THINKING|> on it",
        "A screen with <|channel|> on it",
        "A screen with <|channel|>analysis on it<|end|>",
        "The model\u2019s template has ◁think▷ and ◁/think▷ in it",
    ],
)
def test_a_caption_that_mentions_a_mark_is_complete(caption: str, tmp_path: Path) -> None:
    written = split_thinking(caption)
    assert (written.text, written.thinking) == (caption, "none")
    opened = split_thinking(caption, "[THINK]" if "THINK" not in caption else "<think>")
    assert (opened.text, opened.thinking) == (caption, "unclosed")
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"1": caption}))
    predictions = read_predictions(file)
    assert (predictions.captions["1"], dict(predictions.thinking)) == (caption, {})


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("Think in [THINK] ... [/THINK].<|im_start|>assistant\n", ""),
        ("assistant: ◁think▷", "◁think▷"),
        ("<|turn>model\n<|channel>thought\n", "<|channel>thought"),
        ("<|turn>model\n<|channel>thought\n<channel|>", ""),
        ("<|turn>system\n<|think|>\n<turn|>\n<|turn>model\n", ""),
        ("<|start|>assistant<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>analysis<|message|>"),
        ("<|start|>assistant<|channel|>final<|message|>", ""),
        (None, ""),
    ],
)
def test_a_block_that_the_prompt_opens(prompt: str | None, mark: str) -> None:
    assert opened_block(prompt) == mark


def test_an_answer_to_a_prompt_that_opens_a_block() -> None:
    assert split_thinking("hm</think>A dog.", "<think>").text == "A dog."
    assert split_thinking("</think>\n\nA dog.", "<think>").thinking == "none"
    cut, ended = (split_thinking("A dog.", "<think>", is_complete=complete) for complete in (False, True))
    assert (cut.text, cut.thinking) == ("", "unclosed")
    assert (ended.text, ended.thinking) == ("A dog.", "unclosed")


def thinker(folder: Path, script: Sequence[str], *, special: bool, opening: str = "") -> Path:
    """A LLaVA that writes a script: each token follows the one before, the last one follows itself if it is "hm".

    Args:
        folder: of the saved model.
        script: tokens, each once.
        special: whether its marks are special tokens of the vocabulary, as in some families.
        opening: the end of every prompt, such as "<think>".
    """
    model, processor = captioner_models.llava()
    words = processor.tokenizer
    names = list(dict.fromkeys([*script, *([opening] if opening else [])]))
    words.add_tokens([AddedToken(name, special=special and name[0] in "<[◁", normalized=False) for name in names])
    processor.chat_template = processor.chat_template.replace(
        "assistant\n{% endif %}", f"assistant\n{opening}{{% endif %}}"
    )
    model.resize_token_embeddings(len(words))
    ids = [words.convert_tokens_to_ids(name) for name in script]
    first = words.encode(f"assistant\n{opening}")[-1]
    last = ids[-1] if script[-1] == "hm" else 2
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("o_proj.weight", "mlp.down_proj.weight")):
                value.zero_()
        embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        embeddings.copy_(torch.nn.functional.normalize(torch.randn(embeddings.shape), dim=1))
        head.zero_()
        for before, after in zip([first, *ids], [*ids, last], strict=True):
            head[after] += embeddings[before]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def photo() -> Image.Image:
    return Image.new("RGB", (40, 40), (200, 30, 30))


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    ("script", "opening", "expected"),
    [
        (["<think>", "hm,", "</think>", *ANSWER], "", ("A dog runs fast.", "removed")),
        (["[THINK]", "hm,", "[/THINK]", *ANSWER], "", ("A dog runs fast.", "removed")),
        (["<|channel>", "thought", "hm,", "<channel|>", *ANSWER], "", ("A dog runs fast.", "removed")),
        (["hm,", "</think>", *ANSWER], "<think>", ("A dog runs fast.", "removed")),
        (["</think>", *ANSWER], "<think>", ("A dog runs fast.", "none")),
        (ANSWER, "<think>", ("A dog runs fast.", "unclosed")),
        (["<think>", "hm"], "", ("", "unclosed")),
        (["hm"], "<think>", ("", "unclosed")),
        (ANSWER, "", ("A dog runs fast.", "none")),
    ],
)
def test_a_model_that_thinks(
    tmp_path: Path, script: list[str], opening: str, expected: tuple[str, str], special: bool
) -> None:
    captioner = Captioner.from_pretrained(thinker(tmp_path / "model", script, special=special, opening=opening))
    text, kind = expected
    greedy, beams = (
        captioner.generate([photo()], None, DecodingOptions(max_new_tokens=12, beams=count))[0] for count in (1, 2)
    )
    assert greedy == Caption(text, greedy.tokens, script[-1] != "hm", kind)
    assert greedy.tokens == (12 if script[-1] == "hm" else len(script) + 1)
    if greedy.stopped:
        assert (beams.text, beams.thinking) == (greedy.text, greedy.thinking)
    # The caption of a model in training or of a run, from its own generation loop.
    source = resolve_model(ModelConfig(path=str(tmp_path / "model")))
    tuned = CaptionGenerator(load_image_text_model(source, torch.device("cpu")).eval())
    assert tuned.unsupported_reason(photo()) == ""
    assert tuned.generate([photo()], None, DecodingOptions(max_new_tokens=12)) == [greedy]


def with_tokens(*special: str, end: str = "</s>") -> TransformersBackend:
    model, processor = captioner_models.llava()
    processor.tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    model.resize_token_embeddings(len(processor.tokenizer))
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(end)
    return TransformersBackend(model, processor)


def test_channels_of_special_tokens() -> None:
    marks = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"]
    backend = with_tokens(*marks, end="<|return|>")
    ids = backend.processor.tokenizer.encode
    assert sorted(special_marks(backend.processor.tokenizer).values()) == sorted(marks)
    caption = backend.caption_of(ids(HARMONY))
    assert (caption.text, caption.stopped, caption.thinking) == ("A dog.", True, "removed")
    assert backend.caption_of(ids("<|channel|>final<|message|>A dog.<|return|>")).text == "A dog."
    assert backend.caption_of(ids("A dog.<|return|>")) == Caption("A dog.", 7, True)
    assert backend.caption_of(ids("<|channel|>analysis<|message|>A d")).thinking == "unclosed"
    # An answer of a model without channels, which ends with the same token.
    other = with_tokens("<|end|>", end="<|end|>")
    assert not has_marks(other.processor.tokenizer)
    assert other.caption_of(other.processor.tokenizer.encode("A dog.<|end|>")) == Caption("A dog.", 7, True)


def test_captions_of_other_vocabularies_are_cached_apart() -> None:
    """Captions that an earlier version cached may have thinking text."""
    plain, thinking = with_tokens("<|end|>"), with_tokens("[THINK]", "[/THINK]")
    assert not plain.fingerprint.endswith("-thinking")
    assert thinking.fingerprint.endswith("-thinking")


class Spelling(Characters):
    """A processor's part that a stream reads."""

    layout = SimpleNamespace(stop_text="###", text_before_stop=lambda text: text.split("###", 1)[0].strip())
    tokenizer = Characters()

    def trim_at_end(self, ids: Sequence[int]) -> Sequence[int]:
        return ids


def test_a_stream_has_no_thinking_text() -> None:
    processor: Any = Spelling()
    for text, expected, kind in (
        ("<think>a < b</think>A dog [1] runs.###", "A dog [1] runs.", "removed"),
        ("[THINK]hm[/THINK] A dog.###", "A dog.", "removed"),
        ("A dog < a cat.###", "A dog < a cat.", "none"),
        ("<think>a dog", "", "unclosed"),
    ):
        ids, stream, pieces = processor.tokenizer.encode(text), TextStream(processor), []
        for count in range(1, len(ids) + 1):
            pieces.append(stream.push(ids[:count], ended=count == len(ids)))
            assert expected.startswith("".join(pieces))
        assert "".join(pieces) == stream.text == expected
        caption = as_caption(processor, ids)
        assert (caption.text, caption.thinking) == (expected, kind)


def test_old_cached_captions_are_read(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"a")

    def cached(caption: Caption) -> Caption:
        return cached_captions(tmp_path / "cache", ("model",), [image], lambda indices: [caption])[0]

    cached(Caption("A dog.", 3, True))
    (file,) = (tmp_path / "cache").iterdir()
    # As before captions had this field.
    assert "thinking" not in file.read_text()
    assert cached(Caption("never used", 1, True)) == Caption("A dog.", 3, True)
    file.unlink()
    for _ in range(2):
        assert cached(Caption("", 3, False, "unclosed")) == Caption("", 3, False, "unclosed")


def captune(*arguments: object) -> int:
    return run(lambda: call(app, [*map(str, arguments)]))


def test_an_evaluation_counts_thinking_texts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = data_of(tmp_path / "photos", train=1, test=3)
    script = ["<think>", "hm,", "</think>", *ANSWER]
    models = [
        thinker(tmp_path / "models" / "ends", script, special=True),
        thinker(tmp_path / "models" / "never", ["[THINK]", "hm"], special=True),
        thinker(tmp_path / "models" / "plain", ANSWER, special=True),
    ]
    out = tmp_path / "out"
    command = ["evaluate", *models, "--data", manifest, "--out", out, "evaluate.max_new_tokens=12"]
    assert captune(*command, "--json") == 0
    printed = capfd.readouterr()
    counts = [(row.get("thinking"), row.get("unclosed")) for row in json.loads(printed.out)["checkpoints"]]
    assert counts == [(3, 0), (3, 3), (None, None)]
    assert "thinking texts removed: 3, of which 3 never end" in printed.err
    ends, never, plain = read_scores(out).checkpoints
    assert set(ends.captions.values()) == {"A dog runs fast."}
    assert (dict(plain.captions), dict(plain.corpus)) == (dict(ends.captions), dict(ends.corpus))
    assert (set(never.captions.values()), set(never.thinking.values())) == ({""}, {"unclosed"})
    assert '"thinking"' not in json.dumps(json.loads((out / "scores.json").read_text())["checkpoints"][2])
    table = (out / "table.md").read_text()
    assert f"{ends.name} 3 of 3, {never.name} 3 of 3 (3 never end)" in table
    assert f"3 of 3 captions of {never.name}: these captions are empty; raise" in (out / "analysis.md").read_text()
    page = (out / "report.html").read_text()
    assert "thinking text that never ends" in page
    # Again, from the cache and from the file of captions.
    before = (out / "scores.json").read_bytes()
    assert captune(*command) == 0
    assert (out / "scores.json").read_bytes() == before
    capfd.readouterr()
    references = out / "captions" / "photos-references.json"
    (captions,) = (out / "captions").glob("**/*never.json")
    assert captune("score", "-r", references, "-p", captions, "--metrics", "failures", "--json") == 0
    assert json.loads(capfd.readouterr().out)["failures"]["thinking"] == 1.0


def test_a_file_of_answers_is_scored_without_thinking_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    references, raw, clean = (tmp_path / name for name in ("references.json", "raw.json", "clean.json"))
    references.write_text(json.dumps({"1": ["A dog runs."], "2": ["A cat sits."], "3": ["A man."]}))
    clean.write_text(json.dumps({"1": "A dog runs.", "2": "A cat.", "3": ""}))
    written = json.dumps({"1": "<think>It is a dog.</think>\n\nA dog runs.", "2": "A cat.", "3": "<think>Well, a man"})
    raw.write_text(written)
    answers = []
    for file in (raw, clean):
        assert captune("score", "-r", references, "-p", file, "--metrics", "cider,failures", "--json") == 0
        answers.append(json.loads(capfd.readouterr().out))
    assert answers[0]["scores"] == answers[1]["scores"]
    assert answers[0]["thinking"] == {"1": "removed", "3": "unclosed"}
    assert answers[0]["failed_images"] == {"3": ["empty", "thinking"]}
    assert answers[0]["warnings"][0] == (
        "2 captions had thinking text, which was removed before scoring; in 1 of them it never ends."
    )
    assert "thinking" not in answers[1]
    # Marks in references are words of theirs.
    references.write_text(json.dumps({"1": ["<think>A dog</think> runs."], "2": ["A cat sits."], "3": ["A man."]}))
    raw.write_text(json.dumps({"1": "A dog runs.", "2": "A cat sits.", "3": "A man."}))
    assert captune("score", "-r", references, "-p", raw, "--metrics", "bleu", "--json") == 0
    assert json.loads(capfd.readouterr().out)["scores"]["BLEU-1"] < 1
    raw.write_text(written)
    file = read_predictions(raw)
    assert (file.captions["1"], file.thinking) == ("A dog runs.", {"1": "removed", "3": "unclosed"})
    # Also captions that Python passes.
    scores = [
        captune_package.score(str(file) if as_file else json.loads(file.read_text()), str(references), "cider")
        for file in (raw, clean)
        for as_file in (True, False)
    ]
    assert len({tuple(each.corpus.items()) for each in scores}) == 1


def test_captions_of_a_folder_count_thinking_texts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ends = thinker(tmp_path / "ends", ["<think>", "hm,", "</think>", *ANSWER], special=True)
    never = thinker(tmp_path / "never", ["[THINK]", "hm"], special=True)
    data_of(tmp_path / "photos", train=1, test=2)
    capfd.readouterr()
    out = tmp_path / "captions.jsonl"
    assert captune("caption", ends, tmp_path / "photos", "--out", out, "--json") == 0
    assert json.loads(capfd.readouterr().out)["thinking"] == 3
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["caption"], row["thinking"]) for row in rows] == [("A dog runs fast.", "removed")] * 3
    assert "does not end" not in caplog.text
    assert captune("caption", never, tmp_path / "photos", "--txt", "--max-new-tokens", "8", "--json") == 0
    printed = capfd.readouterr()
    assert (json.loads(printed.out)["thinking"], json.loads(printed.out)["unclosed"]) == (3, 3)
    assert "Thinking texts removed: 3, of which 3 never end." in printed.err
    assert caplog.text.count("thinking text that does not end within 8 tokens") == 1
