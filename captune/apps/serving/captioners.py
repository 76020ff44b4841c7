"""Any captioner behind the endpoint: answers come whole, those of one kind in a batch.

A MiniGPT-4 is served by `engine`, token by token. Models of transformers caption one image at a time with one question,
so a dialogue or several images are refused.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence

from captune.apps.serving.errors import APIError, scores_error
from captune.apps.serving.jobs import Event, Job
from captune.apps.serving.measurements import Measurements
from captune.apps.serving.questions import Dialogue, Prompt
from captune.apps.serving.waiting import Waiting
from captune.captioner import Captioner
from captune.decoding import Caption
from captune.decoding.oom import is_out_of_memory
from captune.decoding.options import NON_FINITE_SCORES
from captune.errors import InputError, RefusedImagesError
from captune.model.prompt import IMAGE_PLACEHOLDER

__all__ = ["CaptionerEngine", "ServedCaptioner"]

logger = logging.getLogger(__name__)

_GATHERED = 0.003
"""Seconds that the first request waits for others: a batch costs little more than one image."""
_CONTEXT = 4096
"""Longest answer is half of this; what the prompt takes is known to the model's processor alone."""


class ServedCaptioner:
    """A captioner with one name.

    Args:
        captioner: captions.
        name: what requests call it.

    Attributes:
        names: that name.
        instructions: the name and what is asked where a request asks nothing; empty where the model is asked nothing.
    """

    def __init__(self, captioner: Captioner, name: str) -> None:
        self.captioner = captioner
        self.names = (name,)
        self.instructions = {name: captioner.instruction or ""}
        self.context = _CONTEXT

    def lay_out(self, dialogue: Dialogue, max_tokens: int) -> Prompt:
        """The question of a dialogue; of its tokens only those of words are counted, for the image's depend on it.

        Raises:
            APIError: 400 for more than one question or image.
        """
        if dialogue.turns:
            raise APIError(400, "This model answers one question and continues no dialogue.", param="messages")
        if len(dialogue.images) != 1:
            raise APIError(
                400, f"This model captions one image, and the messages hold {len(dialogue.images)}.", param="messages"
            )
        question = dialogue.question.replace(f"<Img>{IMAGE_PLACEHOLDER}</Img>", "").strip()
        tokenizer = getattr(getattr(self.captioner, "processor", None), "tokenizer", None)
        return Prompt((), question, len(tokenizer(question).input_ids) if question and tokenizer is not None else 0)


class CaptionerEngine(Waiting):
    """Answers jobs with a captioner, in a thread of its own.

    Args:
        served: the captioner.
        measurements: what is counted.
        slots: answers in one batch.
        most_waiting: jobs that may wait; more are refused.
    """

    def __init__(
        self, served: ServedCaptioner, measurements: Measurements, *, slots: int = 32, most_waiting: int = 256
    ) -> None:
        super().__init__(measurements, most_waiting, "captune-captioning")
        self.served = served
        self._slots = slots

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._stopping):
                    self._changed.wait()
                if not self._waiting:
                    return
            time.sleep(_GATHERED)
            batch = self._next()
            if batch:
                self._measurements.batch.observe(len(batch))
                self._measurements.decoding.set(len(batch))
                self._answer(batch)
                self._measurements.decoding.set(0)

    def _next(self) -> list[Job]:
        """Waiting jobs with the question and the decoding of the first one."""
        with self._changed:
            waiting = [job for job in self._waiting if not job.cancelled]
            kind = (waiting[0].question, waiting[0].options) if waiting else None
            batch = [job for job in waiting if (job.question, job.options) == kind][: self._slots]
            self._waiting = deque(job for job in waiting if job not in batch)
            self._measurements.waiting.set(len(self._waiting))
        return batch

    def _answer(self, batch: Sequence[Job]) -> None:
        for job, answer in zip(batch, self._captions(batch), strict=True):
            if isinstance(answer, APIError):
                job.tell(Event(error=answer))
                continue
            text, ended = answer.text, answer.stopped
            for stop in job.stops:
                before, found, _ = text.partition(stop)
                text, ended = before, ended or bool(found)
            job.tell(Event(text, "stop" if ended else "length", text, answer.tokens))

    def _captions(self, batch: Sequence[Job]) -> list[Caption | APIError]:
        """A caption for each job, or why there is none."""
        first = batch[0]
        images = [job.images[0].values for job in batch]
        self._measurements.images.inc(len(images))
        try:
            return list(
                self.served.captioner.generate(
                    images, first.question or None, first.options, keys=[job.draws for job in batch]
                )
            )
        except RefusedImagesError as error:
            refused = {
                n: scores_error(text) if text == NON_FINITE_SCORES else APIError(400, text, code="invalid_image")
                for n, text in error.reasons.items()
            }
            return [refused.get(n) or caption for n, caption in enumerate(error.captions)]
        except InputError as error:
            failure = APIError(400, str(error), code="unsupported")
        except Exception as error:  # whatever a model raises must not end the thread
            logger.exception("captioning failed")
            failure = APIError(500, "Captioning failed; the server's log says why.", code="decoding_failed")
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                message = "There is not enough memory for this request; ask for fewer tokens."
                failure = APIError(503, message, code="out_of_memory")
        return [failure] * len(batch)
