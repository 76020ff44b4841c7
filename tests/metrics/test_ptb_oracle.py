"""The PTB tokenizer against recorded outputs of the Java tool: every real caption, fuzz strings, whole calls."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captune.metrics import ptb

REAL = [
    "abstract48S",
    "coco2014_hard",
    "coco_mini_train",
    "coco_val2017",
    "flickr30k",
    "flickr30k_pretok",
    "flickr8k",
]
LINE_BREAKS = set("\r\v\f\u2028\u2029")


def _records(shared: Path, name: str) -> Iterator[Any]:
    with gzip.open(shared / "captions" / "oracle" / f"tokens_{name}.dev.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


@pytest.mark.parametrize("source", REAL)
def test_every_real_caption(shared: Path, source: str) -> None:
    records = list(_records(shared, source))
    captions = [record[0] for record in records]
    assert ptb.tokenize_batch(captions) == [record[1] for record in records]
    # Followed by the caption "A man .", some differ; the third field says how.
    call = [caption for record in records for caption in (record[0], "A man .")]
    assert ptb.tokenize_call(call)[::2] == [record[2] if len(record) > 2 else record[1] for record in records]


@pytest.mark.parametrize("source", ["abstract48S", "coco2014_hard", "coco_mini_train"])
def test_real_captions_one_by_one_without_the_way_over_chunks(shared: Path, source: str) -> None:
    for caption, tokens, *_ in _records(shared, source):
        assert ptb.tokenize(caption) == tokens


@pytest.mark.parametrize("source", REAL)
def test_nearly_all_captions_need_nothing_but_their_chunks(shared: Path, source: str) -> None:
    captions = [record[0] for record in _records(shared, source)]
    known: dict[str, bool] = {}
    for caption in captions:
        for chunk in caption.split():
            if chunk not in known:
                known[chunk] = ptb.chunk_tokens(chunk) is not None
    alone = sum(all(known[chunk] for chunk in caption.split()) for caption in captions)
    # The hard captions were chosen for what is hard about them.
    assert alone / len(captions) > (0.9 if source == "coco2014_hard" else 0.99)


def test_fuzz_strings(shared: Path) -> None:
    records = list(_records(shared, "fuzz"))
    wrong = [
        record["s"]
        for record in records
        if ptb.tokenize_all(record["s"]) != record["full"] or ptb.tokenize(record["s"]) != record["t"]
    ]
    assert len(wrong) / len(records) < 0.001, wrong[:5]
    assert not wrong


def test_fuzz_strings_before_another_caption(shared: Path) -> None:
    records = list(_records(shared, "fuzz"))
    call = [caption for record in records for caption in (record["s"], "A man .")]
    expected = [record.get("t_next", record["t"]) for record in records]
    assert ptb.tokenize_call(call)[::2] == expected


def test_whole_calls(shared: Path) -> None:
    path = shared / "captions" / "oracle" / "tokens_batches.dev.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        batches = json.load(file)
    compared = 0
    for batch in batches:
        captions = [caption for image in batch["in"].values() for caption in image]
        if batch["error"] or any(LINE_BREAKS & set(caption) for caption in captions):
            continue  # there the tool mixes up captions, which is its fault and not reproduced
        compared += 1
        expected = [line for image in batch["out"].values() for line in image]
        assert [" ".join(tokens) for tokens in ptb.tokenize_call(captions)] == expected, batch["name"]
    assert compared > 10
