"""Models of many families are prompted as their documentation does, and answer alike in any batch."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from vision_families import FAMILIES, save_family

from captune.bulk.shards import Item
from captune.bulk.work import Captions, caption_entries
from captune.captioner import Captioner, TransformersBackend
from captune.captioner.processor import load_processor
from captune.captioner.transformers_model import strip_prompt
from captune.decoding import DecodingOptions
from captune.errors import ConfigError, InputError, MissingExtraError, RefusedImagesError, WeightsError

QUESTION = "What is it?"
TOKENS = 8
# What documentation writes around the question where there is no chat template.
WRITTEN = {"paligemma": "<image>{}", "kosmos-2": "<grounding>{}"}
ALONE = ("blip", "blip-2 (OPT)", "git")
PROMPTED = ("blip", "blip-2 (OPT)", "florence2", "instructblip", "kosmos-2", "paligemma")
TEMPLATED = ("gemma3", "idefics3", "llava", "mllama")


def pictures() -> list[Image.Image]:
    draws = np.random.default_rng(0)
    sizes = [(40, 30), (64, 64), (30, 90), (90, 30), (20, 20)]
    return [Image.fromarray(draws.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def load(folder: Path, **settings: Any) -> TransformersBackend:
    backend = Captioner.from_pretrained(folder, device="cpu", dtype="float32", **settings).backend
    assert isinstance(backend, TransformersBackend)
    return backend


def captions(captioner: TransformersBackend, question: str | None = None, **settings: Any) -> list[str]:
    prepared = [captioner.prepare(picture) for picture in pictures()]
    options = DecodingOptions(max_new_tokens=TOKENS, **settings)
    return [caption.text for caption in captioner.generate(prepared, question, options)]


@torch.inference_mode()
def documented(name: str, folder: Path, question: str | None) -> list[str]:
    """The library's captions, one picture at a time."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    texts = []
    for picture in pictures():
        if question is None:
            inputs = processor(images=picture, return_tensors="pt")
        elif name in TEMPLATED:
            parts = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": parts}],
                add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            )  # fmt: skip
        else:
            text = WRITTEN.get(name, "{}").format(question)
            inputs = processor(images=picture, text=text, return_tensors="pt")
        row = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0]
        prompt_ids = inputs["input_ids"][0] if "input_ids" in inputs else row[:0]
        new = row[len(prompt_ids) :] if torch.equal(row[: len(prompt_ids)], prompt_ids) else row
        texts.append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    return texts


@pytest.mark.parametrize("name", ALONE)
def test_captions_without_a_question(name: str, folder_of: Any) -> None:
    captioner = load(folder_of(name))
    assert captioner.instruction is None
    expected = documented(name, folder_of(name), None)
    assert captions(captioner) == expected
    assert len(set(expected)) > 1
    assert all(expected)


# The library's processor of PaliGemma makes an array of a tensor in the old way.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", [*PROMPTED, *TEMPLATED])
def test_answers_as_documented(name: str, folder_of: Any) -> None:
    captioner = load(folder_of(name))
    expected = documented(name, folder_of(name), QUESTION)
    assert captions(captioner, QUESTION) == expected
    assert captions(captioner, QUESTION, batch_size=1) == expected
    assert len(set(expected)) > 1
    assert all(captions(captioner)), "without a question of the user, the model gets the question that it needs"


def test_a_question_that_generation_continues_has_no_end(folder_of: Any) -> None:
    """GIT's and Pix2Struct's tokenizers end every text; an ended question would end the caption."""
    for name in ("git", "pix2struct"):
        captioner = load(folder_of(name))
        assert captioner.instruction is None
        inputs = captioner.inputs.batch(pictures()[:1], QUESTION)
        ids = inputs["decoder_input_ids" if name == "pix2struct" else "input_ids"][0].tolist()
        tokenizer = captioner.processor.tokenizer
        assert ids[-1] != tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == QUESTION


def test_a_model_without_processor_captions_without_words(folder_of: Any) -> None:
    folder = folder_of("vision-encoder-decoder")
    captioner = load(folder)
    assert captioner.instruction is None
    assert len(set(captions(captioner))) > 2
    with pytest.raises(ConfigError, match="takes no instruction"):
        captions(captioner, QUESTION)
    with pytest.raises(ConfigError, match="takes no instruction"):
        load(folder, instruction=QUESTION)


def test_smolvlm_without_torchvision(folder_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "transformers.models.smolvlm.processing_smolvlm.num2words"
    monkeypatch.setattr(module, str)
    captioner = load(folder_of("smolvlm"))
    assert captioner.inputs.has_template
    assert len(set(captions(captioner))) > 2
    monkeypatch.setattr(module, None)
    with pytest.raises(MissingExtraError, match=r"captune\[smolvlm\]"):
        load(folder_of("smolvlm"))


@pytest.mark.parametrize("template", ["parts", "text"])
def test_a_template_of_the_tokenizer_alone(
    template: str, folder_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As older folders have it: for messages in parts, or for plain texts that hold the image token."""
    folder = save_family("llava", tmp_path)
    chat = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    if template == "text":
        chat = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        chat += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": chat}))
    assert captions(load(folder), QUESTION) == documented("llava", folder_of("llava"), QUESTION)


def test_a_template_of_the_language_model_is_not_used(folder_of: Any, tmp_path: Path) -> None:
    """BLIP-2's processor writes the image token; its tokenizer's template for texts has none for images."""
    folder = save_family("blip-2 (OPT)", tmp_path)
    chat = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": chat}))
    captioner = load(folder)
    assert not captioner.inputs.has_template
    assert captions(captioner) == documented("blip-2 (OPT)", folder_of("blip-2 (OPT)"), None)


def test_a_template_that_shows_no_image(tmp_path: Path) -> None:
    folder = save_family("llava", tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['role'] }}: answer!")
    with pytest.raises(WeightsError, match=r"cannot caption with these settings|renders no image token"):
        captions(load(folder))
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no users here') }}")
    with pytest.raises(WeightsError, match=r"fails .*no users here"):
        load(folder)


def test_llava_without_the_settings_of_its_tower(folder_of: Any, tmp_path: Path) -> None:
    folder = save_family("llava", tmp_path)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaProcessor"}))
    assert captions(load(folder)) == captions(load(folder_of("llava")))


@pytest.mark.parametrize("name", ["blip", "blip-2 (OPT)", "llava"])
def test_settings_of_generation_choose_no_words(name: str, folder_of: Any, tmp_path: Path) -> None:
    expected = captions(load(folder_of(name)))
    model = load(save_family(name, tmp_path)).model
    for part in model.modules():
        if isinstance(getattr(part, "generation_config", None), GenerationConfig):
            part.generation_config.update(
                repetition_penalty=1.9, min_new_tokens=7, no_repeat_ngram_size=1, num_beams=3, do_sample=True,
                suppress_tokens=list(range(4, 200)), forced_eos_token_id=2,
            )  # fmt: skip
    changed = TransformersBackend(model, load_processor(str(tmp_path), model.config, name), name=name)
    assert captions(changed) == expected


def test_an_image_that_is_refused_is_put_aside(folder_of: Any) -> None:
    captioner = load(folder_of("qwen2_vl"))
    images = [*pictures(), Image.new("RGB", (900, 3))]
    options = DecodingOptions(max_new_tokens=TOKENS)
    with pytest.raises(RefusedImagesError, match=r"1 of 6 images cannot be captioned.*aspect ratio") as raised:
        captioner.generate(images, None, options)
    assert raised.value.captions[:5] == captioner.generate(pictures(), None, options)
    assert raised.value.captions[5] is None
    items = [Item(str(n), f"{n}.png", image) for n, image in enumerate(images)]
    ((rows, bad),) = caption_entries(Captions(Captioner(captioner), options), iter(items))
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["id"] for row in bad] == ["5"]
    assert "5.png" in bad[0]["reason"]
    assert "aspect ratio" in bad[0]["reason"]


def test_a_missing_library_is_one_sentence(folder_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **settings: Any) -> Any:
        raise ImportError(
            "\nTower requires the timm library but it was not found.\nInstall it with `pip install timm`."
        )

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", fail)
    with pytest.raises(InputError, match=r"The model .* needs timm, which is not installed; .*pip install timm$"):
        load(folder_of("llava"))
    monkeypatch.setattr(AutoProcessor, "from_pretrained", fail)
    with pytest.raises(InputError, match=r"The processor of .* needs timm"):
        load(folder_of("llava"))


def test_a_model_that_fails_is_one_sentence(folder_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = load(folder_of("llava"))

    def fail(**settings: Any) -> Any:
        raise KeyError("cache")

    monkeypatch.setattr(captioner.model, "generate", fail)
    with pytest.raises(InputError, match=r"cannot caption with these settings \(KeyError: 'cache'\)"):
        captions(captioner)


def test_pictures_that_padding_changes_are_captioned_by_size(folder_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = load(folder_of("idefics3"))
    expected = captions(captioner)
    captioner._batches_mixed_sizes = False
    sizes: list[set[tuple[int, int]]] = []
    batch = captioner.inputs.batch
    monkeypatch.setattr(
        captioner.inputs, "batch", lambda images, text: (sizes.append({i.size for i in images}), batch(images, text))[1]
    )
    assert captions(captioner) == expected
    assert len(sizes) == 5
    assert all(len(of_batch) == 1 for of_batch in sizes)


def test_captions_are_cut_where_generation_begins() -> None:
    output = torch.tensor([[2, 7, 8, 2]])
    rows, old = strip_prompt(output, None, 1)
    assert rows.tolist() == [[2, 7, 8, 2]]
    assert old == 1, "what a decoder starts with is not new"
    rows, old = strip_prompt(output, torch.tensor([[2, 7]]), 2)
    assert rows.tolist() == [[8, 2]]
    assert old == 0
    rows, old = strip_prompt(output, torch.tensor([[5, 7, 1]]), 2)
    assert rows.tolist() == [[2, 7, 8, 2]], "words that the model took into its own text are the caption's beginning"
    assert old == 2


def test_an_end_that_ends_nothing_is_no_end() -> None:
    captioner = object.__new__(TransformersBackend)
    captioner._start_ids, captioner._end_ids, captioner._filler_ids = {1}, {2}, {0, 2}
    captioner._marks = {}
    captioner.processor = SimpleNamespace(
        tokenizer=SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)))
    )
    assert captioner._caption([2, 7, 2, 8, 2, 0, 0], 1).text == "2 7 2 8 2"
    assert captioner._caption([2, 7, 2, 8, 2, 0, 0], 1).stopped
    assert not captioner._caption([7, 2, 8], 0).stopped
    assert captioner._caption([1, 9, 1, 8], 2).text == "9 1 8", "what a decoder starts with is no word"


def test_the_table_of_families_is_true(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/models.md is made by a program; a few of its rows are made again."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    captioners = pytest.importorskip("captioners")
    rows = captioners.rows_of_page((repository / "docs" / "models.md").read_text(encoding="utf-8"))
    assert len(rows) == len(FAMILIES), "python benchmarks/captioners.py --write"
    for name in ("blip", "florence2", "llava", "vision-encoder-decoder"):
        assert rows[name] == f"| {' | '.join(captioners.row(name, tmp_path / name))} |"


def test_special_tokens_in_an_instruction_are_announced(folder_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    captioner = load(folder_of("llava"))
    end = captioner.processor.tokenizer.eos_token
    captions(captioner, QUESTION)
    assert not caplog.records
    for _ in range(2):
        captions(captioner, f"{QUESTION} {end}")
    assert [record.getMessage() for record in caplog.records] == [
        f"The instruction contains {end!r}, which {captioner.name} parses as a special token, not as text."
    ]
    assert load(folder_of("kosmos-2")).prompt() is not None  # the prompt of its documentation is not announced
    assert len(caplog.records) == 1
