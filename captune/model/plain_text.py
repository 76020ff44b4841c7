"""Text that spells out a special token, tokenized as text.

Tokenizers find special tokens wherever a text holds them. Here they are given other names, which no text holds: the
special tokens that a template means are written by these names, and the same words in a caption are only words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from tokenizers import Tokenizer

__all__ = ["PlainVocabulary"]


class PlainVocabulary:
    """A copy of a vocabulary whose special tokens have other names.

    Args:
        library: a `PreTrainedTokenizerBase`.
        control: special and added tokens with their ids.
    """

    def __init__(self, library: Any, control: Mapping[str, int]) -> None:
        self._library = library
        self._control = control
        key = uuid4().hex
        self._names = {token: f"\ue000{key}x{number}\ue001" for number, token in enumerate(control)}
        backend = getattr(library, "backend_tokenizer", None)
        self._renamed = None if backend is None else _renamed(backend, self._names)
        self._ids = {}
        if self._renamed is not None:
            self._ids = {self._renamed.token_to_id(name): control[token] for token, name in self._names.items()}

    def encode(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        """Token ids of pieces of one text, each with whether it is a special token."""
        if self._renamed is None:
            return self._piece_by_piece(pieces)
        text = "".join(self._names[piece] if special else piece for piece, special in pieces)
        return [self._ids.get(i, i) for i in self._renamed.encode(text, add_special_tokens=False).ids]

    def _piece_by_piece(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        """For a tokenizer written in Python, which can be told to read no special tokens."""
        ids: list[int] = []
        for piece, special in pieces:
            if special:
                ids.append(self._control[piece])
            else:
                ids += self._library.encode(piece, add_special_tokens=False, split_special_tokens=True)
        return ids


def _renamed(backend: Any, names: Mapping[str, str]) -> Tokenizer:
    """A tokenizer with other names for some tokens; what else it does is the same."""
    settings = json.loads(backend.to_str())
    for added in settings["added_tokens"]:
        added["content"] = names.get(added["content"], added["content"])
    model = settings["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): i for token, i in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
        # A token that merges build from a text cannot be named otherwise; without them it is not built.
        model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & names.keys()]
    settings |= {"post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(settings))
