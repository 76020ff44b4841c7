"""The chart: same bytes for same scores, nothing clipped, labels apart, no warnings for any input."""

from __future__ import annotations

import builtins
import dataclasses
import io
import logging
import math
import struct
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captune.errors import InputError, MissingExtraError
from captune.report import RunScores, draw_chart
from captune.report.axis import checkpoint_axis, spread_labels
from captune.report.chart import _figure, plain_matplotlib

pytest.importorskip("matplotlib")


def _texts_and_canvas(run: RunScores) -> tuple[list[tuple[str, Any]], Any]:
    """All visible texts of the chart with their boxes in pixels, and the figure's box."""
    with plain_matplotlib():
        figure = _figure(run)
        figure.canvas.draw()
        drawn = list(figure.texts)
        for panel in figure.axes:
            drawn += [*panel.texts, panel.xaxis.label, panel.yaxis.label]
            drawn += [] if panel.get_legend() is None else panel.get_legend().get_texts()
            for axis, (low, high) in ((panel.xaxis, panel.get_xlim()), (panel.yaxis, panel.get_ylim())):
                # Ticks outside the limits exist and are not drawn.
                drawn += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        texts = [(text.get_text(), text.get_window_extent()) for text in drawn if text.get_text()]
        return texts, figure.bbox


def test_the_same_scores_give_the_same_bytes(make_run: Any, slides: Any) -> None:
    formats = ("png", "svg", "pdf")
    first, second = draw_chart(make_run(slides), formats), draw_chart(make_run(slides), formats)
    assert list(first) == list(formats)
    assert first == second
    assert first["png"].startswith(b"\x89PNG")
    assert first["pdf"].startswith(b"%PDF")
    assert b"<svg" in first["svg"]
    assert b"<dc:date>" not in first["svg"]


def test_the_picture_is_wide_enough_for_a_page(make_run: Any, slides: Any) -> None:
    width, height = struct.unpack(">II", draw_chart(make_run(slides), ("png",))["png"][16:24])
    assert (width, height) == (1440, 680)


LONG = ["pretrained on four hundred million pairs", "MiniGPT-4 $x_1$ lr=3e-5, a", "MiniGPT-4 $x_1$ lr=3e-5, b", "last"]


def _cases(make_run: Any, slides: Any) -> dict[str, RunScores]:
    many = {metric: [0.3 + 0.01 * i for i in range(30)] for metric in slides}
    short = {metric: values[:4] for metric, values in slides.items()}
    extra = {**slides, "METEOR": slides["BLEU-4"], "SPICE": slides["BLEU-4"], "CIDEr-D": slides["CIDEr"]}
    return {
        "slides": make_run(slides, half_width=0.02),
        "one": make_run({metric: values[:1] for metric, values in slides.items()}, half_width=0.02),
        "two": make_run({metric: values[:2] for metric, values in slides.items()}),
        "thirty": make_run(many),
        "long names": make_run(short, names=LONG),
        "leak and long signature": make_run(slides, leak="because " * 40, signature="key:value|" * 80),
        "equal": make_run({metric: [0.5] * 4 for metric in slides}),
        "not numbers": make_run({"CIDEr": (math.nan, 0.5, math.nan), "BLEU-4": (math.nan,) * 3}),
        "more metrics": make_run(extra),
        "only CIDEr": make_run({"CIDEr": slides["CIDEr"]}),
        "no CIDEr": make_run({"BLEU-4": slides["BLEU-4"], "ROUGE-L": slides["ROUGE-L"]}),
        "nothing known": make_run({"length": (9.0, 12.0)}),
    }


CASES = [
    "slides",
    "one",
    "two",
    "thirty",
    "long names",
    "leak and long signature",
    "equal",
    "not numbers",
    "more metrics",
    "only CIDEr",
    "no CIDEr",
    "nothing known",
]


@pytest.mark.parametrize("case", CASES)
def test_no_text_is_clipped_or_covered(case: str, make_run: Any, slides: Any) -> None:
    texts, canvas = _texts_and_canvas(_cases(make_run, slides)[case])
    assert texts
    for text, box in texts:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= canvas.x1, text
        assert box.y1 <= canvas.y1, text
    if case == "long names":
        return  # Turned labels overlap as boxes and not as letters.
    for index, (text, box) in enumerate(texts):
        for other, box2 in texts[index + 1 :]:
            apart = box.x1 <= box2.x0 or box2.x1 <= box.x0 or box.y1 <= box2.y0 or box2.y1 <= box.y0
            assert apart, (text, other)


def test_leak_is_written_in_the_picture(make_run: Any, slides: Any) -> None:
    texts, _ = _texts_and_canvas(make_run(slides, leak="test images were trained on"))
    assert "LEAK: test images were trained on" in [text for text, _ in texts]
    texts, _ = _texts_and_canvas(make_run(slides))
    assert not any("LEAK" in text for text, _ in texts)


def test_cider_has_a_separate_panel(make_run: Any, slides: Any) -> None:
    with plain_matplotlib():
        left, right = _figure(make_run(slides)).axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("score (0–1)", "CIDEr (0–10)")
    assert list(right.lines[0].get_ydata()) == list(slides["CIDEr"])
    styles = {(line.get_marker(), str(line.get_linestyle())) for line in left.lines[:5]}
    assert len({marker for marker, _ in styles}) == 5


def test_intervals_are_bands(make_run: Any, slides: Any) -> None:
    with plain_matplotlib():
        bands = [len(axes.collections) for axes in _figure(make_run(slides)).axes]
        drawn = [axes.collections[0] for axes in _figure(make_run(slides, half_width=0.02)).axes]
    assert bands == [0, 0]
    assert all(band.get_paths() for band in drawn)


def test_hostile_names_are_drawn_quietly(make_run: Any) -> None:
    names = ["$\\frac{1}{$", "另一个检查点", "\x00\x1b[31m\u202e", "🐶 & <b>", "a" * 10_000]
    assert draw_chart(make_run({"CIDEr": (0.1, 0.2, 0.3, 0.4, 0.5)}, names=names), ("png", "svg"))


def test_settings_of_the_user_neither_matter_nor_change(make_run: Any, slides: Any) -> None:
    import matplotlib

    plain = draw_chart(make_run(slides), ("png",))
    with matplotlib.rc_context({"font.size": 20, "text.usetex": True, "axes.facecolor": "red"}):
        assert draw_chart(make_run(slides), ("png",)) == plain
        assert matplotlib.rcParams["font.size"] == 20


def test_unknown_format_and_absent_matplotlib(make_run: Any, slides: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="as 'gif'; choose from png, svg, pdf"):
        draw_chart(make_run(slides), ("gif",))
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"captune\[train\]"):
        draw_chart(make_run(slides))


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
)
def test_labels_keep_their_distance_and_their_order(values: list[float]) -> None:
    positions = spread_labels(values, gap=0.1, low=0.0, high=1.0)
    order = sorted(range(len(values)), key=lambda index: values[index])
    assert all(positions[b] - positions[a] >= 0.1 - 1e-9 for a, b in pairwise(order))
    assert all(-1e-9 <= position <= 1 + 1e-9 for position in positions)
    if all(values[b] - values[a] >= 0.1 for a, b in pairwise(order)):
        assert positions == pytest.approx(values)


def test_round_epochs_are_labelled_when_there_are_many(make_run: Any) -> None:
    run = make_run({"CIDEr": [0.01 * i for i in range(30)]})
    _, labels = checkpoint_axis(run, width=2.75).ticks(2.75)
    assert labels == ["pre-\ntrained", "5", "10", "15", "20", "25", "28"]


def test_rows_without_epochs_stand_in_their_order(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.1, 0.2, 0.3)}, names=["a", "b", "c"])
    axis = checkpoint_axis(run, width=2.0)
    assert (axis.positions, axis.labels, axis.title) == ((0.0, 1.0, 2.0), ("a", "b", "c"), "")
    backwards = [dataclasses.replace(row, epoch=3 - i) for i, row in enumerate(run.checkpoints)]
    assert checkpoint_axis(dataclasses.replace(run, checkpoints=tuple(backwards)), 2.0).positions == (0.0, 1.0, 2.0)


def test_png_is_readable_by_pillow(make_run: Any, slides: Any) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(draw_chart(make_run(slides), ("png",))["png"])) as image:
        assert image.convert("L").getextrema() == (0, 255)


def test_a_font_without_weights_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    with plain_matplotlib():
        fonts.warning("findfont: Failed to find font weight bold for WenQuanYi Zen Hei, now using 500.")
    assert not caplog.records
    assert fonts.level == level
