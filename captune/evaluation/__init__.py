"""Captions and scores of any number of checkpoints, with one load of the model.

The language model and the images' features stay where they are; from one checkpoint to the next only the trained
tensors are swapped. Every checkpoint captions the same images, and the references are prepared once.
"""

from captune.evaluation.checkpoints import evaluate_checkpoints
from captune.evaluation.destination import evaluation_folder
from captune.evaluation.models import evaluate_models
from captune.evaluation.scoring import PRETRAINED, Evaluation, checkpoint_name, decoding_options, exif_mark

__all__ = [
    "PRETRAINED",
    "Evaluation",
    "checkpoint_name",
    "decoding_options",
    "evaluate_checkpoints",
    "evaluate_models",
    "evaluation_folder",
    "exif_mark",
]
