"""What long work tells while it goes, to whoever listens: a progress bar, a log.

An event is a plain dictionary; `event` names it, the rest are its figures:

    run         model, images, captions, step, steps, processes, device
    reused      folder                                      the run was already there
    features    what, done, count                           images encoded
    quarantined images, reasons                             broken images that are left out
    leaks       done, count                                 image files compared by the leak guard
    captions    epoch, done, count                          images captioned
    progress    step, steps, epoch, captions_per_s, loss, ...      after every optimiser step
    step        the same, every `log_every` steps
    unpacked    reason                                      packed rows would change the gradient
    sharded     processes, held, whole                      bytes of the language model here, and of all of it
    checkpoint  epoch, folder
    evaluation  epoch, scores, page                         the page is there where training refreshes one
    cell        row, column, scores                         one cell of the matrix of a model that travels
    cost        peak_memory, energy where it is known       bytes and joules so far, after an evaluation
    done        skipped_steps
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Event", "Listener"]

Event = dict[str, Any]
"""One thing that happened."""

Listener = Callable[[Event], None]
"""Is told every event."""
