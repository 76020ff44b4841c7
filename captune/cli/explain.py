"""`captune explain`: one training sample next to the generation for its image, token by token."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captune.cli.shared_options import Overrides

if TYPE_CHECKING:
    from rich.text import Text

    from captune.config import RunConfig
    from captune.data import Sample
    from captune.explain import Explanation, InputToken

__all__ = ["explain"]

STYLES = {
    "ok": "green",
    "FAIL": "bold red",
    "note": "yellow",
    "target": "green",
    "image": "cyan",
    "differs": "bold red",
}
GAP = "   "
OTHER_CAPTIONS = 16
"""Captions of other images whose conversations are checked with a transformers model."""
PLACEHOLDER_SIZE = (500, 375)


def explain(
    config: Annotated[Path, typer.Argument(help="YAML configuration of a run.", show_default=False)],
    overrides: Overrides = None,
    image: Annotated[str | None, typer.Option(help="Id of the image; by default the first training image.")] = None,
    caption: Annotated[int, typer.Option(help="Index of the caption, from 0.", min=0)] = 0,
    text: Annotated[
        str | None, typer.Option(help="Caption text to use instead of one from the data.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Show the exact tokens, image slots, loss mask and stop of training and of generation, and check they agree.

    Exit code 1 when a check fails.

    Examples:
        captune explain photos.yaml
        captune explain photos.yaml --image IMG_0012 --caption 1
        captune explain photos.yaml --text 'A dog on a beach.' --json
    """
    from captune.cli.progress import working
    from captune.config import load_config
    from captune.preflight import check_configured_model, check_manifest, extra_imports, require_extra
    from captune.training import check_settings

    settings = load_config(config, overrides or [])
    require_extra("captune explain", "train")
    check_configured_model(settings.model)
    start = check_settings(settings)
    if text is None:
        check_manifest("data.train", settings.data.train)
    sample = _sample(settings, image, text)
    with working("Loading torch and transformers"), extra_imports("captune explain", "train"):
        from captune.explain import explain as compare
        from captune.explain import small_copy
        from captune.hub import resolve_model
        from captune.model import load_config_and_processor
        from captune.vlm import is_image_text_model
    if is_image_text_model(resolve_model(settings.model)):
        explanation = _conversation(settings, sample, caption, placeholder=text is not None)
    else:
        model_config, processor = load_config_and_processor(settings.model)
        explanation = compare(settings, small_copy(model_config, processor), sample, caption)
    if as_json:
        _print_json(explanation)
    else:
        _print(explanation)
        if start is not None:
            print(f"\n{start.sentence}")
    return 0 if explanation.holds else 1


def _sample(settings: RunConfig, image: str | None, text: str | None) -> Sample:
    """The requested image, or a placeholder for a caption of --text."""
    from captune.data import Sample
    from captune.errors import DataError, InputError
    from captune.evaluation import training_images

    if text is not None:
        if not text.strip():
            raise InputError("--text is blank; give a caption.")
        return Sample("text", "text", (text,), settings.data.train_split)
    images = training_images(settings)
    if image is None:
        return images[0]
    for sample in images:
        if sample.id == image:
            return sample
    raise DataError(f"{settings.data.train} has no image '{image}' among its {len(images):,} training images.")


def _conversation(settings: RunConfig, sample: Sample, caption: int, *, placeholder: bool) -> Explanation:
    """The explanation for a transformers model, on the sample's image or on a grey one for a caption of --text."""
    from PIL import Image

    from captune.data import read_image, resolve_image
    from captune.evaluation import training_images
    from captune.explain import explain_conversation
    from captune.hub import resolve_model
    from captune.vlm import weightless_model

    model = weightless_model(resolve_model(settings.model), instruction=settings.model.custom_instruction)
    if placeholder:
        image, others = Image.new("RGB", PLACEHOLDER_SIZE, (127, 127, 127)), []
    else:
        image = read_image(resolve_image(settings.data.train, sample.image), exif=settings.exif_rotation)
        images = training_images(settings)
        others = [other.captions[0] for other in images[:: max(1, len(images) // OTHER_CAPTIONS)]][:OTHER_CAPTIONS]
    return explain_conversation(settings, model, sample, image, caption, others=others)


def _sequence(explanation: Explanation) -> list[InputToken]:
    """The complete sequence of training: the context of the last target, and that target."""
    from captune.explain import InputToken

    last = explanation.trace.steps[-1]
    return [*last.context, InputToken(last.target, None, len(last.context))]


def _print_json(explanation: Explanation) -> None:
    import json

    from captune.explain import piece_text

    first_target = len(explanation.trace.prompt)

    def entry(index: int, token: InputToken) -> dict[str, Any]:
        piece = None if token.slot is not None else piece_text(explanation.tokenizer, token.id)
        named = {"index": index, "position": token.position, "id": token.id, "piece": piece, "image_token": token.slot}
        return named

    answer = {
        "image": explanation.image,
        "caption": explanation.caption,
        "stop_symbol": explanation.stop_symbol,
        **({"prompt": explanation.rendered} if explanation.rendered else {}),
        "training": [
            {**entry(index, token), "target": index >= first_target}
            for index, token in enumerate(_sequence(explanation))
        ],
        "generation": [entry(index, token) for index, token in enumerate(explanation.prompt)],
        "checks": [
            {"name": check.name, "status": check.status, "reason": check.reason} for check in explanation.checks
        ],
        "holds": explanation.holds,
    }
    print(json.dumps(answer, ensure_ascii=False).encode("utf-8", "backslashreplace").decode())


def _print(explanation: Explanation) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, emoji=False, markup=False)
    for line in _lines(explanation):
        console.print(line, soft_wrap=True)


def _lines(explanation: Explanation) -> Iterator[Text]:
    from rich.text import Text

    yield Text(f"image {explanation.image}: {explanation.caption!r}, answers end with {explanation.stop_symbol!r}")
    if explanation.rendered:
        yield Text(f"prompt: {explanation.rendered!r}")
    yield Text()
    yield from _table(explanation)
    yield Text()
    yield Text("marks: ! differs from generation, > is a training target")
    yield Text()
    width = max(len(check.name) for check in explanation.checks)
    for check in explanation.checks:
        line = Text(f"{check.status:<5}", STYLES[check.status])
        yield line.append(f"{check.name:<{width}}  {check.reason}", "")
    failed = [check.name for check in explanation.checks if check.status == "FAIL"]
    verdict = f"{len(failed)} of {len(explanation.checks)} checks failed: {', '.join(failed)}."
    yield Text()
    yield (
        Text(verdict, STYLES["FAIL"]) if failed else Text("Training and generation agree on every token.", STYLES["ok"])
    )


def _table(explanation: Explanation) -> Iterator[Text]:
    """One line a token; an image that is the same on both sides is one line."""
    from rich.cells import cell_len
    from rich.text import Text

    trained, generated = _sequence(explanation), explanation.prompt
    first_target = len(explanation.trace.prompt)
    rows = list(_rows(explanation, trained, generated, first_target))
    heading = ("index", "training", "", "generation", "image")
    widths = [max(cell_len(cells[column]) for cells in [heading, *rows]) for column in range(3)]
    for number, cells in enumerate([heading, *rows]):
        padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(cells[:3], widths, strict=True)]
        line = Text(padded[0], "dim" if number else "bold")
        style = STYLES.get(cells[4], "") if number else "bold"
        line.append(GAP + padded[1], style).append(f" {padded[2]} ", style).append(GAP + cells[3], style)
        line.rstrip()
        yield line


def _rows(
    explanation: Explanation, trained: list[InputToken], generated: tuple[InputToken, ...], first_target: int
) -> Iterator[tuple[str, str, str, str, str]]:
    """Cells of each line and its kind: index, training, mark, generation, kind."""
    index, length = 0, max(len(trained), len(generated))
    while index < length:
        left = trained[index] if index < len(trained) else None
        right = generated[index] if index < len(generated) else None
        end = _image_end(trained, generated, index)
        if end > index + 1:
            image = f"{end - index} x <image>"
            yield f"{index}-{end - 1}", image, "", image, "image"
            index = end
            continue
        kind, mark = "", ""
        if index >= first_target and left is not None:
            kind, mark = "target", ">"
        if (right is None and index < first_target) or (
            right is not None and (left is None or left.content != right.content or kind == "target")
        ):
            kind, mark = "differs", "!"
        right_cell = _cell(explanation, right)
        if right is None and index == max(first_target, len(generated)):
            right_cell = "(continues from here)"
        yield str(index), _cell(explanation, left), mark, right_cell, kind
        index += 1


def _image_end(trained: list[InputToken], generated: tuple[InputToken, ...], start: int) -> int:
    """Index after an image that both sides have at `start`; `start` itself if there is none."""
    end = start
    while end < min(len(trained), len(generated)):
        left, right = trained[end], generated[end]
        if left.slot is None or left.content != right.content or left.slot != trained[start].slot + end - start:  # type: ignore[operator]
            break
        end += 1
    return end


def _cell(explanation: Explanation, token: InputToken | None) -> str:
    from captune.explain import piece_text

    if token is None:
        return ""
    if token.slot is not None:
        return f"<image {token.slot}>"
    number = "?" if token.id is None else str(token.id)
    return f"{number:>6} {piece_text(explanation.tokenizer, token.id)}"
