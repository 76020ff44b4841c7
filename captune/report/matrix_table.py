"""The matrix of a run as Markdown, as CSV and as a section of the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape

from captune.data.delimited import CsvWriter
from captune.report.columns import format_value, scale_sentence
from captune.report.matrix import Cell, Column, Difference, Matrix
from captune.report.text import one_line

__all__ = ["matrix_csv", "matrix_markdown", "matrix_part", "matrix_terminal", "strength_curves"]

_HEADER = (
    "row", "checkpoint", "instruction", "column", "kind", "images", "metric", "score", "low", "high", "drop",
    "drop_low", "drop_high", "paired", "gain", "gain_low", "gain_high", "words", "divergence", "unseen",
    "column_divergence", "unfinished", "leak", "signature",
)  # fmt: skip


def matrix_csv(matrix: Matrix) -> str:
    """Every number of the matrix, a line for each row, column and metric, safe to open in a spreadsheet."""
    columns = {column.name: column for column in matrix.columns}
    rows = {row.name: row for row in matrix.rows}
    text = io.StringIO()
    writer = CsvWriter(text)
    writer.writerow(_HEADER)
    for cell in matrix.cells:
        row, column = rows[cell.row], columns[cell.column]
        for metric, score in cell.scores.items():
            interval = cell.intervals.get(metric, (math.nan, math.nan))
            drop, gain = cell.drops.get(metric), cell.gains.get(metric)
            writer.writerow(
                [
                    *(row.name, row.checkpoint, row.instruction, column.name, column.kind, column.images, metric),
                    *map(_number, (score, *interval)),
                    *_ends(drop),
                    "" if drop is None else str(drop.paired).lower(),
                    *_ends(gain),
                    *(cell.words, _number(cell.divergence)),
                    *(_number(column.shift.get(name, math.nan)) for name in ("unseen", "divergence")),
                    *(cell.unfinished, cell.leak or "", cell.signature),
                ]
            )
    return text.getvalue()


def matrix_markdown(matrix: Matrix) -> str:
    """The matrix for people: scores of the main metric with drops, damage by kind, words, signatures."""
    metric = matrix.main_metric
    lines = [f"# How the model travels: {metric}", ""]
    shown, titles = _table(matrix)
    lines += _markdown(titles, shown)
    curves = strength_curves(matrix)
    if curves:
        lines += ["", f"## Damaged images: mean of {metric} over the rows, as a share of home", ""]
        strengths = sorted({strength for values in curves.values() for strength in values})
        lines += _markdown(
            ["", *(f"strength {strength}" for strength in strengths)],
            [
                [kind, *(_percent(values.get(s, math.nan), signed=False) for s in strengths)]
                for kind, values in curves.items()
            ],
        )
    lines += ["", *(f"- {note}" for note in _notes(matrix)), ""]
    lines += [f"- {name}: `{signature}`" for name, signature in _signatures(matrix).items()]
    return "\n".join(lines) + "\n"


def matrix_terminal(matrix: Matrix) -> str:
    """The table of the main metric in plain text."""
    shown, titles = _table(matrix)
    rows = [titles, *shown]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *_notes(matrix)])


def matrix_part(matrix: Matrix, picture: bytes | None) -> str:
    """The section of the page that shows the matrix.

    Args:
        matrix: what to show.
        picture: the heat-map as PNG, where there is one.
    """
    shown, titles = _table(matrix)
    head = "".join(f'<th scope="col">{_safe(title)}</th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row"><bdi>{_safe(name)}</bdi></th>'
        + "".join(f"<td>{_safe(text)}</td>" for text in cells)
        + "</tr>"
        for name, *cells in shown
    )
    parts = [
        f'<div class="wide" role="region" tabindex="0" data-t-label="transfer">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    ]
    if picture is not None:
        data = base64.b64encode(picture).decode()
        parts.append(f'<img class="heat" alt="{_safe(_alternative(matrix))}" src="data:image/png;base64,{data}">')
    parts += [f'<p class="leak">LEAK: {_safe(reason)}</p>' for reason in matrix.leaks()]
    parts += [f'<p class="notes">{_safe(note)}</p>' for note in _notes(matrix) if not note.startswith("LEAK")]
    signatures = "".join(
        f"<li>{_safe(name)}: <code>{_safe(text)}</code></li>" for name, text in _signatures(matrix).items()
    )
    parts.append(f'<details><summary data-t="signature"></summary><ul>{signatures}</ul></details>')
    title = '<h2 id="transfer-title" data-t="transfer"></h2>'
    return f'<section id="transfer" aria-labelledby="transfer-title">{title}{"".join(parts)}</section>'


def strength_curves(matrix: Matrix) -> dict[str, dict[int, float]]:
    """How much of the main metric is left of each kind of damage.

    Returns:
        kind -> strength -> mean over the rows of the score as a share of the row's score at home.
    """
    metric = matrix.main_metric
    curves: dict[str, dict[int, float]] = {}
    for column in matrix.columns:
        if column.kind != "corruption":
            continue
        kind, strength = column.name.rsplit(" ", 1)
        left = [1 - c.drops[metric].value for c in matrix.cells if c.column == column.name and metric in c.drops]
        if left:
            curves.setdefault(kind, {})[int(strength)] = sum(left) / len(left)
    return curves


def _table(matrix: Matrix) -> tuple[list[list[str]], list[str]]:
    """Score and drop of the main metric in every cell; what there is more of, rows or columns, goes down the page.

    Returns:
        lines of cells, the first of each its name; and the titles above.
    """
    metric = matrix.main_metric
    if len(matrix.rows) > len(matrix.columns):
        lines = [
            [one_line(row.name), *(_cell(matrix.cell(row.name, column.name), metric) for column in matrix.columns)]
            for row in matrix.rows
        ]
        return lines, [metric, *(one_line(_title(column)) for column in matrix.columns)]
    lines = []
    for column in matrix.columns:
        cells = (matrix.cell(row.name, column.name) for row in matrix.rows)
        shift = column.shift
        words = [_percent(shift["unseen"], signed=False), f"{shift['divergence']:.3f}"] if shift else ["", ""]
        lines.append([one_line(_title(column)), *(_cell(cell, metric) for cell in cells), *words])
    return lines, [metric, *(one_line(row.name) for row in matrix.rows), "unseen words", "divergence"]


def _title(column: Column) -> str:
    return f"{column.name} (home)" if column.kind == "home" else column.name


def _cell(cell: Cell, metric: str) -> str:
    """ "0.8123", at home; "0.6210 -24 % [-29, -18]" elsewhere: what changes, and its interval."""
    text = format_value(cell.scores.get(metric))
    drop = cell.drops.get(metric)
    if drop is not None:
        text += f" {_percent(-drop.value)} [{_share(-drop.high)}, {_share(-drop.low)}]"
    return text + (" LEAK" if cell.leak else "")


def _notes(matrix: Matrix) -> list[str]:
    """What must be known to read the table."""
    paired = any(d.paired for cell in matrix.cells for d in cell.drops.values())
    unpaired = any(not d.paired for cell in matrix.cells for d in cell.drops.values())
    metric = matrix.main_metric
    values = [score for cell in matrix.cells if (score := cell.scores.get(metric)) is not None and math.isfinite(score)]
    notes = [scale_sentence({metric: values})]
    if paired or unpaired:
        how = "on the same drawn images" if paired and not unpaired else "each side drawn by itself"
        if paired and unpaired:
            how = "on the same drawn images where they are home's, each side drawn by itself for other data"
        notes.append(f"In percent: change from home, with its bootstrap interval of 95 %, {how}.")
    asked = list(dict.fromkeys(row.instruction for row in matrix.rows))
    if len(asked) > 1:
        notes += [f"Prompt {number}: {one_line(instruction)}" for number, instruction in enumerate(asked, 1)]
    if len(matrix.rows) <= len(matrix.columns):
        notes.append(
            "Unseen words: share of the references' words that home's do not have. Divergence: Jensen-Shannon, in bits."
        )
    return [note for note in (*notes, *(f"LEAK: {reason}" for reason in matrix.leaks())) if note]


def _signatures(matrix: Matrix) -> dict[str, str]:
    """The signature of each column, or of each cell of it where they differ."""
    found: dict[str, str] = {}
    for column in matrix.columns:
        own = {cell.row: cell.signature for cell in matrix.cells if cell.column == column.name}
        if len(set(own.values())) == 1:
            found[column.name] = next(iter(own.values()))
        else:
            found |= {f"{column.name}, {row}": signature for row, signature in own.items()}
    return found


def _alternative(matrix: Matrix) -> str:
    """What the picture shows, for those who do not see it."""
    return f"{matrix.main_metric} of {len(matrix.rows)} rows on {len(matrix.columns)} columns, as in the table"


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    return ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines]


def _percent(share: float, *, signed: bool = True) -> str:
    return f"{_share(share, signed=signed)} %"


def _share(share: float, *, signed: bool = True) -> str:
    """A share in percent, with the sign of a change."""
    if not math.isfinite(share):
        return "–"
    whole = round(100 * share)
    if not signed:
        return f"{whole}"
    return f"{whole:+d}".replace("-", "−") if whole else "±0"


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


def _ends(difference: Difference | None) -> list[str]:
    return (
        ["", "", ""]
        if difference is None
        else [_number(v) for v in (difference.value, difference.low, difference.high)]
    )


def _safe(text: str) -> str:
    return escape(one_line(text))
