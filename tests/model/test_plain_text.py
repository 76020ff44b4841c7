"""A special token that a caption or an instruction spells out is text; those of a template are what they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers as backends
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from captune.cli import app, call, run
from captune.model import CHAT_TEMPLATES, PromptLayout
from captune.model.chat_template import count_bos, read_chat_template
from captune.model.tokenizer import HuggingFaceTokenizer, PlainText, SentencePieceTokenizer, Tokenizer, load_tokenizer

from ..language_models import CHATML, TEXT, write_tokenizer

MARKS = ("</s>", "<s>", "<unk>", "<pad>", "<|im_end|>", "<image>", "<think>")
SPECIAL = ["<|im_start|>", "<|im_end|>", "<image>"]
TWO_PARTS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


def write_pieces(folder: Path, added: dict[str, Any], **settings: Any) -> Path:
    """A LLaMA folder with tokenizer.model."""
    trainer = sentencepiece.SentencePieceTrainer
    lines = folder / "lines.txt"
    lines.write_text("\n".join(TEXT * 3), encoding="utf-8")
    trainer.train(
        input=str(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    entries = {str(i): {"content": text, "special": True} for i, text in enumerate(("<unk>", "<s>", "</s>"))}
    entries |= {str(size + n): {"content": text, **entry} for n, (text, entry) in enumerate(added.items())}
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": entries, **settings}))
    return folder


def unigram(folder: Path) -> None:
    """A vocabulary whose model itself prefers "</s>" to its letters."""
    tokenizer = backends.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<pad>", "<s>", "</s>", *SPECIAL]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False, initial_alphabet=list("</>|s_")
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)


def one_of_each_kind(folder: Path) -> dict[str, Tokenizer]:
    """One of each kind."""
    folders = {name: folder / name for name in ("bytes", "pieces", "unigram")}
    for one in folders.values():
        one.mkdir()
    write_tokenizer(folders["bytes"], SPECIAL, words=["<think>"])
    write_pieces(folders["pieces"], {"<|im_end|>": {"special": True}, "<think>": {"special": False}})
    unigram(folders["unigram"])
    return {
        "bytes": load_tokenizer(folders["bytes"]),
        "pieces": load_tokenizer(folders["pieces"]),
        "pieces of transformers": load_tokenizer(folders["pieces"], library=True),
        "unigram": load_tokenizer(folders["unigram"]),
    }


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return one_of_each_kind(tmp_path_factory.mktemp("vocabularies"))


@pytest.mark.parametrize("name", ["bytes", "pieces", "pieces of transformers", "unigram"])
def test_what_a_caption_spells_out_is_text(vocabularies: dict[str, Tokenizer], name: str) -> None:
    tokenizer = vocabularies[name]
    assert isinstance(tokenizer, SentencePieceTokenizer if name == "pieces" else HuggingFaceTokenizer)
    for mark in MARKS:
        known = tokenizer.encode(mark)
        meant = tokenizer.encode_pieces(["A dog.", "</s>"])
        ids = tokenizer.encode_pieces(["A ", PlainText(f"dog {mark} runs."), "</s>"])
        assert ids[-1] == meant[-1] == tokenizer.eos_id
        assert tokenizer.eos_id not in ids[:-1]
        if tokenizer.find_special_token(mark) == mark:
            assert not {known[-1]} & set(ids[:-1]) or mark == "<unk>"
        if name != "unigram":
            assert mark in tokenizer.decode(ids)
    ordinary = ["A ", PlainText("red circle on white ground."), "</s>"]
    assert tokenizer.encode_pieces(ordinary) == tokenizer.encode("".join(ordinary))
    assert tokenizer.find_special_token("A dog. </s>") == "</s>"
    assert tokenizer.find_special_token("A dog < s >") is None


@pytest.mark.parametrize("name", ["bytes", "pieces"])
@pytest.mark.parametrize("conversation", [*CHAT_TEMPLATES, "chat"])
def test_prompts_and_targets(vocabularies: dict[str, Tokenizer], name: str, conversation: str) -> None:
    """Placeholders and special tokens of a template are read, those of an instruction and a caption are not."""
    tokenizer = vocabularies[name]
    wrapping: Any = conversation
    if conversation == "chat":
        if not isinstance(tokenizer, HuggingFaceTokenizer):
            pytest.skip("chat models use transformers' tokenizer")
        tokenizer.library.chat_template = CHATML
        wrapping = read_chat_template(tokenizer.library)
        tokenizer.library.chat_template = None
    layout = PromptLayout(tokenizer, wrapping, image_tokens=3)
    plain = layout.prompt("Describe it.").ids
    odd = layout.prompt("Describe </s> <s> <|im_end|> <image> it.").ids
    assert odd.count(-1) == plain.count(-1) == 3
    for mark in ("</s>", "<s>", "<|im_end|>"):
        assert odd.count(tokenizer.encode(mark)[0]) == plain.count(tokenizer.encode(mark)[0])
    shown = layout.prompt("<Img><ImageHere></Img> Is <ImageHere> here?").ids
    assert shown.count(-1) == 3
    assert "<ImageHere>" in tokenizer.decode([i for i in shown if i >= 0])
    targets, cut = layout.target_ids("A </s> dog <ImageHere>.")
    assert not cut
    assert -1 not in targets
    assert targets[-len(layout.stop_ids) :] == layout.stop_ids or conversation in ("vicuna-v0", "alignment")
    assert targets.count(tokenizer.encode("</s>")[0]) == ("</s>" in layout.chat_template.stop_symbol)
    assert layout.text_before_stop(layout.decode(targets)).replace(" ", "") == "A</s>dog<ImageHere>."


def test_white_space_among_added_tokens_is_no_special_token(tmp_path: Path) -> None:
    """Gemma's line breaks are added tokens; texts with them keep the tokens that the tokenizer gives."""
    reference = write_tokenizer(tmp_path, words=["\n\n"])
    tokenizer = HuggingFaceTokenizer(reference)
    text = "A dog.\n\nA cat."
    assert reference.convert_tokens_to_ids("\n\n") in tokenizer.encode_pieces([PlainText(text)])
    assert tokenizer.encode_pieces([PlainText(text)]) == reference.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_of_a_llama_folder(tmp_path: Path, special: bool) -> None:
    entry = {"special": special, "rstrip": True, "lstrip": False, "normalized": False, "single_word": False}
    write_pieces(tmp_path, {"<|im_start|>": entry})
    tokenizer, reference = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("<|im_start|>") == reference.encode("<|im_start|>", add_special_tokens=False)
    assert len(tokenizer.encode("<|im_start|>\n")) == 1
    ids = tokenizer.encode("A dog<|im_start|>A cat")
    assert tokenizer.decode(ids).replace(" ", "") == ("AdogAcat" if special else "Adog<|im_start|>Acat")


@pytest.mark.parametrize("legacy", [None, True, False])
def test_a_llama_folder_with_a_chat_template(tmp_path: Path, legacy: bool | None) -> None:
    """Prompt and answer have the tokens that transformers gives the complete conversation."""
    settings = {} if legacy is None else {"legacy": legacy}
    write_pieces(tmp_path, {}, chat_template=TWO_PARTS, **settings)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    layout = PromptLayout(load_tokenizer(tmp_path, library=True), read_chat_template(reference), image_tokens=2)
    turns = [{"role": "user", "content": "<Img>@@</Img> Who?"}, {"role": "assistant", "content": "A dog."}]
    expected = []
    for count in (1, 2):
        text = reference.apply_chat_template(turns[:count], tokenize=False, add_generation_prompt=count == 1)
        expected.append([i for part in text.split("@@") for i in reference.encode(part, add_special_tokens=False)])
    assert [i for i in layout.prompt("Who?").ids if i >= 0] == expected[0]
    assert [i for i in layout.sample("Who?", "A dog.").ids if i >= 0] == expected[1]


@pytest.mark.parametrize(("bos", "adds"), [("<s>", True), ("<s>", False), ("</s>", False), (None, False)])
def test_a_model_without_a_chat_template(tmp_path: Path, bos: str | None, adds: bool) -> None:
    reference = write_tokenizer(tmp_path, bos=bos, adds_bos=adds)
    layout = PromptLayout(load_tokenizer(tmp_path), read_chat_template(reference), image_tokens=2)
    row = [i for i in layout.sample("Describe.", "A red circle.").ids if i >= 0]
    parts = ["User: <Img>", "</Img> Describe.\nAssistant: A red circle.</s>"]
    expected = [reference.encode(part, add_special_tokens=False) for part in parts]
    assert row == [*([reference.bos_token_id] if adds else []), *expected[0], *expected[1]]
    assert count_bos(reference) == ((1, True) if adds else (0, False))


def test_later_turns_of_a_chat(tmp_path: Path) -> None:
    reference = write_tokenizer(tmp_path, SPECIAL, template=CHATML)
    layout = PromptLayout(HuggingFaceTokenizer(reference), read_chat_template(reference), image_tokens=2)
    turns = [("<Img><ImageHere></Img> Who?", "A dog."), ("Where?", "There.")]
    roles = [(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)]
    text = reference.apply_chat_template([{"role": role, "content": text} for role, text in roles], tokenize=False)
    expected = [i for part in text.split("<ImageHere>") for i in reference.encode(part, add_special_tokens=False)]
    row = [i for i in layout.dialogue(turns).ids if i >= 0]
    assert row == expected[: len(row)]
    assert (
        layout.dialogue_prompt(turns[:1], "Where?").ids + layout.target_ids("There.")[0] == layout.dialogue(turns).ids
    )


def test_check_notes_special_tokens(toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = json.loads((toy_data / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[0])
    row |= {"image": str(toy_data / row["image"]), "captions": ["A dog. </s>", "A <unk> dog.", "A dog. ###", "A dog."]}
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert run(lambda: call(app, ["check", str(manifest), "--split", row["split"], "--model", "toy", "--json"])) == 0
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert problems["special"] == 2
    assert problems["stopped"] == 1
