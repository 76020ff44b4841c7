"""METEOR, SPICE and CLIPScore for the command line: from captions and options to scores with one metric more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from captune.cli.scoring_options import Compat, Options

if TYPE_CHECKING:
    from captune.cli.scoring import System
    from captune.metrics import Scores

__all__ = ["ADD_EXTERNAL", "check_external"]


def check_external(options: Options) -> None:
    """Refuse before any metric runs what would end the last of them: no Java, jar, parser models or CLIP model.

    Raises:
        MissingExtraError: an extra is not installed.
        MetricInputError: SPICE's parser models or the CLIP folder are missing.
        ExternalToolError: the Java that was found does not run.
    """
    from captune.metrics.java import coco_caption_folder, find_java

    for key in ("meteor", "spice"):
        if key in options.metrics:
            find_java(options.java)
            coco_caption_folder(key)
    if "spice" in options.metrics:
        from captune.metrics.corenlp import find_models

        find_models(options.spice_models)
    if "clipscore" in options.metrics:
        from captune.cli.preflight import require_extra
        from captune.errors import MetricInputError
        from captune.hub import detect_offline, is_hub_id

        require_extra("CLIPScore", "train")
        if not Path(options.clip).is_dir():
            if not is_hub_id(options.clip):
                raise MetricInputError(f"--clip is {options.clip}, and there is no such folder; give one, or a hub id.")
            detect_offline()


def _tokenized(system: System, options: Options) -> tuple[list[str], list[list[str]]]:
    """Captions as METEOR and SPICE get them from coco-caption: tokens with one space between."""
    from captune.metrics.tokenizers import tokenizer

    tokens = tokenizer(options.tokenize)

    def joined(captions: Sequence[str]) -> list[str]:
        if options.compat == Compat.COCO_CAPTION and tokens.tokenize_call is not None:
            return [" ".join(words) for words in tokens.tokenize_call(captions)]
        return [" ".join(tokens.tokenize(caption)) for caption in captions]

    predictions = joined(list(system.predictions.values()))
    flat = iter(joined([caption for group in system.references.values() for caption in group]))
    return predictions, [[next(flat) for _ in group] for group in system.references.values()]


def _add_meteor(scores: Scores, system: System, options: Options) -> Scores:
    from captune.metrics.external import with_metric
    from captune.metrics.meteor import meteor

    predictions, references = _tokenized(system, options)
    result = meteor(
        predictions,
        references,
        java=options.java,
        memory=options.java_memory or "2G",
        timeout=options.time_limit or 300.0,
    )
    return with_metric(scores, "meteor", result.statistics, meteor="1.5")


def _add_spice(scores: Scores, system: System, options: Options) -> Scores:
    from captune.metrics.external import with_metric
    from captune.metrics.spice import SPICE_VERSION, spice

    predictions, references = _tokenized(system, options)
    result = spice(
        predictions,
        references,
        models=options.spice_models,
        java=options.java,
        memory=options.java_memory or "8G",
        timeout=options.time_limit or 3600.0,
        cache=options.spice_cache,
    )
    return with_metric(scores, "spice", result.per_image[:, None], spice=SPICE_VERSION)


def _add_clipscore(scores: Scores, system: System, options: Options) -> Scores:
    from captune.errors import MetricInputError
    from captune.metrics.clipscore import ClipScorer
    from captune.metrics.external import with_metric

    pictures = []
    for image in system.predictions:
        if image in system.pictures:
            pictures.append(system.pictures[image])
        elif options.images is not None:
            pictures.append(_picture(options.images, image))
        else:
            raise MetricInputError(
                f"CLIPScore needs the picture of image '{image}'; give --images FOLDER, or references with an "
                '"image" path (a captune manifest).'
            )
    model = ClipScorer.from_pretrained(options.clip)
    result = model.score(pictures, list(system.predictions.values()), list(system.references.values()))
    name = Path(options.clip).name if Path(options.clip).is_dir() else options.clip
    scores = with_metric(scores, "clipscore", result.clip_score[:, None], clip=name)
    assert result.ref_clip_score is not None
    return with_metric(scores, "refclipscore", result.ref_clip_score[:, None])


def _picture(folder: Path, image: str) -> Path:
    """The file of a picture, whose id may lack the ending."""
    for ending in ("", ".jpg", ".jpeg", ".png", ".webp"):
        if (path := folder / f"{image}{ending}").is_file():
            return path
    return folder / image


ADD_EXTERNAL: dict[str, Callable[[Scores, System, Options], Scores]] = {
    "meteor": _add_meteor,
    "spice": _add_spice,
    "clipscore": _add_clipscore,
}
