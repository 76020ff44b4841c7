"""Splits of a data set: by the name of a file, or by shares of its images.

A division into shares is by image, the same each time, with copies of a picture in one split. Images are put into an
order that depends on the seed and their ids alone, not on the order of the file, and the order is cut by the
shares. Images that the leak guard takes for the same picture count as one, so that no test image is a training image
encoded again.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from captune.data.leaks.guard import ImageFile, same_picture_groups
from captune.errors import DataError

__all__ = ["SPLIT_NAMES", "Division", "Shares", "divide", "parse_shares", "split_of_name"]


@dataclass(frozen=True, slots=True)
class Shares:
    """How a data set is divided.

    Attributes:
        shares: split to its share; they add up to 1.
        seed: another one gives another division.
    """

    shares: dict[str, float]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Division:
    """The result of a division.

    Attributes:
        splits: the split of each image, in the order of the images.
        copies: images that are with another one in a split because they show the same picture.
        unread: images whose file could not be read, so that it is unknown whether they are copies.
    """

    splits: list[str]
    copies: int
    unread: int


def parse_shares(text: str, seed: int = 0) -> Shares | None:
    """The shares in "train=0.9,val=0.05,test=0.05"; None where the text is the name of one split.

    Raises:
        DataError: a share is no number above 0, a split is named twice, or they do not add up to 1.
    """
    if "=" not in text:
        return None
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not name or not 0 < share <= 1:
            raise DataError(f"--split has the part '{part.strip()}'; expected a split and its share, such as val=0.05.")
        if name in shares:
            raise DataError(f"--split names the split '{name}' twice; give each share once.")
        shares[name] = share
    if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
        total = sum(shares.values())
        raise DataError(f"the shares of --split add up to {total:g}; expected 1, such as train=0.9,test=0.1.")
    return Shares(shares, seed)


def divide(
    images: Sequence[ImageFile], shares: Shares, *, progress: Callable[[int, int], None] | None = None
) -> Division:
    """The split of every image.

    Args:
        images: with unique ids.
        shares: how they are divided.
        progress: called now and then with the number of files read and their total.

    Raises:
        DataError: there are fewer different pictures than splits.
        MissingExtraError: the library of perceptual hashes is absent.
    """
    groups, unread = same_picture_groups(images, progress=progress)
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if len(members) < len(shares.shares):
        raise DataError(
            f"{len(members)} different pictures cannot be divided into {len(shares.shares)} splits; give fewer splits."
        )
    ordered = sorted(members.values(), key=lambda indices: _order(min(images[i].id for i in indices), shares.seed))
    splits = [""] * len(images)
    for indices, name in zip(ordered, _filled(ordered, _counts(len(images), shares.shares)), strict=True):
        for index in indices:
            splits[index] = name
    return Division(splits, len(images) - len(members), unread)


def _filled(groups: Sequence[Sequence[int]], counts: dict[str, int]) -> list[str]:
    """The split of each group: the splits one after the other, each until it has its number of images."""
    names = list(counts)
    bounds = list(itertools.accumulate(counts.values()))
    filled: list[str] = []
    done = 0
    for left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        current = names.index(filled[-1]) if filled else 0
        rest = len(names) - current - 1  # splits that have no group yet
        if filled and rest and (done + len(group) / 2 > bounds[current] or left <= rest):
            current += 1
        filled.append(names[current])
        done += len(group)
    return filled


def _counts(total: int, shares: dict[str, float]) -> dict[str, int]:
    """Images of each split: the nearest whole numbers that add up to all, at least one each."""
    counts = {name: math.floor(share * total) for name, share in shares.items()}
    by_rest = sorted(shares, key=lambda name: shares[name] * total - counts[name], reverse=True)
    for name in by_rest[: total - sum(counts.values())]:
        counts[name] += 1
    for name in [name for name, count in counts.items() if not count]:
        counts[max(counts, key=lambda name: counts[name])] -= 1
        counts[name] = 1
    return counts


def _order(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()


SPLIT_NAMES: Final = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
"""Names of splits in files and data sets, and the split of each."""

_WORD = re.compile(r"[^\W\d_]+")


def split_of_name(name: str) -> tuple[str, str]:
    """The split in a file name, and the reason.

    Only a separate word counts, divided by anything that is no letter: "captions_val2017.json", "train-v2.csv" and
    "my_test.json" name a split, "latest.json" and "contest_2024.json" do not.

    Args:
        name: of a file, without folders.

    Returns:
        "train", "val" or "test", and the reason as a clause for the summary; "train" where the name has no split, or
        several.
    """
    splits = dict.fromkeys(SPLIT_NAMES[word] for word in _WORD.findall(name.lower()) if word in SPLIT_NAMES)
    if len(splits) == 1:
        return next(iter(splits)), f"from the name '{name}'; --split sets another"
    why = "names several splits" if splits else "names no split"
    return "train", f"since the name '{name}' {why}; --split sets another"
