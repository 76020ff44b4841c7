"""Text to token ids and back, the way the language model learnt them.

The original code tokenises every piece of a prompt by itself with the slow LLaMA tokenizer of transformers 4.30:
text between special tokens goes to SentencePiece, which puts its "▁" before each stretch. Newer releases of
transformers drop that "▁" after a special token, so a LLaMA vocabulary is read by SentencePiece directly here;
every other vocabulary goes through transformers' own tokenizer.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from captune.errors import MissingExtraError, WeightsError
from captune.parsing import load_json
from captune.weights.pointers import refuse_pointer, refuse_pointers

__all__ = ["HuggingFaceTokenizer", "SentencePieceTokenizer", "Tokenizer", "load_tokenizer", "transformers_tokenizer"]

SENTENCEPIECE_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
SENTENCEPIECE_FILES = (
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


class Tokenizer(Protocol):
    """What a prompt layout needs of a vocabulary."""

    bos_id: int | None
    eos_id: int | None
    vocabulary_size: int

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added before or after."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens left out."""

    def piece_id(self, piece: str) -> int | None:
        """Id of one piece of the vocabulary, or None where there is no such piece."""

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` reads."""


class SentencePieceTokenizer:
    """A LLaMA vocabulary (`tokenizer.model`), equal to the slow tokenizer of transformers 4.30.

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
        special |= _added_tokens(folder)
        self._special = special
        self._special_ids = frozenset(special.values())
        # Longest first, so that a token that begins with another one wins.
        names = sorted(special, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        self.bos_id: int | None = self._pieces.bos_id() if self._pieces.bos_id() >= 0 else None
        self.eos_id: int | None = self._pieces.eos_id() if self._pieces.eos_id() >= 0 else None
        self.vocabulary_size = max([len(self._pieces) - 1, *special.values()]) + 1

    def _is_special(self, token: int) -> bool:
        return bool(self._pieces.is_control(token) or self._pieces.is_unknown(token))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; each stretch between special tokens starts with "▁"."""
        ids: list[int] = []
        for stretch in self._split.split(text) if self._split else [text]:
            if stretch in self._special:
                ids.append(self._special[stretch])
            elif stretch:
                # A lone surrogate has no UTF-8 form; SentencePiece would refuse the whole text for it.
                ids.extend(self._pieces.encode(stretch.encode("utf-8", "replace").decode("utf-8")))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens left out."""
        known = len(self._pieces)
        kept = [int(i) for i in ids if int(i) not in self._special_ids and 0 <= int(i) < known]
        return str(self._pieces.decode(kept))

    def piece_id(self, piece: str) -> int | None:
        """Id of one piece of the vocabulary, or None where there is no such piece."""
        found = int(self._special.get(piece, self._pieces.piece_to_id(piece)))
        return None if found == self._pieces.unk_id() else found

    def save(self, folder: Path) -> None:
        """Copy the vocabulary's files into `folder`."""
        for name in SENTENCEPIECE_FILES:
            source = self._folder / name
            if source.is_file() and source.resolve() != (folder / name).resolve():
                shutil.copyfile(source, folder / name)


class HuggingFaceTokenizer:
    """Any other vocabulary, through transformers' tokenizer.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.vocabulary_size = len(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added before or after."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens left out."""
        kept: Sequence[int] = [int(i) for i in ids]
        return str(self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def piece_id(self, piece: str) -> int | None:
        """Id of one piece of the vocabulary, or None where there is no such piece."""
        found: int | None = self._tokenizer.get_vocab().get(piece)
        return found

    def save(self, folder: Path) -> None:
        """Write the vocabulary's files into `folder`."""
        self._tokenizer.save_pretrained(folder)


def load_tokenizer(folder: str | Path, **hub_options: Any) -> Tokenizer:
    """Read the vocabulary of a language model.

    Args:
        folder: a folder with tokenizer files, or a hub id.
        hub_options: `revision`, `token`, `cache_dir`, ... for a hub id.

    Returns:
        The tokenizer that gives the ids the original code gives.

    Raises:
        WeightsError: no vocabulary is found there, or it cannot be read.
    """
    path = Path(folder)
    refuse_pointers(path)
    if path.is_dir() and (path / "tokenizer.model").is_file():
        config = path / "tokenizer_config.json"
        settings = load_json(config.read_text(encoding="utf-8")) if config.is_file() else {}
        if settings.get("tokenizer_class", SENTENCEPIECE_CLASSES[0]) in SENTENCEPIECE_CLASSES:
            return SentencePieceTokenizer(path)
    # `legacy` matters to LLaMA vocabularies that come as tokenizer.json alone; others ignore it.
    return HuggingFaceTokenizer(transformers_tokenizer(folder, legacy=True, **hub_options))


def transformers_tokenizer(folder: str | Path, **options: Any) -> Any:
    """Read a vocabulary as a `PreTrainedTokenizerBase`.

    Args:
        folder: a folder with tokenizer files, or a hub id.
        options: of transformers' `from_pretrained`.

    Raises:
        WeightsError: no vocabulary is found there, or it cannot be read.
    """
    from transformers import AutoTokenizer

    refuse_pointers(folder)
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, **options)
    except ImportError:
        raise
    except Exception as error:  # on broken files the tokenizers' library raises a bare Exception
        if (Path(folder) / "tokenizer.json").is_file():
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(f"The tokenizer in {folder} is broken: {reason}; copy it again.") from error
        raise WeightsError(
            f"No tokenizer was found in {folder}; expected tokenizer.model or tokenizer.json next to the weights."
        ) from error


def _added_tokens(folder: Path) -> dict[str, int]:
    """Tokens that were added to the vocabulary after it was trained, such as Vicuna's `<pad>`."""
    added: dict[str, int] = {}
    listed = folder / "added_tokens.json"
    if listed.is_file():
        added |= {str(token): int(i) for token, i in load_json(listed.read_text(encoding="utf-8")).items()}
    config = folder / "tokenizer_config.json"
    if config.is_file():
        decoder = load_json(config.read_text(encoding="utf-8")).get("added_tokens_decoder", {})
        added |= {str(entry["content"]): int(i) for i, entry in decoder.items() if entry.get("special", False)}
    return added
