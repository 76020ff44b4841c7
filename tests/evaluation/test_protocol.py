from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from captune.config import parse_config
from captune.data.manifest import Sample, read_manifest, write_manifest
from captune.errors import ConfigError, DataError
from captune.evaluation import (
    Evaluation,
    cut_reply,
    evaluation_folder,
    evaluation_set,
    load_protocol,
    shipped_protocols,
    split_references,
    training_images,
)
from captune.metrics import ScoringOptions
from captune.report import RunScores, notes


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "manifest.jsonl"
    path.parent.mkdir()
    rows = [
        Sample(f"{i:03d}", f"{i}.jpg", (f"A dog at 7.{i} p.m.", "It runs ."), "train" if i < 60 else "test")
        for i in range(80)
    ]
    write_manifest(path, rows)
    return path


def test_karpathy_keeps_held_out_images_and_separate_captions(manifest: Path) -> None:
    eval_set = evaluation_set(parse_config({}, [f"data.train={manifest}"]))
    assert (eval_set.name, eval_set.split, eval_set.leak, len(eval_set.images)) == ("photos", "test", None, 20)
    assert eval_set.references["060"] == ["A dog at 7.60 p.m.", "It runs ."]
    assert eval_set.reply("a ### Assistant: b") == "a ### Assistant: b"


def test_the_configured_name_of_the_data_decides(manifest: Path) -> None:
    unnamed = parse_config({}, [f"data.train={manifest}"])
    config = parse_config({}, [f"data.train={manifest}", "data.name=Summer 2026"])
    assert evaluation_set(config).name == "Summer 2026"
    # Rows under two names are not of one table.
    assert evaluation_folder(config, unnamed, ["a"]).name.startswith("Summer_2026-test-")
    # Without a name the folder is that of versions that had no such key.
    data = ["data.train=nowhere/m.jsonl"]
    folder = evaluation_folder(parse_config({}, [*data, "data.evaluate_split=val"]), parse_config({}, data), ["a"])
    assert folder.name == "nowhere-val-4fb8c602"
    with pytest.raises(ConfigError, match=r"data\.name"):
        parse_config({}, ["data.name=a/b"])


def test_slides_takes_training_images_and_says_leak(manifest: Path) -> None:
    config = parse_config({}, [f"data.train={manifest}", "evaluate.protocol=slides"])
    eval_set = evaluation_set(config)
    assert len(eval_set.images) == 3  # 5 % of 60
    assert {image.id for image in eval_set.images} <= {image.id for image in training_images(config)}
    assert eval_set == evaluation_set(config)
    assert eval_set.leak is not None
    assert eval_set.references[eval_set.images[0].id][1:] == [f"{eval_set.images[0].image[:-4]} p.", "m.", "It runs."]
    assert eval_set.reply("a ### Assistant: b") == "b"


@pytest.mark.parametrize("setting", ["train,test", "[train, test]", " test, train ,train"])
def test_several_splits_are_trained_on_as_one(manifest: Path, setting: str) -> None:
    rows = [Sample("x", "x.jpg", ("A cat .",), "restval"), Sample("y", "y.jpg", ("A cat .",), "val")]
    write_manifest(manifest.parent / "more.jsonl", [*rows, *read_manifest(manifest)])
    data = [f"data.train={manifest.parent / 'more.jsonl'}", f"data.train_split={setting}"]
    config = parse_config({}, data)
    assert len(training_images(config)) == 80
    assert set(config.data.train_splits) == {"train", "test"}
    config = parse_config({}, [*data, "data.train_split=train,restval", "evaluate.protocol=slides"])
    assert config.data.train_split == "train,restval"
    assert len(training_images(config)) == 61
    assert evaluation_set(config).split == "train,restval"
    with pytest.raises(DataError, match=r"no images of the split 'restvall'; it has train \(60\), test \(20\)"):
        training_images(parse_config({}, [*data, "data.train_split=train,restvall"]))


def test_evaluated_images_of_a_second_training_split_are_a_leak(manifest: Path) -> None:
    config = parse_config({}, [f"data.train={manifest}", "data.train_split=[train,test]"])
    assert "20 of 20 evaluated images were trained on" in str(evaluation_set(config).leak)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [("data.evaluate_split=vall", "vall"), ("data.train=absent.jsonl", "absent.jsonl")],
)
def test_an_unusable_split_is_one_sentence(manifest: Path, setting: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        evaluation_set(parse_config({}, [f"data.train={manifest}", setting]))


def test_original_functions(shared: Path) -> None:
    recorded = json.loads((shared / "goldens" / "student_functions.json").read_text(encoding="utf-8"))
    for case in recorded["post_handle"]:
        assert cut_reply(case["i"]) == case["o"]
    converted = recorded["convert_to_coco_format"]
    pieces = [piece for row in converted["i"] for piece in split_references(row["grounded_caption"])]
    assert pieces == [annotation["caption"] for annotation in converted["o"]["annotations"]]


def test_slides_makes_the_references_that_the_original_made(shared: Path, tmp_path: Path) -> None:
    recorded = json.loads((shared / "goldens" / "student_functions.json").read_text(encoding="utf-8"))
    inputs, made = recorded["convert_to_coco_format"]["i"], recorded["convert_to_coco_format"]["o"]
    rows = [Sample(row["image_id"], f"{row['image_id']}.jpg", (row["grounded_caption"],), "train") for row in inputs]
    write_manifest(tmp_path / "m.jsonl", rows)
    config = parse_config({}, [f"data.train={tmp_path / 'm.jsonl'}", "evaluate.protocol=slides"])
    eval_set = evaluation_set(config)
    expected: dict[str, list[str]] = {}
    for annotation in made["annotations"]:
        expected.setdefault(str(annotation["image_id"]), []).append(annotation["caption"])
    assert eval_set.references == expected
    assert {image.id: image.image for image in eval_set.images} == {
        str(image["id"]): image["file_name"] for image in made["images"]
    }
    for case in recorded["post_handle"]:
        assert eval_set.reply(case["i"]) == case["o"]


def test_the_shipped_protocols_are_read_and_sign_with_their_name(repository: Path) -> None:
    assert shipped_protocols() == ("karpathy", "slides")
    for name in shipped_protocols():
        protocol = load_protocol(name)
        assert (protocol.name, protocol.signature) == (name, name)
    # The shipped file that explains them names every field.
    explained = (repository / "captune" / "evaluation" / "protocols" / "karpathy.yaml").read_text(encoding="utf-8")
    assert all(f"\n{field}: " in explained for field in type(load_protocol("karpathy")).model_fields)


CUSTOM_PROTOCOL = """
name: short
split: val
share: 0.5
instruction: Say what you see.
decoding: {beams: 3, max_new_tokens: 12}
metrics: [cider]
"""


def test_a_protocol_from_a_file(manifest: Path, tmp_path: Path) -> None:
    write_manifest(manifest, [Sample(f"{i}", f"{i}.jpg", ("A dog .",), "val" if i % 2 else "train") for i in range(40)])
    (tmp_path / "own.yaml").write_text(CUSTOM_PROTOCOL, encoding="utf-8")
    config = parse_config({}, [f"data.train={manifest}", f"evaluate.protocol={tmp_path / 'own.yaml'}"])
    eval_set = evaluation_set(config)
    assert (eval_set.split, len(eval_set.images), eval_set.rules.metrics) == ("val", 10, ("cider",))
    applied = eval_set.rules.applied(config)
    assert applied.model.instruction == "Say what you see."
    assert (applied.evaluate.beams, applied.evaluate.max_new_tokens) == (3, 12)
    assert applied.evaluate.length_penalty == config.evaluate.length_penalty
    # The name alone would not distinguish two files of the same name.
    assert eval_set.protocol.startswith("short@")
    (tmp_path / "other.yaml").write_text(CUSTOM_PROTOCOL.replace("0.5", "0.6"), encoding="utf-8")
    assert load_protocol(str(tmp_path / "other.yaml")).signature != eval_set.protocol


def test_rows_of_chair_have_the_hallucinated_words(manifest: Path, tmp_path: Path) -> None:
    splits = {"a": "test", "b": "test", "c": "train"}
    write_manifest(manifest, [Sample(i, f"{i}.jpg", ("A dog .", "A hot dog ."), split) for i, split in splits.items()])
    (tmp_path / "own.yaml").write_text("name: objects\nsplit: test\nmetrics: [cider, chair]\n", encoding="utf-8")
    config = parse_config({}, [f"data.train={manifest}", f"evaluate.protocol={tmp_path / 'own.yaml'}"])
    row = Evaluation(config, evaluation_set(config))._append(None, {"a": "a dog", "b": "a dog, a car"}, None, {}, {})
    assert row.corpus["CHAIR-i"] == 1 / 3
    assert row.hallucinations == {"b": (("car", 9, 12),)}


VOCABULARY = "name: street\nclasses:\n  car: [automobile]\n  dog: [puppy]\n"


def test_a_protocol_sets_the_vocabulary_of_chair(manifest: Path, tmp_path: Path) -> None:
    write_manifest(manifest, [Sample(i, f"{i}.jpg", ("A puppy .",), "test" if i < "c" else "train") for i in "abc"])
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "street.yaml").write_text(VOCABULARY, encoding="utf-8")
    (tmp_path / "rules" / "objects.json").write_text('{"a": ["dog"], "b": ["dog", "automobile"]}', encoding="utf-8")
    text = "name: street\nsplit: test\nmetrics: [chair]\n"
    path = tmp_path / "rules" / "own.yaml"
    path.write_text(f"{text}chair: {{vocabulary: street.yaml, objects: objects.json, truncate: sentences=1}}\n")
    config = parse_config({}, [f"data.train={manifest}", f"evaluate.protocol={path}"])
    captions = {"a": "An automobile . A car .", "b": "A car . A bus ."}
    row = Evaluation(config, evaluation_set(config))._append(None, captions, None, {}, {})
    assert row.hallucinations == {"a": (("car", 3, 13),)}
    assert "chair:voc=street-" in row.signature
    assert "truth=both-" in row.signature
    assert "cut=sentences=1" in row.signature
    # The signature of a protocol does not depend on its folder, and is that of a protocol without the key.
    path.with_name("other.yaml").write_text(text)
    assert load_protocol(str(path)).signature == load_protocol(str(path.with_name("other.yaml"))).signature


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("chair: {vocabulary: none.yaml}", "none.yaml"),
        ("chair: {objects: none.json}", "there is no file"),
        ("chair: {truncate: tokens=3}", "words=N, complete=N (complete sentences within N words) or sentences=N"),
        ("chair: {truth: all}", "chair.truth is 'all'"),
        ("chair: {vocabluary: a.yaml}", "did you mean 'vocabulary'?"),
    ],
)
def test_wrong_rules_of_chair_are_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "p.yaml").write_text(f"name: a\nmetrics: [chair]\n{content}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_protocol(str(tmp_path / "p.yaml"))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rules_of_chair_without_the_metric(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: a\nchair: {truncate: words=3}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="add chair to metrics"):
        load_protocol(str(tmp_path / "p.yaml"))


def test_a_protocol_sets_the_models_of_metrics(manifest: Path, tmp_path: Path) -> None:
    """Folders relative to the protocol, and hub ids; the signature of the protocol has neither."""
    (tmp_path / "rules" / "bert").mkdir(parents=True)
    text = "name: models\nmetrics: [rouge-l]\n"
    path = tmp_path / "rules" / "own.yaml"
    path.write_text(f"{text}models: {{bertscore: bert, bertscore_layer: 3, clip: openai/clip-vit-large-patch14}}\n")
    protocol = load_protocol(str(path))
    options = ScoringOptions(**protocol.scoring_options())
    assert options.bertscore == str(tmp_path / "rules" / "bert")
    assert (options.bertscore_layer, options.clip) == (3, "openai/clip-vit-large-patch14")
    assert (options.pac, options.bertscore_idf, options.bertscore_rescale) == (None, False, None)
    path.with_name("other.yaml").write_text(text)
    assert load_protocol(str(path.with_name("other.yaml"))).signature == protocol.signature
    path.write_text(f"{text}models: {{bert: a}}\n")
    with pytest.raises(ConfigError, match="did you mean 'bertscore'"):
        load_protocol(str(path))


def test_signatures_of_protocols_of_earlier_releases(tmp_path: Path) -> None:
    """A new field with its default leaves the hash of a user's protocol as it was."""
    (tmp_path / "p.yaml").write_text("name: mine\nshare: 0.1\nmetrics: [cider]\n", encoding="utf-8")
    assert load_protocol(str(tmp_path / "p.yaml")).signature == "mine@3af064bd"


def test_notes_of_metrics_are_notes_of_the_row(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CLIPScore says of truncated captions is below the table of a run."""
    write_manifest(manifest, [Sample(i, f"{i}.jpg", ("A dog .",), "test" if i < "c" else "train") for i in "abc"])
    config = parse_config({}, [f"data.train={manifest}"])
    monkeypatch.setattr("captune.metrics.bleu.Bleu.notes", lambda metric: ["BLEU reads 3 words: 1 caption is longer."])
    row = Evaluation(config, evaluation_set(config))._append(None, {"a": "a dog", "b": "a cat"}, None, {}, {})
    assert row.notes == ("BLEU reads 3 words: 1 caption is longer",)
    run = RunScores("toy", (row,), "test", "karpathy", 2, {"a": ("A dog .",), "b": ("A dog .",)})
    assert f"{row.name}: BLEU reads 3 words: 1 caption is longer." in notes(run)


def test_paragraphs_are_announced_once(manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "A red barn is next to a long road with two cows on it . " * 5
    write_manifest(manifest, [Sample(i, f"{i}.jpg", (text,), "test" if i < "c" else "train") for i in "abc"])
    config = parse_config({}, [f"data.train={manifest}"])
    Evaluation(config, evaluation_set(config))
    (message,) = (record.getMessage() for record in caplog.records if "one sentence" in record.getMessage())
    assert "report cider-r, bertscore or clipscore-sentences as well" in message


def test_a_copy_under_a_shipped_name_is_distinguished(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: karpathy\nshare: 0.1\n", encoding="utf-8")
    assert load_protocol(str(tmp_path / "mine.yaml")).signature.startswith("karpathy@")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("name: a\nreferenses: separate\n", "no key 'referenses'; did you mean 'references'?"),
        ("name: a\ndecoding: {beam: 3}\n", "no key 'decoding.beam'; did you mean 'beams'?"),
        ("share: 0.1\n", "the key 'name' is missing"),
        ("name: a\nname: b\n", "the key 'name' is given twice"),
        ("name: a\nshare: 2\n", "share is 2"),
        ("name: a\nmetrics: [blue]\n", "no metric 'blue'"),
        ("name: 'a|b'\n", "name is 'a|b'"),
        ("- a\n", "holds no fields"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_protocol_is_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "p.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_protocol(str(tmp_path / "p.yaml"))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sentence"), [("karpaty", "did you mean 'karpathy'?"), ("none.yaml", "no protocol file 'none.yaml'")]
)
def test_an_absent_protocol_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_protocol(name)
    assert sentence in str(caught.value)


def test_images_that_were_trained_on_mark_the_set(
    toy_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two training images come back under other names, one of them encoded again."""
    pytest.importorskip("imagehash", reason="needs the extra 'data'")
    config = parse_config({}, [f"data.train={toy_data / 'manifest.jsonl'}"])
    assert evaluation_set(config).leak is None
    trained = training_images(config)
    clean = [Sample(i.id, str(toy_data / i.image), i.captions, "test") for i in evaluation_set(config).images]
    for name, image in zip(("a.jpg", "b.jpg"), trained, strict=False):
        (tmp_path / name).write_bytes((toy_data / image.image).read_bytes())
    Image.open(tmp_path / "b.jpg").save(tmp_path / "b.jpg", quality=70)
    leaked = [Sample(name, f"{name}.jpg", ("A dog .",), "test") for name in ("a", "b")]
    write_manifest(tmp_path / "other.jsonl", [*clean, *leaked])
    other = config.model_copy(update={"data": config.data.model_copy(update={"evaluate": tmp_path / "other.jsonl"})})
    words = "2 of 14 evaluated images were trained on: 1 by file content, 1 as the same picture, such as 'a'"
    assert evaluation_set(other).leak == words
    assert words in caplog.text
    caplog.clear()
    allowed = other.model_copy(update={"evaluate": other.evaluate.model_copy(update={"allow_leaks": True})})
    assert evaluation_set(allowed).leak == "allowed by --allow-leaks"
    assert not caplog.text


def test_without_the_training_images_a_leak_is_unknown(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = parse_config({}, [f"data.train={tmp_path / 'gone.jsonl'}", f"data.evaluate={manifest}"])
    assert evaluation_set(config).leak is None
    assert "so it is unknown whether images of" in caplog.text


def test_chinese_captions_are_scored_with_their_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    captions = {"a": "一只棕色的狗在草地上奔跑", "b": "两个孩子在沙滩上玩耍"}
    for name in captions:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    write_manifest(
        tmp_path / "m.jsonl", [Sample(name, f"{name}.png", (text,), "test") for name, text in captions.items()]
    )
    data = [f"data.train={tmp_path / 'm.jsonl'}", "evaluate.train_slice=0"]
    predictions = {"a": "一只狗在草地上", "b": "孩子在沙滩上"}
    rows = []
    for settings in (data, [*data, "evaluate.tokenizer=zh-char"]):
        config = parse_config({}, settings)
        rows.append(Evaluation(config, evaluation_set(config, guard=False))._append(None, predictions, None, {}, {}))
    assert "set evaluate.tokenizer=zh-char, or =ptb to keep it" in caplog.text
    assert caplog.text.count("evaluate.tokenizer") == 1
    assert "|tok:ptb3.4.1|" in rows[0].signature
    assert "|tok:zh-char|" in rows[1].signature
    assert rows[0].corpus["BLEU-1"] < 1e-6 < 0.3 < rows[1].corpus["BLEU-1"]
