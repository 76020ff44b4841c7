"""Why other libraries print other numbers: the same captions scored by captune, nltk, torchmetrics and sacrebleu.

    pip install nltk torchmetrics sacrebleu              # each is optional; one that is missing is named
    python benchmarks/number_differences.py

A row per library and setting. Rows named `coco-caption's tokens` get captune's tokens, joined by spaces; where such a
row equals captune's, the tokenizer explains the complete difference. docs/differences.md explains the rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version

from captune.metrics import score_captions
from captune.metrics.ptb import tokenize

PREDICTIONS = {
    "1": "A brown dog runs through the grass.",
    "2": "Two men are playing football on a field",
    "3": "a woman in a red dress, sitting on a bench",
    "4": "A child jumps into the pool.",
}
REFERENCES = {
    "1": ["A brown dog is running through the tall grass.", "A dog runs through grass.", "Brown dog running outside."],
    "2": ["Two men play football on a field.", "Two players are on a football field.", "Men playing football."],
    "3": ["A woman in a red dress sits on a bench.", "A lady sitting on a park bench.", "Woman in red, on a bench."],
    "4": ["A child jumps into a swimming pool.", "A kid is jumping into the pool.", "A boy leaps into water."],
}
CAPTIONS = list(PREDICTIONS.values())
SETS = [REFERENCES[key] for key in PREDICTIONS]
Row = tuple[str, str, float]


def joined(caption: str) -> str:
    """coco-caption's tokens with a space between two."""
    return " ".join(tokenize(caption))


def captune_rows() -> Iterator[Row]:
    """captune's scores, with three tokenizers."""
    for tokenizer in ("ptb", "13a", "none"):
        scores = score_captions(PREDICTIONS, REFERENCES, tokenize=tokenizer).corpus
        for metric in ("BLEU-4", "ROUGE-L", "CIDEr"):
            yield metric, f"captune, --tokenize {tokenizer}", scores[metric]
    images = score_captions(PREDICTIONS, REFERENCES).per_image.values()
    mean = sum(row["BLEU-4"] for row in images) / len(images)
    yield "BLEU-4", "captune, mean over images (no corpus score)", mean


def nltk_rows() -> Iterator[Row]:
    """nltk's corpus_bleu, which takes lists of tokens."""
    from nltk.translate.bleu_score import corpus_bleu

    for name, split in (("split at spaces", str.split), ("coco-caption's tokens", tokenize)):
        score = corpus_bleu([[split(text) for text in texts] for texts in SETS], [split(text) for text in CAPTIONS])
        yield "BLEU-4", f"nltk {version('nltk')}, {name}", score


def torchmetrics_rows() -> Iterator[Row]:
    """torchmetrics' BLEUScore and SacreBLEUScore."""
    from torchmetrics.functional.text import bleu_score, rouge_score, sacre_bleu_score

    name = f"torchmetrics {version('torchmetrics')}"
    yield "BLEU-4", f"{name}, bleu_score", float(bleu_score(CAPTIONS, SETS))
    tokens = [[joined(text) for text in texts] for texts in SETS]
    score = bleu_score([joined(text) for text in CAPTIONS], tokens)
    yield "BLEU-4", f"{name}, bleu_score, coco-caption's tokens", float(score)
    tokens = [sorted(texts, key=lambda text: len(text.split())) for texts in tokens]
    score = bleu_score([joined(text) for text in CAPTIONS], tokens)
    yield "BLEU-4", f"{name}, bleu_score, the same, shortest reference first", float(score)
    yield "BLEU-4", f"{name}, sacre_bleu_score", float(sacre_bleu_score(CAPTIONS, SETS))
    rouge = rouge_score(CAPTIONS, SETS, rouge_keys="rougeL")
    yield "ROUGE-L", f"{name}, rouge_score", float(rouge["rougeL_fmeasure"])


def sacrebleu_rows() -> Iterator[Row]:
    """sacrebleu's corpus_bleu, whose scale is 0-100."""
    import sacrebleu

    columns = [list(column) for column in zip(*SETS, strict=True)]
    yield "BLEU-4", f"sacrebleu {version('sacrebleu')}", sacrebleu.corpus_bleu(CAPTIONS, columns).score
    tokens = [[joined(text) for text in column] for column in columns]
    score = sacrebleu.corpus_bleu([joined(text) for text in CAPTIONS], tokens, tokenize="none").score
    yield "BLEU-4", f"sacrebleu {version('sacrebleu')}, coco-caption's tokens", score


def main() -> None:
    """Print the table, and what is not installed."""
    warnings.simplefilter("ignore")
    libraries: dict[str, Callable[[], Iterator[Row]]] = {
        "captune": captune_rows,
        "nltk": nltk_rows,
        "torchmetrics": torchmetrics_rows,
        "sacrebleu": sacrebleu_rows,
    }
    rows: list[Row] = []
    missing = []
    for name, score_all in libraries.items():
        try:
            rows += score_all()
        except ImportError as error:
            missing.append(f"{name}: not compared ({error}).")
    order = ("BLEU-4", "ROUGE-L", "CIDEr")
    for metric, name, score in sorted(rows, key=lambda row: order.index(row[0])):
        print(f"{metric:8} {name:68} {score:9.4f}")
    print(*missing, sep="\n")


if __name__ == "__main__":
    main()
