"""Images divided into splits: by shares, the same way each time, copies of a picture in one split."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from captune.data.importing import prepare
from captune.data.leaks.guard import ImageFile, compare_manifests, same_picture_groups
from captune.data.manifest import read_manifest
from captune.data.rows import Row
from captune.data.splits import Shares, divide, parse_shares
from captune.errors import DataError


def photograph(seed: int) -> Image.Image:
    """Coloured squares; two seeds give clearly different pictures."""
    draw = random.Random(seed)
    image = Image.new("RGB", (4, 3))
    image.putdata([(draw.randrange(256), draw.randrange(256), draw.randrange(256)) for _ in range(12)])
    return image.resize((160, 120), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures; of the first three a smaller copy, and of the first a copy of its bytes."""
    pytest.importorskip("imagehash", reason="needs the extra 'data'")
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(30):
        photograph(number).save(folder / f"{number}.jpg")
        if number < 3:
            photograph(number).resize((120, 90)).save(folder / f"copy{number}.png")
    (folder / "same0.jpg").write_bytes((folder / "0.jpg").read_bytes())
    return folder


def files(folder: Path) -> list[ImageFile]:
    return [ImageFile(path.stem, str(path)) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("train", None),
        ("train=0.9,val=0.05,test=0.05", {"train": 0.9, "val": 0.05, "test": 0.05}),
        (" a = 0.5 , b = .5 ", {"a": 0.5, "b": 0.5}),
        ("all=1", {"all": 1.0}),
    ],
)
def test_shares(text: str, shares: dict[str, float] | None) -> None:
    read = parse_shares(text, 3)
    assert read == (None if shares is None else Shares(shares, 3))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train=0.9,val=0.2", "add up to 1.1; expected 1"),
        ("train=0.9,val", "has the part 'val'; expected a split and its share"),
        ("train=much,val=0.1", "has the part 'train=much'"),
        ("train=0,val=1", "has the part 'train=0'"),
        ("train=nan,val=1", "has the part 'train=nan'"),
        ("train=1.5,val=-0.5", "has the part"),
        ("=1", "has the part '=1'"),
        ("train=0.5,train=0.5", "names the split 'train' twice"),
    ],
)
def test_shares_that_are_none(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_shares(text)


def test_copies_are_one_group(photographs: Path) -> None:
    images = files(photographs)
    groups, unread = same_picture_groups(images, store=None)
    names = [image.id for image in images]
    members = [{names[index] for index in range(len(names)) if groups[index] == group} for group in set(groups)]
    assert [group for group in members if len(group) > 1] == [{"0", "copy0", "same0"}, {"1", "copy1"}, {"2", "copy2"}]
    assert unread == 0


def test_a_division_depends_on_images_and_seed_alone(photographs: Path) -> None:
    images = files(photographs)
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    division = divide(images, Shares(shares, 1))
    splits = dict(zip((image.id for image in images), division.splits, strict=True))
    assert Counter(division.splits) == {"train": 27, "val": 4, "test": 3}
    assert (division.copies, division.unread) == (4, 0)
    for number in range(3):
        assert splits[str(number)] == splits[f"copy{number}"]
    shuffled = images[::-1]
    again = divide(shuffled, Shares(shares, 1))
    assert dict(zip((image.id for image in shuffled), again.splits, strict=True)) == splits
    assert divide(images, Shares(shares, 2)).splits != division.splits


def test_every_split_gets_an_image(photographs: Path, tmp_path: Path) -> None:
    images = [image for image in files(photographs) if image.id in ("5", "6", "7", "0", "copy0", "same0")]
    splits = divide(images, Shares({"train": 0.98, "val": 0.01, "test": 0.01})).splits
    assert set(splits) == {"train", "val", "test"}
    with pytest.raises(DataError, match="4 different pictures cannot be divided into 5 splits"):
        divide(images, Shares(dict.fromkeys("abcde", 0.2)))
    unread = divide([ImageFile("a", str(tmp_path / "a")), ImageFile("b", str(tmp_path / "b"))], Shares({"x": 1.0}))
    assert (unread.splits, unread.copies, unread.unread) == (["x", "x"], 0, 2)


def test_an_import_divides_and_the_leak_guard_finds_nothing(photographs: Path, tmp_path: Path) -> None:
    rows = [Row(n, path.name, ("A dog.",), "own") for n, path in enumerate(sorted(photographs.iterdir()), 1)]
    out = tmp_path / "m.jsonl"
    shares = Shares({"train": 0.5, "test": 0.5}, 4)
    summary = prepare(rows, source="s", images=photographs, out=out, shares=shares)
    assert Counter(sample.split for sample in read_manifest(out)) == summary.splits == {"train": 17, "test": 17}
    assert {(sample.id, sample.split) for sample in summary.samples} <= {(s.id, s.split) for s in read_manifest(out)}
    (note,) = summary.notes
    assert note.startswith("splits are drawn by image with seed 4; 4 of the images show another one's picture")
    assert not compare_manifests(out, out).leaks
    with pytest.raises(DataError, match=r"has no images of other splits than .train. or .test."):
        compare_manifests(out, out, train_split=("train", "test"))
