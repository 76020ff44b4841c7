"""Where an answer ends, told from its ids.

The stop symbol is text, not a token: a vocabulary may spell it in several ways, and a token may hold its end and more.
Decoding the tail of every row after each step would be sure and slow. A token whose own text neither holds the symbol
nor begins with the rest of it cannot complete it, so rows are decoded behind the few other tokens only; what a token
can do is found out once, when it is first said.
"""

from __future__ import annotations

from collections.abc import Sequence

from captune.model import MiniGPT4Processor

__all__ = ["StopRule"]

_BROKEN = "�"


class StopRule:
    """Tells when a row of new ids has ended.

    Args:
        processor: knows the stop symbol and the vocabulary.
        symbol: whether the stop symbol ends a row; without it, only the end of text does.
        also: other texts that end a row, such as the stop sequences of a request.
    """

    def __init__(self, processor: MiniGPT4Processor, *, symbol: bool = True, also: Sequence[str] = ()) -> None:
        self._tokenizer = processor.tokenizer
        own = processor.layout.stop_text if symbol else ""
        self._symbols = tuple(filter(None, (own, *also)))
        self.end_ids = frozenset(processor.end_ids)
        # However a symbol is cut into tokens, it has no more of them than bytes; one token more keeps the space that
        # a vocabulary leaves out at the start of a text.
        self._tail = max((len(text.encode()) for text in self._symbols), default=0)
        self._anchor = self._tokenizer.encode("a")[-1:]
        self._anchor_text = self._tokenizer.decode(self._anchor)
        self._completes: dict[int, bool] = {}

    def ended(self, ids: Sequence[int], newest: int) -> bool:
        """Whether `newest`, said behind `ids`, ends the row."""
        if newest in self.end_ids:
            return True
        if not self._symbols or not self._may_complete(newest):
            return False
        text = self._tokenizer.decode([*ids[-self._tail :], newest])
        return any(symbol in text for symbol in self._symbols)

    def _may_complete(self, token: int) -> bool:
        known = self._completes.get(token)
        if known is None:
            known = self._completes[token] = self._look(token)
        return known

    def _look(self, token: int) -> bool:
        text = self._tokenizer.decode([*self._anchor, token])
        if not text.startswith(self._anchor_text) or _BROKEN in text:
            # A piece of a character, or a vocabulary whose texts do not simply follow each other.
            return True
        text = text[len(self._anchor_text) :]
        rests = tuple(symbol[place:] for symbol in self._symbols for place in range(1, len(symbol)))
        return any(symbol in text for symbol in self._symbols) or text.startswith(rests)
