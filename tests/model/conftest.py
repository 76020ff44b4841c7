"""A complete set of original files at tiny dimensions, random and made on the spot."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from torch import Tensor
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from captune.model import MiniGPT4
from captune.model.official import load_official
from captune.model.official_layout import Table, qformer_table, vision_table

TEXT = """A dog runs along the beach. Two girls are eating ice cream outside a cafe.
Describe this image in detail. A man in a blue shirt looks at the mountains.
### Human : Assistant : [INST] [/INST] <Img> </Img> What is this ? Who is there in the park?"""


@dataclass(frozen=True)
class OfficialFiles:
    """Paths of one set of files; heads are 4 throughout."""

    llm: Path
    vision: Path
    qformer: Path
    checkpoint: Path
    checkpoint_llama2: Path


def write_vocabulary(folder: Path) -> None:
    """A LLaMA vocabulary of 300 pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 5),
        model_writer=model,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def originals(state: dict[str, Tensor], table: Table) -> dict[str, Tensor]:
    """The tensors of an original file from which `table` makes `state`."""
    made = {}
    for key, names in table.items():
        for name, part in zip(names, state[key].chunk(len(names)), strict=True):
            if name:
                made[name] = part.clone()
    return made


def random_state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {key: torch.randn_like(tensor) * 0.1 for key, tensor in module.state_dict().items()}


@pytest.fixture(scope="session")
def official_files(tmp_path_factory: pytest.TempPathFactory) -> OfficialFiles:
    folder = tmp_path_factory.mktemp("official")
    files = OfficialFiles(*(folder / name for name in ("llm", "eva.pth", "blip2.pth", "proj.pth", "proj_llama2.pth")))
    torch.manual_seed(0)
    tower = Blip2VisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7
    )
    state = originals(random_state(Blip2VisionModel(tower)), vision_table(3))
    state |= {"norm.weight": torch.ones(24), "norm.bias": torch.zeros(24), "head.weight": torch.zeros(2, 24)}
    torch.save(state, files.vision)
    qformer = Blip2QFormerConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=4, intermediate_size=20, encoder_hidden_size=24
    )
    state = random_state(Blip2QFormerModel(qformer)) | {"query_tokens": torch.randn(1, 6, 16)}
    state |= {"ln_vision.weight": torch.randn(24), "ln_vision.bias": torch.randn(24)}
    state = originals(state, qformer_table(4, 2)) | {"t5_proj.weight": torch.zeros(2, 2)}
    torch.save({"model": state}, files.qformer)
    for path, width in ((files.checkpoint, 16), (files.checkpoint_llama2, 96)):
        torch.save({"model": {"llama_proj.weight": torch.randn(32, width), "llama_proj.bias": torch.randn(32)}}, path)
    files.llm.mkdir()
    write_vocabulary(files.llm)
    llm = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(llm).half().save_pretrained(files.llm)
    return files


def load(files: OfficialFiles, arch: str = "minigpt4", **changes: Any) -> MiniGPT4:
    """The model that these files make."""
    arguments: dict[str, Any] = {
        "llm": files.llm,
        "vision": files.vision,
        "qformer": files.qformer,
        "checkpoint": files.checkpoint,
        "dtype": torch.float32,
        "vision_heads": 4,
        "qformer_heads": 4,
    }
    return load_official(arch, **(arguments | changes))
