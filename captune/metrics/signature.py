"""The signature: everything that must be equal before two numbers may be compared, in one line."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from captune import __version__
from captune.errors import MetricInputError

__all__ = ["Signature", "prompt_hash"]


_ORDER = (
    "data",
    "split",
    "n",
    "refs",
    "tok",
    "cider",
    "meteor",
    "spice",
    "clip",
    "prompt",
    "dec",
    "proto",
    "exif",
    "v",
)


def prompt_hash(prompt: str) -> str:
    """The first 8 hexadecimal digits of a prompt's SHA-256, which stand for it in a signature."""
    import hashlib  # nobody who only scores should wait for it

    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a score was made of; `str` gives `data:flickr30k|split:test|n:1000|refs:5|tok:ptb3.4.1|...`.

    What is not known is left out. Fields hold neither "|" nor line breaks.

    Attributes:
        data: the data set.
        split: its part.
        n: how many images were scored.
        refs: references per image, "5" or "4-6".
        tok: the tokenizer with its version; "+call" is added when a whole call was tokenized together.
        cider: the variant of CIDEr and where its document frequencies come from: "D,df=corpus" is coco-caption's.
        meteor: the version of METEOR.
        spice: the version of SPICE and of its parser.
        clip: the CLIP model of CLIPScore.
        prompt: `prompt_hash` of the prompt.
        dec: how captions were decoded, as in "beam5" or "greedy".
        proto: the evaluation protocol.
        exif: "upright" or "stored": how images were shown of which EXIF notes a rotation; None where there are none.
        v: captune's version.
        leak: the test images were seen in training, or its references were changed; prints as LEAK.
    """

    n: int
    refs: str
    tok: str
    data: str | None = None
    split: str | None = None
    cider: str | None = None
    meteor: str | None = None
    spice: str | None = None
    clip: str | None = None
    prompt: str | None = None
    dec: str | None = None
    proto: str | None = None
    exif: str | None = None
    v: str = __version__
    leak: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and ("|" in value or not value.isprintable() or not value):
                raise MetricInputError(
                    f"the signature's field '{field.name}' is {value!r}; give a name without '|' and line breaks"
                )

    def __str__(self) -> str:
        parts = [f"{name}:{getattr(self, name)}" for name in _ORDER if getattr(self, name) is not None]
        return "|".join([*parts, "LEAK"] if self.leak else parts)

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Read what `str` wrote.

        Raises:
            MetricInputError: the text is no signature.
        """
        parts = text.split("|")
        leak = parts[-1] == "LEAK"
        pairs = [part.split(":", 1) for part in (parts[:-1] if leak else parts)]
        names = {field.name for field in fields(cls)} - {"leak"}
        values = {pair[0]: pair[-1] for pair in pairs}
        if not {"n", "refs", "tok", "v"} <= values.keys() <= names or not values["n"].isdigit():
            raise MetricInputError(
                f"{text!r} is no signature; one looks like data:coco|n:5000|refs:5|tok:ptb3.4.1|v:1.0"
            )
        count = int(values.pop("n"))
        return cls(n=count, leak=leak, **values)

    def with_leak(self) -> Signature:
        """The same signature with the mark LEAK."""
        return replace(self, leak=True)

    def differences(self, other: Signature) -> list[str]:
        """The fields in which another signature differs, as "tok: ptb3.4.1 and 13a"."""
        return [
            f"{field.name}: {getattr(self, field.name)} and {getattr(other, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]
