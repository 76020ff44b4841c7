"""Gradients of every computation equal those of the model's own forward, or the computation is not used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from vision_families import CLIP, FAMILIES, Recipe, llava_kind, save_family

from captune.config import LoraConfig, ModelConfig
from captune.errors import MissingExtraError
from captune.hub import resolve_model
from captune.model import language_model
from captune.vlm import Computation, ImageTextModel, ProbeSample, choose_computation, load_image_text_model
from captune.vlm.loss_method import _gradient, shortened_copy

# Processors of the library make an array of a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CAPTIONS = ("A dog runs.", "A dog sits on the grass.", "Two dogs.")
CPU = torch.device("cpu")
# What shares no rows: encoder-decoders, and decoders that make positions or masks from the width of a row.
PLAIN = ("blip", "blip-2 (T5)", "florence2", "git", "kosmos-2", "pix2struct", "vision-encoder-decoder")
# Early releases mix float32 into float64 models, and make the mask of PaliGemma in another way, which is not packed.
EARLY = Version(transformers.__version__) < Version("5.20")
PACKED = tuple(name for name in FAMILIES if name not in PLAIN and not (EARLY and name == "paligemma"))

Load = Callable[..., ImageTextModel]


class KeepDouble(TorchDispatchMode):
    """Leaves float64 tensors as they are where a model casts them to float32, as its norms do."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = dict(kwargs or {})
        if function is torch.ops.aten._to_copy.default and args[0].dtype == torch.float64:
            settings = {**settings, "dtype": torch.float64} if settings.get("dtype") == torch.float32 else settings
        return function(*args, **settings)


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    folders: dict[str, Path] = {}

    def loaded(name: str, dtype: str = "float32", projector: bool = False, **settings: Any) -> ImageTextModel:
        if name not in folders:
            folders[name] = save_family(name, tmp_path_factory.mktemp("family"))
        source = resolve_model(ModelConfig(path=str(folders[name]), **settings))
        try:
            model = load_image_text_model(source, CPU)
        except MissingExtraError as error:
            pytest.skip(str(error))
        model.model.to(getattr(torch, dtype))
        model.add_lora(LoraConfig(rank=2, targets=("all-linear",)), projector=projector)
        with torch.no_grad():
            for parameter in (p for n, p in model.trained_parameters() if ".lora_B." in n):
                parameter.normal_(0, 0.05)
        return model

    return loaded


def samples() -> list[ProbeSample]:
    return [ProbeSample(image(40, 30), CAPTIONS), ProbeSample(image(30, 90, 1), CAPTIONS[1:])]


def differences(model: ImageTextModel) -> dict[str, float]:
    """Relative difference of the gradient of each possible computation."""
    assert model.find_features()
    reference = _gradient(model, samples(), features=False, packed=False)
    ways = [(True, False)] + [(features, True) for features in (True, False) if model.decoder is not None]
    return {
        Computation(*way).name: float(
            (_gradient(model, samples(), features=way[0], packed=way[1]) - reference).norm() / reference.norm()
        )
        for way in ways
    }


@pytest.mark.parametrize("name", PACKED)
def test_a_decoder_shares_the_image_among_captions(load: Load, name: str) -> None:
    model = load(name)
    assert max(differences(model).values()) < 1e-5
    computation = choose_computation(model, samples())
    assert (computation.features, computation.packed) == (True, True), computation.describe()


@pytest.mark.skipif(EARLY, reason="an early release of transformers")
@pytest.mark.parametrize("name", [name for name in PACKED if name != "glm4v"])  # whose tower multiplies float32
def test_only_rounding_differs_in_float64(load: Load, name: str) -> None:
    with KeepDouble():
        assert max(differences(load(name, "float64")).values()) < 1e-12


@pytest.mark.parametrize("name", PLAIN)
def test_other_families_get_plain_rows_from_stored_features(load: Load, name: str) -> None:
    computation = choose_computation(load(name), samples())
    assert (computation.features, computation.packed) == (True, False), computation.describe()


def test_a_model_that_mixes_captions_is_not_packed(load: Load) -> None:
    """As recurrence or convolution over the tokens of a row does."""
    model = load("llava")
    assert model.decoder is not None
    layer = model.decoder.layers[1]
    forward = layer.forward

    def mixed(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        previous = torch.nn.functional.pad(hidden_states, (0, 0, 1, 0))[:, :-1]
        return forward(hidden_states + 0.1 * previous, *args, **kwargs)

    layer.forward = MethodType(mixed, layer)
    computation = choose_computation(model, samples())
    assert (computation.features, computation.packed) == (True, False), computation.describe()


@pytest.mark.parametrize("name", [n for n in ("gemma3", "idefics3", "internvl", "llava", "paligemma") if n in PACKED])
def test_features_before_a_trained_projector_are_stored(load: Load, name: str) -> None:
    model = load(name, projector=True)
    assert any("modules_to_save" in parameter for parameter, _ in model.trained_parameters())
    computation = choose_computation(model, samples())
    assert (computation.features, computation.packed) == (True, True), computation.describe()
    assert float(dict(computation.differences)["features, packed row"]) < 1e-5
    assert len(model.encode(image(40, 30)).tensors) < 4, "of all hidden states, only those that are read are stored"


def test_a_projector_inside_the_tower_is_trained_from_pixels(load: Load) -> None:
    computation = choose_computation(load("qwen2_5_vl", projector=True), samples())
    assert (computation.features, computation.packed) == (False, True), computation.describe()


HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
}


@pytest.mark.parametrize("language", HYBRIDS)
def test_convolution_and_linear_attention_are_not_packed(
    load: Load, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoders of LFM2-VL and Qwen3.5, whose tokens interact without a mask, in a LLaVA."""

    def hybrid() -> Recipe:
        recipe = llava_kind("llava", "LlavaProcessor", CLIP, language=language, image_seq_length=16)
        recipe.config["text_config"] |= HYBRIDS[language]
        return recipe

    monkeypatch.setitem(FAMILIES, language, hybrid)
    model = load(language)
    assert model.decoder is not None, "packing was tried"
    computation = choose_computation(model, samples())
    assert (computation.features, computation.packed) == (True, False), computation.describe()
    assert float(dict(computation.differences)["features, plain rows"]) < 1e-5


def test_a_tower_that_is_trained_is_not_stored(load: Load) -> None:
    model = load("llava")
    tower = next(p for n, p in model.model.named_parameters() if "vision_tower" in n and n.endswith("layer_norm1.bias"))
    tower.requires_grad_(True)
    computation = choose_computation(model, samples())
    assert (computation.features, computation.packed) == (False, True), computation.describe()


def test_windows_shorter_than_the_packed_row(load: Load) -> None:
    """Windows are measured in the plain rows; the packed row is longer than the window, and so are plain ones."""
    model = load("gemma3")
    text = model.model.config.get_text_config()
    assert "sliding_attention" in text.layer_types
    text.sliding_window = 24
    sample = [ProbeSample(image(40, 30), tuple(f"{word} dog runs on the grass." for word in ("A", "One", "Two", "No")))]
    computation = choose_computation(model, sample)
    assert computation.packed, computation.describe()


def test_half_precision_is_compared_in_a_float32_copy(load: Load) -> None:
    model = load("qwen2_5_vl", "bfloat16")
    computation = choose_computation(model, samples())
    assert (computation.features, computation.packed) == (True, True)
    assert float(dict(computation.differences)["features, packed row"]) < 1e-5
    assert len(model.decoder.layers) == model.model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr]


def test_a_copy_that_does_not_fit_leaves_the_model_unchanged(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("qwen2_5_vl", "bfloat16")
    assert model.decoder is not None
    layers = len(model.decoder.layers)

    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(language_model, "copy", SimpleNamespace(deepcopy=full))
    assert shortened_copy(model) is None
    assert len(model.decoder.layers) == layers


def test_activation_checkpointing_repeats_masks_and_positions(load: Load) -> None:
    model = load("llava")
    model.find_features()
    expected = _gradient(model, samples(), features=True, packed=True)
    model.checkpoint_activations()
    model.train()
    actual = _gradient(model, samples(), features=True, packed=True)
    assert float((actual - expected).norm() / expected.norm()) < 1e-6


def test_prompts_whose_image_is_stored_hold_no_pixels(load: Load) -> None:
    """Those of a thousand sizes would take gigabytes."""
    prompt = load("qwen2_5_vl").conversation.prompt_of_size((64, 64))
    for pixels, copies in ((prompt.inputs["pixel_values"], 1), (prompt.rows([[5], [6]], 0)["pixel_values"], 2)):
        assert pixels.shape[0] == copies * (64 // 8) ** 2
        assert pixels.untyped_storage().nbytes() == 4


@pytest.mark.skipif(EARLY, reason="an early release of transformers")
def test_the_table_of_families_is_current(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/tuning.md is made by a program; its ways are those that are tested above, and one row is made again."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    program = pytest.importorskip("vlm_families")
    ways = program.ways_of_page((repository / "docs" / "tuning.md").read_text(encoding="utf-8"))
    expected = {**dict.fromkeys(PACKED, program.PACKED), **dict.fromkeys(PLAIN, program.PLAIN)}
    assert ways == expected, "python benchmarks/vlm_families.py --write"
    _, way, stored, packed, projector, note = program.row("llava", tmp_path)
    assert (way, projector, note) == (ways["llava"], "`multi_modal_projector`", "")
    assert max(float(stored), float(packed)) < 1e-5


@pytest.mark.parametrize("name", PACKED)
def test_several_images_share_a_forward(load: Load, name: str) -> None:
    model = load(name)
    assert model.find_features()
    sizes = ((40, 30), (64, 64), (40, 30), (30, 60))
    captions = [CAPTIONS, CAPTIONS[1:], ("Red.",), ("A man and a dog.", "A man.")]
    features = [model.encode(image(*size, seed)) for seed, size in enumerate(sizes)]
    shared = [n for n, size in enumerate(sizes) if model.can_share_batch((sizes[0], size), (None, None))]
    assert 2 in shared

    def gradient(loss: Tensor) -> Tensor:
        parameters = [parameter for _, parameter in model.trained_parameters()]
        parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat([part.double().flatten() for part in parts if part is not None])

    expected = torch.stack([gradient(model.loss(features[n], captions[n], packed=True)) for n in shared]).sum(dim=0)
    loss = model.batch_loss([features[n] for n in shared], [captions[n] for n in shared], [None] * len(shared))
    assert torch.linalg.vector_norm(gradient(loss) - expected) < 1e-4 * torch.linalg.vector_norm(expected)
