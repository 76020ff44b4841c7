"""CIDEr-R: CIDEr for captions of very different lengths, with a penalty for repetition.

dos Santos, Colombini, Avila, "CIDEr-R: Robust Consensus-based Image Description Evaluation" (W-NUT 2021). In place of
CIDEr-D's Gaussian of the difference in words, the similarity with a reference has two factors:

    length     = exp(-((prediction - reference) / reference)^2)             (a difference relative to the reference)
    repetition = geometric mean over the prediction's distinct words of 1 / (1 + e)

where e is how much more or less often the word occurs than in the reference, and for a word that the reference does not
have how often it is repeated. The factor is repetition^0.8 * length^0.2, with the weights of the paper. As in its
implementation, lengths are counted in bigrams, and words of the repetition are runs of letters and digits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from captune.metrics.cider import Cider, bigram_counts
from captune.metrics.metric import Column
from captune.metrics.references import PredictionBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CiderR", "length_penalty", "repetition_penalty"]

_REPETITION_WEIGHT = 0.8
_LENGTH_WEIGHT = 0.2
_WORD = re.compile(r"\w+")


class CiderR(Cider):
    """CIDEr with penalties for repeated words and for a length relative to the reference's."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            "CIDEr-R", 10.0, description="CIDEr for long captions: repetition costs more, a difference in length less."
        ),
    )

    def penalties(self, predictions: PredictionBatch) -> NDArray[np.float64]:
        """The factor of each reference's similarity, (C,) float64."""
        length = length_penalty(*bigram_counts(predictions))
        repetition = [
            repetition_penalty(ours, _count_words(reference))
            for ours, group in zip(
                map(_count_words, predictions.tokenized), predictions.tokenized_references, strict=True
            )
            for reference in group
        ]
        factors: NDArray[np.float64] = np.array(repetition) ** _REPETITION_WEIGHT * length**_LENGTH_WEIGHT
        return factors

    def signature(self) -> Mapping[str, str]:
        """The weights of both penalties, and the corpus that document frequencies come from."""
        return {"cider-r": f"rep{_REPETITION_WEIGHT},len{_LENGTH_WEIGHT},df={self.frequencies_source}"}


def length_penalty(predictions: NDArray[np.int64], references: NDArray[np.int64]) -> NDArray[np.float64]:
    """exp of minus the squared relative difference in length.

    Args:
        predictions: (C,) lengths.
        references: (C,) lengths. Where it is 0 the penalty is its limit: 1 for equal lengths, else 0.

    Returns:
        (C,) float64, 0 to 1.
    """
    difference = (predictions - references).astype(np.float64)
    relative = np.divide(difference, references, out=np.where(difference == 0, 0.0, np.inf), where=references != 0)
    penalty: NDArray[np.float64] = np.exp(-(relative**2))
    return penalty


def repetition_penalty(prediction: Mapping[str, int], reference: Mapping[str, int]) -> float:
    """Geometric mean over a prediction's words of 1 / (1 + e), e the surplus or lack of occurrences.

    Args:
        prediction: word to number of occurrences.
        reference: the same; a word that it does not have may occur once.

    Returns:
        0 to 1; 1 for a prediction without words, whose similarity is 0.
    """
    if not prediction:
        return 1.0
    errors = np.array([abs(times - reference.get(word, 1)) for word, times in prediction.items()], np.float64)
    return float(np.exp(-np.log1p(errors).mean()))


def _count_words(caption: str) -> Counter[str]:
    return Counter(_WORD.findall(caption))
