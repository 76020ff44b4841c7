"""A tiny model folder with a small vocabulary, and a manifest: what `explain` and `plan` read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig

from captune.config import RunConfig, parse_config
from captune.data.manifest import Sample, write_manifest
from captune.model import MiniGPT4Config

CAPTIONS = (
    "Two young guys with shaggy hair look at their hands while hanging out in the yard.",
    "A child in a pink dress is climbing up a set of stairs in an entry way.",
    "Someone in a blue shirt and hat is standing on stair and leaning against a window.",
    "Two men, one in a gray shirt, one in a black shirt, standing near a stove.",
    "Five people wearing winter jackets and helmets stand in the snow, with snowmobiles behind.",
)
IMAGES = (
    Sample("1000", "1000.jpg", CAPTIONS, "train"),
    Sample("1001", "1001.jpg", ("A dog runs.", "The dog is running over snow."), "train"),
    Sample("1002", "1002.jpg", CAPTIONS[:3], "test"),
)


def model_config(**settings: object) -> MiniGPT4Config:
    """Dimensions that no two of which are alike, so that a mix-up shows."""
    vision = Blip2VisionConfig(
        image_size=56, patch_size=14, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    qformer = Blip2QFormerConfig(
        hidden_size=40,
        encoder_hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=88,
        cross_attention_frequency=1,
        vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    llm = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=172, num_hidden_layers=3, num_attention_heads=4,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    content = {"vision_config": vision, "qformer_config": qformer, "text_config": llm, "query_tokens": 6, **settings}
    return MiniGPT4Config(**content)


def write_vocabulary(folder: Path) -> None:
    """A LLaMA-style vocabulary with byte fallback."""
    from sentencepiece import SentencePieceTrainer

    prompt = "###Human: <Img></Img> Describe this image in detail. ###Assistant: "
    pieces = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*CAPTIONS * 20, *[caption + "###" for caption in CAPTIONS], *[prompt] * 20]),
        model_writer=pieces,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(pieces.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": True}))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders without weights, a manifest, and no image: `vicuna`, `llama2`, `v2`."""
    root = tmp_path_factory.mktemp("preview")
    for name, settings in {
        "vicuna": {},
        "llama2": {"qformer_config": None, "conversation": "llama-2"},
        "v2": {"qformer_config": None, "conversation": "minigpt-v2"},
    }.items():
        (root / name).mkdir()
        model_config(**settings).save_pretrained(root / name)
        write_vocabulary(root / name)
    write_manifest(root / "manifest.jsonl", IMAGES)
    return root


MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config(folder: Path) -> MakeConfig:
    """A run on one of the models, with overrides."""

    def make(model: str = "vicuna", *overrides: str) -> RunConfig:
        content = {"model": {"path": str(folder / model)}, "data": {"train": str(folder / "manifest.jsonl")}}
        return parse_config({"output": str(folder / "run"), **content}, overrides)

    return make


@pytest.fixture
def yaml_file(folder: Path) -> Path:
    """The run on the Vicuna-like model as a file."""
    path = folder / "run.yaml"
    path.write_text(f"model: {{path: {folder / 'vicuna'}}}\ndata: {{train: {folder / 'manifest.jsonl'}}}\n")
    return path
