"""`captune plan`: the memory of a run, part by part, and the nearest configuration that fits a card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from captune.config import RunConfig
    from captune.model import MemoryEstimate
    from captune.training import ImageTextPlanner, Measured, Plan, Planner, Proposal

__all__ = ["card_bytes", "plan", "planner_of", "size_in_words"]

UNITS = {
    "": 10**9,
    "G": 10**9,
    "GB": 10**9,
    "GIB": 2**30,
    "M": 10**6,
    "MB": 10**6,
    "MIB": 2**20,
    "T": 10**12,
    "TB": 10**12,
}


def plan(
    config: Annotated[Path, typer.Argument(help="YAML configuration of a run.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings that override the file, as section.key=value.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Memory of a card, such as 24GB; by default that of this machine's card.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes that share each step.", min=1)] = 1,
    caption_tokens: Annotated[
        int | None, typer.Option(help="Length of the longest captions, instead of those in the data.", min=1)
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Run two steps and a generation, and measure the memory.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Predict the memory of training and generation from the configuration of the model, without its weights.

    Exit code 1 when it does not fit the card.

    Examples:
        captune plan photos.yaml --gpu 24GB
        captune plan photos.yaml train.batch_size=16 --gpu 24GB
        captune plan photos.yaml --probe
    """
    from captune.cli.progress import working
    from captune.config import load_config
    from captune.preflight import check_configured_model, extra_imports, require_extra
    from captune.training import check_settings

    settings = load_config(config, overrides or [])
    limit = None if gpu is None else card_bytes(gpu)
    require_extra("captune plan", "train")
    check_configured_model(settings.model)
    start = check_settings(settings)
    with working("Loading torch and transformers"), extra_imports("captune plan", "train"):
        import torch

        from captune.hub import resolve_model
        from captune.model import default_device
        from captune.training import (
            ImageTextPlanner,
            Planner,
            load_for_training,
            measure_image_text_memory,
            measure_memory,
        )
    here = default_device()
    if limit is None and here.type == "cuda":
        limit = torch.cuda.get_device_properties(here).total_memory
    # A probe runs on this device; --gpu without a probe means a GPU.
    device = here if probe or limit is None else torch.device("cuda")
    source = resolve_model(settings.model)
    planner = planner_of(settings, device, processes=processes, caption_tokens=caption_tokens)
    predicted = planner.plan()
    fits = limit is None or predicted.peak <= limit
    proposal = None if fits or limit is None else planner.propose(limit)
    measured: list[Measured] = []
    if probe and isinstance(planner, Planner):
        model = load_for_training(source, settings.train, settings.model.instruction, settings.seed, here)
        measured = measure_memory(settings, model, planner)
    elif probe and isinstance(planner, ImageTextPlanner):
        measured = measure_image_text_memory(settings, source, planner)
    if as_json:
        _print_json(planner, predicted, limit, proposal, measured)
    else:
        _print(settings, planner, device, predicted, limit, proposal, measured)
        if start is not None:
            print(f"\n{start.sentence}")
    return 0 if fits else 1


def planner_of(
    settings: RunConfig, device: torch.device, *, processes: int = 1, caption_tokens: int | None = None
) -> Planner | ImageTextPlanner:
    """The planner of a run's kind of model.

    Args:
        settings: of the run.
        device: where it will run.
        processes: that share each step.
        caption_tokens: length of the longest captions, instead of those in the data.
    """
    from captune.hub import resolve_model
    from captune.model import load_config_and_processor
    from captune.training import ImageTextPlanner, Planner
    from captune.vlm import is_image_text_model

    source = resolve_model(settings.model)
    if is_image_text_model(source):
        return ImageTextPlanner(settings, device, processes=processes, caption_tokens=caption_tokens)
    model_config, processor = load_config_and_processor(source)
    return Planner(settings, model_config, processor, device, processes=processes, caption_tokens=caption_tokens)


def card_bytes(text: str) -> int:
    """Bytes of a card's size as people write it: 24GB, 24, 79.6GiB, 12000MB.

    Raises:
        InputError: it is not a size.
    """
    from captune.errors import InputError

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS or float(match[1]) == 0:
        raise InputError(f"--gpu is '{text}'; expected the memory of a card, such as 24GB or 79.6GiB.")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _print_json(
    planner: Planner | ImageTextPlanner,
    predicted: Plan,
    limit: int | None,
    proposal: Proposal | None,
    measured: list[Measured],
) -> None:
    import json

    from captune.training import Planner

    def phase(estimate: MemoryEstimate) -> dict[str, Any]:
        parts = [{"name": part.name, "bytes": part.bytes, "why": part.why} for part in estimate.parts]
        return {"total": estimate.total, "parts": parts}

    answer = {
        "training": phase(predicted.training),
        "generation": phase(predicted.generation),
        "peak": predicted.peak,
        "card": limit,
        "fits": None if limit is None else predicted.peak <= limit,
        "proposal": None
        if proposal is None
        else {
            "overrides": list(proposal.overrides),
            "training": proposal.plan.training.total,
            "generation": proposal.plan.generation.total,
        },
        "measured": [
            {"name": entry.name, "predicted": entry.predicted, "measured": entry.measured} for entry in measured
        ],
    }
    if not isinstance(planner, Planner):
        store = planner.store()
        answer["plain_rows"] = planner.plain_rows()
        answer["feature_store"] = {
            "image": store.image_bytes,
            "images": store.images,
            "total": store.total,
            "free": store.free,
            "used": store.used,
        }
    print(json.dumps(answer, ensure_ascii=False))


def _print(
    settings: RunConfig,
    planner: Planner | ImageTextPlanner,
    device: torch.device,
    predicted: Plan,
    limit: int | None,
    proposal: Proposal | None,
    measured: list[Measured],
) -> None:
    from captune.common import text_table
    from captune.model import compute_dtype

    dtype = str(compute_dtype(settings.model.dtype, device)).removeprefix("torch.")
    kind = "a GPU" if device.type == "cuda" else "this machine's processor (no GPU was detected or set with --gpu)"
    print(f"{settings.model.path} in {dtype} on {kind}")
    if settings.train.sharding == "fsdp":
        several = planner.processes > 1
        print(
            f"layers divided among {planner.processes} processes" if several else "not divided: one process is planned"
        )
    longest = "of the data" if planner.from_data else f"synthetic, since {settings.data.train} does not exist yet"
    count = len(planner.micro_batch(settings))
    for estimate, batch in (
        (predicted.training, f"{count} sample{'s' if count > 1 else ''} at once, the longest {longest}"),
        (predicted.generation, f"{settings.evaluate.batch_size} images at once"),
    ):
        print(f"\n{estimate.phase}: {batch}")
        width = max(len(part.name) for part in estimate.parts)
        for part in estimate.parts:
            print(f"  {part.name:<{width}}  {size_in_words(part.bytes):>9}   {part.why}")
        print(f"  {'total':<{width}}  {size_in_words(estimate.total):>9}")
    for line in _notes(settings, planner):
        print(f"\n{line}")
    print(f"\n{_verdict(planner, predicted, limit, proposal)}")
    if measured:
        rows = [
            [entry.name, size_in_words(entry.predicted), size_in_words(entry.measured), f"{entry.ratio:.3f}"]
            for entry in measured
        ]
        print("\n" + text_table(["counted in two steps", "predicted", "measured", "ratio"], rows))


def _notes(settings: RunConfig, planner: Planner | ImageTextPlanner) -> list[str]:
    """What a transformers model takes besides memory, and without packed rows."""
    from captune.training import Planner

    if isinstance(planner, Planner):
        return []
    store = planner.store()
    need = f"{size_in_words(store.image_bytes)} for an image"
    if store.images:
        need += f", {size_in_words(store.total)} for {store.images:,} images"
    use = "are stored on disk" if store.used else "are not stored on disk, and computed in every step"
    lines = [f"image features {use}: {need}; {size_in_words(store.free)} are free"]
    if settings.train.feature_store is True and store.total > store.free:
        lines[0] += ", which is too little; set train.feature_store to auto or false"
    if planner.is_packed():
        lines.append(
            f"one row per caption, which some models need, keeps {size_in_words(planner.plain_rows())} of activations"
        )
    return lines


def _verdict(planner: Planner | ImageTextPlanner, predicted: Plan, limit: int | None, proposal: Proposal | None) -> str:
    """One or two sentences."""
    phase = max(predicted.training, predicted.generation, key=lambda estimate: estimate.total).phase
    if limit is None:
        return f"The peak is {size_in_words(predicted.peak)}, in {phase}."
    if predicted.peak <= limit:
        return f"It fits {size_in_words(limit)}: the peak is {size_in_words(predicted.peak)}, in {phase}."
    sentence = f"It does not fit {size_in_words(limit)}: the peak is {size_in_words(predicted.peak)}, in {phase}."
    if proposal is None:
        least = size_in_words(planner.smallest().peak)
        return f"{sentence} Even with the smallest batches it takes {least}; use a larger card or a smaller model."
    changed = proposal.plan
    return (
        f"{sentence} It fits with {' '.join(proposal.overrides)}: training {size_in_words(changed.training.total)}, "
        f"generation {size_in_words(changed.generation.total)}."
    )


def size_in_words(count: int) -> str:
    """Bytes with a unit of a thousand's power, as cards are sold."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
