"""Streaming: the text of a caption as it grows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from captune.common import split_thinking
from captune.decoding.capabilities import unsupported_reason
from captune.decoding.engine import DecodingEngine
from captune.decoding.generate import as_caption, generate_ids
from captune.decoding.options import DecodingOptions, Request, StopRule, raise_if_faulty
from captune.model import MiniGPT4, MiniGPT4Processor

__all__ = ["TextStream", "stream_text"]

_MARK_BEGUN = re.compile(r"\s*[<\[◁][^\s>\]▷]{0,24}\Z")
"""A text's end that may become a mark of thinking text."""


class TextStream:
    """Turns the growing ids of one caption into pieces of text that no later token changes.

    Text that may still become the stop symbol or a mark of thinking text, the rest of a character, or a space that a
    caption does not end with is held back, and so is thinking text; the concatenated pieces are exactly the caption.

    Args:
        processor: has the vocabulary and the stop symbol.
        stops: other texts that end the caption and are not part of it.

    Attributes:
        text: the pieces so far; the caption, when it has ended.
        stopped: whether one of `stops` ended it.
    """

    def __init__(self, processor: MiniGPT4Processor, stops: Sequence[str] = ()) -> None:
        self._processor = processor
        self._symbol = processor.layout.stop_text
        self._stops = tuple(stops)
        self.text = ""
        self.stopped = False

    def push(self, ids: Sequence[int], *, ended: bool) -> str:
        """Return the new piece of text.

        Args:
            ids: all ids so far.
            ended: whether these are all.
        """
        decoded = self._processor.tokenizer.decode(self._processor.trim_at_end(ids))
        text = self._complete_text(decoded) if ended else self._stable_prefix(decoded)
        if not ended and not text.startswith(self.text):
            # The vocabulary rewrites its last words: wait.
            return ""
        piece = text[len(self.text) :]
        self.text = text
        return piece

    def _complete_text(self, decoded: str) -> str:
        text = decoded.split(self._symbol, 1)[0] if self._symbol else decoded
        if ends := [end for end in map(text.find, self._stops) if end >= 0]:
            self.stopped = True
            # As in OpenAI's API, all text before the stop sequence: a space there stays.
            return split_thinking(text[: min(ends)].lstrip()).text
        return split_thinking(self._processor.layout.text_before_stop(decoded)).text

    def _stable_prefix(self, decoded: str) -> str:
        text = decoded.rstrip("�")
        symbols = [symbol for symbol in (self._symbol, *self._stops) if symbol]
        ends = [end for end in map(text.find, symbols) if end >= 0]
        # A text may also end with the beginning of a symbol, whose rest may follow.
        for symbol in symbols:
            ends += [len(text) - length for length in range(1, len(symbol)) if text.endswith(symbol[:length])]
        text = text[: min(ends, default=len(text))].strip()
        return split_thinking(_MARK_BEGUN.sub("", text)).text.rstrip()


def stream_text(model: MiniGPT4, request: Request, options: DecodingOptions) -> Iterator[str]:
    """Decode one caption and yield its text as it grows; with beams, all of it at the end.

    Args:
        model: with its processor.
        request: prompt and features of one image.
        options: how to decode.

    Yields:
        Pieces of text; none is empty, unless the complete caption is.

    Raises:
        NonFiniteScoresError: the features or the scores are not finite.
    """
    processor = model.processor
    if processor is None:
        raise ValueError("The model has no processor; load it with from_pretrained or load_official.")
    if options.beams > 1 or unsupported_reason(model.llm, len(request.prompt) + options.max_new_tokens) is not None:
        yield as_caption(processor, generate_ids(model, [request], options)[0]).text
        return
    engine = DecodingEngine(model, options, StopRule(processor), slots=1, longest_prompt=len(request.prompt))
    engine.admit([request])
    text = TextStream(processor)
    while engine.active:
        for progress in engine.step():
            raise_if_faulty([None], {0} if progress.faulty else ())
            piece = text.push(progress.ids, ended=progress.ended)
            if piece:
                yield piece
