"""Text to token ids and back.

The original code tokenizes every piece of a prompt separately with the slow LLaMA tokenizer of transformers 4.30, which
passes each text between special tokens to SentencePiece and thereby puts "▁" before it. Newer releases of transformers
omit that "▁" after a special token, so models of the original use SentencePiece directly. All other vocabularies, and
models with a chat template, use the tokenizer of transformers.

Special tokens are parsed in the template of a prompt only: "</s>" in a caption or an instruction is tokenized as these
four characters.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from tokenizers import Tokenizer as FastTokenizer

from captune.common import decode_marks, error_text, special_marks
from captune.errors import MissingExtraError, WeightsError
from captune.parsing import load_json
from captune.weights import refuse_pointer, refuse_pointers

__all__ = [
    "HuggingFaceTokenizer",
    "PlainText",
    "PlainVocabulary",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "transformers_tokenizer",
]


# Plain text that contains the characters of a special token.


class PlainVocabulary:
    """A copy of a tokenizer whose special tokens have other names, so that no text contains them.

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
        """For tokenizers written in Python, which have `split_special_tokens`."""
        ids: list[int] = []
        for piece, special in pieces:
            if special:
                ids.append(self._control[piece])
            else:
                ids += self._library.encode(piece, add_special_tokens=False, split_special_tokens=True)
        return ids


def _renamed(backend: Any, names: Mapping[str, str]) -> FastTokenizer:
    """A copy of a tokenizer with other names for some tokens."""
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
        # Without its merges a renamed token is not built from characters.
        model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & names.keys()]
    settings |= {"post_processor": None, "truncation": None, "padding": None}
    return FastTokenizer.from_str(json.dumps(settings))


SENTENCEPIECE_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
SENTENCEPIECE_FILES = (
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class PlainText(str):
    """Text in which special tokens are not parsed: an instruction or a caption."""

    __slots__ = ()


class Tokenizer(Protocol):
    """The interface of a tokenizer for the prompt layout."""

    bos_id: int | None
    eos_id: int | None
    vocabulary_size: int

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS and EOS; special tokens are parsed."""

    def encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """Token ids of pieces of one text; special tokens are not parsed in `PlainText` pieces."""

    def find_special_token(self, text: str) -> str | None:
        """A special or added token that the text contains, or None."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, without special tokens."""

    def piece_id(self, piece: str) -> int | None:
        """Id of a piece of the vocabulary, or None if there is none."""

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` reads."""


class SentencePieceTokenizer:
    """A LLaMA tokenizer (`tokenizer.model`), equal to the slow tokenizer of transformers 4.30.

    Args:
        folder: holds `tokenizer.model` and, when present, `tokenizer_config.json` and `added_tokens.json`.

    Raises:
        WeightsError: the vocabulary file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise MissingExtraError("Reading a LLaMA vocabulary", "train") from error
        self._folder = folder
        path = folder / "tokenizer.model"
        refuse_pointer(path)
        try:
            self._pieces: Any = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"{path} is not a SentencePiece vocabulary; copy it again from its source.") from error
        special = {self._pieces.id_to_piece(i): i for i in range(len(self._pieces)) if self._is_special(i)}
        added = _added_tokens(folder)
        special |= {text: token.id for text, token in added.items()}
        self._special = special
        self._added = added
        # Added tokens that are not special are decoded as text.
        self._added_texts = {token.id: text for text, token in added.items() if not token.special}
        self._special_ids = frozenset(set(special.values()) - set(self._added_texts))
        # Longest first, so that a token wins over its prefixes.
        names = sorted(special, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        self.bos_id: int | None = self._pieces.bos_id() if self._pieces.bos_id() >= 0 else None
        self.eos_id: int | None = self._pieces.eos_id() if self._pieces.eos_id() >= 0 else None
        self.vocabulary_size = max([len(self._pieces) - 1, *special.values()]) + 1

    def _is_special(self, token: int) -> bool:
        return bool(self._pieces.is_control(token) or self._pieces.is_unknown(token))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; each text between special tokens starts with "▁"."""
        return self.encode_pieces([text])

    def encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """Token ids of pieces of one text; special tokens are not parsed in `PlainText` pieces."""
        stretches: list[str | int] = [""]
        for piece in pieces:
            split = [piece] if isinstance(piece, PlainText) or not self._split else self._split.split(piece)
            for number, part in enumerate(split):
                if number % 2:
                    self._put_special(stretches, part)
                elif self._strips(stretches):
                    stretches[-1] = part.lstrip()
                else:
                    stretches[-1] = f"{stretches[-1]}{part}"
        ids: list[int] = []
        for stretch in stretches:
            if isinstance(stretch, int):
                ids.append(stretch)
            elif stretch:
                # A lone surrogate has no UTF-8 form; SentencePiece would refuse the whole text for it.
                ids.extend(self._pieces.encode(stretch.encode("utf-8", "replace").decode("utf-8")))
        return ids

    def _put_special(self, stretches: list[str | int], token: str) -> None:
        added = self._added.get(token)
        if added is not None and added.lstrip:
            stretches[-1] = str(stretches[-1]).rstrip()
        stretches += [self._special[token], ""]

    def _strips(self, stretches: list[str | int]) -> bool:
        """Whether the previous token removes white space from the start of the next text."""
        if len(stretches) < 2 or stretches[-1] != "":
            return False
        return any(token.rstrip and token.id == stretches[-2] for token in self._added.values())

    def find_special_token(self, text: str) -> str | None:
        """A special or added token that the text contains, or None."""
        match = None if self._split is None else self._split.search(text)
        return None if match is None else match[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, without special tokens."""
        known = len(self._pieces)
        kept = [
            int(i)
            for i in ids
            if int(i) not in self._special_ids and (0 <= int(i) < known or int(i) in self._added_texts)
        ]
        if not any(i in self._added_texts for i in kept):
            return str(self._pieces.decode(kept))
        text, stretch = "", list[int]()
        for token in [*kept, None]:
            if token is None or token in self._added_texts:
                text += str(self._pieces.decode(stretch)) + ("" if token is None else self._added_texts[token])
                stretch = []
            else:
                stretch.append(token)
        return text

    def piece_id(self, piece: str) -> int | None:
        """Id of a piece of the vocabulary, or None if there is none."""
        match = int(self._special.get(piece, self._pieces.piece_to_id(piece)))
        return None if match == self._pieces.unk_id() else match

    def save(self, folder: Path) -> None:
        """Copy the vocabulary's files into `folder`."""
        for name in SENTENCEPIECE_FILES:
            source = self._folder / name
            if source.is_file() and source.resolve() != (folder / name).resolve():
                shutil.copyfile(source, folder / name)


class HuggingFaceTokenizer:
    """A tokenizer of transformers, for any other vocabulary.

    Args:
        library: a `PreTrainedTokenizerBase`.
    """

    def __init__(self, library: Any) -> None:
        self._tokenizer = library
        self.bos_id: int | None = library.bos_token_id
        self.eos_id: int | None = library.eos_token_id
        self._marks = special_marks(library)
        self.vocabulary_size = max([len(library) - 1, *library.added_tokens_decoder]) + 1
        # White space among added tokens (Gemma's line breaks) is part of ordinary texts, and so are SentencePiece's
        # bytes; all other added tokens count as special tokens.
        self._control = {
            str(token): int(i)
            for i, token in library.added_tokens_decoder.items()
            if not str(token).isspace() and not _BYTE.fullmatch(str(token))
        }
        self._control_ids = frozenset(self._control.values())
        names = sorted(self._control, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        self._controls_in = lru_cache(maxsize=64)(self._count_controls)

    @property
    def library(self) -> Any:
        """The tokenizer of transformers."""
        return self._tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS and EOS."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """Token ids of pieces of one text; special tokens are not parsed in `PlainText` pieces."""
        ids = self.encode("".join(pieces))
        meant = sum(self._controls_in(piece) for piece in pieces if not isinstance(piece, PlainText))
        if sum(i in self._control_ids for i in ids) == meant:
            return ids
        return self._plain.encode(self._marked(pieces))

    def _count_controls(self, text: str) -> int:
        return sum(i in self._control_ids for i in self.encode(text))

    def _marked(self, pieces: Sequence[str]) -> list[tuple[str, bool]]:
        """The pieces, split into special tokens and text."""
        cut: list[tuple[str, bool]] = []
        for piece in pieces:
            parts = [str(piece)] if isinstance(piece, PlainText) or not self._split else self._split.split(piece)
            cut += [(part, bool(number % 2)) for number, part in enumerate(parts) if part]
        return cut

    @cached_property
    def _plain(self) -> PlainVocabulary:
        return PlainVocabulary(self._tokenizer, self._control)

    def find_special_token(self, text: str) -> str | None:
        """A special or added token that the text contains, or None."""
        match = None if self._split is None else self._split.search(text)
        return None if match is None else match[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, without special tokens other than marks of thinking text."""

        def decode(kept: list[int]) -> str:
            return str(self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

        return decode_marks([int(i) for i in ids], self._marks, decode)

    def piece_id(self, piece: str) -> int | None:
        """Id of a piece of the vocabulary, or None if there is none."""
        match: int | None = self._tokenizer.get_vocab().get(piece)
        return match

    def save(self, folder: Path) -> None:
        """Write the vocabulary's files into `folder`."""
        self._tokenizer.save_pretrained(folder)


def load_tokenizer(folder: str | Path, *, library: bool = False, **hub_options: Any) -> Tokenizer:
    """Load the tokenizer of a language model.

    Args:
        folder: a folder with tokenizer files, or a hub id.
        library: use the tokenizer of transformers for a LLaMA vocabulary, too.
        hub_options: `revision`, `token`, `cache_dir`, ... for a hub id.

    Returns:
        A tokenizer with the ids of the original code, or with those of transformers.

    Raises:
        WeightsError: there is no tokenizer, or it cannot be read.
    """
    path = Path(folder)
    refuse_pointers(path)
    if not library and path.is_dir() and (path / "tokenizer.model").is_file():
        config = path / "tokenizer_config.json"
        settings = load_json(config.read_text(encoding="utf-8")) if config.is_file() else {}
        if settings.get("tokenizer_class", SENTENCEPIECE_CLASSES[0]) in SENTENCEPIECE_CLASSES:
            return SentencePieceTokenizer(path)
    # `legacy` affects LLaMA vocabularies without tokenizer.model; others ignore it.
    legacy = {} if library else {"legacy": True}
    return HuggingFaceTokenizer(transformers_tokenizer(folder, **legacy, **hub_options))


def transformers_tokenizer(folder: str | Path, **options: Any) -> Any:
    """Load a tokenizer as a `PreTrainedTokenizerBase`.

    Args:
        folder: a folder with tokenizer files, or a hub id.
        options: of transformers' `from_pretrained`.

    Raises:
        WeightsError: there is no tokenizer, or it cannot be read.
    """
    from transformers import AutoTokenizer

    refuse_pointers(folder)
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, **options)
    except ImportError:
        raise
    except Exception as error:  # on broken files the tokenizers' library raises a bare Exception
        if (Path(folder) / "tokenizer.json").is_file():
            reason = error_text(error)
            raise WeightsError(f"The tokenizer in {folder} is broken: {reason}; copy it again.") from error
        raise WeightsError(
            f"No tokenizer was found in {folder}; expected tokenizer.model or tokenizer.json next to the weights."
        ) from error


class _Added:
    """A token that was added to the vocabulary after it was trained, such as Vicuna's `<pad>`.

    Args:
        number: its id.
        settings: of `added_tokens_decoder`.
    """

    def __init__(self, number: int, settings: dict[str, Any]) -> None:
        self.id = number
        self.special = bool(settings.get("special", False))
        self.lstrip = bool(settings.get("lstrip", False))
        self.rstrip = bool(settings.get("rstrip", False))


def _added_tokens(folder: Path) -> dict[str, _Added]:
    """Tokens that were added to the vocabulary after it was trained."""
    added: dict[str, _Added] = {}
    listed = folder / "added_tokens.json"
    if listed.is_file():
        tokens = load_json(listed.read_text(encoding="utf-8"))
        added |= {str(token): _Added(int(i), {"special": True}) for token, i in tokens.items()}
    config = folder / "tokenizer_config.json"
    if config.is_file():
        decoder = load_json(config.read_text(encoding="utf-8")).get("added_tokens_decoder", {})
        added |= {str(entry["content"]): _Added(int(i), entry) for i, entry in decoder.items()}
    return added
