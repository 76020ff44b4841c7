"""Decoding images: Pillow exactly as the original, against the bulk command's `--fast-decode`.

    python benchmarks/decode.py [--images 64] [--json]

JPEG files of Flickr's size and of a camera's are made of large shapes, edges and grain at quality 90. Both ways end in
the 224 x 224 pixels that the model sees. The difference is given in grey levels of 255, largest and mean; Pillow's is
the reference, equal to the original's transform.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measuring import Output, alternate, median, options

# isort: split
import numpy as np
from PIL import Image

from captune.captioner.jpeg_decoder import TurboJpegDecoder
from captune.data.images import CLIP_STD, load_image, to_pixels
from captune.errors import MissingExtraError

SIZES = {"500 x 375": (500, 375), "1600 x 1200": (1600, 1200)}


def write(path: Path, size: tuple[int, int], seed: int) -> None:
    """A picture with large shapes, edges and grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(random.integers(0, 256, (size[1] // 6, size[0] // 6, 3), np.uint8)).resize(size)
    mixed = 0.75 * np.asarray(coarse) + 0.2 * np.asarray(fine) + random.normal(0, 4, (size[1], size[0], 3))
    Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def main() -> int:
    """Decode files of each size both ways and print rates and differences."""
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=48)
    arguments = parser.parse_args()
    try:
        fast = TurboJpegDecoder()
    except MissingExtraError as error:
        print(error, file=sys.stderr)
        return 2
    output = Output(arguments.json, f"{arguments.images} JPEG files to 224 x 224 pixels")
    rows, results = [], []
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{number}.jpg" for number in range(arguments.images)]
            for number, file in enumerate(files):
                write(file, size, number)
            ways = {
                "Pillow": lambda files=files: [to_pixels(load_image(file), 224) for file in files],
                "--fast-decode": lambda files=files: [fast.square(file, 224) for file in files],
            }
            levels = np.stack(ways["Pillow"]()) - np.stack(ways["--fast-decode"]())
            levels = np.abs(levels * CLIP_STD[:, None, None] * 255)
            seconds = median(alternate(ways, arguments.rounds))
        rate = {way: arguments.images / value for way, value in seconds.items()}
        result = {
            "size": name,
            "pillow_per_s": round(rate["Pillow"], 1),
            "fast_per_s": round(rate["--fast-decode"], 1),
            "ratio": round(rate["--fast-decode"] / rate["Pillow"], 3),
            "largest_difference": round(float(levels.max()), 3),
            "mean_difference": round(float(levels.mean()), 5),
        }
        results.append(result)
        output.line(kind="size", **result)
        rows.append(
            [*list(result.values())[:3], f"{result['ratio']:.2f}", f"{levels.max():.2f}", f"{levels.mean():.4f}"]
        )
    output.table(["", "Pillow images/s", "--fast-decode", "ratio", "largest diff.", "mean diff."], rows)
    worst = max(result["largest_difference"] for result in results)
    output.line(
        kind="result",
        ratio=min(result["ratio"] for result in results),
        largest_difference=worst,
        identical=worst == 0,
    )
    return 0 if worst <= 1.01 else 1


if __name__ == "__main__":
    sys.exit(main())
