"""`captune config`: keys, resolved configurations, and the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from captune.cli import app, call, run
from captune.config import RunConfig, configuration_keys, load_config


def captune(*arguments: object) -> int:
    return run(lambda: call(app, [str(word) for word in arguments]))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "photos.yaml"
    path.write_text("output: runs/photos\ntrain:\n  epochs: 3\n  lora: {rank: 8}\n")
    return path


def test_every_key_is_listed_with_its_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert captune("config", "keys") == 0
    out = capsys.readouterr().out
    keys = configuration_keys()
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [f"{k.name}: {k.default}" for k in keys]
    assert max(map(len, (line for line in out.splitlines() if line.startswith(" ")))) <= 80
    assert all(key.help for key in keys)
    assert "train.lora.rank" in {key.name for key in keys}


def test_a_section_or_a_key_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert captune("config", "keys", "train.lora", "--json") == 0
    names = [key["name"] for key in json.loads(capsys.readouterr().out)["keys"]]
    assert names[0] == "train.lora"
    assert set(names[1:]) == {"train.lora.rank", "train.lora.alpha", "train.lora.targets", "train.lora.dropout"}
    assert captune("config", "keys", "train.epoch") == 2
    assert "did you mean 'train.epochs'?" in capsys.readouterr().err


def test_a_configuration_is_shown_complete(config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert captune("config", "show", config, "train.epochs=5") == 0
    text = capsys.readouterr().out
    again = tmp_path / "complete.yaml"
    again.write_text(text)
    assert load_config(again) == load_config(config, ["train.epochs=5"])
    assert captune("config", "show", config, "--json") == 0
    assert RunConfig.model_validate(json.loads(capsys.readouterr().out)) == load_config(config)


def test_what_differs_from_the_defaults_are_overrides(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert captune("config", "show", config, "--changed") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"output=runs/photos", "train.epochs=3", "train.lora.rank=8"} <= set(lines)
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert load_config(empty, lines) == load_config(config)


def test_a_wrong_configuration_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert captune("config", "show", tmp_path / "missing.yaml") == 2
    assert capsys.readouterr().err.startswith("captune: There is no configuration ")


def test_the_schema_describes_every_key(capsys: pytest.CaptureFixture[str], tmp_path: Path, repository: Path) -> None:
    out = tmp_path / "captune.schema.json"
    assert captune("config", "schema", "--out", out) == 0
    schema = json.loads(out.read_text())
    assert capsys.readouterr().out == ""

    def properties(node: dict[str, object], data: object, path: str) -> None:
        """Check that a YAML file's keys are in the schema, with a description."""
        assert isinstance(data, dict)
        for key, value in data.items():
            described = node["properties"][key]  # type: ignore[index]
            reference = described.get("$ref") or next(
                (each["$ref"] for each in described.get("anyOf", []) if "$ref" in each), None
            )
            if isinstance(value, dict) and reference:
                properties(schema["$defs"][reference.rpartition("/")[2]], value, f"{path}{key}.")
            else:
                assert described.get("description"), f"{path}{key}"

    for file in sorted((repository / "train_configs").glob("*toy*.yaml")):
        properties(schema, yaml.load(file.read_text(), Loader=yaml.SafeLoader), "")
    assert schema["additionalProperties"] is False
    split = schema["$defs"]["DataConfig"]["properties"]["train_split"]
    assert {each["type"] for each in split["anyOf"]} == {"string", "array"}
