"""YAML files of the original code: each key taken over, named as dead, or refused."""

from __future__ import annotations

import logging
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from captune.config import commented_yaml, convert_config, load_config, parse_config
from captune.errors import ConfigError

PROCESSORS = """
    vis_processor:
      train: {name: blip2_image_train, image_size: 224}
    text_processor:
      train: {name: blip_caption}
"""
STAGE_2 = f"""
model:
  arch: minigpt4
  model_type: pretrain_vicuna0
  max_txt_len: 160
  end_sym: "###"
  prompt_path: "prompts/alignment.txt"
  prompt_template: '###Human: {{}} ###Assistant: '
  ckpt: weights/stage1.pth
datasets:
  cc_sbu_align:
    batch_size: 12
{PROCESSORS}
run:
  task: image_text_pretrain
  lr_sched: linear_warmup_cosine_lr
  init_lr: 3e-5
  min_lr: 1e-5
  warmup_lr: 1e-6
  weight_decay: 0.05
  max_epoch: 5
  iters_per_epoch: 200
  num_workers: 4
  warmup_steps: 200
  seed: 7
  output_dir: output/stage2
  amp: True
  resume_ckpt_path: null
  evaluate: False
  train_splits: [train]
  device: cuda
  world_size: 1
  dist_url: env://
  distributed: True
"""


def changed(text: str, *changes: tuple[str, Any]) -> dict[str, Any]:
    """The file's content with some keys set; a value of None takes the key away."""
    content = yaml.safe_load(text)
    for path, value in changes:
        *sections, key = path.split(".")
        node = content
        for section in sections:
            node = node.setdefault(section, {})
        if value is None:
            del node[key]
        else:
            node[key] = value
    return content


def written(tmp_path: Path, *changes: tuple[str, Any]) -> Path:
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(changed(STAGE_2, *changes)))
    return path


def dead(notes: list[str]) -> set[str]:
    return {note.split()[0] for note in notes if "had no effect in the original" in note}


def test_every_setting_of_the_optimisation_is_taken_over(tmp_path: Path) -> None:
    config, notes = convert_config(written(tmp_path), processes=4)
    train = config.train
    assert (train.learning_rate, train.min_learning_rate, train.warmup_learning_rate) == (3e-5, 1e-5, 1e-6)
    assert (train.weight_decay, train.epochs, train.steps_per_epoch, train.warmup_steps) == (0.05, 5, 200, 200)
    assert (train.batch_size, train.micro_batch_size, train.captions_per_image) == (48, None, 1)
    assert (train.betas, train.clip_norm) == ((0.9, 0.999), None)
    assert (config.seed, config.output, config.data.train_split) == (7, Path("output/stage2"), "train")
    assert config.model.path == "weights/stage1"
    assert any("captune convert --checkpoint weights/stage1.pth --out weights/stage1" in note for note in notes)
    assert any("is 12 for each of 4 processes" in note for note in notes)
    assert dead(notes) == {"run.world_size", "run.dist_url", "datasets.cc_sbu_align.text_processor"}


def test_the_fine_tuning_projects_dead_keys_are_named(tmp_path: Path) -> None:
    """Its data set brings instructions, and its arch has no LoRA."""
    datasets = {"flickr_grounded_caption": yaml.safe_load("batch_size: 2\nsample_ratio: 80\n" + dedent(PROCESSORS))}
    path = written(tmp_path, ("datasets", datasets), ("model.lora_r", 64), ("model.lora_alpha", 16))
    config, notes = convert_config(path)
    assert config.train.batch_size == 2
    assert dead(notes) == {
        "model.prompt_path",
        "model.prompt_template",
        "model.lora_r",
        "model.lora_alpha",
        "run.world_size",
        "run.dist_url",
        "datasets.flickr_grounded_caption.sample_ratio",
        "datasets.flickr_grounded_caption.text_processor",
    }


def test_minigpt_v2_with_many_datasets(tmp_path: Path) -> None:
    datasets = {
        name: yaml.safe_load(f"batch_size: {size}\nsample_ratio: 10\n" + dedent(PROCESSORS))
        for name, size in (("llava_conversation", 3), ("coco_caption", 6), ("gqa", 9))
    }
    changes = [("model.arch", "minigpt_v2"), ("model.lora_r", 64), ("model.chat_template", True)]
    changes += [
        ("model.max_context_len", 3500),
        ("run.wandb_log", True),
        ("run.job_name", "v2"),
        ("datasets", datasets),
    ]
    config, notes = convert_config(written(tmp_path, *changes, ("run.min_lr", 8e-5), ("run.warmup_steps", 1000)))
    assert config.tracker == "wandb"
    assert config.train.batch_size == 6
    assert config.train.min_learning_rate == config.train.learning_rate == 3e-5
    assert "model.prompt_path" in dead(notes)
    assert not {"model.lora_r", "model.chat_template", "model.max_context_len"} & dead(notes)
    text = " ".join(notes)
    for words in ("3 are mixed", "above run.init_lr", "began again in each", "run.job_name is not needed"):
        assert words in text


def test_accumulation_is_one_step(tmp_path: Path) -> None:
    changes = (("run.accum_grad_iters", 3), ("run.iters_per_epoch", 100), ("run.beta2", 0.98), ("run.log_freq", 25))
    train = (config := convert_config(written(tmp_path, *changes), processes=2)[0]).train
    assert (train.batch_size, train.micro_batch_size, train.steps_per_epoch) == (72, 12, 34)
    assert (train.betas, config.log_every) == ((0.9, 0.98), 25)


def test_batch_size_of_the_first_releases(tmp_path: Path) -> None:
    """They read `run.batch_size_train`, which later ones ignore."""
    config, _ = convert_config(
        written(tmp_path, ("run.batch_size_train", 5), ("datasets.cc_sbu_align.batch_size", None))
    )
    assert config.train.batch_size == 5
    config, notes = convert_config(written(tmp_path, ("run.batch_size_train", 5), ("run.batch_size_eval", 5)))
    assert config.train.batch_size == 12
    assert {"run.batch_size_train", "run.batch_size_eval"} <= dead(notes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("run.inti_lr", 1e-4), "there is no key 'run.inti_lr'; did you mean 'init_lr'?"),
        (("model.end_symbol", "###"), "there is no key 'model.end_symbol'; did you mean 'end_sym'?"),
        (("datasets.cc_sbu_align.batchsize", 3), "did you mean 'batch_size'?"),
        (("datasets.cc_sbu_align.vis_processor.train.imagesize", 3), "did you mean 'image_size'?"),
        (("optimizer", {}), "there is no key 'optimizer'"),
        (("model.arch", "blip2"), "model.arch is 'blip2'; expected one of: minigpt4, mini_gpt4, minigpt_v2."),
        (("model.arch", None), "model.arch is None"),
        (("model.ckpt", "${env:MINIGPT_4}"), "OmegaConf would fill in"),
        (("model.freeze_vit", False), "keeps the vision side frozen"),
        (("run.init_lr", "fast"), "run.init_lr is 'fast'; expected a number."),
        (("run.max_epoch", 2.5), "run.max_epoch is 2.5; expected a whole number."),
        (("run.max_epoch", True), "run.max_epoch is True; expected a whole number."),
        (("run.lr_sched", "linear_warmup_step_lr"), "captune has linear_warmup_cosine_lr"),
        (("run.evaluate", True), "use `captune evaluate`"),
        (("run.resume_ckpt_path", "a.pth"), "cannot be gone on with"),
        (("run.train_splits", "train"), "expected a list of splits"),
        (("run.accum_grad_iters", -1), "have to be at least 1"),
        (("datasets", {}), "datasets is empty"),
        (("datasets", {"cc_sbu": 3}), "datasets.cc_sbu is 3"),
        (("datasets.cc_sbu_align.batch_size", None), "give datasets.cc_sbu_align.batch_size"),
        (("datasets.cc_sbu_align.vis_processor.train.mean", [0.5]), "gives mean or std"),
        (("model", None), "it has no section 'model:'"),
        (("run", [1]), "it has no section 'run:'"),
    ],
)
def test_what_cannot_be_taken_over_is_one_sentence(tmp_path: Path, change: tuple[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert_config(written(tmp_path, change))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_config_understands_it_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "7")
    with caplog.at_level(logging.WARNING):
        config = load_config(written(tmp_path))
    assert config.train.batch_size == 84
    assert "run.dist_url had no effect in the original" in caplog.text
    caplog.clear()
    monkeypatch.setenv("RANK", "1")
    assert load_config(written(tmp_path)) == config
    assert not caplog.records


def test_overrides_in_old_words_and_in_new_ones(tmp_path: Path) -> None:
    overrides = ["run.max_epoch=3", "train.weight_decay=0.1", "model.ckpt=other.pth", "model.dtype=float32"]
    overrides += ["datasets.cc_sbu_align.batch_size=4", "run.init_lr=1e-4"]
    config, _ = convert_config(written(tmp_path), overrides)
    assert (config.train.epochs, config.train.weight_decay, config.train.batch_size) == (3, 0.1, 4)
    assert (config.model.path, config.model.dtype, config.train.learning_rate) == ("other", "float32", 1e-4)
    with pytest.raises(ConfigError, match="did you mean 'max_epoch'"):
        convert_config(written(tmp_path), ["run.max_epochs=3"])


def test_what_comes_out_is_a_configuration_of_captune(tmp_path: Path) -> None:
    config, _ = convert_config(written(tmp_path))
    assert parse_config(yaml.safe_load(commented_yaml(config))) == config


def test_captunes_configurations_are_no_old_ones(tmp_path: Path, repository: Path) -> None:
    config = repository / "train_configs" / "toy.yaml"
    with pytest.raises(ConfigError, match="is no configuration of the original"):
        convert_config(config)
    path = tmp_path / "typo.yaml"
    path.write_text("train: {}\nrun: {}\n")
    with pytest.raises(ConfigError, match="there is no key 'run'"):
        load_config(path)


def test_captune_convert_writes_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from captune.cli import app, call, run

    old, new = written(tmp_path), tmp_path / "new.yaml"
    arguments = ["convert", "--config", str(old), "--out", str(new), "--processes", "2"]
    assert run(lambda: call(app, arguments)) == 0
    out, err = capsys.readouterr()
    assert out == f"{new}\n"
    assert "captune: run.dist_url had no effect in the original" in err
    assert load_config(new) == convert_config(old, processes=2)[0]
    assert "# run.dist_url had no effect in the original" in new.read_text()
    assert run(lambda: call(app, arguments)) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(lambda: call(app, [*arguments, "--overwrite", "--llm", "x"])) == 2
    assert "--config takes one YAML and no other files" in capsys.readouterr().err
