"""Small helpers that every room may use; this room imports nothing of captune."""

from __future__ import annotations

from captune.common.html import escape_html, html_table
from captune.common.lazy import lazy_names
from captune.common.libraries import quiet_libraries
from captune.common.tables import (
    escape_latex,
    escape_markdown,
    escape_pipes,
    latex_tabular,
    markdown_table,
    table,
    text_table,
)
from captune.common.text import did_you_mean, duration, error_text, first_line, listed, one_line, shorten
from captune.common.thinking import (
    Answer,
    RemovedThinking,
    Thinking,
    closing_text,
    decode_marks,
    has_marks,
    opened_block,
    special_marks,
    split_thinking,
    without_empty_blocks,
)
from captune.common.version import __version__

__all__ = [
    "Answer",
    "RemovedThinking",
    "Thinking",
    "__version__",
    "closing_text",
    "decode_marks",
    "did_you_mean",
    "duration",
    "error_text",
    "escape_html",
    "escape_latex",
    "escape_markdown",
    "escape_pipes",
    "first_line",
    "has_marks",
    "html_table",
    "latex_tabular",
    "lazy_names",
    "listed",
    "markdown_table",
    "one_line",
    "opened_block",
    "quiet_libraries",
    "shorten",
    "special_marks",
    "split_thinking",
    "table",
    "text_table",
    "without_empty_blocks",
]
