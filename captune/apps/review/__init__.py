"""Review of captions: a page to look through images with their captions, accept and correct them.

`caption_texts` reads and writes the captions, `review` keeps statuses and undoes, `server` is the web application.
"""

from __future__ import annotations

from captune.apps.review.caption_texts import CaptionTexts, FileTexts, SidecarTexts
from captune.apps.review.review import Review
from captune.apps.review.server import review_application

__all__ = ["CaptionTexts", "FileTexts", "Review", "SidecarTexts", "review_application"]
