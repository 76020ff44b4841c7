"""Caption metrics with the numbers of coco-caption, without Java, with signatures and confidence intervals.

    from captune.metrics import score_captions

    scores = score_captions({"1": "a dog runs", ...}, {"1": ["A dog runs.", "The dog is running."], ...})
    print(scores)                      # numbers and the signature
    scores.corpus["CIDEr"], scores.per_image["1"]["BLEU-4"]

Importing this package imports nothing heavy; numpy comes with the first name that needs it, torch never.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.metrics.caption_files import (
        ID_KEYS,
        PREDICTION_KEYS,
        REFERENCE_KEYS,
        PredictionFile,
        ReferenceFile,
        read_predictions,
        read_reference_files,
        read_references,
    )
    from captune.metrics.chair import find_hallucinations, leave_one_out, truncate_caption
    from captune.metrics.diagnostics import FAILURES, find_failures, measure_diversity
    from captune.metrics.document_frequencies import DocumentFrequencies
    from captune.metrics.inputs import align, caption_warnings, match_stems, similar_ids_hint
    from captune.metrics.length_matching import (
        FEWEST_IMAGES,
        EqualLengthTests,
        LengthMatching,
        compare_at_equal_length,
        length_ratio,
    )
    from captune.metrics.metric import Column, MeanOfImages, Metric
    from captune.metrics.object_vocabulary import Mention, ObjectVocabulary, coco_vocabulary
    from captune.metrics.options import DEFAULT_BERT, DEFAULT_CLIP, DEFAULT_METRICS, ScoringOptions
    from captune.metrics.pooled_seeds import PooledScore, compare_pooled, pool_seeds
    from captune.metrics.references import PredictionBatch, ReferenceIndex
    from captune.metrics.registry import BUILT_IN, METRICS, check_metrics, find_column, iter_columns
    from captune.metrics.scorer import Scorer, defined_metrics, score_captions, scoring_warnings
    from captune.metrics.scores import Scores, Signature, prompt_hash
    from captune.metrics.sentences import LENGTH_TOLERANCE, find_sentences, is_paragraph, paragraph_warning
    from captune.metrics.significance import (
        NEGLIGIBLE,
        Comparison,
        Interval,
        approximate_randomization,
        confidence_intervals,
        draw_images,
        holm,
        paired_bootstrap,
        resampled_scores,
        significance_mark,
    )
    from captune.metrics.tokenizers import language_warning, tokenizer, tokenizer_for

__all__ = [
    "BUILT_IN",
    "DEFAULT_BERT",
    "DEFAULT_CLIP",
    "DEFAULT_METRICS",
    "FAILURES",
    "FEWEST_IMAGES",
    "ID_KEYS",
    "LENGTH_TOLERANCE",
    "METRICS",
    "NEGLIGIBLE",
    "PREDICTION_KEYS",
    "REFERENCE_KEYS",
    "Column",
    "Comparison",
    "DocumentFrequencies",
    "EqualLengthTests",
    "Interval",
    "LengthMatching",
    "MeanOfImages",
    "Mention",
    "Metric",
    "ObjectVocabulary",
    "PooledScore",
    "PredictionBatch",
    "PredictionFile",
    "ReferenceFile",
    "ReferenceIndex",
    "Scorer",
    "Scores",
    "ScoringOptions",
    "Signature",
    "align",
    "approximate_randomization",
    "caption_warnings",
    "check_metrics",
    "coco_vocabulary",
    "compare_at_equal_length",
    "compare_pooled",
    "confidence_intervals",
    "defined_metrics",
    "draw_images",
    "find_column",
    "find_failures",
    "find_hallucinations",
    "find_sentences",
    "holm",
    "is_paragraph",
    "iter_columns",
    "language_warning",
    "leave_one_out",
    "length_ratio",
    "match_stems",
    "measure_diversity",
    "paired_bootstrap",
    "paragraph_warning",
    "pool_seeds",
    "prompt_hash",
    "read_predictions",
    "read_reference_files",
    "read_references",
    "resampled_scores",
    "score_captions",
    "scoring_warnings",
    "significance_mark",
    "similar_ids_hint",
    "thinking_warnings",
    "tokenizer",
    "tokenizer_for",
    "truncate_caption",
]

__getattr__ = lazy_names(
    __name__,
    {
        "diagnostics": ["FAILURES", "find_failures", "measure_diversity"],
        "document_frequencies": ["DocumentFrequencies"],
        "caption_files": [
            "ID_KEYS",
            "PREDICTION_KEYS",
            "REFERENCE_KEYS",
            "PredictionFile",
            "ReferenceFile",
            "read_predictions",
            "read_reference_files",
            "read_references",
        ],
        "inputs": ["align", "caption_warnings", "match_stems", "similar_ids_hint", "thinking_warnings"],
        "length_matching": [
            "FEWEST_IMAGES",
            "EqualLengthTests",
            "LengthMatching",
            "compare_at_equal_length",
            "length_ratio",
        ],
        "metric": ["Column", "MeanOfImages", "Metric"],
        "chair": ["find_hallucinations", "leave_one_out", "truncate_caption"],
        "object_vocabulary": ["Mention", "ObjectVocabulary", "coco_vocabulary"],
        "options": ["DEFAULT_BERT", "DEFAULT_CLIP", "DEFAULT_METRICS", "ScoringOptions"],
        "references": ["PredictionBatch", "ReferenceIndex"],
        "registry": ["BUILT_IN", "METRICS", "check_metrics", "find_column", "iter_columns"],
        "scorer": ["Scorer", "defined_metrics", "score_captions", "scoring_warnings"],
        "scores": ["Scores", "Signature", "prompt_hash"],
        "sentences": ["LENGTH_TOLERANCE", "find_sentences", "is_paragraph", "paragraph_warning"],
        "pooled_seeds": ["PooledScore", "compare_pooled", "pool_seeds"],
        "significance": [
            "NEGLIGIBLE",
            "Comparison",
            "Interval",
            "approximate_randomization",
            "confidence_intervals",
            "draw_images",
            "holm",
            "paired_bootstrap",
            "resampled_scores",
            "significance_mark",
        ],
        "tokenizers": ["language_warning", "tokenizer", "tokenizer_for"],
    },
)
