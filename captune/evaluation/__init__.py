"""Captions and scores of any number of checkpoints, with one load of the model.

The language model and the images' features stay in memory; from one checkpoint to the next only the trained tensors are
swapped. Every checkpoint captions the same images, and the references are prepared once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.evaluation.checkpoints import evaluate_checkpoints
    from captune.evaluation.destination import evaluation_folder
    from captune.evaluation.endpoint import EndpointOptions
    from captune.evaluation.models import evaluate_models
    from captune.evaluation.protocol import (
        PRETRAINED,
        START,
        Decoding,
        EvaluationSet,
        Protocol,
        cut_reply,
        evaluation_set,
        load_protocol,
        shipped_protocols,
        split_references,
        training_images,
    )
    from captune.evaluation.robustness import evaluate_matrix
    from captune.evaluation.robustness_columns import parse_corruptions, read_instructions
    from captune.evaluation.row_sources import RowSource, check_sources, parse_sources, split_settings
    from captune.evaluation.scoring import Evaluation, checkpoint_name, decoding_options, exif_mark

__all__ = [
    "PRETRAINED",
    "START",
    "Decoding",
    "EndpointOptions",
    "Evaluation",
    "EvaluationSet",
    "Protocol",
    "RowSource",
    "check_sources",
    "checkpoint_name",
    "cut_reply",
    "decoding_options",
    "evaluate_checkpoints",
    "evaluate_matrix",
    "evaluate_models",
    "evaluation_folder",
    "evaluation_set",
    "exif_mark",
    "load_protocol",
    "parse_corruptions",
    "parse_sources",
    "read_instructions",
    "shipped_protocols",
    "split_references",
    "split_settings",
    "training_images",
]

__getattr__ = lazy_names(
    __name__,
    {
        "checkpoints": ["evaluate_checkpoints"],
        "destination": ["evaluation_folder"],
        "endpoint": ["EndpointOptions"],
        "models": ["evaluate_models"],
        "protocol": [
            "PRETRAINED",
            "START",
            "Decoding",
            "EvaluationSet",
            "Protocol",
            "cut_reply",
            "evaluation_set",
            "load_protocol",
            "shipped_protocols",
            "split_references",
            "training_images",
        ],
        "robustness": ["evaluate_matrix"],
        "robustness_columns": ["parse_corruptions", "read_instructions"],
        "row_sources": ["RowSource", "check_sources", "parse_sources", "split_settings"],
        "scoring": ["Evaluation", "checkpoint_name", "decoding_options", "exif_mark"],
    },
)
