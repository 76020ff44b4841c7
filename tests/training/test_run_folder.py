"""Nothing that is in a run's folder is removed; what cannot be used is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import tiny_features, tiny_minigpt4

from captune.config import RunConfig, parse_config
from captune.data.content_hash import hash_file
from captune.data.locks import folder_lock
from captune.data.manifest import read_manifest
from captune.errors import ConfigError, DataError, InputError, WeightsError
from captune.events import Event, EventText
from captune.features import StoredImages
from captune.features.encode import UnreadableImage
from captune.model.checkpoint import load_trained
from captune.training import preparation, train
from captune.training.run_folder import RunStatus, inspect_run, run_status

pytestmark = pytest.mark.usefixtures("tiny_model")


def settings(toy_data: Path, output: Path, **changed: int) -> RunConfig:
    return parse_config(
        {
            "output": str(output),
            "save_every": 1,
            "model": {"path": "tiny"},
            "data": {"train": str(toy_data / "manifest.jsonl"), "train_images": 8, "evaluate_images": 4},
            "train": {"epochs": 2, "batch_size": 20, "warmup_steps": 0},
            "evaluate": {"max_new_tokens": 4, "train_slice": 0},
            **changed,
        }
    )


class PowerFailure(Exception):  # noqa: N818  # it is no error of the program
    """Ends a run at once, wherever it is."""


def interrupted(config: RunConfig, event: str, epoch: int | None) -> None:
    """Train until an event of an epoch."""

    def die(reported: Event) -> None:
        if reported["event"] == event and reported.get("epoch") == epoch:
            raise PowerFailure

    with pytest.raises(PowerFailure):
        train(config, die)


@pytest.fixture(scope="module")
def finished(toy_data: Path, tmp_path_factory: pytest.TempPathFactory, tiny_model: None) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    train(settings(toy_data, output))
    return output


@pytest.fixture(scope="module")
def unfinished(toy_data: Path, tmp_path_factory: pytest.TempPathFactory, tiny_model: None) -> Path:
    output = tmp_path_factory.mktemp("unfinished") / "run"
    interrupted(settings(toy_data, output), "checkpoint", 1)
    return output


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def files(folder: Path) -> dict[str, bytes]:
    """All that a folder holds, but for locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".captune")
    }


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "scores cut off": (lambda run: cut(run / "scores.json"), r"scores\.json .*captune evaluate"),
    "scores missing": (lambda run: (run / "scores.json").unlink(), r"scores\.json is missing; .*captune evaluate"),
    "scores of another format": (
        lambda run: (run / "scores.json").write_text('{"format": 99}'),
        r"has format 99.*captune evaluate",
    ),
    "scores empty": (lambda run: (run / "scores.json").write_bytes(b""), r"scores\.json .*captune evaluate"),
    "scores not text": (lambda run: (run / "scores.json").write_bytes(b"\xff\xfe\0"), r"scores\.json .*UTF-8"),
    "last record cut off": (
        lambda run: cut(run / "checkpoints/epoch-001/checkpoint.json"),
        r"checkpoint\.json is broken",
    ),
    "first record cut off": (
        lambda run: cut(run / "checkpoints/epoch-000/checkpoint.json"),
        r"checkpoint\.json is broken",
    ),
    "last checkpoint missing": (
        lambda run: shutil.rmtree(run / "checkpoints/epoch-001"),
        r"epoch-001 holds no checkpoint",
    ),
    "all checkpoints missing": (lambda run: shutil.rmtree(run / "checkpoints"), r"epoch-001 holds no checkpoint"),
    "weights missing": (
        lambda run: (run / "checkpoints/epoch-001/trained.safetensors").unlink(),
        r"trained\.safetensors is missing",
    ),
    "captions missing": (
        lambda run: shutil.rmtree(run / "captions"),
        r"captions.*pretrained\.json is missing or damaged",
    ),
    "captions of one row missing": (
        lambda run: next((run / "captions").glob("*-epoch1.json")).unlink(),
        r"epoch1\.json is missing or damaged.*captune evaluate",
    ),
    "captions with a changed letter": (
        lambda run: change_letter(next((run / "captions").glob("*-epoch1.json"))),
        r"epoch1\.json and scores\.json hold different captions",
    ),
    "configuration missing": (lambda run: (run / "config.yaml").unlink(), r"holds no config\.yaml of a run"),
    "configuration cut off": (
        lambda run: (run / "config.yaml").write_text("output: [run"),
        r"config\.yaml cannot be read",
    ),
    "configuration empty": (lambda run: (run / "config.yaml").write_bytes(b""), "another configuration|cannot be read"),
    "configuration not text": (lambda run: (run / "config.yaml").write_bytes(b"\xff\0\xfe"), "cannot be read"),
}


def change_letter(path: Path) -> None:
    rows = json.loads(path.read_text())
    rows[0]["caption"] += "x"
    path.write_text(json.dumps(rows))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_refused_and_stays_as_it_is(toy_data: Path, run: Path, damage: str) -> None:
    do, sentence = DAMAGES[damage]
    do(run)
    before = files(run)
    with pytest.raises(ConfigError, match=sentence) as refused:
        train(settings(toy_data, run))
    assert "--overwrite" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert files(run) == before


def test_overwrite_moves_a_run_aside_and_keeps_all_of_it(toy_data: Path, run: Path) -> None:
    cut(run / "scores.json")
    (run / "notes.txt").write_text("mine")
    (run / "checkpoints" / "best.pt").write_text("mine too")
    before = files(run)
    events: list[Event] = []
    train(settings(toy_data, run), events.append, overwrite=True)
    aside = run / "replaced-1"
    assert next(event for event in events if event["event"] == "replaced")["moved_to"] == str(aside)
    assert (run / "notes.txt").read_text() == "mine"
    assert files(aside) == {name: data for name, data in before.items() if name != "notes.txt"}
    assert run_status(settings(toy_data, run)) is RunStatus.FINISHED
    train(settings(toy_data, run, seed=1), overwrite=True)
    assert (run / "replaced-2" / "scores.json").is_file()
    assert files(aside) == {name: data for name, data in before.items() if name != "notes.txt"}


@pytest.mark.parametrize(
    "names",
    [
        ["checkpoints/my_model.pt", "captions/by_hand.txt", "resume/cv.tex", "log.jsonl"],
        ["notes.txt"],
        ["src/main.py"],
        ["scores.json"],
        ["checkpoints/epoch-000/weights.bin"],
        [".git/config"],
    ],
)
def test_a_folder_that_holds_other_things_is_refused(toy_data: Path, tmp_path: Path, names: list[str]) -> None:
    output = tmp_path / "project"
    for name in names:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("precious")
    with pytest.raises(ConfigError, match=r"project is not empty .*--overwrite"):
        train(settings(toy_data, output))
    assert set(files(output)) == set(names)
    train(settings(toy_data, output), overwrite=True)
    kept = {name: data for name, data in files(output).items() if data == b"precious"}
    assert len(kept) == len(names)


@pytest.mark.parametrize("name", ["checkpoints/my_model.pt", "captions/by_hand.txt", "resume/cv.tex", "log.jsonl", "x"])
def test_other_files_next_to_the_configuration_are_kept(toy_data: Path, tmp_path: Path, name: str) -> None:
    """As with `captune train config.yaml output=.`"""
    output = tmp_path / "project"
    config = settings(toy_data, output)
    interrupted(config, "run", None)
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text("precious")
    with pytest.raises(ConfigError, match=r"did not write .*--overwrite"):
        train(config)
    assert (output / name).read_text() == "precious"


def test_an_empty_folder_and_what_finds_itself_are_no_obstacle(toy_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    for name in ("features", "cache", "replaced-3"):
        (output / name).mkdir(parents=True)
    (output / ".DS_Store").touch()
    assert run_status(settings(toy_data, output)) is RunStatus.EMPTY


def test_a_run_that_saved_nothing_begins_again(toy_data: Path, tmp_path: Path, finished: Path) -> None:
    config = settings(toy_data, tmp_path / "run")
    for event in ("run", "captions", "evaluation"):
        interrupted(config, event, None)
        assert run_status(config) is RunStatus.BEGUN
    train(config)
    assert (config.output / "scores.json").read_text() == (finished / "scores.json").read_text()
    runs = [line for line in (config.output / "log.jsonl").read_text().splitlines() if '"event": "run"' in line]
    assert len(runs) == 1


def test_a_damaged_newest_state_is_passed_over(
    toy_data: Path, unfinished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, finished: Path
) -> None:
    run = Path(shutil.copytree(unfinished, tmp_path / "run"))
    newest = max((run / "resume").iterdir())
    for damage in (flip, cut):
        damage(newest / "state.safetensors")
        assert run_status(settings(toy_data, run)) is RunStatus.UNFINISHED
        assert f"{newest} is damaged" in caplog.text
        caplog.clear()
    train(settings(toy_data, run))
    assert (run / "scores.json").read_text() == (finished / "scores.json").read_text()


def test_a_changed_position_is_noticed(toy_data: Path, unfinished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(unfinished, tmp_path / "run"))
    record = max((run / "resume").iterdir()) / "state.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "step": content["step"] + 2}))
    events: list[Event] = []
    train(settings(toy_data, run), events.append)
    assert next(event for event in events if event["event"] == "run")["step"] == content["step"] - 1


def test_a_run_whose_states_are_all_damaged_is_refused(toy_data: Path, unfinished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(unfinished, tmp_path / "run"))
    for state in (run / "resume").iterdir():
        flip(state / "state.safetensors")
    before = files(run)
    with pytest.raises(ConfigError, match=r"no saved state in .*resume is intact"):
        train(settings(toy_data, run))
    assert files(run) == before


def test_an_unfinished_run_with_damaged_scores_is_refused(toy_data: Path, unfinished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(unfinished, tmp_path / "run"))
    cut(run / "scores.json")
    before = files(run)
    with pytest.raises(ConfigError, match="captune evaluate"):
        train(settings(toy_data, run))
    assert files(run) == before


def test_never_to_resume_moves_aside_what_was_saved(toy_data: Path, unfinished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(unfinished, tmp_path / "run"))
    before = files(run)
    train(settings(toy_data, run), resume=False)
    assert files(run / "replaced-1") == before


def test_a_moved_run_is_the_same_run(toy_data: Path, unfinished: Path, finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(unfinished, tmp_path / "elsewhere"))
    assert inspect_run(settings(toy_data, run)).status is RunStatus.UNFINISHED


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_run_that_resumes_must_have_the_images_it_began_with(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    data = Path(shutil.copytree(toy_data, tmp_path / "data"))
    victim = data / read_manifest(data / "manifest.jsonl", split)[0].image

    def features(config: Any, files: Sequence[Path], *args: Any, **kwargs: Any) -> StoredImages:
        digest = "".join(hash_file(file).hex() for file in files)
        return replace(tiny_features(config, files, *args, **kwargs), digest=digest)

    monkeypatch.setattr(preparation, "features_of", features)
    config = settings(data, tmp_path / "run")
    interrupted(config, "checkpoint", 1)
    Image.new("RGB", (30, 30), "red").save(victim)
    with pytest.raises(DataError, match=r"are not those that the run in .* began with"):
        train(config)


def test_a_finished_run_is_of_the_images_it_was_evaluated_on(toy_data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(toy_data, tmp_path / "data"))
    config = settings(data, tmp_path / "run")
    train(config)
    assert run_status(config) is RunStatus.FINISHED
    victim = data / read_manifest(data / "manifest.jsonl", "test")[0].image
    before = victim.read_bytes()
    Image.new("RGB", (30, 30), "red").save(victim)
    with pytest.raises(ConfigError, match=f"{victim.name} has other content .*--overwrite"):
        train(config)
    victim.write_bytes(before)
    assert run_status(config) is RunStatus.FINISHED
    # Data that has moved away is no reason to train again.
    shutil.rmtree(victim.parent)
    assert run_status(config) is RunStatus.FINISHED


def without_unreadable(config: Any, files: Sequence[Path], *args: Any, **kwargs: Any) -> StoredImages:
    """As `tiny_features`, without the files that cannot be read."""
    readable = [index for index, file in enumerate(files) if file.is_file()]
    unreadable = [UnreadableImage(n, f"there is no {file}.") for n, file in enumerate(files) if not file.is_file()]
    stored = tiny_features(config, [files[index] for index in readable], *args, **kwargs)
    return replace(stored, readable=tuple(readable), unreadable=tuple(unreadable))


@pytest.mark.parametrize("ends", [True, False])
def test_an_image_that_was_left_out_and_can_be_read_now_is_named(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr(preparation, "features_of", without_unreadable)
    data = Path(shutil.copytree(toy_data, tmp_path / "data"))
    victim = data / read_manifest(data / "manifest.jsonl", "train")[2].image
    content = victim.read_bytes()
    victim.unlink()
    config = settings(data, tmp_path / "run")
    config = config.model_copy(update={"data": config.data.model_copy(update={"train_images": 12})})
    events: list[Event] = []
    if ends:
        train(config)
        # As long as it cannot be read, the run is the same, and says what it lacks.
        train(config, events.append)
        lines = EventText().messages(next(event for event in events if event["event"] == "reused"))
        (name,) = json.loads((config.output / "quarantine.json").read_text())
        assert (
            lines[1] == f"1 training image was left out of it, such as '{name}'; its quarantine.json has the reasons."
        )
    else:
        interrupted(config, "checkpoint", 1)
    victim.write_bytes(content)
    before = files(config.output)
    expected = "another folder with output=.*--overwrite" if ends else "--resume never"
    with pytest.raises(InputError, match=rf"the training image .*{victim.name}, which was .* read now; .*{expected}"):
        train(config)
    assert files(config.output) == before
    # A model's refusal is not the file's fault: such an image could be read before.
    (config.output / "quarantine.json").write_text(json.dumps({victim.stem: f"tiny refuses '{victim}' (too thin)."}))
    assert run_status(config) is (RunStatus.FINISHED if ends else RunStatus.UNFINISHED)
    (config.output / "quarantine.json").write_text("{")
    if ends:
        assert run_status(config) is RunStatus.DAMAGED


def test_a_second_training_in_a_folder_is_refused(toy_data: Path, tmp_path: Path) -> None:
    config = settings(toy_data, tmp_path / "run")

    def second(event: Event) -> None:
        if event["event"] == "run":
            with pytest.raises(InputError, match="is in use: captune train"):
                train(settings(toy_data, config.output, seed=1))

    train(config, second)
    assert json.loads((config.output / "checkpoints/epoch-001/checkpoint.json").read_text())["seed"] == 42
    with folder_lock(config.output, "captune report"):
        train(config)  # A finished run is only read.


def test_a_checkpoint_with_a_flipped_bit_is_refused(run: Path) -> None:
    checkpoint = run / "checkpoints" / "epoch-001"
    load_trained(tiny_minigpt4(), checkpoint)
    flip(checkpoint / "trained.safetensors")
    with pytest.raises(WeightsError, match="is damaged: its SHA-256"):
        load_trained(tiny_minigpt4(), checkpoint)


def test_a_checkpoint_whose_record_was_changed_is_refused(run: Path) -> None:
    checkpoint = run / "checkpoints" / "epoch-001"
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    # The model may have moved; the instruction may not.
    for changed in ({"model": "elsewhere"}, {"instruction": "Describe this inage."}):
        (checkpoint / "checkpoint.json").write_text(json.dumps(record | changed))
        if "model" in changed:
            load_trained(tiny_minigpt4(), checkpoint)
    with pytest.raises(WeightsError, match="its 'instruction' differs from"):
        load_trained(tiny_minigpt4(), checkpoint)


def test_a_checkpoint_of_an_older_version_has_no_hash_and_is_loaded(run: Path) -> None:
    checkpoint = run / "checkpoints" / "epoch-001"
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    del record["sha256"]
    (checkpoint / "checkpoint.json").write_text(json.dumps(record))
    load_trained(tiny_minigpt4(), checkpoint)
