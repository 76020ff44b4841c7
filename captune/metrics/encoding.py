"""Encode captions as integers: every token and every word has a number, so that all later work is vectorized.

C captions, T tokens, W words. A *token* is what the tokenizer returns and what ROUGE-L compares; a *word* is what
`str.split` makes of the tokenized caption and what BLEU and CIDEr count. The two differ only where a token holds
white space itself (the tokenizer's no-break space of "1 1/2") or is empty.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import accumulate, chain, islice
from typing import TYPE_CHECKING

import numpy as np

from captune.metrics.parallel import can_fork, run_in_fork, split_ranges
from captune.metrics.string_hash_table import NEEDS_CONTEXT, ChunkCodes, ChunkTable
from captune.metrics.tokenizers import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Encoder", "Rows", "encode_in_processes"]

_BATCH = 4096
# Below this number for each, a process takes longer to start and stop than it saves.
_FEWEST_CAPTIONS = 25_000
_MOST_CACHED_CHUNKS = 1 << 20

_LINE_BREAKS = "\v\f\r\u2028\u2029"

# The code of no tokens; the one before it is NEEDS_CONTEXT.
_NO_TOKENS = 1


class Rows:
    """Sequences of unequal length, one after the other in one array.

    Attributes:
        values: (T,) int32, all sequences on end.
        offsets: (C + 1,) int64; sequence c is `values[offsets[c]:offsets[c + 1]]`.
    """

    __slots__ = ("offsets", "values")

    def __init__(self, values: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
        self.values = values
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(C,) int64, how long each sequence is."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> NDArray[np.int64]:
        """(T,) int64, the sequence that each value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def row(self, index: int) -> NDArray[np.int32]:
        """One sequence."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def part(self, start: int, end: int) -> Rows:
        """The rows from `start` to before `end`, without a copy of their values."""
        offsets = self.offsets[start : end + 1]
        return Rows(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def take(self, indices: Sequence[int]) -> Rows:
        """The rows of these indices, in their order."""
        parts = [self.values[self.offsets[index] : self.offsets[index + 1]] for index in indices]
        return _rows(parts, [np.array([len(part) for part in parts], np.int64)])


class Encoder:
    """Turns captions into rows of token numbers, with one vocabulary for references and all predictions.

    Most chunks between white space have the same tokens in every caption, so each such chunk is tokenized once and
    looked up afterwards. A caption with any other chunk is tokenized as a unit.

    Args:
        tokenizer: splits captions into tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._token_ids: dict[str, int] = {"": 0}
        self._words_of_token: dict[int, tuple[int, ...]] = {0: ()}
        self._clear_cache()

    @property
    def vocabulary_size(self) -> int:
        """How many numbers are assigned so far."""
        return len(self._token_ids)

    @property
    def vocabulary(self) -> list[str]:
        """The tokens in the order of their numbers."""
        return list(self._token_ids)

    def token_id(self, token: str) -> int:
        """The number of a token, a new one if it has none."""
        known = self._token_ids.get(token)
        if known is not None:
            return known
        number = self._token_ids[token] = len(self._token_ids)
        if not token.isalpha() and (words := token.split()) != [token]:
            self._words_of_token[number] = tuple(map(self.token_id, words))
        return number

    def _new_code(self, tokens: Sequence[str]) -> int:
        for token in tokens:
            self._code_tokens.append(self.token_id(token))
        self._code_start.append(len(self._code_tokens))
        return len(self._code_start) - 2

    def encode(self, captions: Iterable[str]) -> Rows:
        """Encode captions one by one, so that no caption's tokens depend on another's.

        Args:
            captions: C captions; consumed in batches.

        Returns:
            Token numbers; a caption without tokens is an empty row.
        """
        iterator = iter(captions)
        values: list[NDArray[np.int32]] = []
        lengths: list[NDArray[np.int64]] = []
        while batch := list(islice(iterator, _BATCH)):
            if self.tokenizer.chunk_tokens is None:
                tokens, counts = self._number(map(self.tokenizer.tokenize, batch))
            else:
                tokens, counts = self._encode_by_chunk(batch, lambda index: self.tokenizer.tokenize(batch[index]))
            values.append(tokens)
            lengths.append(counts)
        return _rows(values, lengths)

    def encode_call(self, captions: Sequence[str], after: Sequence[str] = ()) -> Rows:
        """Encode the captions of one call of the original tool, which reads past the end of a caption into the next.

        Args:
            captions: C captions.
            after: those that follow in the call, to the first that is not blank at least.

        Returns:
            Token numbers, as `encode`; the same as `encode` for tokenizers without this fault.
        """
        tokenize_call = self.tokenizer.tokenize_call
        if tokenize_call is None:
            return self.encode(captions)
        if self.tokenizer.chunk_tokens is None or self.breaks_lines(captions):
            values, lengths = self._number(tokenize_call([*captions, *after])[: len(captions)])
            return _rows([values], [lengths])
        lines = [*captions, *after] if after else captions
        parts = []
        for start in range(0, len(captions), _BATCH):
            # With the next line, which the tool reads too.
            def in_call(index: int, start: int = start) -> Sequence[str]:
                return tokenize_call(_through_next_line(lines, start + index))[0]

            parts.append(self._encode_by_chunk(captions[start : start + _BATCH], in_call))
        return _rows([part[0] for part in parts], [part[1] for part in parts])

    def breaks_lines(self, captions: Sequence[str]) -> bool:
        """Whether some caption has a line break inside, of which the tokenizer warns when it gets the complete call."""
        texts = ("".join(captions[start : start + _BATCH]) for start in range(0, len(captions), _BATCH))
        return any(mark in text for text in texts for mark in _LINE_BREAKS)

    def _number(self, tokenized: Iterable[Sequence[str]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        numbers: list[int] = []
        lengths: list[int] = []
        for tokens in tokenized:
            # One empty token is how str.split shows an empty caption.
            kept = () if list(tokens) == [""] else tokens
            numbers.extend(map(self.token_id, kept))
            lengths.append(len(kept))
        return np.array(numbers, np.int32), np.array(lengths, np.int64)

    def _encode_by_chunk(
        self, batch: Sequence[str], in_context: Callable[[int], Sequence[str]]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Numbers and lengths of a batch; `in_context` tokenizes a caption that cannot be tokenized by chunk."""
        codes, chunk_counts = self._codes(batch)
        chunk_offsets = np.zeros(len(batch) + 1, np.int64)
        np.cumsum(chunk_counts, out=chunk_offsets[1:])
        kept_codes, kept_tokens = len(self._code_start), len(self._code_tokens)
        unclear = np.flatnonzero(codes == NEEDS_CONTEXT)
        if len(unclear):
            # All tokens of the caption go to its first chunk, none to the others.
            for caption in dict.fromkeys((np.searchsorted(chunk_offsets, unclear, side="right") - 1).tolist()):
                first, end = chunk_offsets[caption], chunk_offsets[caption + 1]
                codes[first:end] = _NO_TOKENS
                codes[first] = self._new_code(in_context(caption))
        # The arrays cannot grow while numpy looks into them, which it does inside this call only.
        tokens, counts = _expand(codes, np.frombuffer(self._code_start, np.int64), _view(self._code_tokens))
        del self._code_start[kept_codes:], self._code_tokens[kept_tokens:]
        if len(self._chunks) > _MOST_CACHED_CHUNKS:
            self._clear_cache()
        token_offsets = np.zeros(len(codes) + 1, np.int64)
        np.cumsum(counts, out=token_offsets[1:])
        return tokens, np.diff(token_offsets[chunk_offsets])

    def _codes(self, batch: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The codes of a batch's chunks, and the number of chunks in each caption."""
        separator = self.tokenizer.separator
        if separator is None and (looked_up := self._table.codes(batch)) is not None:
            return looked_up
        split = [caption.split(separator) for caption in batch]
        chunk_counts = np.fromiter(map(len, split), np.int64, len(split))
        total = int(chunk_counts.sum())
        return np.fromiter(map(self._chunks.__getitem__, chain.from_iterable(split)), np.int32, total), chunk_counts

    def _clear_cache(self) -> None:
        """Start with an empty cache; repeated when it is full, so that new chunks do not fill the memory."""
        self._chunks = ChunkCodes(self.tokenizer.chunk_tokens or _in_context, self._new_code)
        self._table = ChunkTable(self._chunks.code_in_ascii)
        # Code k has the tokens _code_tokens[_code_start[k]:_code_start[k + 1]].
        self._code_start = array("q", [0, 0, 0])
        self._code_tokens = array("i")

    def words(self, tokens: Rows) -> Rows:
        """The words of encoded captions: the same rows, unless some token is not exactly one word."""
        special = np.zeros(self.vocabulary_size, np.bool_)
        special[list(self._words_of_token)] = True
        hits = np.flatnonzero(special.take(tokens.values))
        if not len(hits):
            return tokens
        word_lists = [self._words_of_token[token] for token in tokens.values[hits].tolist()]
        between = np.split(tokens.values, hits)
        # After the words that replace a special token come the tokens that follow it.
        pieces = [(np.array(words, np.int32), rest[1:]) for words, rest in zip(word_lists, between[1:], strict=True)]
        added = np.zeros(len(hits) + 1, np.int64)
        np.cumsum([len(words) - 1 for words in word_lists], out=added[1:])
        offsets = tokens.offsets + added[np.searchsorted(hits, tokens.offsets)]
        return Rows(np.concatenate([between[0], *chain.from_iterable(pieces)]), offsets)


def _through_next_line(lines: Sequence[str], index: int) -> Sequence[str]:
    """A line with the following ones, through the next that is not blank."""
    end = index + 1
    while end < len(lines) and not lines[end].strip():
        end += 1
    return lines[index : end + 1]


def encode_in_processes(encoder: Encoder, captions: Sequence[str], jobs: int, per_call: bool = False) -> Rows:
    """Encode captions; the rows equal those of `encoder.encode` or `encoder.encode_call` up to the numbering.

    Each process encodes a part of the captions, and the parts' new numbers become one numbering.

    Args:
        encoder: gives the numbers.
        captions: C captions.
        jobs: how many processes, this one included; fewer are used for few captions.
        per_call: whether tokens depend on the next caption, as in `encoder.encode_call`.

    Raises:
        ExternalToolError: a process failed.
    """
    jobs = min(jobs, len(captions) // _FEWEST_CAPTIONS)
    if jobs <= 1 or not can_fork() or (per_call and encoder.breaks_lines(captions)):
        return encoder.encode_call(captions) if per_call else encoder.encode(captions)
    first, *others = split_ranges(len(captions), jobs)

    def encode(start: int, end: int) -> Rows:
        part = captions[start:end]
        return encoder.encode_call(part, _following(captions, end)) if per_call else encoder.encode(part)

    # A fork knows what this encoder knows now, and numbers what is new to it from here on.
    known = encoder.vocabulary_size

    def encode_in_fork(start: int, end: int) -> tuple[list[str], Rows]:
        rows = encode(start, end)
        return encoder.vocabulary[known:], rows

    with ExitStack() as processes:
        answers = [processes.enter_context(run_in_fork(partial(encode_in_fork, *share))) for share in others]
        parts = [encode(*first)]
        for answer in answers:
            vocabulary, rows = answer()
            new = np.fromiter(map(encoder.token_id, vocabulary), np.int32, len(vocabulary))
            numbers = np.concatenate([np.arange(known, dtype=np.int32), new])
            parts.append(Rows(numbers.take(rows.values), rows.offsets))
    ends = accumulate(len(part.values) for part in parts[:-1])
    offsets = [parts[0].offsets, *(part.offsets[1:] + end for part, end in zip(parts[1:], ends, strict=True))]
    return Rows(np.concatenate([part.values for part in parts]), np.concatenate(offsets))


def _following(captions: Sequence[str], end: int) -> Sequence[str]:
    """The captions from `end` to the first that is not blank."""
    last = end
    while last < len(captions) and not captions[last].strip():
        last += 1
    return captions[end : last + 1]


def _in_context(chunk: str) -> None:
    """For a tokenizer without chunks: no chunk has tokens by itself."""


def _expand(
    codes: NDArray[np.int32], starts: NDArray[np.int64], table: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Replace each code by its tokens; also returns how many tokens each code had."""
    begin = starts.take(codes)
    counts = np.diff(starts).take(codes)
    if counts.max(initial=0) <= 1:
        return table.take(begin[counts == 1]), counts
    places = np.repeat(begin - (np.cumsum(counts) - counts), counts)
    places += np.arange(len(places))
    return table.take(places), counts


def _view(numbers: array[int]) -> NDArray[np.int32]:
    return np.frombuffer(numbers, np.int32) if numbers else np.zeros(0, np.int32)


def _rows(values: list[NDArray[np.int32]], lengths: list[NDArray[np.int64]]) -> Rows:
    counts = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return Rows(np.concatenate(values) if values else np.zeros(0, np.int32), offsets)
