"""How captions are decoded, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

from captune.errors import ConfigError

__all__ = ["Caption", "DecodingOptions"]


@dataclass(frozen=True)
class DecodingOptions:
    """How captions are decoded.

    Attributes:
        max_new_tokens: longest caption in tokens, stop symbol included.
        beams: beams of beam search; 1 is greedy.
        length_penalty: exponent on a beam's length.
        repetition_penalty: divides the score of tokens already said; 1 is off.
        batch_size: images captioned at once.
        temperature: above 0 a token is drawn from the distribution sharpened by it; 0 takes the likeliest.
        top_k: draw among so many likeliest tokens only; 0 is all.
        top_p: draw among the likeliest tokens that together have this probability; 1 is all.
        seed: of the draws. Each image has a stream of its own, so its caption depends on no neighbour.
        compiled: feed the language model batches of one shape through torch.compile, with CUDA graphs on a GPU. The
            first step takes up to a minute; the captions are the same, but for rounding.

    Raises:
        ConfigError: a value is out of its range, or beams and a temperature are asked for together.
    """

    max_new_tokens: int = 40
    beams: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    batch_size: int = 32
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    compiled: bool = False

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "beams", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        if self.temperature < 0 or self.top_k < 0:
            raise ConfigError(f"temperature is {self.temperature:g} and top_k {self.top_k}; neither may be below 0.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p:g}; expected a share above 0 and at most 1.")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ConfigError(
                f"repetition_penalty is {self.repetition_penalty:g}; expected 0.01 to 100, where 1 is off."
            )
        if self.sampled and self.beams > 1:
            raise ConfigError(f"beams is {self.beams} and temperature {self.temperature:g}; use one of them.")

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0

    def __str__(self) -> str:
        """How it stands in a signature, such as `greedy,max40` or `beam3,lp0.6,max40`."""
        if self.sampled:
            parts = ["sample", f"t{self.temperature:g}"]
            parts += [f"k{self.top_k}"] * (self.top_k > 0) + [f"p{self.top_p:g}"] * (self.top_p < 1)
            parts.append(f"seed{self.seed}")
        else:
            parts = ["greedy"] if self.beams == 1 else [f"beam{self.beams}", f"lp{self.length_penalty:g}"]
        if self.repetition_penalty != 1.0:
            parts.append(f"rp{self.repetition_penalty:g}")
        return ",".join([*parts, f"max{self.max_new_tokens}"])


@dataclass(frozen=True)
class Caption:
    """One generated caption.

    Attributes:
        text: the caption, without the stop symbol.
        tokens: how many tokens were generated for it, stop symbol included.
        stopped: whether it ended by itself, with the stop symbol or the end of text, and not at the length limit.
    """

    text: str
    tokens: int
    stopped: bool
