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
        from captune.errors import MetricInputError, WeightsError
        from captune.hub import is_hub_id, require_available

        require_extra("CLIPScore", "train")
        if not Path(options.clip).is_dir():
            if not is_hub_id(options.clip):
                raise MetricInputError(f"--clip is {options.clip}, and there is no such folder; give one, or a hub id.")
            try:
                require_available(options.clip)
            except WeightsError as error:
                raise MetricInputError(f"{error} (--clip FOLDER)") from error


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
    from captune.data.images import has_rotation
    from captune.metrics.clipscore import ClipScorer
    from captune.metrics.external import with_metric

    pictures = _pictures(system, options)
    model = ClipScorer.from_pretrained(options.clip)
    result = model.score(pictures, list(system.predictions.values()), list(system.references.values()))
    name = Path(options.clip).name if Path(options.clip).is_dir() else options.clip
    exif = "upright" if any(map(has_rotation, pictures)) else None
    scores = with_metric(scores, "clipscore", result.clip_score[:, None], clip=name, exif=exif)
    assert result.ref_clip_score is not None
    return with_metric(scores, "refclipscore", result.ref_clip_score[:, None])


def _pictures(system: System, options: Options) -> list[Path]:
    """The file of each picture: as the references name it, else below --images.

    Raises:
        MetricInputError: a picture is not there, or nobody says where the pictures are.
    """
    from captune.data.image_files import ImageFolder
    from captune.errors import DataError, MetricInputError

    if options.images is not None and not options.images.is_dir():
        raise MetricInputError(f"There is no folder '{options.images}'; --images takes the folder of the pictures.")
    folder = None if options.images is None else ImageFolder(options.images)
    found: list[Path] = []
    for image in system.predictions:
        path = system.pictures.get(image)
        if path is not None and path.is_file():
            found.append(path)
            continue
        if folder is None:
            where = "" if path is None else f", and '{path}' is not there"
            raise MetricInputError(
                f"CLIPScore needs the picture of image '{image}'{where}; give --images FOLDER, or references with an "
                '"image" path (a captune manifest).'
            )
        file_name = system.file_names.get(image, None if path is None else path.name)
        try:
            picture = folder.find(image, file_name)
        except DataError as error:
            raise MetricInputError(f"CLIPScore: {error}") from error
        if picture is None:
            looked_for = folder.looked_for(image, file_name)
            raise MetricInputError(
                f"There is no picture of image '{image}' in '{options.images}', where {looked_for} was looked for."
            )
        found.append(picture)
    return found


ADD_EXTERNAL: dict[str, Callable[[Scores, System, Options], Scores]] = {
    "meteor": _add_meteor,
    "spice": _add_spice,
    "clipscore": _add_clipscore,
}
