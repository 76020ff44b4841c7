"""Events of long work, for listeners such as a progress bar or a log.

An event is a plain dictionary; `event` names it, the other keys are its values:

    run         model, images, captions, step, steps, processes, device
    reused      folder                                      a finished run was reused
    features    what, done, count                           images encoded
    quarantined images, reasons                             broken images that are left out
    leaks       done, count                                 image files compared by the leak guard
    captions    epoch, done, count                          images captioned
    progress    step, steps, epoch, captions_per_s, loss, ...      after every optimiser step
    step        the same, every `log_every` steps
    unpacked    reason                                      packed rows would change the gradient
    sharded     processes, held, total                      bytes of the language model here, and of all of it
    checkpoint  epoch, folder
    evaluation  epoch, scores, page                         `page` only if training refreshes one
    cell        row, column, scores                         one cell of the robustness matrix
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
"""Called with every event."""
