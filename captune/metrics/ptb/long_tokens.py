"""Tokens that reach far: addresses, links, tags, lists joined by a hyphen.

Each of them is looked for from many places and found at few, and each search may read to the end of a long run of
characters. So every kind remembers how far its last search read in vain: a search that would begin inside that stretch
can find nothing either, which keeps the whole linear.
"""

from __future__ import annotations

import re

from captune.metrics.ptb.rules import ALNUM, Pattern

__all__ = ["Spans"]

# A tag is looked for in this many characters.
_LONGEST_TAG = 1000

_EMAIL_OPENING = re.compile("<|&[lL][tT];").match
_EMAIL_RUN = re.compile(r'[^ \t\n"()<>{|}\xa0]++').match
_EMAIL_HOST = re.compile(r'[^ \t\n"().<>{|}\xa0]++(?:\.[^ \t\n"().<>{|}\xa0]++)*>?').match
# "a+b.com", but not "a-b.com": the original takes no capital, digit or most punctuation here, and all beyond ASCII.
_SITE_RUN = re.compile(r"""[^ \t\n!"$'(),-_`{|}\ue000]++(?:\.[^ \t\n!"$'(),-_`{|}\ue000]++)*""").match
_SITE_END = re.compile(r"\.(?:com|net|org|edu)", re.IGNORECASE | re.ASCII)
_WWW_RUN = re.compile(r'[wW]{3}\.[^ \t\n!"(),.<>?{|}]++(?:\.[^ \t\n!"(),.<>?{|}]++)*').match
_WWW_END = re.compile(r"\.[A-Za-z]{2,4}").match
_PATH = re.compile(r'/[^ \t\n"()<>|]+[^ \t\n!"(),\-.<>?{|}]').match
_LINK = re.compile(r'[hH][tT][tT][pP][sS]?://[^ \t\n"()<>{|}]+[^ \t\n!"(),\-.<>?{|}]').match
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*+"
_TAG = re.compile(
    rf"<(?:/{_NAME} *+|{_NAME}(?: ++{_NAME}(?: *+= *+(?:\"[^\"\n]*+\"|'[^'\n]*+'))?)* *+(?:/ *+)?)>"
).match
_DECLARATION = re.compile(r"<[!?][A-Za-z-][^>\n]*+").match
_FILE_RUN = Pattern("«LN»++(?:\\.«LN»++)+")
_FILE_END = Pattern(
    r"(?i:\.(?:bat|bmp|cgi|class|cpp|c|dll|docx?|exe|gif|gz|html?|h|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql"
    r"|tar|txt|wav|xml|x|zip))[ \t\xa0\u2003\n\x85.?!,]"
)
_LIST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.,\xad]*+").match
_LIST_TAIL = re.compile(r"(?:-[A-Za-z0-9\xad]++)+").match
_LIST_INITIALS = re.compile(r"(?<=-[A-Za-z])\.(?:[A-Za-z]\.)+").match


class Spans:
    """The far-reaching tokens of one shape.

    Every method takes a position and gives the end of the longest token of its kind that begins there, or -1. Positions
    must not decrease from call to call.
    """

    def __init__(self, shape: str) -> None:
        self._shape = shape
        self.may_have_email = "@" in shape
        self.may_have_site = "." in shape and _SITE_END.search(shape) is not None
        self.may_have_list = "-" in shape
        self._no_email_before = self._no_site_before = self._no_www_before = 0
        self._no_declaration_before = self._no_list_before = self._no_file_before = 0

    def email(self, position: int) -> int:
        """An address such as john.doe@x.org, in angle brackets or not; nearly every character may occur in it."""
        shape = self._shape
        opening = _EMAIL_OPENING(shape, position)
        start = opening.end() if opening else position
        if start < self._no_email_before or shape[start : start + 1] not in ALNUM:
            return -1
        run = _EMAIL_RUN(shape, start)
        assert run is not None
        at = shape.rfind("@", start + 1, run.end())
        while at > 0:
            host = _EMAIL_HOST(shape, at + 1)
            if host:
                return host.end()
            at = shape.rfind("@", start + 1, at)
        self._no_email_before = run.end()
        return -1

    def site(self, position: int) -> int:
        """A name that ends in .com, .net, .org or .edu, and the path after it."""
        shape = self._shape
        if position < self._no_site_before:
            return -1
        run = _SITE_RUN(shape, position)
        if run is None:
            return -1
        dot = shape.rfind(".", position + 1, run.end() + 1)
        while dot > 0:
            end = _SITE_END.match(shape, dot)
            if end:
                path = _PATH(shape, end.end())
                return (path or end).end()
            dot = shape.rfind(".", position + 1, dot)
        self._no_site_before = run.end()
        return -1

    def www(self, position: int) -> int:
        """A name that begins with www. and ends in two to four letters, and the path after it."""
        shape = self._shape
        if position < self._no_www_before or not (run := _WWW_RUN(shape, position)):
            return -1
        longest = -1
        dot = shape.rfind(".", position + 5, run.end() + 1)
        while dot > 0:
            end = _WWW_END(shape, dot)
            if end:
                longest = max(longest, end.end())
                if path := _PATH(shape, end.end()):
                    return max(longest, path.end())
            dot = shape.rfind(".", position + 5, dot)
        if longest < 0:
            self._no_www_before = run.end()
        return longest

    def link(self, position: int) -> int:
        """http:// or https:// and what follows."""
        match = _LINK(self._shape, position)
        return match.end() if match else -1

    def tag(self, position: int) -> int:
        """A tag, comment or processing instruction of mark-up."""
        shape = self._shape
        match = _TAG(shape, position, position + _LONGEST_TAG)
        if match:
            return match.end()
        if position >= self._no_declaration_before and (match := _DECLARATION(shape, position)):
            if shape[match.end() : match.end() + 1] == ">":
                return match.end() + 1
            self._no_declaration_before = match.end()
        return -1

    def hyphenated_list(self, position: int) -> int:
        """Words, numbers, stops and commas before a hyphen: U.S.-based, 1.5-2, a,b-c; or initials after one: ex-U.S."""
        if position < self._no_list_before or not (head := _LIST(self._shape, position)):
            return -1
        tail = _LIST_TAIL(self._shape, head.end())
        if tail is None:
            self._no_list_before = head.end()
            return -1
        while initials := _LIST_INITIALS(self._shape, tail.end()):
            tail = _LIST_TAIL(self._shape, initials.end())
            if tail is None:
                return initials.end()
        return tail.end()

    def file(self, position: int) -> tuple[int, int]:
        """A file name with a known ending before a blank or [.?!,]: where that ends, and where the name ends."""
        if position < self._no_file_before or not (run := _FILE_RUN.match(self._shape, position)):
            return -1, -1
        dot = self._shape.rfind(".", position, run.end())
        while dot > 0:
            end = _FILE_END.match(self._shape, dot)
            if end:
                return end.end(), end.end() - 1
            dot = self._shape.rfind(".", position, dot)
        self._no_file_before = run.end()
        return -1, -1
