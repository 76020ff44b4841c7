"""Evaluate models, endpoints and files of captions without a run, each a row of one table.

torch is imported when the first model is loaded.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from captune.captioner import Captioner
from captune.config import RunConfig
from captune.data import folder_lock, plural
from captune.decoding import Caption
from captune.errors import ConfigError, NonFiniteScoresError
from captune.evaluation.destination import LOCK_NAME, check_models_destination
from captune.evaluation.endpoint import Answer, Endpoint, EndpointOptions, GreedyRefusedError
from captune.evaluation.protocol import evaluation_set
from captune.evaluation.row_sources import PreparedRow, parse_sources, prepare_rows, with_base
from captune.evaluation.scoring import CaptionOrigin, Evaluation, refuse_rows
from captune.events import Listener
from captune.report import RunScores, write_report

__all__ = ["add_row", "check_endpoints", "evaluate_models"]

logger = logging.getLogger(__name__)


def evaluate_models(
    config: RunConfig,
    models: Sequence[str],
    listener: Listener,
    *,
    instruction: str | None = None,
    base: str | None = None,
    endpoint_options: EndpointOptions | None = None,
    match: str = "exact",
) -> RunScores:
    """Score models, endpoints and files of captions on the same images, without a run.

    Args:
        config: data, protocol and decoding; its output folder receives captions, scores, table and page.
        models: the rows; `captune.evaluation.row_sources` describes how they are named.
        listener: receives the progress.
        instruction: the prompt of all models; by default each has its default instruction.
        base: folder or hub id of the base model of adapters and checkpoints, and of the processor of a complete model
            that was saved without one; by default the recorded one.
        endpoint_options: for requests to endpoints.
        match: "exact", or "stem" to join ids of files that differ from the manifest's by folder or image ending.

    Returns:
        All rows, in the order of the models.

    Raises:
        ConfigError: the protocol needs a run, or the output folder holds something else.
        InputError: data, a file or a model cannot be used, an endpoint cannot be reached; or the scores of some are not
            numbers, which have no row.
        ToolError: an endpoint fails although requests were repeated.
    """
    sources = parse_sources(models)
    images = evaluation_set(config, listener, guard=False)
    if images.rules.images == "training":
        raise ConfigError(
            f"Protocol {config.evaluate.protocol} evaluates training images of a run, and a model alone has no run; "
            "choose protocol karpathy."
        )
    instruction = images.rules.instruction or instruction
    rows = prepare_rows(config, sources, images, endpoint_options, match=match)
    adapters = with_base([source.path for source in sources if source.kind == "model"], base)
    check_models_destination(config, images, [row.name for row in rows])
    logger.warning("what these models were trained on is not known, so the images are not searched for leaks.")
    evaluation = Evaluation(config, images)
    check_endpoints(evaluation, rows, instruction)
    with folder_lock(config.output, LOCK_NAME):
        faulty = [
            row.name
            for row in rows
            if not add_row(
                config,
                evaluation,
                row,
                listener,
                instruction=instruction,
                base=base if row.source.path in adapters else None,
            )
        ]
        if not evaluation.rows:
            refuse_rows(faulty, config.output, scored=False)
        evaluation.write()
        write_report(config.output, evaluation.run_scores())
    refuse_rows(faulty, config.output)
    return evaluation.run_scores()


def check_endpoints(evaluation: Evaluation, rows: Sequence[PreparedRow], instruction: str | None = None) -> None:
    """Refuse endpoints that cannot be reached, unless an earlier evaluation has stored all of their captions.

    Args:
        evaluation: that the rows are for.
        rows: of any kind.
        instruction: the prompt; by default that of the evaluation.

    Raises:
        InputError: names the address and the reason.
    """
    for endpoint in (row.endpoint for row in rows if row.endpoint is not None):
        prompt = instruction or evaluation.instruction
        samplings = (replace(endpoint, samples=samples).identity for samples in (False, True))
        if not any(evaluation.has_collected(identity, prompt, every=True) for identity in samplings):
            endpoint.check()


def add_row(
    config: RunConfig,
    evaluation: Evaluation,
    row: PreparedRow,
    on_event: Listener,
    *,
    instruction: str | None = None,
    run_prompt: bool = False,
    base: str | None = None,
) -> bool:
    """Add the row of a model, an endpoint or a file of captions.

    A model is released before the next one is loaded.

    Args:
        config: of the evaluation.
        evaluation: gets the row.
        row: from `prepare_rows`.
        on_event: receives the progress.
        instruction: the prompt; by default that of the model.
        run_prompt: use the prompt of the run, if the model follows instructions.
        base: folder or hub id of the base model of an adapter or checkpoint.

    Returns:
        False if the scores of the model are not numbers, so that it has no row.
    """

    def on_captions(done: int, count: int) -> None:
        on_event({"event": "captions", "epoch": None, "name": row.name, "done": done, "count": count})

    prompt: str | None = None
    origin: CaptionOrigin | None = None
    if row.captions is not None:
        captions = list(row.captions)
        origin = CaptionOrigin("file", notes=row.notes, ends_known=row.ends_known)
    elif row.endpoint is not None:
        prompt = (None if run_prompt else instruction) or evaluation.instruction
        captions, origin = _request(config, evaluation, row.name, row.endpoint, prompt, on_captions)
    else:
        on_event({"event": "stage", "what": f"Loading {row.name}"})
        captioner = Captioner.from_pretrained(
            row.source.path,
            dtype=config.model.dtype,
            instruction=instruction,
            exif_rotation=config.exif_rotation,
            base=base,
        )
        used = evaluation.instruction_for(captioner) if run_prompt else captioner.instruction
        try:
            captions = evaluation.caption_with(captioner, used, on_captions)
        except NonFiniteScoresError:
            evaluation.leave_out(row.name)
            return False
        prompt = captioner.prompt_text(used)
    scored = evaluation.score(None, captions, name=row.name, instruction=prompt, origin=origin)
    on_event(
        {
            "event": "evaluation",
            "epoch": None,
            "name": scored.name,
            "scores": dict(scored.corpus),
            **scored.thinking_counts,
        }
    )
    return True


def _request(
    config: RunConfig,
    evaluation: Evaluation,
    name: str,
    endpoint: Endpoint,
    instruction: str,
    on_captions: Callable[[int, int], None],
) -> tuple[list[Caption], CaptionOrigin]:
    """The captions of an endpoint, of which those of an interrupted evaluation are not requested again."""
    files = evaluation.image_files
    reasons: Counter[str] = Counter()

    def request(indices: list[int], keep: Callable[[int, Caption], None]) -> None:
        done = len(files) - len(indices)

        def on_answer(index: int, answer: Answer) -> None:
            nonlocal done
            if answer.is_final:
                keep(indices[index], answer.caption)
            if answer.refused:
                reasons[answer.refused] += 1
            done += 1
            on_captions(done, len(files))

        requested = [files[index] for index in indices]
        endpoint.caption(requested, instruction, on_answer, exif_rotation=config.exif_rotation, answered=done)

    endpoint.samples = True
    endpoint.samples = evaluation.has_collected(endpoint.identity, instruction)
    try:
        answers = evaluation.collected(endpoint.identity, instruction, request)
    except GreedyRefusedError as error:
        logger.warning("%s Its captions are sampled at the temperature of the server.", error)
        endpoint.samples = True
        answers = evaluation.collected(endpoint.identity, instruction, request)
    captions = [Caption("", 0, True) if answer is None else answer for answer in answers]
    notes = ["captions of an endpoint: the server processes the images, formats the prompt and decodes"]
    decoding = str(evaluation.options)
    if endpoint.samples:
        notes.append("the server refuses temperature 0, so its captions are sampled")
        decoding = f"sampled,max{evaluation.options.max_new_tokens}"
    empty = sum(not caption.text for caption in captions)
    if empty:
        cut = sum(not caption.text and not caption.stopped for caption in captions)
        text = f"{plural(empty, 'answer')} of {len(captions):,} without a caption, scored as empty"
        text += f"; {cut:,} ended at evaluate.max_new_tokens={evaluation.options.max_new_tokens}" if cut else ""
        notes.append(text)
        reason = f"; {reasons.most_common(1)[0][0]}" if reasons else ""
        logger.warning("%s: %s%s.", name, text, reason.rstrip("."))
    return captions, CaptionOrigin("endpoint", decoding, tuple(notes))
