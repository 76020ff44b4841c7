"""Runs of any shape to report on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from captune.report import CheckpointScores, RunScores

SLIDES = {
    "BLEU-1": (0.3175, 0.3427, 0.3608, 0.3728, 0.3878, 0.3912),
    "BLEU-2": (0.2371, 0.2723, 0.2822, 0.3021, 0.3314, 0.3375),
    "BLEU-3": (0.1843, 0.2204, 0.2503, 0.2720, 0.2978, 0.3005),
    "BLEU-4": (0.1529, 0.2002, 0.2320, 0.2456, 0.2688, 0.2807),
    "CIDEr": (0.4361, 0.4502, 0.4753, 0.4829, 0.4907, 0.5115),
    "ROUGE-L": (0.5758, 0.6101, 0.6469, 0.6602, 0.6701, 0.6803),
}

MakeRun = Callable[..., RunScores]


@pytest.fixture(scope="session")
def slides() -> Mapping[str, Sequence[float]]:
    """The table printed on the original slides: metric -> score of pretrained, epoch0, ..., epoch4."""
    return SLIDES


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """A function that builds a run from columns of scores."""

    def make(
        columns: Mapping[str, Sequence[float]],
        *,
        names: Sequence[str] | None = None,
        half_width: float = 0.0,
        p_values: Mapping[str, float] | None = None,
        leak: str | None = None,
        signature: str = "data:toy|tok:ptb3.4.1|cider:D",
    ) -> RunScores:
        count = len(next(iter(columns.values())))
        rows = []
        for index in range(count):
            corpus = {metric: values[index] for metric, values in columns.items()}
            epoch = index - 1 if index and names is None else None
            default = "pretrained" if index == 0 else f"epoch{index - 1}"
            rows.append(
                CheckpointScores(
                    name=names[index] if names else default,
                    epoch=epoch,
                    corpus=corpus,
                    signature=signature,
                    leak=leak,
                    intervals={m: (v - half_width, v + half_width) for m, v in corpus.items()} if half_width else {},
                    p_values={metric: dict(p_values) for metric in corpus} if p_values and index else {},
                )
            )
        return RunScores(data="flickr30k", split="test", protocol="karpathy", images=1000, checkpoints=tuple(rows))

    return make
