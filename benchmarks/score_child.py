"""One tool of `score.py` in a separate process: reads captions, scores them, writes numbers and the time.

    python benchmarks/score_child.py TOOL DATA RESULT JOBS COMPAT

It imports nothing that scoring does not need, so that the time to start is only the tool's.
"""

import sys
import time
from typing import Any

NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr", "ROUGE-L")


def read(path: str) -> dict[str, Any]:
    """Captions as lines: an image's id, the number of its references, its prediction, its references."""
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    references, predictions, start = {}, {}, 0
    while start < len(lines):
        image, end = lines[start], start + 3 + int(lines[start + 1])
        predictions[image] = lines[start + 2]
        references[image] = lines[start + 3 : end]
        start = end
    return {"references": references, "predictions": predictions}


def score_with_captune(data: dict[str, Any], jobs: int, compat: str) -> tuple[dict[str, float], Any]:
    """Corpus scores and the scores of every image, by metric."""
    from captune.metrics import score_captions

    scores = score_captions(data["predictions"], data["references"], jobs=jobs, compat=compat)
    # The corpus scores and the scores of every image are there when the clock stops.
    return scores.corpus, scores.image_scores


def score_with_pycocoevalcap(data: dict[str, Any]) -> tuple[dict[str, float], Any]:
    """The same from pycocoevalcap."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references = {image: [{"caption": text} for text in texts] for image, texts in data["references"].items()}
    predictions = {image: [{"caption": text}] for image, text in data["predictions"].items()}
    references, predictions = PTBTokenizer().tokenize(references), PTBTokenizer().tokenize(predictions)
    bleu, bleus = Bleu(4).compute_score(references, predictions, verbose=0)
    cider, ciders = Cider().compute_score(references, predictions)
    rouge, rouges = Rouge().compute_score(references, predictions)
    totals = [*bleu, cider, rouge]
    return dict(zip(NAMES, map(float, totals), strict=True)), dict(zip(NAMES, [*bleus, ciders, rouges], strict=True))


def main(tool: str, data: str, result: str, jobs: str, compat: str) -> None:
    """Score the captions of a file and write the result."""
    captions = read(data)
    if tool == "captune":
        totals, images = score_with_captune(captions, int(jobs), compat)
    else:
        totals, images = score_with_pycocoevalcap(captions)
    done = time.monotonic()
    import json

    per_image = {name: list(map(float, images[name])) for name in NAMES}
    with open(result, "w", encoding="utf-8") as file:
        json.dump({"done": done, "corpus": totals, "per_image": per_image}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
