"""Evaluate models, endpoints and files of captions without a run, each a row of one table.

torch is imported when the first model is loaded.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from captune.captioner import Captioner
from captune.common import listed
from captune.config import RunConfig, load_run_config, split_names
from captune.data import folder_lock, manifest_hash, plural, read_manifest
from captune.data.leaks import ImageFile
from captune.decoding import Caption, CollectedCaptions
from captune.errors import CaptuneError, ConfigError, DataError, InputError, NonFiniteScoresError, WeightsError
from captune.evaluation.destination import LOCK_NAME, check_models_destination
from captune.evaluation.endpoint import Answer, Endpoint, EndpointOptions, GreedyRefusedError
from captune.evaluation.protocol import EvaluationSet, evaluation_set, image_files, leak_reason
from captune.evaluation.row_sources import PreparedRow, parse_sources, prepare_rows, with_base
from captune.evaluation.scoring import CaptionOrigin, Evaluation, refuse_rows
from captune.events import Listener
from captune.report import RunScores, write_report
from captune.run_checkpoints import RUN_CONFIG, read_record, selected_checkpoint

__all__ = ["add_row", "check_endpoints", "evaluate_models", "finished_rows_written"]

logger = logging.getLogger(__name__)

_LONGEST_CHECK = 10.0
"""Seconds for the answer of a server whose captions are all stored."""


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
    if instruction is not None and all(source.kind == "captions" for source in sources):
        raise ConfigError(
            f"'{instruction}' is the prompt of models and endpoints, and all rows are files of captions, which exist "
            "already; leave the prompt out."
        )
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
    leaks = _leaks(config, images, rows, listener)
    evaluation = Evaluation(config, images)
    check_endpoints(evaluation, rows, instruction)
    with folder_lock(config.output, LOCK_NAME):
        with finished_rows_written(evaluation):
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
                    leak=leaks.get(row.name),
                )
            ]
        if not evaluation.rows:
            refuse_rows(faulty, config.output, scored=False)
        evaluation.write()
        write_report(config.output, evaluation.run_scores())
    refuse_rows(faulty, config.output)
    return evaluation.run_scores()


@contextmanager
def finished_rows_written(evaluation: Evaluation) -> Iterator[None]:
    """Write the rows that are scored when a later row fails, unless other rows of `scores.json` would be lost."""
    try:
        yield
    except CaptuneError as error:
        names = [row.name for row in evaluation.rows]
        if names and evaluation.replaces_no_other_row():
            evaluation.write()
            write_report(evaluation.output, evaluation.run_scores())
            error.args = (f"{error} The rows of {', '.join(names)} are in {evaluation.output}.",)
        raise


def _leaks(config: RunConfig, images: EvaluationSet, rows: Sequence[PreparedRow], listener: Listener) -> dict[str, str]:
    """Why rows are marked LEAK, by their names; a warning names the rows whose training images are unknown.

    The record of a checkpoint has the hash of its training manifest. Its images are searched if that manifest is
    evaluated here, or is where the run has it.
    """
    evaluated = image_files(images.manifest, images.images)
    reasons: dict[str, str] = {}
    unknown: list[str] = []
    for row in rows:
        trained, is_complete = _trained_images(config, images, row)
        if trained and (reason := leak_reason(config, trained, evaluated, listener)) is not None:
            reasons[row.name] = reason
        elif not is_complete:
            unknown.append(row.name)
    if unknown:
        logger.warning(
            "It is not known which images %s %s trained on, so leaks may not be found.",
            listed(unknown),
            "was" if len(unknown) == 1 else "were",
        )
    return reasons


def _trained_images(config: RunConfig, images: EvaluationSet, row: PreparedRow) -> tuple[list[ImageFile], bool]:
    """The known training images of a model and of the checkpoints before it, and whether these are all."""
    if row.source.kind != "model":
        return [], False
    selected = selected_checkpoint(row.source.path)
    folder = Path(row.source.path).expanduser() if selected is None else selected.folder
    try:
        record = read_record(folder)
    except WeightsError:  # loading the model reports a broken record
        return [], False
    last: dict[str, Any] = {"manifest_hash": record.manifest_hash, "split": record.train_split}
    with suppress(ConfigError):
        data = load_run_config(folder.resolve().parent.parent / RUN_CONFIG).data
        last |= {"manifest": data.train, "split": data.train_split, "train_images": data.train_images}
    trained: list[ImageFile] = []
    is_complete = True
    for stage in (*record.ancestors, last):
        try:
            manifests = [path for path in (images.manifest, stage.get("manifest")) if path is not None]
            manifest = next(path for path in manifests if manifest_hash(path) == stage["manifest_hash"])
            split = stage.get("split")
            is_complete &= split is not None  # older records have none
            samples = read_manifest(manifest, split_names(split or config.data.train_split))
            trained += image_files(manifest, samples[: stage.get("train_images")])
        except (StopIteration, DataError, OSError, KeyError):
            is_complete = False
    return list({(image.id, os.path.realpath(image.path)): image for image in trained}.values()), is_complete


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
        stored = map(endpoint.with_identity, evaluation.collected_fingerprints(prompt))
        earlier = [each for each in stored if each is not None]
        complete = (each for each in earlier if evaluation.has_collected(each.identity, prompt, every=True))
        first = next(complete, None)
        try:
            # No request follows where all captions are stored.
            endpoint.check(None if first is None else _LONGEST_CHECK)
        except InputError:
            if first is None:
                raise
            endpoint.served = first.served
            continue
        before = [each.served for each in earlier]
        if not before or endpoint.served in before:
            continue
        if not endpoint.served:
            endpoint.served = before[0]
        elif "" in before:
            endpoint.served = ""
        else:
            logger.warning(
                "%s serves another model as %s than in an earlier evaluation, so all captions are requested again.",
                endpoint.address,
                endpoint.model,
            )


def add_row(
    config: RunConfig,
    evaluation: Evaluation,
    row: PreparedRow,
    on_event: Listener,
    *,
    instruction: str | None = None,
    run_prompt: bool = False,
    base: str | None = None,
    leak: str | None = None,
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
        leak: why the row is marked LEAK.

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
    scored = evaluation.score(None, captions, name=row.name, instruction=prompt, origin=origin, leak=leak)
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
    failures: Counter[str] = Counter()

    def request(indices: list[int], keep: Callable[[int, Caption, Mapping[str, str]], None]) -> None:
        done = len(files) - len(indices)

        def on_answer(index: int, answer: Answer) -> None:
            nonlocal done
            if answer.is_final:
                remarks = {"model": answer.model if answer.model != endpoint.model else "", "refused": answer.refused}
                keep(indices[index], answer.caption, {key: text for key, text in remarks.items() if text})
            else:
                failures[answer.refused] += 1
            done += 1
            on_captions(done, len(files))

        requested = [files[index] for index in indices]
        endpoint.caption(requested, instruction, on_answer, exif_rotation=config.exif_rotation, answered=done)

    endpoint.samples = True
    endpoint.samples = evaluation.has_collected(endpoint.identity, instruction)
    try:
        collected = evaluation.collected(endpoint.identity, instruction, request)
    except GreedyRefusedError as error:
        logger.warning("%s Its captions are sampled at the temperature of the server.", error)
        endpoint.samples = True
        collected = evaluation.collected(endpoint.identity, instruction, request)
    notes = ["captions of an endpoint: the server processes the images, formats the prompt and decodes"]
    limit = evaluation.options.max_new_tokens
    decoding = str(evaluation.options)
    if endpoint.samples:
        notes.append("the server refuses temperature 0, so its captions are sampled")
        decoding = f"sampled,max{limit}"
    more = _reused(collected, evaluation.output) + _other_models(collected, endpoint)
    if missing := _without_caption(collected, failures, limit):
        if not any(caption is not None and caption.text for caption in collected.captions):
            again = f"; delete {collected.file} to request them again" if collected.reused else ""
            raise InputError(f"{name}: {endpoint.address} gave no caption: {missing}{again}.")
        more.append(f"{missing}; scored as empty")
    for note in more:
        logger.warning("%s: %s.", name, note)
    captions = [Caption("", 0, True) if caption is None else caption for caption in collected.captions]
    return captions, CaptionOrigin("endpoint", decoding, (*notes, *more))


def _reused(collected: CollectedCaptions, output: Path) -> list[str]:
    """The note on captions that were not requested now."""
    if not collected.reused:
        return []
    file = collected.file.relative_to(output).as_posix()
    count = f"{collected.reused:,} of {plural(len(collected.captions), 'caption')}"
    return [f"{count} requested in an earlier evaluation; to request them again, delete {file} in the output folder"]


def _other_models(collected: CollectedCaptions, endpoint: Endpoint) -> list[str]:
    """The note on answers that name another model than the requested one, as servers do that ignore the name."""
    models = Counter(remarks["model"] for remarks in collected.remarks if "model" in remarks)
    named = ", ".join(f"{model} ({plural(count, 'answer')})" for model, count in models.most_common(3))
    return [f"the server answers with the model {named}, and not with the requested {endpoint.model}"] if models else []


def _without_caption(collected: CollectedCaptions, failures: Counter[str], limit: int) -> str:
    """How many images have no caption, and why; empty if all have one."""
    images = list(zip(collected.captions, collected.remarks, strict=True))
    failed = sum(caption is None for caption, _ in images)
    refusals = Counter(remarks["refused"] for _, remarks in images if "refused" in remarks)
    refused = refusals.total()
    empty = [
        caption for caption, remarks in images if caption is not None and not caption.text and "refused" not in remarks
    ]
    cut = sum(not caption.stopped for caption in empty)
    counts = {
        f"refused by the server or failed ({_most_common(failures)})": failed,
        f"refused by the model or filtered ({_most_common(refusals)})": refused,
        "empty" + (f" ({cut:,} ended at evaluate.max_new_tokens={limit})" if cut else ""): len(empty),
    }
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
    total = sum(counts.values())
    return f"{plural(total, 'answer')} of {len(images):,} without a caption: {reasons}" if total else ""


def _most_common(words: Counter[str]) -> str:
    return f"'{words.most_common(1)[0][0].rstrip('.')}'" if words else ""
