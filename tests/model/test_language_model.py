"""What is measured of a language model before image tokens are put between its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    LlamaForCausalLM,
)

from captune.data.images import CLIP_MEAN, CLIP_STD
from captune.decoding import DecodingOptions, generate_captions
from captune.decoding.capabilities import unsupported_reason
from captune.decoding.generate import as_caption, generate_ids
from captune.decoding.options import Request
from captune.errors import ConfigError, WeightsError
from captune.model import MiniGPT4
from captune.model.build import build_model, config_and_processor_of_parts
from captune.model.language_model import check_causal, embedding_width, is_batch_invariant

from ..language_models import write_language_model, write_model, write_tokenizer, write_tower

OPT = {"word_embed_proj_dim": 16, "ffn_dim": 48, "do_layer_norm_before": False}


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(tmp_path_factory.mktemp("tower"))


def joined(llm: Path, tower: Path) -> MiniGPT4:
    return build_model(llm=llm, vision=tower, dtype=torch.float32, aligned=True)


def features_of(model: MiniGPT4, count: int = 4) -> torch.Tensor:
    shape = (count, model.config.image_tokens, model.config.feature_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_embeddings_narrower_than_states(tower: Path, tmp_path: Path) -> None:
    """Image tokens have the width of embeddings, and each row has the tokens of its picture."""
    llm = write_language_model(tmp_path / "llm", "opt", template=None, **OPT)
    model = joined(llm, tower)
    assert (
        config_and_processor_of_parts(llm, tower)[0].text_width
        == model.config.text_width
        == embedding_width(model.llm.config)
        == 16
    )
    ids = torch.tensor([model.processor.layout.prompt("What?").ids] * 2)
    features = features_of(model, 2)
    both = model.embed(ids, model.project(features))
    alone = torch.cat([model.embed(ids[:1], model.project(features[n : n + 1])) for n in (0, 1)])
    assert torch.equal(both, alone)
    with pytest.raises(ValueError, match="32 wide, but token embeddings 16"):
        model.embed(ids, torch.zeros(2, model.config.image_tokens, 32))
    captions = generate_captions(model, features, "What?", DecodingOptions(max_new_tokens=5))
    assert [c.text for c in captions] == [
        generate_captions(model, features[n : n + 1], "What?", DecodingOptions(max_new_tokens=5))[0].text
        for n in range(2)
    ]
    model.save_pretrained(tmp_path / "whole")
    assert MiniGPT4.from_pretrained(tmp_path / "whole").projection.weight.shape[0] == 16


@pytest.mark.parametrize("kind", ["llama", "gemma", "gemma2"])
def test_new_image_tokens_are_as_long_as_words(kind: str, tower: Path, tmp_path: Path) -> None:
    model = joined(write_language_model(tmp_path, kind, head_dim=8, tie_word_embeddings=True), tower)
    with torch.no_grad():
        image = model.project(torch.randn(64, model.config.image_tokens, model.config.feature_size))
        words = model.get_input_embeddings()(torch.arange(5, 300))
    assert 0.7 < float(words.square().mean().sqrt() / image.square().mean().sqrt()) < 1.4


@pytest.mark.parametrize(("kind", "decoder"), [("roberta", False), ("bert", False), ("roberta", True)])
def test_encoders_are_refused(kind: str, decoder: bool, tower: Path, tmp_path: Path) -> None:
    llm = write_language_model(tmp_path, kind, template=None, is_decoder=decoder)
    if decoder:
        assert joined(llm, tower).llm.config.is_decoder
    else:
        with pytest.raises(WeightsError, match="is no causal language model"):
            joined(llm, tower)


def test_embeddings_that_are_not_what_is_read_of_words(tmp_path: Path) -> None:
    """A model that changes embeddings only where it looks them up itself would read image tokens as something else."""

    class Scaled(LlamaForCausalLM):
        def forward(self, input_ids=None, inputs_embeds=None, **kwargs):  # type: ignore[no-untyped-def]
            if inputs_embeds is None:
                inputs_embeds = self.get_input_embeddings()(input_ids) * 5
            return super().forward(inputs_embeds=inputs_embeds, **kwargs)

    write_model(tmp_path, "llama", 300)
    check_causal(AutoModelForCausalLM.from_pretrained(tmp_path), "llm")
    with pytest.raises(WeightsError, match="gives other logits for the embeddings of words"):
        check_causal(Scaled.from_pretrained(tmp_path), "llm")


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_captions_do_not_depend_on_generation_config(kind: str, tower: Path, tmp_path: Path) -> None:
    """Mamba goes through transformers' generate, LLaMA through captune's own loop."""
    texts = []
    for name, settings in (("plain", {}), ("other", {"repetition_penalty": 1.8, "min_new_tokens": 9})):
        llm = write_language_model(tmp_path / name, kind, state_size=8, expand=2, conv_kernel=4)
        file = llm / "generation_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
        model = joined(llm, tower)
        captions = generate_captions(model, features_of(model), "What?", DecodingOptions(max_new_tokens=12))
        texts.append([caption.text for caption in captions])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("beams", [1, 2])
def test_each_end_of_generation_config_ends_a_caption(beams: int, tower: Path, tmp_path: Path) -> None:
    """As in transformers' generate: the end of a text as well as that of a turn."""
    llm = write_language_model(tmp_path / "llm")
    reference = AutoModelForCausalLM.from_pretrained(llm)
    with torch.no_grad():
        reference.lm_head.weight[2] *= 4
    words = write_tokenizer(tmp_path / "words", ["<|im_start|>", "<|im_end|>"])
    ends = [2, words.convert_tokens_to_ids("<|im_end|>")]
    reference.generation_config = GenerationConfig(eos_token_id=ends)
    reference.save_pretrained(llm)
    model = joined(llm, tower)
    processor = model.processor
    assert set(processor.end_ids) == set(ends)
    prompt = processor.layout.prompt("What?").ids
    features = features_of(model, 6)
    requests = [Request(n, prompt, (lambda n=n: features[n : n + 1]), "") for n in range(6)]
    options = DecodingOptions(max_new_tokens=20, beams=beams)
    rows = generate_ids(model, requests, options)
    assert rows == generate_ids(model, requests, options, engine="transformers")
    for number, row in enumerate(rows):
        embeddings = model.embed(torch.tensor([prompt]), model.project(features[number : number + 1]))
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
        expected = reference.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            max_new_tokens=20,
            do_sample=False,
            num_beams=beams,
            pad_token_id=0,
        )[0].tolist()
        assert row == expected[: len(row)]
        assert set(expected[len(row) :]) <= {0}
    assert any(row[-1] == 2 for row in rows)
    assert all(as_caption(processor, row).stopped == (row[-1] in ends) for row in rows)
    model.save_pretrained(tmp_path / "whole")
    assert MiniGPT4.from_pretrained(tmp_path / "whole").processor.end_ids == processor.end_ids


@pytest.mark.parametrize(
    ("stated", "mean", "std"),
    [
        (None, None, None),
        (
            {"image_mean": CLIP_MEAN.tolist(), "image_std": CLIP_STD.tolist()},
            None,
            None,
        ),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, 0.5, 0.5),
        ({"image_mean": [0.4] * 3, "image_std": 0.2}, 0.4, 0.2),
        ({"do_normalize": False}, 0.0, 1.0),
        ({"image_mean": [1.0] * 3, "image_std": [1.0] * 3, "rescale_factor": 2 / 255}, 0.5, 0.5),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_the_normalisation_of_a_clip_tower(stated: Any, mean: Any, std: Any, nested: bool, tmp_path: Path) -> None:
    """Whatever its image processor's settings say, in either of the files that transformers writes."""
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path / "clip")
    if stated is not None:
        name = "processor_config.json" if nested else "preprocessor_config.json"
        content = {"image_processor": stated} if nested else stated
        (tmp_path / "clip" / name).write_text(json.dumps(content), encoding="utf-8")
    config = config_and_processor_of_parts(write_language_model(tmp_path / "llm"), tmp_path / "clip")[0]
    assert config.pixel_mean == (None if mean is None else pytest.approx([mean] * 3))
    assert config.pixel_std == (None if std is None else pytest.approx([std] * 3))


def test_a_window_that_no_cache_shows(tower: Path, tmp_path: Path) -> None:
    """GPT-Neo's own attention counts columns; rows longer than its window are decoded by transformers."""
    sizes = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 24}
    llm = write_language_model(tmp_path / "llm", "gpt_neo", template=None, **sizes)
    model = joined(llm, tower)
    assert unsupported_reason(model.llm, 12) is None
    assert "the static KV cache changes its logits" in str(unsupported_reason(model.llm, 90))
    features, options = features_of(model), DecodingOptions(max_new_tokens=12)
    generated, expected = (
        [caption.text for caption in generate_captions(model, features, "What is in it?", options, engine=engine)]
        for engine in ("captune", "transformers")
    )
    assert generated == expected


def test_rows_that_a_batch_would_mix_up(tower: Path, tmp_path: Path) -> None:
    """RWKV's state goes wrong in transformers' batches, so its captions are generated one by one."""
    sizes = {"attention_hidden_size": 32, "context_length": 512}
    model = joined(write_language_model(tmp_path / "rwkv", "rwkv", template=None, **sizes), tower)
    assert not is_batch_invariant(model.llm, padded=False)
    features, options = features_of(model), DecodingOptions(max_new_tokens=8)
    batched = [caption.text for caption in generate_captions(model, features, "What?", options)]
    alone = [generate_captions(model, features[n : n + 1], "What?", options)[0].text for n in range(len(features))]
    assert batched == alone
    with pytest.raises(ConfigError, match="no beam search"):
        generate_captions(model, features, "What?", DecodingOptions(max_new_tokens=8, beams=2))
    llama = joined(write_language_model(tmp_path / "llama"), tower)
    assert is_batch_invariant(llama.llm, padded=False)
    assert is_batch_invariant(llama.llm, padded=True)


def test_settings_that_json_does_not_hold() -> None:
    """Mamba 2 has an infinite limit among its settings."""
    config = AutoConfig.for_model("mamba2", hidden_size=32, num_heads=4, head_dim=16, n_groups=1, state_size=8)
    assert embedding_width(config) == 32


def test_a_model_that_generates_nothing_after_embeddings(tower: Path, tmp_path: Path) -> None:
    sizes = {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
    model = joined(write_language_model(tmp_path / "llm", "bamba", mamba_expand=2, mamba_chunk_size=16, **sizes), tower)
    with pytest.raises(ConfigError, match="so it cannot caption images"):
        generate_captions(model, features_of(model), "What?", DecodingOptions(max_new_tokens=4))
