"""Files of judgements in their public layouts: what is read, what is left out, and how other files are refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune.agreement import Judgements, read_judgements
from captune.errors import InputError, MetricInputError


def read(name: str, *files: Path, references: Path | None = None, **options: Any) -> Judgements:
    return read_judgements(name, files, references, **options)[0]


def test_flickr8k_expert_leaves_out_own_captions_and_has_an_item_for_each_judgement(flickr8k: Path) -> None:
    judgements = read("flickr8k-expert", flickr8k)
    assert judgements.count == 3 * 20 * 4
    assert judgements.scores is not None
    assert judgements.scores[:3].tolist() == [2, 1, 2]
    assert len(judgements.references[0]) == 5
    assert any("20 pairs of an image with one of its own references" in note for note in judgements.notes)


def test_flickr8k_cf_removes_judged_captions_from_the_references(flickr8k: Path, scenes: dict[str, list[str]]) -> None:
    judgements = read(
        "flickr8k-cf", flickr8k / "CrowdFlowerAnnotations.txt", references=flickr8k / "Flickr8k.token.txt"
    )
    assert judgements.count == 100
    for image, references in zip(judgements.images, judgements.references, strict=True):
        assert references == [text for n, text in enumerate(scenes[image]) if n != 2]
    assert judgements.notes == []


def test_damaged_lines_are_counted_and_the_others_read(flickr8k: Path) -> None:
    path = flickr8k / "CrowdFlowerAnnotations.txt"
    lines = path.read_bytes().splitlines()
    lines[10:14] = [
        b"\xff\xfe\x00damaged",
        b"1002_0000000002.jpg\t0.5",
        lines[10].replace(b"\t1\t", b"\t9\t"),
        b"\x00" * 90,
    ]
    lines.append(b"unknown.jpg\t1000_0000000000.jpg#2\t0\t0\t3")
    with gzip.open(flickr8k / "cf.txt.gz", "wb") as stream:
        stream.write(b"\r\n".join(lines))
    judgements = read("flickr8k-cf", flickr8k / "cf.txt.gz", references=flickr8k / "Flickr8k.token.txt")
    assert judgements.count == 96
    text = " ".join(judgements.notes)
    assert "the line is damaged (the first at line 11)" in text
    assert "3 rows left out: the line is damaged" in text
    assert "1 row left out: the share of yes is not that of the votes" in text
    assert "1 row left out: the caption or the image is not in Flickr8k.token.txt" in text


def test_kaggle_captions_and_the_json_of_the_clipscore_paper(flickr8k: Path, scenes: dict[str, list[str]]) -> None:
    with (flickr8k / "captions.txt").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption"])
        writer.writerows([image, text] for image, texts in scenes.items() for text in texts)
    path = flickr8k / "CrowdFlowerAnnotations.txt"
    by_token = read("flickr8k-cf", path, references=flickr8k / "Flickr8k.token.txt")
    by_kaggle = read("flickr8k-cf", path, references=flickr8k / "captions.txt")
    assert by_token.captions == by_kaggle.captions
    assert by_token.references == by_kaggle.references

    assert by_token.scores is not None
    tree: dict[str, Any] = {}
    for index, image in enumerate(by_token.images):
        entry = tree.setdefault(
            image,
            {
                "human_judgement": [],
                "image_path": f"Flicker8k_Dataset/{image}",
                "ground_truth": by_token.references[index],
            },
        )
        entry["human_judgement"].append({"caption": by_token.captions[index], "rating": by_token.scores[index]})
    tree[by_token.images[0]]["human_judgement"].append({"caption": "a dog", "rating": float("nan")})
    (flickr8k / "crowdflower_flickr8k.json").write_text(json.dumps(tree))
    by_json = read("flickr8k-cf", flickr8k / "crowdflower_flickr8k.json")
    assert by_json.captions == by_token.captions
    assert by_json.images == by_token.images
    assert by_json.scores is not None
    assert by_json.scores.tolist() == by_token.scores.tolist()
    assert "1 row left out: the judgement has no caption or no finite rating" in by_json.notes[0]


@pytest.mark.parametrize("form", ["csv", "numpy", "json in csv", "tsv.gz", "jsonl", "json", "parquet"])
def test_tables_in_every_form(tmp_path: Path, rated_rows: list[dict[str, Any]], form: str) -> None:
    path = tmp_path / {"numpy": "t.csv", "json in csv": "t.csv"}.get(form, f"t.{form}")
    lists = {"numpy": lambda refs: str(np.array(refs)), "json in csv": json.dumps}.get(form, str)
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rated_rows))
    elif form == "json":
        path.write_text(json.dumps(rated_rows))
    elif form == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        rows = [{**row, "img": {"bytes": b"x", "path": None}} for row in rated_rows]
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, list(rated_rows[0]), delimiter="\t" if "tsv" in form else ",")
        writer.writeheader()
        writer.writerows({**row, "refs": lists(row["refs"])} for row in rated_rows)
        content = stream.getvalue().encode()
        path.write_bytes(gzip.compress(content) if form.endswith("gz") else content)
    judgements = read("polaris", path)
    assert judgements.title == "Polaris"
    assert judgements.captions == [row["mt"] for row in rated_rows]
    assert judgements.references == [row["refs"] for row in rated_rows]
    assert judgements.scores is not None
    assert judgements.scores.tolist() == [row["score"] for row in rated_rows]
    assert judgements.images == [row["imgid"] for row in rated_rows]
    assert read("nebula", path, split="val").count == 30


def test_a_table_without_references_takes_those_of_a_file(
    tmp_path: Path, rated_rows: list[dict[str, Any]], scenes: dict[str, list[str]]
) -> None:
    path = tmp_path / "ratings.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=";")
        writer.writerow(["image_id", "caption", "rating"])
        writer.writerows([Path(row["imgid"]).stem, row["mt"], row["score"]] for row in rated_rows)
        writer.writerow(["nowhere", "a dog", 1])
        writer.writerow([Path(str(rated_rows[0]["imgid"])).stem, "a dog", "n/a"])
    (tmp_path / "refs.json").write_text(json.dumps(scenes))
    judgements = read("table", path, references=tmp_path / "refs.json")
    assert judgements.references == [row["refs"] for row in rated_rows]
    assert "there are no references of the image" in " ".join(judgements.notes)
    assert "the score is no finite number" in " ".join(judgements.notes)
    with pytest.raises(MetricInputError, match="lacks a column of refs"):
        read("table", path)


def test_composite_as_published(tmp_path: Path, scenes: dict[str, list[str]]) -> None:
    rows = [[*["x"] * 27, "Input.image", *["Input.t"] * 4, *["Answer.c"] * 4]]
    for image, texts in scenes.items():
        captions = [texts[0], "a dog runs", "a cat sits", "a fourth caption"]
        rows.append([*["x"] * 27, f"http://host/images/{image}", *captions, "5", "2", "1", "3"])
    rows.append([""] * 36)
    with (tmp_path / "30k_correctness.csv").open("w", newline="") as stream:
        csv.writer(stream, delimiter=";").writerows(rows)
    (tmp_path / "refs.json").write_text(json.dumps(scenes))
    judgements = read("composite", tmp_path / "30k_correctness.csv", references=tmp_path / "refs.json")
    assert judgements.count == 60
    assert judgements.scores is not None
    assert judgements.scores[:3].tolist() == [5, 2, 1]
    first = next(iter(scenes.values()))
    assert judgements.captions[0] == first[0]
    assert judgements.references[0] == first[1:]


def write_pascal(folder: Path) -> None:
    """Write the two files of MATLAB: two pairs of each category, of which the first caption wins, and one draw."""
    chance = random.Random(0)
    inputs = np.empty((1, 8), dtype=object)
    triplets = np.empty((1, 8 * 48), dtype=[(name, object) for name in ("A", "B", "C", "winner")])
    for index in range(8):
        first, second = f"a dog {index} runs on grass", f"two cats {index} in a car"
        entry = np.empty(3, dtype=object)
        entry[:] = [np.array([text]) for text in (f"2008_{index:06d}.jpg", first, f" {second} ")]
        inputs[0, index] = entry
        for vote in range(48):
            cells = []
            wins = vote < (24 if index == 7 else 40)
            swapped = chance.random() < 0.5
            one, other = (second, first) if swapped else (first, second)
            answer = 1 if wins != swapped else -1
            for value in (f"a dog {index} on grass {vote}", one, other):
                wrapped = np.empty((1, 1), dtype=object)
                wrapped[0, 0] = np.array([value])
                cells.append(wrapped)
            triplets[0, index * 48 + vote] = (*cells, np.array([[answer]]))
    category = np.array([[1, 1, 2, 2, 3, 3, 4, 4]])
    matlab = pytest.importorskip("scipy.io")
    (folder / "pyCIDErConsensus").mkdir()
    matlab.savemat(folder / "pyCIDErConsensus" / "pair_pascal.mat", {"new_input": inputs, "category": category})
    matlab.savemat(folder / "pyCIDErConsensus" / "consensus_pascal.mat", {"triplets": triplets})


def test_pascal_50s(tmp_path: Path) -> None:
    write_pascal(tmp_path)
    judgements = read("pascal-50s", tmp_path, seed=1)
    assert judgements.count == 8
    assert list(judgements.categories) == ["HC", "HC", "HI", "HI", "HM", "HM", "MM", "MM"]
    assert judgements.pairs is not None
    preferred = [judgements.captions[index] for index in judgements.pairs[:7, 0]]
    assert preferred == [f"a dog {index} runs on grass" for index in range(7)]
    assert {len(set(references)) for references in judgements.references} == {5}
    assert judgements.notes == ["1 pairs have as many votes for either caption; the seed decides."]
    assert read("pascal-50s", tmp_path, seed=1).references == judgements.references
    assert read("pascal-50s", tmp_path, seed=2).references != judgements.references
    assert len(read("pascal-50s", tmp_path, reference_count=48).references[0]) == 48
    with pytest.raises(MetricInputError, match="49 references were requested, and a pair has 48"):
        read("pascal-50s", tmp_path, reference_count=49)


def test_foil_with_one_reference_and_with_four(foil: tuple[Path, Path], scenes: dict[str, list[str]]) -> None:
    one, four = read_judgements("foil", [foil[0]], foil[1])
    assert (one.title, four.title) == ("FOIL, 1 reference", "FOIL, 4 references")
    first = next(iter(scenes.values()))
    assert one.references[0] == first[1:2]
    assert four.references[0] == first[1:5]
    assert four.captions[0] == first[0]
    assert four.captions[1].startswith("zebra")
    assert four.count == len(scenes)


def test_a_table_of_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"image_id": 1, "caption_a": "a dog", "caption_b": "a cat", "preferred": "b", "references": ["the cat"]},
        {"image_id": 2, "caption_a": "a dog", "caption_b": "a cat", "preferred": 1, "references": ["the dog"]},
        {"image_id": 2, "caption_a": "a dog", "caption_b": "a cat", "preferred": "tie", "references": ["the dog"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judgements = read("table", path)
    assert judgements.pairs is not None
    assert list(judgements.captions) == ["a cat", "a dog", "a dog", "a cat"]
    assert "1 row left out: the captions are judged equal" in judgements.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("flickr8k-cf", "1.jpg\t1.jpg#0\t4\t3\t4\n", "expected: lines of image<TAB>image#n<TAB>share of yes"),
        ("flickr8k-expert", "1.jpg\t1.jpg#0\t5\t3\t4\n", "expected: lines of image<TAB>image#n<TAB>score"),
        ("flickr8k-cf", "", "it has no rows"),
        ("polaris", "a,b\n1,2\n", "lacks a column of caption, score, refs"),
        ("polaris", "\n", "no header of named columns"),
        ("foil", "[1, 2]", "does not hold what is expected"),
        ("foil", "{", "is not JSON"),
        ("composite", "mt,refs\n", "does not hold what is expected"),
        ("pascal-50s", "x,y\n1,2\n", "there is no caption_a or caption_b"),
    ],
)
def test_other_files_are_refused_in_one_sentence(
    tmp_path: Path, flickr8k: Path, name: str, content: str, sentence: str
) -> None:
    path = tmp_path / ("f.json" if name == "foil" else "f.txt")
    path.write_text(content)
    references = None if name == "polaris" else flickr8k / "Flickr8k.token.txt"
    with pytest.raises(InputError, match=sentence) as error:
        read(name, path, references=references)
    assert "\n" not in str(error.value)


def test_missing_files_and_references(tmp_path: Path, flickr8k: Path, foil: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read("flickr8k-cf", tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match=r"give --references Flickr8k.token.txt"):
        read("flickr8k-cf", flickr8k / "CrowdFlowerAnnotations.txt")
    with pytest.raises(InputError, match="give --references FILE"):
        read("foil", foil[0])
    with pytest.raises(InputError, match="choose one of flickr8k-expert"):
        read("flickr9k", foil[0])
