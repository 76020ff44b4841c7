"""Making names, reasons and captions harmless where they are shown."""

from __future__ import annotations

from captune.common.tables import escape_latex as latex
from captune.common.tables import escape_markdown as markdown
from captune.common.tables import one_line

__all__ = ["latex", "markdown", "one_line"]
