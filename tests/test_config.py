from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from programs import run_program

from captune.config import (
    STORED_HEADING,
    OptimizationsConfig,
    RunConfig,
    commented_yaml,
    configuration_reference,
    load_config,
    load_run_config,
    parse_config,
)
from captune.config.files import SYNONYMS
from captune.config.writing import configuration_keys
from captune.errors import ConfigError
from captune.evaluation import decoding_options
from captune.toy import TOY_SETTINGS, TOY_VLM_SETTINGS


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["train.fast.compile=true"], "there is no key 'train.fast.compile'; did you mean 'train.debug.compile'?"),
        (["train.optimizations.compile=true"], "'train.optimizations.compile'; did you mean 'train.debug.compile'?"),
        (["train.optimizations=fast"], "train.optimizations is 'fast', expected"),
        (["train.optimizations=false", "train.debug.compile=true"], "optimizations is false, which turns compilation"),
        (["track=wandb"], "there is no key 'track'; did you mean 'tracker'?"),
        (["epochs=4"], "there is no key 'epochs'; did you mean 'train.epochs'?"),
        (["train.lr=1"], "there is no key 'train.lr'; did you mean 'train.learning_rate'?"),
        (["batch=1"], "there is no key 'batch'; did you mean 'train.batch_size'?"),
        (["train.lora.r=1"], "there is no key 'train.lora.r'; did you mean 'train.lora.rank'?"),
        (["train.lora_r=1"], "there is no key 'train.lora_r'; did you mean 'train.lora.rank'?"),
        (["train.beams=2"], "there is no key 'train.beams'; did you mean 'evaluate.beams'?"),
        (["train.Patience=2"], "there is no key 'train.Patience'; did you mean 'train.early_stop'?"),
        (["trian.epochs=3"], "there is no key 'trian'; did you mean 'train'?"),
        (["train.lerning_rate=1e-3"], "there is no key 'train.lerning_rate'; did you mean 'learning_rate'?"),
        (["train.epochs=many"], "train.epochs is 'many'"),
        (["train.caption_targets=all"], "train.caption_targets is 'all', expected 'separate', 'random' or 'joined'"),
        (["train.epochs=0"], "train.epochs is 0, expected a number greater than 0"),
        (["train.min_learning_rate=1"], "above train.learning_rate 3e-05"),
        (["train=3"], "train is 3"),
        (["train.epochs"], "'train.epochs' is not an override"),
        (["model.path="], "model.path is null"),
    ],
)
def test_a_wrong_setting_is_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({}, overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"train: [1, 2", "is not valid YAML"),
        (b"- 1\n- 2\n", "holds a list"),
        (b"\xff\xfet\x00", "cannot be read as UTF-8 text"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        load_config(path)


def test_a_fault_of_yaml_is_shown_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("output: runs/a\ntrain: epochs: 3\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"{path} is not valid YAML: line 2, column 14: mapping values are not allowed here.\n"
        "    train: epochs: 3\n"
        "                 ^"
    )


def test_every_synonym_names_a_key() -> None:
    names = {key.name for key in configuration_keys()}
    assert set(SYNONYMS.values()) <= names
    assert not {name for name in names if "." not in name} & SYNONYMS.keys()


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no configuration"):
        load_config(tmp_path / "absent.yaml")


def test_data_next_to_the_configuration_is_read_where_the_working_directory_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, other = tmp_path / "photos", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    content = "data: {train: photos.jsonl, evaluate: held.jsonl}\nevaluate: {protocol: street.yaml}\n"
    (folder / "photos.yaml").write_text(content)
    for name in ("photos.jsonl", "street.yaml"):
        (folder / name).touch()
    monkeypatch.chdir(other)
    config = load_config("../photos/photos.yaml")
    assert config.data.train == Path("../photos/photos.jsonl")
    assert config.data.evaluate == Path("held.jsonl")  # exists nowhere
    assert config.evaluate.protocol == "../photos/street.yaml"
    sentence = "data.train is ../photos/photos.jsonl; the working directory has no photos.jsonl."
    assert caplog.messages[0] == f"../photos/photos.yaml: {sentence}"
    # An override is relative to the working directory only, and a file that is there is read.
    assert load_config("../photos/photos.yaml", ["data.train=photos.jsonl"]).data.train == Path("photos.jsonl")
    (other / "photos.jsonl").touch()
    assert load_config("../photos/photos.yaml").data.train == Path("photos.jsonl")
    monkeypatch.chdir(folder)
    caplog.clear()
    assert load_config("photos.yaml").data.train == Path("photos.jsonl")
    assert not caplog.messages


@pytest.mark.parametrize(("name", "kind"), [("my photos.jsonl", "manifest"), ("captions.CSV", "table")])
def test_data_in_place_of_a_configuration(tmp_path: Path, name: str, kind: str) -> None:
    file = tmp_path / name
    file.write_text('{"id": "1", "image": "1.jpg", "captions": ["A dog."], "split": "train"}\n')
    with pytest.raises(ConfigError) as refused:
        load_config(file)
    command = shlex.join(["captune", "init", str(file)])
    assert str(refused.value) == f"{file} is a {kind} and not a configuration; write one with: {command}"


def test_overrides_win_and_reach_every_section() -> None:
    config = parse_config({"train": {"epochs": 3, "batch_size": 4}}, ["train.epochs=7", "seed=1", "data.train=a.jsonl"])
    assert (config.train.epochs, config.train.batch_size, config.seed) == (7, 4, 1)
    assert config.data.train == Path("a.jsonl")
    assert config.evaluation_manifest == Path("a.jsonl")


@pytest.mark.parametrize(
    "value", ["data.train_split=", "data.train_split=[]", "data.train_split=[1]", "data.train_split=7"]
)
def test_no_training_split(value: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.train_split is"):
        parse_config({}, [value])


def test_scientific_notation_without_a_point_is_a_number() -> None:
    """YAML 1.1 reads 3e-5 as text; a person means a number."""
    assert parse_config({}, ["train.learning_rate=3e-5"]).train.learning_rate == 3e-5


def test_written_yaml_reads_back_and_explains_every_field() -> None:
    config = parse_config({}, ["train.epochs=9", "evaluate.beams=3", "train.clip_norm=null"])
    text = commented_yaml(config, "A heading")
    assert parse_config(yaml.safe_load(text)) == config
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.strip() and not line.lstrip().startswith("#"):
            assert lines[number - 1].lstrip().startswith("#"), line


def test_a_divided_model_is_not_compiled_for_evaluation() -> None:
    assert decoding_options(parse_config({}, ["evaluate.compile=true"])).compiled
    with pytest.raises(ConfigError, match="sharded language model is not compiled"):
        parse_config({}, ["evaluate.compile=true", "train.sharding=fsdp"])


def test_shipped_configurations_state_only_what_differs_from_the_defaults(repository: Path) -> None:
    shipped = sorted((repository / "train_configs").glob("*.yaml"))
    assert shipped
    for path in shipped:
        stated = yaml.safe_load(path.read_text())
        assert stated == load_config(path).model_dump(mode="json", exclude_defaults=True), path.name


def test_the_configuration_reference_is_current(repository: Path, tmp_path: Path) -> None:
    done = run_program("python", "-m", "captune.config", "--write", "configuration.md", cwd=tmp_path)
    assert done.code == 0
    page = (repository / "docs" / "configuration.md").read_text()
    assert page == (tmp_path / "configuration.md").read_text() == configuration_reference(), done.err


def test_slides_hyper_parameters(repository: Path) -> None:
    config = load_config(repository / "train_configs" / "minigpt4_flickr_finetune.yaml")
    train = config.train
    assert (train.learning_rate, train.min_learning_rate, train.warmup_learning_rate) == (3e-5, 1e-5, 1e-6)
    assert (train.weight_decay, config.seed, train.epochs, train.warmup_steps) == (0.05, 42, 5, 200)


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 1  # type: ignore[misc]


def test_the_demos_settings_are_the_shipped_files(repository: Path) -> None:
    assert parse_config(TOY_SETTINGS) == load_config(repository / "train_configs" / "toy.yaml")
    assert parse_config(TOY_VLM_SETTINGS) == load_config(repository / "train_configs" / "toy_vlm.yaml")


@pytest.mark.parametrize("text", ["seed: 1\noutput: a\nseed: 2\n", "train:\n  epochs: 1\n  epochs: 2\n"])
def test_a_repeated_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"the key '(seed|epochs)' is given twice.* line 3"):
        load_config(path)


def test_a_stored_configuration_of_an_earlier_version_is_translated(tmp_path: Path) -> None:
    old = {
        "track": "tensorboard",
        "model": {"faults": ["dollars_are_padding"]},
        "train": {"targets": "one", "shard": "layers", "fast": {"compile": True}},
        "evaluate": {"protocol": "slides", "train_slice": 3},
    }
    stored = tmp_path / "config.yaml"
    stored.write_text(f"# {STORED_HEADING}\n{yaml.safe_dump(old)}")
    config = load_config(stored, ["train.epochs=2"])
    assert (config.tracker, config.model.legacy_bugs) == ("tensorboard", ("pad_is_dollar_sign",))
    assert (config.train.caption_targets, config.train.sharding, config.train.epochs) == ("random", "fsdp", 2)
    assert (config.train.optimizations, config.train.debug.compile) == (True, True)
    assert config.evaluate.train_slice == 3
    stored.write_text(yaml.safe_dump(old))
    assert load_run_config(stored, ["train.epochs=2"]) == config
    with pytest.raises(ConfigError, match=r"renamed: 'track' is 'tracker', 'model\.faults' is 'model\.legacy_bugs', "):
        load_config(stored)
    stored.write_text(yaml.safe_dump({"train": {"optimizations": {"length_buckets": False}}}))
    assert not load_run_config(stored).train.debug.length_buckets


def test_one_switch_turns_all_optimizations_off() -> None:
    assert parse_config({}).train.enabled_optimizations == OptimizationsConfig()
    enabled = parse_config({}, ["train.optimizations=false"]).train.enabled_optimizations
    assert not any(enabled.model_dump().values())
