"""CLIPScore and RefCLIPScore (Hessel et al., EMNLP 2021) with any CLIP of transformers.

    CLIPScore(caption, picture)                = 2.5 * max(cos(caption, picture), 0)
    RefCLIPScore(caption, references, picture) = harmonic mean of CLIPScore and max(max over references cos, 0)

Every caption, references too, is prefixed with "A photo depicts " as in the original. Numbers of different CLIP models
cannot be compared; the published ones are of `openai/clip-vit-base-patch32`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from captune.common import first_line
from captune.errors import DataError, MetricInputError, MissingExtraError, WeightsError
from captune.metrics.metric import Column, MeanOfImages
from captune.metrics.references import PredictionBatch

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

__all__ = ["PROMPT", "WEIGHT", "ClipScore", "ClipScoreResult", "ClipScorer", "shared_scorer"]

WEIGHT = 2.5
PROMPT = "A photo depicts "
DECODERS = 4


class ClipScore(MeanOfImages):
    """CLIPScore, and RefCLIPScore with the references."""

    # The largest harmonic mean is that of 2.5 and 1.
    columns: ClassVar[tuple[Column, ...]] = (
        Column("CLIPScore", WEIGHT, description="How well the caption fits the image by CLIP, without references."),
        Column("RefCLIPScore", 10 / 7, description="CLIPScore combined with the similarity to the references."),
    )
    needs: ClassVar[frozenset[str]] = frozenset({"clip", "images"})

    def statistics(self, predictions: PredictionBatch) -> NDArray[np.float64]:
        """Both scores of each image, (N, 2)."""
        from captune.data import has_rotation

        files = predictions.image_files
        self._rotated = any(map(has_rotation, files))
        model = shared_scorer(predictions, self.options.clip)
        result = model.score(files, list(predictions.captions), predictions.reference_captions)
        assert result.ref_clip_score is not None
        self._cut = model.truncation_note(predictions.captions, self.columns[0].name)
        return np.column_stack((result.clip_score, result.ref_clip_score))

    def notes(self) -> Sequence[str]:
        """The share of text beyond the model's limit, if there is any."""
        return [self._cut] if self._cut else []

    def signature(self) -> Mapping[str, str]:
        """The CLIP model, and that rotated images are shown upright."""
        clip = self.options.clip
        fields = {"clip": Path(clip).name if Path(clip).is_dir() else clip}
        return fields | ({"exif": "upright"} if self._rotated else {})


def shared_scorer(predictions: PredictionBatch, clip: str) -> ClipScorer:
    """The scorer of a CLIP model, loaded once for all metrics of these predictions."""
    scorer: ClipScorer = predictions.shared(("clip", clip), lambda: ClipScorer.from_pretrained(clip))
    return scorer


@dataclass(frozen=True)
class ClipScoreResult:
    """Scores of N images.

    Attributes:
        clip_score: (N,) float64, 0 to 2.5; in practice 0.5 to 1.
        ref_clip_score: (N,) float64, 0 to 1.43, or None without references.
    """

    clip_score: NDArray[np.float64]
    ref_clip_score: NDArray[np.float64] | None


class ClipScorer:
    """A CLIP model with its tokenizer and image processor.

    Args:
        model: has `get_image_features` and `get_text_features`, as CLIP, SigLIP, ChineseCLIP and AltCLIP do.
        tokenizer: of the model.
        image_processor: of the model.
        batch_size: pictures or captions in one forward pass; it does not change a score.
        device: where to compute; the first GPU if there is one, else the CPU.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        batch_size: int = 64,
        device: str | None = None,
    ) -> None:
        import torch

        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).float().eval()
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> ClipScorer:
        """Load a model with its parts.

        Args:
            name: folder or Hugging Face id.
            options: `batch_size` and `device` of the scorer.

        Raises:
            MissingExtraError: transformers or torch is not installed.
            MetricInputError: there is no such model, it is broken, its weights do not fit its configuration, or it is
                no CLIP.
        """
        try:
            from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

            from captune.weights import load_strictly
        except ImportError as error:
            raise MissingExtraError("CLIPScore", "train") from error
        try:
            model = load_strictly(AutoModel.from_pretrained, name, f"The CLIP model '{name}'")
            tokenizer = AutoTokenizer.from_pretrained(name)
            image_processor = AutoImageProcessor.from_pretrained(name)
        except WeightsError as error:
            raise MetricInputError(str(error)) from error
        except Exception as error:  # on broken files the tokenizers' library raises a bare Exception
            raise MetricInputError(
                f"The CLIP model '{name}' cannot be loaded ({first_line(error)}); give a folder with a CLIP "
                "model (--clip FOLDER)."
            ) from error
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise MetricInputError(f"'{name}' is a {type(model).__name__}, which does not compare pictures with text.")
        return cls(model, tokenizer, image_processor, **options)

    def score(
        self,
        pictures: Sequence[str | os.PathLike[str] | Image],
        predictions: Sequence[str],
        references: Sequence[Sequence[str]] | None = None,
        *,
        weight: float = WEIGHT,
    ) -> ClipScoreResult:
        """Score one caption for each picture.

        Args:
            pictures: paths or PIL images, N of them.
            predictions: N captions.
            references: the references of each picture, at least one; without them there is no RefCLIPScore.
            weight: the factor of the cosine; 2 for PAC-S.

        Raises:
            MetricInputError: the lengths differ, an image has no reference, or a picture cannot be read.
        """
        if not len(pictures) == len(predictions) == len(references if references is not None else predictions):
            raise MetricInputError(f"CLIPScore got {len(predictions)} predictions for {len(pictures)} pictures.")
        if references is not None and any(not group for group in references):
            raise MetricInputError("RefCLIPScore needs at least one reference for every image.")
        seen = self._encode(pictures, self._image_features)
        texts = list(predictions) + [caption for group in references or () for caption in group]
        text_features = self._encode([PROMPT + text for text in texts], self._text_features)
        predicted = text_features[: len(predictions)]
        clip_score = weight * np.maximum((seen * predicted).sum(axis=1), 0.0)
        if references is None:
            return ClipScoreResult(clip_score, None)
        owner = np.repeat(np.arange(len(references)), [len(group) for group in references])
        closest = np.zeros(len(references))
        np.maximum.at(closest, owner, (predicted[owner] * text_features[len(predictions) :]).sum(axis=1))
        total = clip_score + closest
        mean = np.divide(2 * clip_score * closest, total, out=np.zeros_like(total), where=total > 0)
        return ClipScoreResult(clip_score, mean)

    def truncation_note(self, captions: Sequence[str], metric: str) -> str:
        """One sentence on the share of captions and of their tokens beyond the model's limit; "" if there are none.

        Args:
            captions: without the prompt, which counts for the limit.
            metric: that cuts them, for the sentence.
        """
        if not captions:
            return ""
        # `verbose` would warn of long captions, which is what this counts.
        encoded = self.tokenizer([PROMPT + caption for caption in captions], truncation=False, verbose=False)
        lengths = np.array([len(tokens) for tokens in encoded["input_ids"]])
        beyond = np.maximum(lengths - self.token_limit, 0)
        cut = int(np.count_nonzero(beyond))
        if not cut:
            return ""
        return (
            f"{metric} reads {self.token_limit} tokens of a caption: {cut:,} of {len(captions):,} captions are longer, "
            f"and {beyond.sum() / lengths.sum():.1%} of the text is not scored."
        )

    @property
    def token_limit(self) -> int:
        """Tokens of a caption that the model reads, those of the start and the end included."""
        config = getattr(self.model.config, "text_config", self.model.config)
        return int(min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", 77)))

    def _encode(self, things: Sequence[Any], features: Callable[[list[Any]], torch.Tensor]) -> NDArray[np.float64]:
        """Unit vectors of items, (items, D); each distinct item is encoded once."""
        import torch

        number: dict[Any, int] = {}
        distinct: list[Any] = []
        index = np.zeros(len(things), np.int64)
        for row, thing in enumerate(things):
            key = thing if isinstance(thing, str | os.PathLike) else id(thing)
            if key not in number:
                number[key] = len(distinct)
                distinct.append(thing)
            index[row] = number[key]
        vectors = [np.zeros((0, 1))] if not distinct else []
        with torch.inference_mode():
            for start in range(0, len(distinct), self.batch_size):
                vectors.append(features(distinct[start : start + self.batch_size]).double().cpu().numpy())
        encoded = np.concatenate(vectors)
        encoded /= np.linalg.norm(encoded, axis=1, keepdims=True)
        result: NDArray[np.float64] = encoded[index]
        return result

    def _image_features(self, pictures: list[Any]) -> torch.Tensor:
        with ThreadPoolExecutor(DECODERS) as pool:
            decoded = list(pool.map(_decode, pictures))
        inputs = self.image_processor(images=decoded, return_tensors="pt").to(self.device)
        return _tensor(self.model.get_image_features(pixel_values=inputs["pixel_values"]))

    def _text_features(self, texts: list[str]) -> torch.Tensor:
        # SigLIP was trained on texts of one length; CLIP ignores the padding after the end.
        padding = "max_length" if "siglip" in self.model.config.model_type else "longest"
        inputs = self.tokenizer(
            texts, padding=padding, truncation=True, max_length=self.token_limit, return_tensors="pt"
        )
        inputs = inputs.to(self.device)
        mask = {"attention_mask": inputs["attention_mask"]} if "attention_mask" in inputs else {}
        return _tensor(self.model.get_text_features(input_ids=inputs["input_ids"], **mask))


def _tensor(output: Any) -> torch.Tensor:
    """The features in what transformers returns: a tensor or an output that contains one."""
    import torch

    features: torch.Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return features


def _decode(picture: str | os.PathLike[str] | Image) -> Image:
    from captune.data import read_image

    try:
        return read_image(picture)
    except DataError as error:
        raise MetricInputError(f"CLIPScore: {error}") from error
