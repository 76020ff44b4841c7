"""Which families of transformers' image-text-to-text models captune captions with, tried on tiny random models.

    python benchmarks/captioners.py [NAME ...] [--write]

Each family of `tests/vision_families.py` is saved as the hub holds it and loaded by `Captioner.from_pretrained`;
nothing is downloaded. `caption`: greedy captions of pictures of several shapes depend on the picture. `batch`: a batch
gives the captions that single pictures get; `by size` where only pictures of one size do, which captune finds out and
then keeps to. `beams`: beam search gives captions. `--write` puts the table into docs/models.md.
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
import transformers
from PIL import Image
from transformers.models.smolvlm import processing_smolvlm
from vision_families import FAMILIES, save_family

from captune.captioner import Captioner, TransformersBackend
from captune.decoding import DecodingOptions
from captune.errors import CaptuneError, MissingExtraError

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
COLUMNS = ("family", "prompt", "default instruction", "caption", "batch", "beams")
SIZES = [(40, 30), (64, 64), (30, 90), (90, 30), (20, 20)]


def pictures() -> list[Image.Image]:
    """Random pictures of several shapes."""
    draws = np.random.default_rng(0)
    return [Image.fromarray(draws.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


def row(name: str, folder: Path) -> tuple[str, ...]:
    """The cells of a family's row."""
    saved = save_family(name, folder)
    label = name
    try:
        captioner = Captioner.from_pretrained(saved, device="cpu", dtype="float32")
    except MissingExtraError as error:
        # num2words writes out numbers of frames of videos; for pictures any function will do.
        label = f"{name} (extra `{error.extra}`)"
        processing_smolvlm.num2words = str
        captioner = Captioner.from_pretrained(saved, device="cpu", dtype="float32")
    backend = captioner.backend
    assert isinstance(backend, TransformersBackend)
    kind = "chat template" if backend.inputs.has_template else "text" if backend.inputs.takes_text else "no text"
    instruction = f"`{captioner.instruction}`" if captioner.instruction is not None else "none"
    texts = captions(captioner)
    if isinstance(texts, str):
        return (label, kind, instruction, texts, "", "")
    batch = "yes" if texts == captions(captioner, batch_size=1) else "no"
    if batch == "yes" and not backend._batches_mixed_sizes:
        batch = "by size"
    beams = captions(captioner, beams=2)
    depends = "yes" if len(set(texts)) > 1 else "the picture changes nothing"
    return (label, kind, instruction, depends, batch, beams if isinstance(beams, str) else "yes")


def captions(captioner: Captioner, **settings: int) -> list[str] | str:
    """Captions of the pictures, or why there are none."""
    prepared = [captioner.prepare(picture) for picture in pictures()]
    try:
        made = captioner.generate(prepared, None, DecodingOptions(max_new_tokens=8, **settings))
    except CaptuneError as error:
        return " ".join(str(error).split())
    return [caption.text for caption in made]


def table(names: Sequence[str]) -> list[str]:
    """The lines of the table."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(f"| {' | '.join(row(name, Path(folder)))} |")
    return lines


def rows_of_page(text: str) -> dict[str, str]:
    """Family -> its line in docs/models.md."""
    lines = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    return {line.split("|")[1].strip(): line for line in lines}


def main() -> int:
    """Print the table and, where requested, write it to docs/models.md."""
    parser = argparse.ArgumentParser()
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
