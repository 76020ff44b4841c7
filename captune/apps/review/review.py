"""What a review knows and does: statuses, filters, saving, undo, find and replace."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from captune.apps.review.caption_texts import CaptionTexts, Change
from captune.errors import ChangedTextError, InputError

__all__ = ["FILTERS", "Replacement", "Review", "StaleTextError"]

Status: TypeAlias = Literal["open", "edited", "accepted"]

FILTERS: Final = ("all", "open", "edited", "accepted", "empty")

_SAMPLES = 20
"""Captions that the preview of a replacement shows."""
_UNDO = 1000
"""Actions that can be undone."""


class StaleTextError(InputError):
    """A caption is not as the page last saw it; carries its current state.

    Attributes:
        detail: as `Review.detail` returns it.
    """

    def __init__(self, detail: dict[str, Any]) -> None:
        super().__init__(f"The caption of '{detail['name']}' was changed by another program meanwhile.")
        self.detail = detail


@dataclass(frozen=True)
class Replacement:
    """A find and replace over captions.

    Attributes:
        find: literal text that is searched for.
        replace: text in its place.
        match_case: whether capitals and small letters differ.
    """

    find: str
    replace: str
    match_case: bool = True

    def apply(self, text: str) -> str:
        """The text with all occurrences replaced."""
        flags = re.NOFLAG if self.match_case else re.IGNORECASE
        return re.sub(re.escape(self.find), lambda _: self.replace, text, flags=flags)


@dataclass
class _Action:
    """Something that can be undone: its changes with the statuses from before."""

    changes: list[Change]
    statuses: list[Status]
    is_typing: bool = False


class Review:
    """A review of captions; calls from several threads take turns.

    Args:
        texts: the captions.
    """

    def __init__(self, texts: CaptionTexts) -> None:
        self._texts = texts
        self._lock = threading.RLock()
        self._undo: list[_Action] = []

    def __len__(self) -> int:
        """Number of captions."""
        return len(self._texts.names)

    def image(self, number: int) -> Any:
        """The image file of a caption."""
        return self._texts.images[number]

    def items(self, status: str, search: str) -> dict[str, Any]:
        """Captions that pass a filter.

        Args:
            status: one of `FILTERS`.
            search: text that the caption or the name contains, in any case; "" is all.

        Returns:
            "items", a list of number, name and status, and "counts" of all captions by filter.
        """
        searched = search.casefold()
        counts = dict.fromkeys(FILTERS, 0)
        items = []
        with self._lock:
            for number, name in enumerate(self._texts.names):
                text = _shown(self._texts.read(number))
                statuses = ("all", self._status(number), *(("empty",) if not text else ()))
                for each in statuses:
                    counts[each] += 1
                if status in statuses and (not searched or searched in text.casefold() or searched in name.casefold()):
                    items.append((number, name, statuses[1]))
        return {"items": items, "counts": counts}

    def detail(self, number: int) -> dict[str, Any]:
        """A caption: its name, text, version, status, and the text from before all changes."""
        with self._lock:
            stored = self._texts.read(number)
            original = self._texts.original(number)
            return {
                "number": number,
                "name": self._texts.names[number],
                "text": _shown(stored),
                "version": _version(stored),
                "status": self._status(number),
                "original": None if original is None else _shown(original),
            }

    def save(self, number: int, text: str, version: str, *, accept: bool) -> dict[str, Any]:
        """Store a caption, and accept it.

        Args:
            number: of the caption.
            text: from now on.
            version: of the text that the change is based on.
            accept: whether it is accepted; otherwise a changed text is "edited".

        Returns:
            The caption as `detail` returns it; it is on the disk.

        Raises:
            StaleTextError: the stored text is another one.
        """
        with self._lock:
            before = self._texts.read(number)
            if _version(before) != version:
                raise StaleTextError(self.detail(number))
            old = self._status(number)
            text = _normalized(text)
            is_same = text == _shown(before)
            status: Status = "accepted" if accept else old if is_same else "edited"
            if is_same and status == old:
                return self.detail(number)
            after = before if is_same else self._texts.stored(text)
            change = Change(number, before, after, status)
            self._apply([change])
            self._remember(_Action([change], [old], is_typing=not accept))
            return self.detail(number)

    def undo(self) -> dict[str, Any] | None:
        """Take back the last action of this process.

        Returns:
            The caption that was changed, or the first of several; None if there is nothing to undo.

        Raises:
            StaleTextError: a text was changed since by another program.
        """
        with self._lock:
            if not self._undo:
                return None
            action = self._undo[-1]
            back = [
                Change(change.number, change.after, change.before, status)
                for change, status in zip(action.changes, action.statuses, strict=True)
            ]
            self._apply(back)
            self._undo.pop()
            return self.detail(back[0].number)

    def preview(self, replacement: Replacement, status: str, search: str) -> dict[str, Any]:
        """What a replacement would change.

        Args:
            replacement: find and replace.
            status: one of `FILTERS`.
            search: as in `items`.

        Returns:
            "count" of captions, and "samples" with name, text before and after.
        """
        changes = self._replaced(replacement, status, search)
        samples = [
            {"name": self._texts.names[change.number], "before": _shown(change.before), "after": _shown(change.after)}
            for change in changes[:_SAMPLES]
        ]
        return {"count": len(changes), "samples": samples}

    def replace(self, replacement: Replacement, status: str, search: str, expected: int) -> int:
        """Replace in all captions that pass a filter; one action for `undo`.

        Args:
            replacement: find and replace.
            status: one of `FILTERS`.
            search: as in `items`.
            expected: number of captions of the preview.

        Returns:
            Number of captions.

        Raises:
            InputError: it would be another number of captions than in the preview.
        """
        with self._lock:
            changes = self._replaced(replacement, status, search)
            if len(changes) != expected:
                raise InputError(
                    f"{len(changes):,} captions match now, and the preview showed {expected:,}; look again."
                )
            if changes:
                statuses = [self._status(change.number) for change in changes]
                self._apply(changes)
                self._remember(_Action(changes, statuses))
            return len(changes)

    def _replaced(self, replacement: Replacement, status: str, search: str) -> list[Change]:
        if not replacement.find:
            return []
        changes = []
        with self._lock:
            for number, _, _ in self.items(status, search)["items"]:
                before = self._texts.read(number)
                text = _shown(before)
                after = replacement.apply(text)
                if after != text:
                    changes.append(Change(number, before, self._texts.stored(_normalized(after)), "edited"))
        return changes

    def _status(self, number: int) -> Status:
        """The recorded status, if the text is still the one that it was recorded for."""
        last = self._texts.last(number)
        if last is None or last.status not in ("edited", "accepted") or last.after != self._texts.read(number):
            return "open"
        return "edited" if last.status == "edited" else "accepted"

    def _apply(self, changes: list[Change]) -> None:
        try:
            self._texts.apply(changes)
        except ChangedTextError as error:
            stale = next((each for each in changes if self._texts.read(each.number) != each.before), changes[0])
            raise StaleTextError(self.detail(stale.number)) from error

    def _remember(self, action: _Action) -> None:
        """Add an action to undo; typing in one caption is one action."""
        last = self._undo[-1] if self._undo else None
        if action.is_typing and last is not None and last.is_typing:
            mine, other = action.changes[0], last.changes[0]
            if mine.number == other.number and mine.before == other.after:
                last.changes = [Change(mine.number, other.before, mine.after, mine.status)]
                return
        self._undo.append(action)
        del self._undo[:-_UNDO]


def _shown(stored: str | None) -> str:
    """A stored text as the page shows it."""
    text = (stored or "").removeprefix("\ufeff").replace("\r\n", "\n").strip()
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)


def _normalized(text: str) -> str:
    """A text from the page."""
    return text.replace("\r\n", "\n").replace("\0", "").strip().encode("utf-8", "replace").decode()


def _version(stored: str | None) -> str:
    if stored is None:
        return "none"
    return hashlib.sha256(stored.encode("utf-8", "surrogatepass")).hexdigest()[:16]
