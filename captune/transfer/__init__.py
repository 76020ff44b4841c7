"""How a model travels: checkpoints and prompts against data sets, domains and damaged images, in one matrix.

columns.py       what is evaluated on: home, other data sets, their domains, corruptions of home
differences.py   what a score loses away from home, with its interval
vocabulary.py    how the words of one data set differ from those of another
instructions.py  lists of prompts, English and Chinese
evaluate.py      the matrix, with one load of the model
"""

from __future__ import annotations

from captune.transfer.evaluate import evaluate_matrix
from captune.transfer.instructions import read_instructions

__all__ = ["evaluate_matrix", "read_instructions"]
