"""The patterns of tokens, written for shapes (see `characters`).

At every place the longest pattern wins, of equal ones the first; what a pattern must see behind the token counts as
length, and its group 1 is the token. So the original decides; the patterns were found by giving it millions of strings.

No pattern here reads more than a small multiple of what the winning token takes, so a text is read in linear time.
What could look far ahead of a short token (addresses, links, tags, lists) stands in `spans`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from captune.metrics.ptb.words import FIRST_WORDS

__all__ = ["RULES_BY_FIRST", "Rule"]

# Written «…» in the sources below, letter by letter; every other character there stands for itself.
_CLASSES = {
    "L": "A-Za-zéÉ˂\xad",  # what a word begins with
    "A": "A-Za-zéÉ",  # letters that join things
    "N": "0-9٠",
    "B": " \t\xa0\u2003\n\x85",  # blanks and line ends, to what looks ahead
}


class Rule(NamedTuple):
    """One kind of token.

    Attributes:
        match: finds it in a shape from a position on; group 1 is the token, what follows is only looked at.
        render: the token as it is written out, from the token as it was; None where it only loses soft hyphens.
        back: how many characters of the token are read again.
    """

    match: Callable[[str, int], re.Match[str] | None]
    render: Callable[[str], str] | None = None
    back: int = 0


def _rule(source: str, render: Callable[[str], str] | None = None, back: int = 0) -> Rule:
    def characters(match: re.Match[str]) -> str:
        return "[" + match[1] + "".join(_CLASSES.get(name, name) for name in match[2]) + "]"

    return Rule(re.compile(re.sub(r"«(\^?)([^»]*)»", characters, source)).match, render, back)


def _as_is(token: str) -> str:
    return token


def _without_entities(token: str) -> str:
    return re.sub(r"&(amp|AMP|Amp);", "&", token)


def _constant(token: str) -> Callable[[str], str]:
    return lambda _: token


def _blanks_bound(token: str) -> str:
    return _brackets(token.replace(" ", "\xa0"))


def _brackets(token: str) -> str:
    return token.replace("(", "-LRB-").replace(")", "-RRB-")


def _straight(token: str) -> str:
    return re.sub("’|\x92|&[aA][pP][oO][sS];", "'", token).replace("‘", "`").replace("‛", "`").replace("\x91", "`")


_QUOTES = {
    **dict.fromkeys("‘‛‹\x91", "`"),
    **dict.fromkeys("’›\x92", "'"),
    **dict.fromkeys("“«\x93", "``"),
    **dict.fromkeys("”»\x94", "''"),
}
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}


def _directed(token: str) -> str:
    return "".join(_QUOTES.get(quote, quote) for quote in token)


_APOS = "(?:['’]|&[aA][pP][oO][sS];)"
_APOS_OR_QUOTE = "(?:['’‘`]|&[aA][pP][oO][sS];)"
_THING = f"(?:[dDoOlL]{_APOS_OR_QUOTE}«AN»)?«AN»+"
_STARTER = "«B»+(?:" + "|".join(FIRST_WORDS) + ")«B»"
_CLITIC = "(?:[sSmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_NUMBER = r"(?:«N»++|[.,:٫\xad]«N»++)(?:[.,:٫\xad]«N»++)*+"

_WORD = _rule("(«L»«LN»*+|«N»«AN»*+)")
_SLASHED = _rule(r"([A-Za-z0-9]++(?:-[A-Za-z]++)*+(?:\\?/[A-Za-z0-9]++(?:-[A-Za-z]++)*+){1,2})")
_THINGS = _rule(f"({_THING}(?:[-_‐]{_THING})+)")
_DOTTED = _rule(r"(«L»«LN»*+(?:[.!?]«L»«LN»*+)++)")
_LETTERS = (
    # p. The -> p . the
    _rule(rf"([A-Za-z])\.{_STARTER}"),
    # U.S. The -> u.s. . the
    _rule(rf"([A-Za-z](?:\.[A-Za-z])++\.){_STARTER}", back=1),
    _rule(f"([A-Za-z]+)[nN]{_APOS_OR_QUOTE}[tT]"),
    _rule(f"(«LN»+){_APOS}{_CLITIC}"),
    _rule(f"([nN]{_APOS_OR_QUOTE}[tT])", _straight),
    _WORD,
    _THINGS,
    _rule(f"([A-HJ-XZdlno]{_APOS_OR_QUOTE}«A»{{2,}})"),
    _rule(f"(«A»«A»++(?<=[aeiouyAEIOUY]){_APOS_OR_QUOTE}[aeiouA-Z]«A»*)"),
    _rule(f"([dDoOlL]{_APOS_OR_QUOTE}«AN»{{2,}})"),
    _rule("([dDjJlL]['’])"),
    _rule("([yY]['’])«A»"),
    _rule("([oO][lL]['’]|[dD][uU][nN][kK][iI][nN]['’]|[sS][oO][mM][eE][tT][hH][iI][nN]['’])"),
    _rule("([cC]'[mM][oO][nN]|[cC]['’][eE][sS][tT])"),
    _SLASHED,
    _rule(r"([A-Z]++(?:(?:\+|&(?:[aA][mM][pP];)?)[A-Z]++)++)", _without_entities),
    _DOTTED,
    _rule(r"([A-Za-z](?:\.[A-Za-z])*+\.)"),
    _rule(rf"((?:«L»«LN»*+|«N»«AN»*+|{_THING}(?:[-_‐]{_THING})+)\.)[,;:]"),
    _rule(r"(«L»«LN»*+(?:[.!?]«L»«LN»*+)++\.)[,;:]"),
    _rule(r"([cC]\+\+|[cCfF]#)"),
    _rule(r"([A-Z]+\$)"),
)

_DIGITS = (
    _rule(f"([-+]?{_NUMBER})"),
    _WORD,
    _rule(r"(«N»{1,2}(?:-|\\?/)«N»{1,2}(?:-|\\?/)«N»{2,4})"),
    _rule(r"((?:«N»{1,4}[- \xa0])?«N»{1,4}(?:\\?/|⁄)«N»{1,4})", _blanks_bound),
    _THINGS,
    _SLASHED,
    _rule(rf"((?:«L»«LN»*+|«N»«AN»*+|{_THING}(?:[-_‐]{_THING})+)\.)[,;:]"),
)
_PHONE = _rule(
    r"((?:\(«N»{2,3}\)[ \xa0]?|(?:\+\+?)?(?:«N»{2,4}[- \xa0])?«N»{2,4}[- \xa0])«N»{3,4}[- \xa0]?«N»{3,5}"
    r"|(?:(?:\+\+?)?«N»{2,4}\.)?«N»{2,4}\.«N»{3,4}\.«N»{3,5})",
    _blanks_bound,
)
_SIGNED = _rule(f"([-+]?{_NUMBER})")
_FACE = _rule(r"([-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\))", _brackets)
_SMILEY = _rule(r"([<>]?[:;=][-o*']?[()DPdpO@\[\]\\{|])[^A-Za-z0-9]", _brackets)

_BACK_QUOTE = "`"
_APOSTROPHES = (
    _rule("('[tT])(?=[iI][sS])[iI][sS]"),
    _rule("('[tT])(?=[wW][aA][sS])[wW][aA][sS]"),
    _rule(f"({_APOS}{_CLITIC})[^A-Za-z]", _straight),
    _rule("(['’](?:[eE][mM]|[tT][iI][lL][lL]?|[cC][aA][uU][sS][eE]|[2-9]0[sS]|[nN]['’]?))"),
    _rule("(['’][0-9][0-9])«B»"),
    _rule("(')[A-Za-z][^ \t\xa0\n]", _constant("`")),
    _rule(f"({_APOS}{_CLITIC})", _straight),
    _FACE,
    _rule("('')"),
    _rule("(')"),
)
_CURLY = _rule("([`‘’“‚‹›]{1,2})", _directed)
_ENTITIES = {
    "lt": "<", "gt": ">", "amp": "&", "nbsp": "", "mdash": "--", "ndash": "--",
}
_AMPERSANDS = (
    _rule(f"({_APOS}{_CLITIC})[^A-Za-z]", _straight),
    _rule(f"({_APOS}{_CLITIC})", _straight),
    _rule("(&[qQ][uU][oO][tT];)[A-Za-z0-9$]", _constant("``")),
    _rule("(&[qQ][uU][oO][tT];)", _constant("''")),
    _rule("(&[aA][pP][oO][sS];)", _constant("'")),
    _rule("(&[lL][tT];)", _constant("<")),
    _rule("(&[gG][tT];)", _constant(">")),
    _rule("(&[aA][mM][pP];)", _constant("&")),
    _rule("(&[nN][bB][sS][pP];)", _constant("")),
    _rule("(&[mMnN][dD][aA][sS][hH];|&MD;)", _constant("--")),
    _rule("(&(?:UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);)"),
    _rule("(&)"),
)

RULES_BY_FIRST: dict[str, tuple[Rule, ...]] = {}


def _add(characters: str, *rules: Rule) -> None:
    for character in characters:
        RULES_BY_FIRST[character] = RULES_BY_FIRST.get(character, ()) + rules


_add("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyzéÉ˂\xad", *_LETTERS)
_add("x", _FACE)
_add("0123456789٠", *_DIGITS, _PHONE)
_add("+", _SIGNED, _PHONE, _rule(r"(\+)"))
_add("-", _SIGNED, _FACE, _rule("(--(?![-]{3})-{0,2})", _constant("--")), _rule("(-+)"))
_add(".", _SIGNED, _rule(r"(\.{3,5}|\.(?:[ \xa0]\.){2,4})", _constant("...")), _rule(r"(\.)"))
_add(":", _SMILEY, _SIGNED, _rule("(:)"))
_add(";", _SMILEY, _rule("(;)"))
_add("=", _SMILEY, _FACE, _rule("(=)"))
_add("<", _SMILEY, _FACE, _rule("(<<?)"))
_add(">", _SMILEY, _FACE, _rule("(>>?)"))
_add("^~", _FACE, _rule(r"([\^~])"))
_add(",", _SIGNED, _rule("(,)"))
_add("(", _FACE, _PHONE, _rule(r"(\()", _constant("-LRB-")))
_add(")", _rule(r"(\))", _constant("-RRB-")))
_add("[", _rule(r"(\[)", _constant("-LSB-")))
_add("]", _rule(r"(\])", _constant("-RSB-")))
_add("{", _rule(r"(\{)", _constant("-LCB-")))
_add("}", _rule(r"(\})", _constant("-RCB-")))
_add("'", *_APOSTROPHES)
_add("’", *_APOSTROPHES, _CURLY)
_add("‘“‚‹›", _CURLY)
_add("`", _CURLY)
_add('"', _rule('(")[A-Za-z0-9$]', _constant("``")), _rule('(")', _constant("''")))
_add("&", *_AMPERSANDS)
_add("!?", _rule("([!?]+)"))
_add("#", _rule("(#«L»+)", _as_is), _rule("(#+)"))
_add("@", _rule("(@[A-Za-z_][A-Za-z0-9_]*)"), _rule("(@+)"))
_add("*", _rule(r"(\*+|(?:\\\*)+)"))
_add("\\", _rule(r"(\*+|(?:\\\*)+)"))
_add("²", _rule("(²+)"))
_add("٫", _SIGNED)
_add("_", _rule("(_+)"))
_add("%/\\|$⁄", _rule("(.)"))
_add("–", _rule("(.)", _constant("--")))
_add("…\x85", _rule("(.)", _constant("...")))
_add("¤", _rule("(.)", _constant("$")))
_add("£", _rule("(.)", _constant("#")))
_add("¢", _rule("(.)", _constant("cents")))
_add("½", _rule("(.)", lambda fraction: _FRACTIONS[fraction]))
