"""Reading runs and result files, and the sentence for each that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captune.apps.rating.study_items import HUMAN, choose_systems, read_study_items, with_human
from captune.errors import InputError


@pytest.fixture
def files(rated_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The first checkpoint's captions and the references as plain files."""
    run = json.loads((rated_run / "scores.json").read_text())
    captions, references = tmp_path / "mine.json", tmp_path / "references.json"
    captions.write_text(json.dumps(run["checkpoints"][0]["captions"]))
    references.write_text(json.dumps(run["references"]))
    return captions, references


def test_a_run(rated_run: Path) -> None:
    read = read_study_items([rated_run], pictures=rated_run / "pictures")
    assert [system.name for system in read.systems] == ["pretrained", "epoch0", "epoch1"]
    assert [system.name for system in choose_systems(read, None).systems] == ["pretrained", "epoch1"]
    assert len(read.images) == 18
    human = with_human(read, seed=0).systems[-1]
    assert human.name == HUMAN
    assert all(human.captions[image] in read.references[image] for image in read.images)


def test_result_files_are_scored_like_the_run(rated_run: Path, files: tuple[Path, Path]) -> None:
    run = read_study_items([rated_run], pictures=rated_run / "pictures")
    mine = read_study_items([files[0]], references=files[1], pictures=rated_run / "pictures")
    assert mine.systems[0].name == "mine"
    assert mine.systems[0].corpus == pytest.approx(run.systems[0].corpus)
    assert mine.systems[0].per_image["IMG-003"] == pytest.approx(run.systems[0].per_image["IMG-003"])


def test_several_sources(rated_run: Path, files: tuple[Path, Path]) -> None:
    read = read_study_items([rated_run, files[0]], pictures=rated_run / "pictures")
    assert [system.name for system in read.systems] == ["run/pretrained", "run/epoch0", "run/epoch1", "mine"]
    with pytest.raises(InputError, match="Two systems are called 'mine'"):
        read_study_items([files[0], files[0]], pictures=rated_run / "pictures")


def test_the_pictures_of_a_real_run_are_located_automatically(toy_data: Path, tmp_path: Path) -> None:
    from captune.data.manifest import read_manifest
    from captune.report import CheckpointScores, RunScores, write_scores

    samples = read_manifest(toy_data / "manifest.jsonl", "test")
    captions = {sample.id: "a picture" for sample in samples}
    row = CheckpointScores(name="pretrained", corpus={"CIDEr": 0.1}, captions=captions)
    write_scores(RunScores("toy", (row,), "test", "karpathy", len(samples)), tmp_path)
    (tmp_path / "config.yaml").write_text(f"data: {{train: {toy_data / 'manifest.jsonl'}}}\n")
    assert len(read_study_items([tmp_path]).images) == len(samples)


def test_what_cannot_be_used(rated_run: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No picture of a captioned image"):
        read_study_items([rated_run])
    with pytest.raises(InputError, match="takes a manifest or a folder"):
        read_study_items([rated_run], pictures=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"scores\.json does not exist"):
        read_study_items([tmp_path])
    read = read_study_items([files[0]], pictures=rated_run / "pictures")
    with pytest.raises(InputError, match="There is no system 'epoch9'; there are: mine"):
        choose_systems(read, ["epoch9"])
    with pytest.raises(InputError, match="named twice"):
        choose_systems(read, ["mine", "mine"])
    with pytest.raises(InputError, match="--no-human"):
        with_human(read, seed=0)
    files[0].rename(tmp_path / "human.json")
    with pytest.raises(InputError, match="the name of the control"):
        read_study_items([tmp_path / "human.json"], pictures=rated_run / "pictures")


def test_pictures_by_the_file_names_of_the_references(rated_run: Path, tmp_path: Path) -> None:
    captions, entries = {}, []
    for number, picture in enumerate(sorted((rated_run / "pictures").iterdir())[:3]):
        captions[str(number)] = "a dog"
        entries.append({"id": number, "file_name": f"elsewhere/{picture.name}"})
    (tmp_path / "mine.json").write_text(json.dumps(captions))
    annotations = [{"image_id": number, "caption": "a dog runs"} for number in range(3)]
    (tmp_path / "references.json").write_text(json.dumps({"images": entries, "annotations": annotations}))
    read = read_study_items(
        [tmp_path / "mine.json"], references=tmp_path / "references.json", pictures=rated_run / "pictures"
    )
    assert len(read.images) == 3


def test_images_that_are_left_out_are_reported_with_similar_ids(
    rated_run: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    captions = json.loads(files[0].read_text())
    other = tmp_path / "other.json"
    first, second, *_ = captions
    other.write_text(
        json.dumps({f"images/{first}.jpg" if image == first else image: text for image, text in captions.items()})
    )
    read = read_study_items([files[0], other], references=files[1], pictures=rated_run / "pictures")
    assert read_study_items([files[0]], references=files[1], pictures=rated_run / "pictures").left_out() == []
    mine, others = read.left_out()
    assert mine.startswith(f"mine has no caption of 1 of {len(captions) + 1} images, such as 'images/{first}.jpg'")
    assert others.startswith(f"other has no caption of 1 of {len(captions) + 1} images, such as '{first}'")
    assert all("may be the same image" in sentence for sentence in (mine, others))
    references = json.loads(files[1].read_text())
    files[1].write_text(json.dumps({image.lower() if image == second else image: t for image, t in references.items()}))
    (sentence,) = read_study_items([files[0]], references=files[1], pictures=rated_run / "pictures").left_out()
    assert f"1 of {len(captions)} images have no reference caption, such as '{second}'" in sentence
    assert f"'{second.lower()}' and '{second}' may be the same image" in sentence


def test_other_captioners_are_not_the_last_checkpoint(rated_run: Path, tmp_path: Path) -> None:
    run = json.loads((rated_run / "scores.json").read_text())
    run["checkpoints"].append({**run["checkpoints"][-1], "name": "blip2", "epoch": None})
    (tmp_path / "scores.json").write_text(json.dumps(run))
    read = read_study_items([tmp_path], pictures=rated_run / "pictures")
    assert [system.name for system in choose_systems(read, None).systems] == ["pretrained", "epoch1"]
