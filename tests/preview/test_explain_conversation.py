"""Explaining a run of a transformers model: families agree with themselves, and each trap of prompts is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from vision_families import save_family

from captune.captioner import ModelInputs
from captune.captioner import model_inputs as inputs_module
from captune.cli import app, call, run
from captune.config import parse_config
from captune.data import Sample
from captune.data.manifest import write_manifest
from captune.errors import DataError, WeightsError
from captune.explain import Explanation, explain_conversation
from captune.hub import resolve_model
from captune.vlm import Conversation, PromptRow, caption_loss, conversation, weightless_model
from captune.vlm.decoder import PackedRow

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CAPTIONS = ("A dog runs.", "A dog sits on grass.", "Two dogs.")
BEGIN, END = "<|im_start|>", "<|im_end|>"


def template(*, answer: str = "{{ part['text'] }}", end: str = END + "\n", start: str = "", opening: str = "") -> str:
    """A template in the manner of ChatML.

    Args:
        answer: how the text of an answer is written.
        end: of a turn that answers.
        start: of the conversation.
        opening: of an answer in the prompt for generation.
    """
    return (
        start
        + "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        + "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        + "{% elif message['role'] == 'assistant' %}"
        + answer
        + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% if message['role'] == 'assistant' %}"
        + end
        + "{% else %}<|im_end|>\n{% endif %}{% endfor %}"
        + "{% if add_generation_prompt %}<|im_start|>assistant\n"
        + opening
        + "{% endif %}"
    )


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-VL whose turns and answers end in `<|im_end|>`, as those of the hub."""
    return with_end_of_turn(save_family("qwen2_vl", tmp_path_factory.mktemp("families") / "qwen2_vl"))


def with_end_of_turn(folder: Path) -> Path:
    words = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**words, "eos_token": END}))
    content = json.loads((folder / "tokenizer.json").read_text())
    number = next(token["id"] for token in content["added_tokens"] if token["content"] == END)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [number, 2]}))
    return folder


@pytest.fixture
def with_template(qwen: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of that folder with another template and without its weights."""

    def make(**parts: str) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        for file in qwen.iterdir():
            if file.suffix != ".safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
        (folder / "chat_template.jinja").write_text(template(**parts))
        return folder

    return make


def explained(folder: Path, *captions: str, caption: int = 0, **settings: Any) -> Explanation:
    texts = captions or CAPTIONS
    model = weightless_model(resolve_model(str(folder)), instruction="Describe this image in detail.")
    image = Image.radial_gradient("L").resize((90, 60)).convert("RGB")
    sample = Sample("1", "1.jpg", texts, "train")
    return explain_conversation(parse_config({}, []), model, sample, image, caption, others=texts, **settings)


def failed(explanation: Explanation) -> set[str]:
    return {check.name for check in explanation.checks if check.status == "FAIL"}


def reason(explanation: Explanation, name: str) -> str:
    return next(check.reason for check in explanation.checks if check.name == name)


@pytest.mark.parametrize(
    "family", ["blip-2 (OPT)", "florence2", "gemma3", "idefics3", "llava", "mllama", "paligemma", "qwen2_5_vl"]
)
def test_families_agree(family: str, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    explanation = explained(folder, caption=1)
    assert explanation.holds, explanation.checks
    assert explanation.caption == CAPTIONS[1]
    model = weightless_model(resolve_model(str(folder)), instruction="Describe this image in detail.")
    assert explanation.trace.targets == model.conversation.target_ids(CAPTIONS[1])
    if family not in ("florence2", "mllama"):
        assert sum(token.slot is not None for token in explanation.prompt) >= 4


def test_complete_conversation_is_the_documented_one(qwen: Path) -> None:
    explanation = explained(qwen)
    assert [check.status for check in explanation.checks] == ["ok"] * 14
    assert explanation.stop_symbol == "<eos>"
    assert (explanation.rendered or "").endswith("<|im_start|>assistant\n")


def test_absent_caption(qwen: Path) -> None:
    with pytest.raises(DataError, match="there is none with number 7"):
        explained(qwen, caption=7)


def test_date(with_template: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that writes the time renders prompt and conversation at different times."""
    folder = with_template(start="{{ strftime_now('%f') }}")
    assert explained(folder).holds
    monkeypatch.setattr(inputs_module, "with_fixed_clock", lambda text: text)
    with pytest.raises(WeightsError, match="no beginning of a conversation"):
        explained(folder)


@pytest.mark.parametrize(
    ("opening", "block"),
    [
        ("<think>\n", "<think>\n\n</think>\n\n"),
        ("<seed:think>", "<seed:think>\n\n</seed:think>\n\n"),
        ("[THINK]", "[THINK][/THINK]"),
        ("◁think▷", "◁think▷◁/think▷"),
        ("<|channel>thought\n", "<|channel>thought\n<channel|>"),
    ],
)
def test_opened_reasoning(
    with_template: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, opening: str, block: str
) -> None:
    """The prompt opens a block of reasoning, and a conversation holds a closed one."""
    folder = with_template(opening=opening, answer=f"{block}{{{{ part['text'] }}}}")
    explanation = explained(folder)
    assert explanation.holds, explanation.checks
    assert "closes it before the caption" in reason(explanation, "reasoning")
    right = Conversation._ending
    monkeypatch.setattr(Conversation, "_ending", lambda self, text: ("", *right(self, text)[1:]))
    assert {"reasoning", "conversation"} <= failed(explained(folder))


@pytest.mark.parametrize("block", ["<think>\n\n</think>\n\n", "<|channel>thought\n<channel|>"])
@pytest.mark.parametrize("is_in_both", [False, True])
def test_empty_reasoning(
    with_template: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, block: str, is_in_both: bool
) -> None:
    """The prompt holds an empty block; a conversation holds it too or not."""
    answer = "{{ part['text'] }}"
    folder = with_template(opening=block, answer=block + answer if is_in_both else answer)
    assert explained(folder).holds
    if not is_in_both:
        monkeypatch.setattr(conversation, "_without_reasoning", lambda text: text)
        with pytest.raises(WeightsError, match="no beginning of a conversation"):
            explained(folder)


def test_trimmed_spaces(with_template: Callable[..., Path]) -> None:
    explanation = explained(with_template(answer="{{ part['text'] | trim }}"), "A dog  runs. ")
    assert explanation.holds
    assert "white space differs" in reason(explanation, "conversation")


def test_template_that_changes_captions(with_template: Callable[..., Path]) -> None:
    explanation = explained(with_template(answer="{{ part['text'] | replace('sits', 'SITS') }}"))
    assert failed(explanation) == {"conversation"}
    assert "'A dog sits on grass.'" in reason(explanation, "conversation")


def test_missing_end_of_turn(with_template: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_template(end="\n")
    explanation = explained(folder)
    assert explanation.holds
    assert "writes no end of turn" in reason(explanation, "conversation")
    right = Conversation._target_ids
    monkeypatch.setattr(Conversation, "_target_ids", lambda self, *args: right(self, *args)[:-1])
    assert {"end of turn", "stop ends decoding"} <= failed(explained(folder))


def test_double_end_of_turn(with_template: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_template(end=END + END + "\n")
    explanation = explained(folder)
    assert explanation.holds
    assert sum(target in explanation.trace.targets[-1:] for target in explanation.trace.targets) == 1
    right = Conversation._target_ids
    monkeypatch.setattr(Conversation, "_target_ids", lambda self, *args: (*right(self, *args), right(self, *args)[-1]))
    assert {"end of turn", "stop ends decoding"} <= failed(explained(folder))


def test_end_that_does_not_stop_generation(with_template: Callable[..., Path]) -> None:
    folder = with_template()
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": 2}))
    explanation = explained(folder)
    assert {"end of turn", "stop ends decoding"} <= failed(explanation)
    assert "generation stops at" in reason(explanation, "end of turn")


def test_truncated_prompt(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that keeps the last 48 tokens cuts image tokens."""
    right = ModelInputs.batch
    cut: list[bool] = []

    def batch(self: ModelInputs, *args: Any, is_continued: bool = True, **settings: Any) -> Any:
        made = right(self, *args, is_continued=is_continued, **settings)
        length = made["input_ids"].shape[1]
        for name, value in made.items():
            if not name.startswith("image") and value.shape[1] == length and is_continued in cut:
                made[name] = value[:, -48:]
        return made

    monkeypatch.setattr(ModelInputs, "batch", batch)
    cut.append(True)
    explanation = explained(qwen)
    assert {"image tokens", "conversation"} <= failed(explanation)
    assert "are cut" in reason(explanation, "image tokens")
    cut.append(False)
    with pytest.raises(WeightsError, match="truncates texts"):
        explained(qwen)


def test_second_bos(with_template: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_template(start="<s>")
    assert explained(folder).holds
    right = ModelInputs.batch

    def batch(self: ModelInputs, images: Any, prompt: Any, **settings: Any) -> Any:
        made = right(self, images, prompt, **settings)
        for name, first in (("input_ids", 1), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in made:
                made[name] = torch.cat([torch.full_like(made[name][:, :1], first), made[name]], dim=1)
        return made

    monkeypatch.setattr(ModelInputs, "batch", batch)
    assert failed(explained(folder)) == {"one BOS"}


@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_missing_token_types(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_family(family, tmp_path / "model")
    right = PromptRow.rows

    def without(self: PromptRow, *args: Any) -> dict[str, torch.Tensor]:
        return {name: value for name, value in right(self, *args).items() if name != "token_type_ids"}

    monkeypatch.setattr(PromptRow, "rows", without)
    assert failed(explained(folder)) == {"token types"}


def test_padding_with_the_id_of_the_end(with_template: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_template()
    words = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**words, "pad_token": END}))
    explanation = explained(folder)
    assert explanation.holds, explanation.checks
    assert "has the id of padding" in reason(explanation, "padding")
    end = explanation.trace.targets[-1]
    right = caption_loss._cross_entropy
    monkeypatch.setattr(
        caption_loss, "_cross_entropy", lambda logits, targets: right(logits, targets.masked_fill(targets == end, -100))
    )
    assert {"end of turn", "stop ends decoding"} <= failed(explained(folder))


def test_another_prompt_in_training(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Conversation.prompt
    monkeypatch.setattr(Conversation, "prompt", lambda self, image, text=None: right(self, image, "What is this?"))
    explanation = explained(qwen)
    assert "same prompt" in failed(explanation)
    assert "training has" in reason(explanation, "same prompt")


def test_another_image_in_training(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Conversation.prompt
    monkeypatch.setattr(
        Conversation, "prompt", lambda self, image, text=None: right(self, image.transpose(Image.Transpose.ROTATE_180))
    )
    assert failed(explained(qwen)) == {"same image"}


def test_captions_that_see_each_other(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = PackedRow.of.__func__  # type: ignore[attr-defined]

    def of(cls: type[PackedRow], *args: Any) -> PackedRow:
        row = right(cls, *args)
        row.visible[:] = torch.ones_like(row.visible).tril()
        return row  # type: ignore[no-any-return]

    monkeypatch.setattr(PackedRow, "of", classmethod(of))
    assert failed(explained(qwen)) == {"packed row"}


@pytest.fixture
def settings(qwen: Path, tmp_path: Path) -> Path:
    """A run on that model with an image."""
    Image.radial_gradient("L").resize((90, 60)).convert("RGB").save(tmp_path / "1.png")
    write_manifest(tmp_path / "manifest.jsonl", [Sample("1", "1.png", CAPTIONS, "train")])
    path = tmp_path / "run.yaml"
    path.write_text(f"model: {{path: {qwen}}}\ndata: {{train: {tmp_path / 'manifest.jsonl'}}}\n")
    return path


def test_command(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(app, ["explain", str(settings), "--caption", "1"]) == 0
    shown = capsys.readouterr().out
    assert "x <image>" in shown
    assert "prompt: '<|im_start|>user" in shown
    assert "agree on every token" in shown
    assert call(app, ["explain", str(settings), "--text", "A red square.", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["holds"]
    assert answer["caption"] == "A red square."
    assert sum(entry["target"] for entry in answer["training"]) == len("A red square.") + 1
    assert len(answer["generation"]) + len("A red square.") + 1 == len(answer["training"])


def test_command_fails(settings: Path, with_template: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_template(answer="{{ part['text'] | upper }}")
    assert run(lambda: call(app, ["explain", str(settings), f"model.path={folder}"])) == 2
    assert "no beginning of a conversation" in capsys.readouterr().err
    (folder / "chat_template.jinja").write_text(template(answer="{{ part['text'] | replace('grass', 'GRASS') }}"))
    assert call(app, ["explain", str(settings), f"model.path={folder}", "--caption", "1"]) == 1
    assert "1 of 14 checks failed: conversation." in capsys.readouterr().out
