"""A callback for transformers' `Trainer` that captions a manifest at the start and at each evaluation.

Each process captions its part of the images, so that no image is captioned twice; the main process scores, and a
separate process writes charts and page while training continues. An exception is logged and ends no training.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from captune.common import error_text
from captune.config import parse_config
from captune.data import folder_lock, resolve_image
from captune.data.leaks import ImageFile
from captune.decoding import Caption
from captune.distributed import DistributedContext
from captune.errors import ConfigError, InputError, MetricInputError, NonFiniteScoresError, RefusedImagesError
from captune.evaluation import PRETRAINED, Evaluation, decoding_options, evaluation_set
from captune.events import thinking_note
from captune.integrations.live_training import live_captioner, model_name, training_leaks
from captune.metrics import Signature
from captune.parsing import load_json
from captune.report import BackgroundReport, CheckpointScores, RunScores, format_value, read_scores

__all__ = ["CaptionEvaluation"]

logger = logging.getLogger(__name__)

_STEP = re.compile(r"step(\d+)")
_LOG = "evaluations.jsonl"
"""File with a line for each evaluation: seconds, scores, or the reason why there are none."""


class CaptionEvaluation(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Captions a manifest with the model in training, at the start and at each evaluation, and scores the captions.

    Every evaluation is a row `stepN` of the table in `output`, the first one `pretrained`; captions are those of
    `captune evaluate CHECKPOINT --data MANIFEST` with the checkpoint of the same step. The scores are metrics of the
    trainer's evaluation, as `eval_captune_CIDEr`. A row that cannot be scored says why, and training continues. Charts
    and page are written by another process while training continues; they are complete when it has ended, and the cost
    is printed. A resumed training adds its rows to those of the steps before; every other training with the same
    output, and a resumed one of another model, writes to `OUTPUT-2`.

    Args:
        manifest: lists the images and their reference captions.
        output: folder for captions, scores, table and page.
        split: of the manifest; by default `test`.
        instruction: the prompt; by default that of `captune evaluate`.
        processor: of the model; by default the trainer's `processing_class`, or that of the base model.
        settings: further settings as in the configuration of a run, such as `evaluate.beams=3`.
        find_leaks: search the images among the trainer's at the start, which reads all of them.

    Raises:
        ConfigError: a setting is wrong, or the protocol evaluates training images.
        DataError: the manifest is broken, or has no such split.
    """

    def __init__(
        self,
        manifest: str | os.PathLike[str],
        output: str | os.PathLike[str],
        split: str | None = None,
        *,
        instruction: str | None = None,
        processor: Any = None,
        settings: Sequence[str] = (),
        find_leaks: bool = True,
    ) -> None:
        path = os.fspath(manifest)
        data = {"train": path, "evaluate": path} | ({} if split is None else {"evaluate_split": split})
        self._config = parse_config({"output": os.fspath(output), "data": data}, list(settings))
        self._images = evaluation_set(self._config, guard=False)
        if self._images.rules.images == "training":
            raise ConfigError(
                f"Protocol {self._config.evaluate.protocol} evaluates training images of a run of captune; choose "
                "protocol karpathy."
            )
        self._root = self._config.output
        self._options = decoding_options(self._images.rules.applied(self._config))
        self._instruction = self._images.rules.instruction or instruction
        self._processor = processor
        self._find_leaks = find_leaks
        self._evaluation: Evaluation | None = None
        self._report: BackgroundReport | None = None
        self._seconds = {"captioning": 0.0, "scoring": 0.0}
        self._scores: dict[int, dict[str, float]] = {}
        self._failures: dict[int, str] = {}
        self._training: dict[str, str] = {}
        self._earlier_row: CheckpointScores | None = None
        self._is_training = False

    @property
    def output(self) -> Path:
        """Folder of captions and scores."""
        return self._config.output

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare the table, search for leaks, and caption with the model before training."""
        dist = _context(args)
        self._is_training = True
        self._evaluation, self._scores, self._failures = None, {}, {}
        self._report, self._seconds = None, {"captioning": 0.0, "scoring": 0.0}
        rows = _on_main(dist, lambda: self._begin(args, state.global_step, kwargs))
        if isinstance(rows, str):
            self._report_failure(dist, "start", rows)
        else:
            self._scores, self._failures = rows["scores"], rows["failures"]
        if not self._scores and not self._failures:
            self._evaluate(args, state, control, dist, kwargs)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Caption and score, and add the scores to the metrics of the trainer's evaluation."""
        if not self._is_training:
            return
        step = state.global_step
        # An evaluation with several data sets calls this once for each.
        if step not in self._scores and step not in self._failures:
            self._evaluate(args, state, control, _context(args), kwargs)
        if metrics is None:
            return
        metrics.update(_prefixed(self._scores.get(step, {})))
        decisive = str(args.metric_for_best_model or "").removeprefix("eval_")
        if decisive.startswith("captune_") and step in self._failures:
            # The trainer fails without this key; not a number is never the best.
            metrics.setdefault(f"eval_{decisive}", math.nan)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the page, and stop: the model that is evaluated after training may be of another step."""
        self._is_training = False
        if self._report is None:
            return
        start = time.perf_counter()
        if error := self._report.finish():
            logger.error("The page cannot be written to %s: %s", self.output, error)
        waited = time.perf_counter() - start
        cost = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in self._seconds.items())
        tqdm.write(
            f"captune  cost of {len(self._scores) + len(self._failures)} evaluations: {cost}; charts and page "
            f"{self._report.seconds:.1f} s in another process, {waited:.1f} s of them after training"
        )

    def _begin(self, args: Any, step: int, parts: Mapping[str, Any]) -> dict[str, dict[int, Any]]:
        """Prepare the table in the main process; the scores and failures of earlier steps by step."""
        self._training = {
            "model": model_name(parts["model"]),
            "instruction": self._instruction or "",
            "decoding": str(self._options),
            "checkpoints": os.path.realpath(args.output_dir),
        }
        folder, rows = self._folder(step)
        if rows is not None:
            logger.warning("The rows of the resumed training are added to the table in %s.", folder)
        elif folder != self._root:
            logger.warning(
                "%s holds the scores of another training; those of this one are written to %s.", self._root, folder
            )
        config = self._config.model_copy(update={"output": folder})
        dataloader = parts.get("train_dataloader")
        images = replace(self._images, leak=self._leak(dataloader)) if self._find_leaks else self._images
        evaluation = Evaluation(config, images)
        if rows is not None:
            evaluation.restore([row for row in rows.checkpoints if _step(row.name) <= step])
        scored = [row for row in evaluation.rows if row.error is None]
        self._earlier_row = scored[-1] if scored else None
        self._config, self._evaluation = config, evaluation
        ids = (str(image.id) for image in images.images)
        self._report = BackgroundReport(
            folder, dict(zip(ids, self._files(), strict=True)), exif_rotation=config.exif_rotation
        )
        return {
            "scores": {_step(row.name): dict(row.corpus) for row in evaluation.rows if row.error is None},
            "failures": {_step(row.name): row.error for row in evaluation.rows if row.error is not None},
        }

    def _folder(self, step: int) -> tuple[Path, RunScores | None]:
        """The output folder, and its scores if training continues from a step after the first.

        A new training takes the first folder without scores. A resumed one continues the folder of its checkpoints, or
        else the last one of a training with the same model, prompt and decoding.
        """
        number, folder = 1, self._root
        earlier: list[tuple[bool, int, Path, RunScores]] = []
        while (folder / "scores.json").exists() or (folder / "config.yaml").exists():
            rows = self._rows(folder) if step else None
            if rows is not None:
                differing = self._differing(folder)
                if "model" not in differing and ("checkpoints" not in differing or len(differing) == 1):
                    earlier.append(("checkpoints" not in differing, number, folder, rows))
            number += 1
            folder = self._root.with_name(f"{self._root.name}-{number}")
        if not earlier:
            return folder, None
        *_, folder, scores = max(earlier, key=lambda entry: entry[:2])
        return folder, scores

    def _differing(self, folder: Path) -> set[str]:
        """What differs between this training and that of a folder; what is unknown does not differ."""
        try:
            entry = load_json((folder / _LOG).read_text(encoding="utf-8").splitlines()[-1])
        except (OSError, ValueError, IndexError):
            return set()
        before = entry.get("training") if isinstance(entry, dict) else None
        if not isinstance(before, dict):
            return set()
        return {name for name, value in self._training.items() if before.get(name, value) != value}

    def _rows(self, folder: Path) -> RunScores | None:
        """The rows of a training on the same images in a folder."""
        try:
            scores = read_scores(folder)
        except InputError:
            return None
        images = {str(image.id) for image in self._images.images}
        same = (scores.data, scores.split, scores.protocol) == (
            self._images.name,
            self._images.split,
            self._images.protocol,
        ) and all(row.error is not None or set(row.captions) == images for row in scores.checkpoints)
        is_ours = all(row.name == PRETRAINED or _STEP.fullmatch(row.name) for row in scores.checkpoints)
        return scores if same and is_ours and not (folder / "config.yaml").exists() else None

    def _leak(self, dataloader: Any) -> str | None:
        """Why the rows are marked LEAK, or None."""
        evaluated = [
            ImageFile(f"{image.id}", os.fspath(path))
            for image, path in zip(self._images.images, self._files(), strict=True)
        ]
        try:
            report = training_leaks(getattr(dataloader, "dataset", None), evaluated)
        except Exception as error:  # a data set is code of the user
            logger.warning("The training images cannot be searched for leaks: %s", error_text(error))
            return None
        if report is None:
            logger.warning(
                "The rows of the training set have no images that can be read, so it is unknown whether images of %s "
                "are trained on.",
                self._images.manifest,
            )
            return None
        if report.reason is not None:
            logger.warning("The results are marked LEAK: %s.", report.reason)
        return report.reason

    def _files(self) -> list[Path]:
        return [resolve_image(self._images.manifest, image.image) for image in self._images.images]

    def _evaluate(
        self, args: Any, state: Any, control: Any, dist: DistributedContext, parts: Mapping[str, Any]
    ) -> None:
        """Add the row of this step, in all processes at the same time."""
        step, name = state.global_step, _name(state.global_step)
        start = time.perf_counter()
        try:
            captions, prompt = self._caption(parts["model"], self._processor or parts.get("processing_class"), dist)
            part: tuple[list[Caption], str] = captions, ""
        except Exception as error:  # training continues, and the other processes wait for this one
            logger.debug("Captioning failed.", exc_info=True)
            part, prompt = ([], _sentence(error)), None
        gathered = dist.all_gather(part)
        captioned = time.perf_counter()
        failure = next((reason for _, reason in gathered if reason), None)
        result: Any = failure
        if failure is None:
            complete = dist.gather(part[0], len(self._images.images))
            result = _on_main(dist, lambda: self._score(name, complete, prompt))
        ended = time.perf_counter()
        self._seconds["captioning"] += captioned - start
        self._seconds["scoring"] += ended - captioned
        entry = {"name": name, "step": step, "epoch": state.epoch}
        if isinstance(result, str):
            self._failures[step] = result
            self._report_failure(dist, name, result)
            self._add_failure(dist, name, result)
            self._write_log(dist, entry | {"error": result})
            return
        self._scores[step] = result
        if dist.is_main:
            leak = "  LEAK" if self._evaluation is not None and self._evaluation.images.leak is not None else ""
            shown = "  ".join(f"{metric} {format_value(value)}" for metric, value in result.items())
            thinking = self._evaluation.rows[-1].thinking_counts if self._evaluation is not None else {}
            removed = thinking_note(thinking)
            tqdm.write(f"captune  {name}  {shown}{leak}{removed and f'  {removed}'}")
        seconds = {"caption_seconds": round(captioned - start, 3), "score_seconds": round(ended - captioned, 3)}
        self._write_log(dist, entry | seconds | {"scores": result})
        _log(state, args, control, _prefixed(result))

    def _caption(self, model: Any, processor: Any, dist: DistributedContext) -> tuple[list[Caption], str | None]:
        """Captions of this process's images, and the prompt."""
        files = dist.shard(self._files())
        with live_captioner(
            model, processor, instruction=self._instruction, exif_rotation=self._config.exif_rotation
        ) as captioner:
            prompt = captioner.prompt_text(captioner.instruction)
            try:
                return captioner.caption_files(files, captioner.instruction, self._options), prompt
            except NonFiniteScoresError:
                raise
            except RefusedImagesError as error:
                logger.warning("%s Their captions count as empty.", error)
                return [Caption("", 0, False) if caption is None else caption for caption in error.captions], prompt

    def _score(self, name: str, captions: Sequence[Caption], prompt: str | None) -> dict[str, float]:
        """Score captions in the main process, and write the table with all rows."""
        if self._evaluation is None:
            raise ConfigError("The evaluation could not be prepared at the start of training.")
        row = self._evaluation.score(None, captions, name=name, instruction=prompt)
        if self._earlier_row is not None:
            self._warn_of_differences(self._earlier_row, row)
            self._earlier_row = None
        self._write(name)
        return dict(row.corpus)

    def _warn_of_differences(self, before: CheckpointScores, now: CheckpointScores) -> None:
        """Warn where the captions of a resumed training are made otherwise than those before."""
        try:
            differing = Signature.parse(before.signature).differences(Signature.parse(now.signature))
        except MetricInputError:
            return
        if differing:
            logger.warning(
                "The table in %s mixes captions that were made differently, and such rows cannot be compared: %s has "
                "other settings than %s (%s). Resume with the settings of the first rows, or with another output.",
                *(self.output, now.name, before.name, "; ".join(differing)),
            )

    def _add_failure(self, dist: DistributedContext, name: str, reason: str) -> None:
        """Add a row that says why it was not scored, in the main process."""
        if dist.is_main and self._evaluation is not None:
            self._evaluation.fail(name, reason)
            self._write(name)

    def _write(self, name: str) -> None:
        """Write the table with all rows, and begin to write charts and page."""
        assert self._evaluation is not None
        assert self._report is not None
        try:
            with folder_lock(self.output, "captune.integrations"):
                self._evaluation.write(thumbnails=False)
        except Exception as error:  # the row is kept, and is written with the next one
            logger.error("%s cannot be written to %s: %s", name, self.output, _sentence(error))
        else:
            self._report.update()

    def _report_failure(self, dist: DistributedContext, name: str, reason: str) -> None:
        if dist.is_main:
            logger.error("The caption evaluation failed, and training continues. %s: %s", name, reason)
            tqdm.write(f"captune  {name}  not scored: {reason}")

    def _write_log(self, dist: DistributedContext, entry: Mapping[str, Any]) -> None:
        if not dist.is_main:
            return
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            with open(self.output / _LOG, "a", encoding="utf-8") as stream:
                stream.write(json.dumps({**entry, "training": self._training}, ensure_ascii=False) + "\n")
        except OSError as error:
            logger.error("%s cannot be written: %s", self.output / _LOG, error)


def _context(args: Any) -> DistributedContext:
    return DistributedContext(args.device, args.process_index, args.world_size)


def _on_main(dist: DistributedContext, compute: Callable[[], dict[Any, Any]]) -> Any:
    """The result of the main process in all processes, or a sentence if it failed."""
    result: Any = {}
    if dist.is_main:
        try:
            result = compute()
        except Exception as error:  # training continues, and the other processes wait for this one
            logger.debug("The caption evaluation failed.", exc_info=True)
            result = _sentence(error)
    return dist.all_gather(result)[0]


def _sentence(error: Exception) -> str:
    """One line about an error, with its kind if it is none of captune's."""
    return error_text(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error_text(error)}"


def _name(step: int) -> str:
    return f"step{step}" if step else PRETRAINED


def _step(name: str) -> int:
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else 0


def _prefixed(scores: Mapping[str, float]) -> dict[str, float]:
    return {f"eval_captune_{name}": value for name, value in scores.items()}


def _log(state: Any, args: Any, control: Any, scores: dict[str, float]) -> None:
    """Log scores in the trainer's history and with its other callbacks, such as TensorBoard's.

    A callback has no reference to its trainer, and the trainer logged its metrics before it called this one. The
    handler that calls the callbacks is a caller of this function.
    """
    logs = scores | {"epoch": state.epoch}
    state.log_history.append(logs | {"step": state.global_step})
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), CallbackHandler):
        frame = frame.f_back
    if frame is None:
        return
    should_log = control.should_log
    try:
        frame.f_locals["self"].on_log(args, state, control, logs)
    except Exception as error:  # a reporting service may be unreachable
        logger.error("The scores cannot be logged: %s", _sentence(error))
    finally:
        control.should_log = should_log
