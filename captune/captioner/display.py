"""Images with their captions, for notebooks."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import PurePath

from captune.common import escape_html
from captune.data import ImageInput, read_image

__all__ = ["CaptionedImages"]

_SIDE = 320
"""Longest side of a displayed image, in pixels."""
_DISPLAYED = 24
"""Images that a notebook displays; a cell with hundreds makes it slow."""


class CaptionedImages:
    """Images with their captions, which a notebook displays as pictures.

    Args:
        images: N images.
        captions: one for each.
    """

    def __init__(self, images: Sequence[ImageInput], captions: Sequence[str]) -> None:
        self.images = list(images)
        self.captions = list(captions)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> str:
        return self.captions[index]

    def __repr__(self) -> str:
        """The captions, a line each; the name of an image file is put before its caption."""
        return "\n".join(
            f"{os.fspath(image)}: {caption}" if isinstance(image, (str, PurePath)) else caption
            for image, caption in zip(self.images, self.captions, strict=True)
        )

    def _repr_html_(self) -> str:
        shown = list(zip(self.images, self.captions, strict=True))[:_DISPLAYED]
        figures = "".join(
            '<figure style="margin:0;max-width:320px">'
            f'<img src="{_data_uri(image)}" alt="{escape_html(caption)}" style="max-width:100%;border-radius:4px">'
            f'<figcaption style="padding:.3em 0">{escape_html(caption)}</figcaption></figure>'
            for image, caption in shown
        )
        rest = len(self) - len(shown)
        more = f"<div>and {rest} more, in <code>captions</code></div>" if rest else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start">{figures}</div>{more}'


def _data_uri(image: ImageInput) -> str:
    """The image as a small JPEG in a URI, so that the notebook needs no file."""
    picture = read_image(image)
    picture.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
