"""How captune computes the training loss of transformers' families, decided on tiny random models.

    python benchmarks/vlm_families.py [NAME ...] [--write]

Each family of `tests/vision_families.py` is saved as the hub holds it and loaded as for a run with LoRA on all linear
layers of its decoder; nothing is downloaded. `choose_computation`, which a run calls when it starts, compares the
gradients of stored features and of packed rows with those of the model's own forward (float32; pixels, one row per
caption). `--write` puts the table into docs/tuning.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from measuring import ROOT

# isort: split
import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.smolvlm import processing_smolvlm
from vision_families import FAMILIES, save_family

from captune.config import LoraConfig
from captune.errors import MissingExtraError, WeightsError
from captune.hub import resolve_model
from captune.vlm import ImageTextModel, ProbeSample, choose_computation, load_image_text_model

PAGE = ROOT / "docs" / "tuning.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
COLUMNS = ("family", "computed from", "stored features", "packed row", "projector", "note")
PACKED, PLAIN = "features, packed row", "features, plain rows"
CAPTIONS = ("A dog runs.", "A dog sits on the grass.", "Two dogs.")


def samples() -> list[ProbeSample]:
    """Two images of different shapes with three and two captions."""
    draws = np.random.default_rng(0)
    images = [Image.fromarray(draws.integers(0, 255, (*side, 3), dtype=np.uint8)) for side in ((30, 40), (90, 30))]
    return [ProbeSample(images[0], CAPTIONS), ProbeSample(images[1], CAPTIONS[1:])]


def load(folder: Path) -> ImageTextModel:
    """The model of a folder with LoRA whose matrices are not zero."""
    model = load_image_text_model(resolve_model(str(folder)), torch.device("cpu"))
    model.add_lora(LoraConfig(rank=2, targets=("all-linear",)))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in (p for name, p in model.trained_parameters() if ".lora_B." in name):
            parameter.normal_(0, 0.05)
    return model


def row(name: str, folder: Path) -> tuple[str, ...]:
    """The cells of a family's row."""
    saved = save_family(name, folder)
    label = name
    try:
        model = load(saved)
    except MissingExtraError as error:
        # num2words writes out numbers of frames of videos; for images any function will do.
        label = f"{name} (extra `{error.extra}`)"
        processing_smolvlm.num2words = str
        model = load(saved)
    computation = choose_computation(model, samples())
    differences = dict(computation.differences)
    if PLAIN not in differences:
        differences |= dict(choose_computation(model, samples(), packed=False).differences)
    packed, reason = differences.get(PACKED, ""), model.undivided
    if packed.startswith("fails"):
        packed, reason = "fails", "masks do not fit a packed row"
    elif packed and not computation.packed:
        reason = "a packed row changes the gradient"
    notes = [reason] if reason else []
    if model.features_depend_on_prompt:
        notes.append("features depend on the instruction")
    return (label, computation.name, differences[PLAIN], packed, projector(model), "; ".join(notes))


def projector(model: ImageTextModel) -> str:
    """Name of the module that `train.parts=[lora, projector]` trains with LoRA."""
    try:
        return f"`{model.projector_path.rpartition('.')[2]}`"
    except WeightsError:
        return "none"


def table(names: Sequence[str]) -> list[str]:
    """The lines of the table."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(f"| {' | '.join(row(name, Path(folder)))} |")
    return lines


def ways_of_page(text: str) -> dict[str, str]:
    """Family -> how its loss is computed, of the table in docs/tuning.md."""
    lines = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {family.partition(" (extra")[0]: way for family, way, *_ in cells}


def main() -> int:
    """Print the table and, where requested, write it to docs/tuning.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = table(options.names or list(FAMILIES))
    print("\n".join(lines))
    if options.write:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        text = "\n".join([BEGIN, "", *lines, "", END])
        PAGE.write_text(head + text + rest.partition(END)[2], encoding="utf-8")
    return 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    sys.exit(main())
