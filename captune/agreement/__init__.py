"""Agreement of metrics with people (meta-evaluation): judged captions, Kendall's tau, accuracy, published values.

    from captune.agreement import measure_agreement, read_judgements

    judgements = read_judgements("flickr8k-cf", [Path("CrowdFlowerAnnotations.txt")], Path("Flickr8k.token.txt"))[0]
    agreement = measure_agreement(judgements, ScoringOptions(metrics=("bleu", "cider", "rouge-l")), main="tau-b")
    print(agreement.metrics["CIDEr"]["tau-b"])

Readers, measures and page read files that the user has; no data comes with captune.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.agreement.datasets import DATASETS, Dataset, read_judgements
    from captune.agreement.judgements import Judgements
    from captune.agreement.kendall import Taus, kendall_taus, resampled_kendall_taus
    from captune.agreement.measure import Agreement, measure_agreement
    from captune.agreement.output import (
        FILES,
        Published,
        build_page,
        csv_table,
        difference_table,
        neighbours,
        published_values,
        result_table,
        results_json,
    )
    from captune.agreement.resampling import CONFIDENCE, Estimate, estimate, image_resamples

_NAMES = {
    "datasets": ["DATASETS", "Dataset", "read_judgements"],
    "judgements": ["Judgements"],
    "kendall": ["Taus", "kendall_taus", "resampled_kendall_taus"],
    "measure": ["Agreement", "measure_agreement"],
    "output": [
        "FILES",
        "Published",
        "build_page",
        "csv_table",
        "difference_table",
        "neighbours",
        "published_values",
        "result_table",
        "results_json",
    ],
    "resampling": ["CONFIDENCE", "Estimate", "estimate", "image_resamples"],
}

__all__ = [
    "CONFIDENCE",
    "DATASETS",
    "FILES",
    "Agreement",
    "Dataset",
    "Estimate",
    "Judgements",
    "Published",
    "Taus",
    "build_page",
    "csv_table",
    "difference_table",
    "estimate",
    "image_resamples",
    "kendall_taus",
    "measure_agreement",
    "neighbours",
    "published_values",
    "read_judgements",
    "resampled_kendall_taus",
    "result_table",
    "results_json",
]

__getattr__ = lazy_names(__name__, _NAMES)
