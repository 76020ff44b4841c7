"""Tokenizing in several processes: each encodes a part of the captions, and the parts' numbers become one numbering.

The processes are fresh interpreters that run nothing of the user's. They neither share the parent's threads, as forked
ones would, nor run the user's main module again, as multiprocessing's spawned ones would.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from captune.errors import ExternalToolError
from captune.metrics.encoding import Encoder, Rows
from captune.metrics.tokenizers import tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["encode_in_processes", "work"]

# A process takes as long to start as the tokenizer takes for about so many captions.
_FEWEST_CAPTIONS = 20_000

# The captions are read before anything slow is imported, so that the sender does not wait.
_CODE = """
import json, pickle, sys
name, captions = pickle.load(sys.stdin.buffer)
sys.path[:] = json.loads(sys.argv[1])
from captune.metrics.parallel import work
work(name, captions)
"""


def encode_in_processes(encoder: Encoder, name: str, captions: Sequence[str], jobs: int) -> Rows:
    """Encode captions one by one; the result is as good as `encoder.encode(captions)`.

    Args:
        encoder: takes part itself, and gives the numbers.
        name: the tokenizer, as in `tokenizer`.
        captions: C captions.
        jobs: how many processes, this one included; fewer are used where more would not pay.

    Raises:
        ExternalToolError: a process failed.
    """
    jobs = min(jobs, len(captions) // _FEWEST_CAPTIONS)
    if jobs <= 1:
        return encoder.encode(captions)
    bounds = [len(captions) * job // jobs for job in range(jobs + 1)]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for start, end in pairwise(bounds[1:]):
            worker = subprocess.Popen(
                [sys.executable, "-c", _CODE, json.dumps(sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            workers.append(worker)
            _send(worker, (name, captions[start:end]))
        parts = [encoder.encode(captions[: bounds[1]])]
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


def _send(worker: subprocess.Popen[bytes], message: tuple[str, Sequence[str]]) -> None:
    assert worker.stdin is not None
    try:
        pickle.dump(message, worker.stdin, pickle.HIGHEST_PROTOCOL)
        worker.stdin.close()
    except BrokenPipeError:
        raise _failure() from None


def _renumber(encoder: Encoder, worker: subprocess.Popen[bytes]) -> Rows:
    """A worker's rows with the encoder's numbers."""
    assert worker.stdout is not None
    try:
        vocabulary, values, offsets = pickle.load(worker.stdout)
    except (EOFError, pickle.UnpicklingError):
        raise _failure() from None
    numbers: NDArray[np.int32] = np.fromiter(map(encoder.token_id, vocabulary), np.int32, len(vocabulary))
    return Rows(numbers[values], offsets)


def _failure() -> ExternalToolError:
    return ExternalToolError("a tokenizing process ended without a result; look above for its message, or use jobs=1")


def work(name: str, captions: Sequence[str]) -> None:
    """What a process does: encode captions and write vocabulary, numbers and offsets to its output."""
    encoder = Encoder(tokenizer(name))
    rows = encoder.encode(captions)
    pickle.dump((encoder.vocabulary, rows.values, rows.offsets), sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
    sys.stdout.buffer.flush()
