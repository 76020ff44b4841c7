"""Which images are evaluated, against which references, asked and decoded how, and by which metrics.

A protocol is a small YAML file. `karpathy` and `slides` ship with captune; a path names a file of the user's own.

protocol.py    what such a file may say, and how it is read
selection.py   the images and references that it chooses for a run
guard.py       whether images that it chooses were trained on
*.yaml         the protocols that ship
"""

from __future__ import annotations

from captune.protocols.protocol import Decoding, Protocol, load_protocol, shipped_protocols
from captune.protocols.selection import (
    EvaluationSet,
    cut_reply,
    evaluation_set,
    split_references,
    training_images,
)

__all__ = [
    "Decoding",
    "EvaluationSet",
    "Protocol",
    "cut_reply",
    "evaluation_set",
    "load_protocol",
    "shipped_protocols",
    "split_references",
    "training_images",
]
