"""Tokenizing in several processes: each encodes a part of the captions, and the parts' numbers become one numbering.

The processes are fresh interpreters that run nothing of the user's. They neither share the parent's threads, as forked
ones would, nor run the user's main module again, as multiprocessing's spawned ones would.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from captune.errors import ExternalToolError
from captune.metrics.encoding import Encoder, Rows
from captune.metrics.tokenizers import tokenizer

if TYPE_CHECKING:
    import subprocess

    from numpy.typing import NDArray

__all__ = ["encode_in_processes", "work"]

# A process takes as long to start, and to be sent its captions, as the tokenizer takes for about half as many.
_FEWEST_CAPTIONS = 250_000

# The captions are read before anything slow is imported, so that the sender does not wait.
_CODE = """
import json, pickle, sys
name, captions, after = pickle.load(sys.stdin.buffer)
sys.path[:] = json.loads(sys.argv[1])
from captune.metrics.parallel import work
work(name, captions, after)
"""


def encode_in_processes(
    encoder: Encoder, name: str, captions: Sequence[str], jobs: int, whole_call: bool = False
) -> Rows:
    """Encode captions; the result is as good as that of `encoder.encode` or `encoder.encode_call`.

    Args:
        encoder: takes part itself, and gives the numbers.
        name: the tokenizer, as in `tokenizer`.
        captions: C captions.
        jobs: how many processes, this one included; fewer are used where more would not pay.
        whole_call: whether captions look at the next one, as in `encoder.encode_call`.

    Raises:
        ExternalToolError: a process failed.
    """
    jobs = min(jobs, len(captions) // _FEWEST_CAPTIONS)
    if jobs <= 1 or (whole_call and encoder.breaks_lines(captions)):
        return encoder.encode_call(captions) if whole_call else encoder.encode(captions)
    import json  # with too few captions for a second process nobody should wait for these
    import subprocess

    bounds = [len(captions) * job // jobs for job in range(jobs + 1)]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for start, end in pairwise(bounds[1:]):
            worker = subprocess.Popen(
                [sys.executable, "-c", _CODE, json.dumps(sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            workers.append(worker)
            _send(worker, (name, captions[start:end], _following(captions, end) if whole_call else None))
        own = captions[: bounds[1]]
        after = _following(captions, bounds[1])
        parts = [encoder.encode_call(own, after) if whole_call else encoder.encode(own)]
        parts.extend(_renumber(encoder, worker) for worker in workers)
    finally:
        for worker in workers:
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None and not pipe.closed:
                    pipe.close()
            worker.kill()
            worker.wait()
    ends = accumulate(len(part.values) for part in parts[:-1])
    offsets = [parts[0].offsets, *(part.offsets[1:] + end for part, end in zip(parts[1:], ends, strict=True))]
    return Rows(np.concatenate([part.values for part in parts]), np.concatenate(offsets))


def _following(captions: Sequence[str], end: int) -> Sequence[str]:
    """The captions from `end` to the first that is not blank."""
    last = end
    while last < len(captions) and not captions[last].strip():
        last += 1
    return captions[end : last + 1]


def _send(worker: subprocess.Popen[bytes], message: tuple[str, Sequence[str], Sequence[str] | None]) -> None:
    import pickle

    assert worker.stdin is not None
    try:
        pickle.dump(message, worker.stdin, pickle.HIGHEST_PROTOCOL)
        worker.stdin.close()
    except BrokenPipeError:
        raise _failure() from None


def _renumber(encoder: Encoder, worker: subprocess.Popen[bytes]) -> Rows:
    """A worker's rows with the encoder's numbers."""
    import pickle

    assert worker.stdout is not None
    try:
        vocabulary, values, offsets = pickle.load(worker.stdout)
    except (EOFError, pickle.UnpicklingError):
        raise _failure() from None
    numbers: NDArray[np.int32] = np.fromiter(map(encoder.token_id, vocabulary), np.int32, len(vocabulary))
    return Rows(numbers[values], offsets)


def _failure() -> ExternalToolError:
    return ExternalToolError("a tokenizing process ended without a result; look above for its message, or use jobs=1")


def work(name: str, captions: Sequence[str], after: Sequence[str] | None) -> None:
    """What a process does: encode captions and write vocabulary, numbers and offsets to its output.

    Args:
        name: the tokenizer, as in `tokenizer`.
        captions: a part of all captions.
        after: what follows them in the call; None where captions stand alone.
    """
    import pickle

    encoder = Encoder(tokenizer(name))
    rows = encoder.encode(captions) if after is None else encoder.encode_call(captions, after)
    pickle.dump((encoder.vocabulary, rows.values, rows.offsets), sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
    sys.stdout.buffer.flush()
