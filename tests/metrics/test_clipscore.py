"""CLIPScore against an independent computation, on a small random CLIP with a real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune import cli
from captune.errors import MetricInputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from PIL import Image  # noqa: E402

from captune.metrics.external.clipscore import ClipScorer  # noqa: E402

PREDICTIONS = ["a dog runs", "two men sit on a bench", "a dog runs", "", "red " * 100]
REFERENCES = [["the dog runs fast", "a dog"], ["two men"], ["a dog runs"], ["sky"], ["a red thing", "red"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of two layers, its byte-level tokenizer and its image processor, saved as people have them."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("tiny clip")
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    end = len(vocabulary) - 1
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(folder: Path) -> list[Path]:
    random = np.random.default_rng(0)
    paths = []
    for number in range(len(PREDICTIONS)):
        pixels = random.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
        path = folder / f"picture {number}.png"
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


def cosine(first: Any, second: Any) -> float:
    return float(torch.nn.functional.cosine_similarity(first.double(), second.double())[0])


def expected(folder: Path, pictures: list[Path]) -> tuple[list[float], list[float]]:
    """The formulas of the paper, one caption at a time, on the model's forward pass."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    plain, with_references = [], []
    for path, prediction, group in zip(pictures, PREDICTIONS, REFERENCES, strict=True):
        pixels = processor(images=Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
        embedded = []
        with torch.no_grad():
            for caption in [prediction, *group]:
                tokens = tokenizer("A photo depicts " + caption, truncation=True, max_length=32, return_tensors="pt")
                output = model(input_ids=tokens["input_ids"], pixel_values=pixels)
                embedded.append(output.text_embeds)
        score = 2.5 * max(cosine(output.image_embeds, embedded[0]), 0.0)
        closest = max(0.0, *(cosine(embedded[0], other) for other in embedded[1:]))
        plain.append(score)
        with_references.append(2 / (1 / score + 1 / closest) if score > 0 and closest > 0 else 0.0)
    return plain, with_references


def test_equals_the_formulas(folder: Path, pictures: list[Path]) -> None:
    result = ClipScorer.from_pretrained(str(folder), device="cpu").score(pictures, PREDICTIONS, REFERENCES)
    plain, with_references = expected(folder, pictures)
    assert result.ref_clip_score is not None
    np.testing.assert_allclose(result.clip_score, plain, atol=1e-6)
    np.testing.assert_allclose(result.ref_clip_score, with_references, atol=1e-6)
    assert max(plain) > 0.1
    assert len(set(plain)) > 2


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_batch_does_not_change_a_score(folder: Path, pictures: list[Path], batch_size: int) -> None:
    scorer = ClipScorer.from_pretrained(str(folder), device="cpu", batch_size=batch_size)
    batched = scorer.score(pictures, PREDICTIONS)
    alone = [
        scorer.score([picture], [caption]).clip_score[0] for picture, caption in zip(pictures, PREDICTIONS, strict=True)
    ]
    np.testing.assert_allclose(batched.clip_score, alone, atol=1e-6)
    assert batched.ref_clip_score is None


def test_open_pictures_are_the_same_as_files(folder: Path, pictures: list[Path]) -> None:
    scorer = ClipScorer.from_pretrained(str(folder), device="cpu")
    opened = [Image.open(path).convert("RGB") for path in pictures]
    from_files = scorer.score(pictures, PREDICTIONS).clip_score
    np.testing.assert_allclose(scorer.score(opened, PREDICTIONS).clip_score, from_files, atol=1e-6)


def test_nothing_is_scored_as_nothing(folder: Path) -> None:
    result = ClipScorer.from_pretrained(str(folder), device="cpu").score([], [], [])
    assert result.clip_score.shape == (0,)


def test_defects_are_one_sentence(folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    scorer = ClipScorer.from_pretrained(str(folder), device="cpu")
    with pytest.raises(MetricInputError, match="1 predictions for 2 pictures"):
        scorer.score(pictures[:2], ["a"])
    with pytest.raises(MetricInputError, match="at least one reference"):
        scorer.score(pictures[:1], ["a"], [[]])
    with pytest.raises(MetricInputError, match="no such file"):
        scorer.score([tmp_path / "absent.jpg"], ["a"])
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(MetricInputError, match="no image file"):
        scorer.score([tmp_path / "bad.jpg"], ["a"])
    with pytest.raises(MetricInputError, match="cannot be loaded"):
        ClipScorer.from_pretrained(str(tmp_path))


def test_a_picture_of_more_bits_scores_as_its_eight_bits(folder: Path, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    for name, values in {
        "a.png": grey,
        "b.png": grey.astype(np.uint16) * 257,
        "c.tif": grey.astype(np.float32) / 255,
        "d.tif": grey.astype(np.float32),
    }.items():
        Image.fromarray(values).save(tmp_path / name)
    scorer = ClipScorer.from_pretrained(str(folder), device="cpu")
    names = ("a.png", "b.png", "c.tif", "d.tif")
    scores = scorer.score([tmp_path / name for name in names], ["a dog"] * 4).clip_score
    np.testing.assert_allclose(scores, scores[0], atol=1e-6)


def test_pictures_are_found_by_the_file_names_of_coco(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {1: "COCO_val2014_000000000001.jpg", 2: "COCO_val2014_000000000002.jpg"}
    (tmp_path / "val2014").mkdir()
    for number, name in names.items():
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (40, 20), (90 * number, 0, 0)).save(tmp_path / "val2014" / name, exif=exif)
    annotations = {
        "images": [{"id": number, "file_name": name} for number, name in names.items()],
        "annotations": [{"image_id": number, "caption": f"a dog {number}"} for number in names],
    }
    (tmp_path / "references.json").write_text(json.dumps(annotations))
    results = [{"image_id": number, "caption": "a dog"} for number in names]
    (tmp_path / "results.json").write_text(json.dumps(results))

    def score(images: Path) -> tuple[int, str, str]:
        options = ["--references", tmp_path / "references.json", "--predictions", tmp_path / "results.json"]
        options += ["--metrics", "clipscore", "--clip", folder, "--images", images]
        code = cli.run(lambda: cli.call(cli.app, ["score", *map(str, options)]))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    code, printed, _ = score(tmp_path / "val2014")
    assert code == 0
    assert "CLIPScore" in printed
    assert "|exif:upright|" in printed
    assert score(tmp_path)[:2] == (0, printed)
    (tmp_path / "val2014" / names[2]).unlink()
    code, _, sentence = score(tmp_path)
    assert code == 2
    assert "image '2'" in sentence
    assert names[2] in sentence


def scored(folder: Path, pictures: list[Path], metrics: list[str], captions: list[str] = PREDICTIONS) -> Any:
    from captune.metrics import score_captions

    return score_captions(
        {str(row): caption for row, caption in enumerate(captions)},
        {str(row): group for row, group in enumerate(REFERENCES)},
        metrics,
        image_files={str(row): path for row, path in enumerate(pictures)},
        clip=str(folder),
        pac=folder,
    )


def test_pac_s_equals_its_formula(folder: Path, pictures: list[Path]) -> None:
    """Twice the cosine, where CLIPScore has 2.5 times; the same similarity with the references."""
    from captune.metrics import confidence_intervals, paired_bootstrap

    scores = scored(folder, pictures, ["pac-s"])
    plain, with_references = (np.array(values) for values in expected(folder, pictures))
    # From the harmonic mean h of 2.5 c and r follows r = 2.5 c h / (2 * 2.5 c - h).
    closest = np.divide(plain * with_references, 2 * plain - with_references, out=np.zeros(5), where=plain > 0)
    pac = plain * 2.0 / 2.5
    both = np.divide(2 * pac * closest, pac + closest, out=np.zeros(5), where=pac * closest > 0)
    np.testing.assert_allclose(scores.image_scores["PAC-S"], pac, atol=1e-6)
    np.testing.assert_allclose(scores.image_scores["RefPAC-S"], both, atol=1e-6)
    assert f"|pac:{folder.name}|" in scores.signature
    assert "clip:" not in scores.signature
    assert confidence_intervals(scores, resamples=20)["RefPAC-S"].low <= scores.corpus["RefPAC-S"]
    other = scored(folder, pictures, ["pac-s"], ["sky"] * 5)
    assert paired_bootstrap(other, scores, resamples=20)["PAC-S"].is_tested


def test_pac_s_without_weights_is_one_sentence(tmp_path: Path) -> None:
    from captune.metrics import METRICS, ScoringOptions

    for pac, message in ((None, "--pac FOLDER"), (tmp_path / "absent", "no such folder")):
        with pytest.raises(MetricInputError, match=message):
            METRICS["pac-s"].check_requirements(ScoringOptions(metrics=("pac-s",), pac=pac))


def test_sentences_are_scored_one_by_one(folder: Path, pictures: list[Path]) -> None:
    from captune.metrics.external.clipscore_sentences import split_sentences

    assert split_sentences("A dog. It runs!  Fast") == ["A dog.", "It runs!", "Fast"]
    assert split_sentences("狗在跑。很快") == ["狗在跑。", "很快"]
    assert split_sentences(" ") == [""]
    captions = ["A dog. It runs!", "a b", "", "One. Two. 3.5 m", "x."]
    scores = scored(folder, pictures, ["clipscore", "clipscore-sentences"], captions)
    scorer = ClipScorer.from_pretrained(str(folder), device="cpu")
    for row, caption in enumerate(captions):
        parts = split_sentences(caption)
        each = scorer.score([pictures[row]] * len(parts), parts).clip_score
        assert scores.image_scores["CLIPScore-sent"][row] == pytest.approx(each.mean(), abs=1e-6)
    assert scores.image_scores["CLIPScore"][1] == pytest.approx(scores.image_scores["CLIPScore-sent"][1], abs=1e-6)


def test_the_share_of_text_beyond_the_limit_is_printed(folder: Path, pictures: list[Path]) -> None:
    """The tiny tokenizer has a token for each letter, and the model a limit of 32."""
    from captune.metrics import Scores

    assert scored(folder, pictures, ["clipscore"], ["a dog"] * 5).notes == ()
    scores = scored(folder, pictures, ["clipscore", "pac-s"], ["red " * 100, *["a dog"] * 4])
    tokens = 2 + len("Aphotodepicts")
    share = (tokens + 300 - 32) / (tokens + 300 + 4 * (tokens + 4))
    sentence = "CLIPScore reads 32 tokens of a caption: 1 of 5 captions are longer, "
    sentence += f"and {share:.1%} of the text is not scored."
    assert scores.notes[0] == sentence
    assert scores.notes[1].startswith("PAC-S reads 32")
    assert sentence in str(scores)
    assert Scores.from_dict(scores.to_dict()).notes == scores.notes


def test_the_command_warns_of_text_beyond_the_limit(
    folder: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references = [{"id": str(row), "image": str(path), "captions": ["a"]} for row, path in enumerate(pictures)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(record) + "\n" for record in references))
    (tmp_path / "p.json").write_text(json.dumps({record["id"]: "red " * 60 for record in references}))
    options = ["-r", tmp_path / "r.jsonl", "-p", tmp_path / "p.json", "--metrics", "pac-s", "--pac", folder]
    assert cli.run(lambda: cli.call(cli.app, ["score", *map(str, options), "--json"])) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert "5 of 5 captions are longer" in err
    assert any("5 of 5 captions are longer" in sentence for sentence in answer["warnings"])
    assert answer["scales"] == {"PAC-S": "0-2", "RefPAC-S": "0-1.3"}
