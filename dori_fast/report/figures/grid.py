"""Grids of small images with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_GAP, _TEXT = 4, 14
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


@dataclass(frozen=True)
class Group:
    """A titled group of columns.

    Attributes:
        title: Title above the group.
        images: uint8 [R, S, H, W, 3], S images per row.
    """

    title: str
    images: NDArray[np.uint8]


def image_grid(labels: Sequence[str], groups: Sequence[Group], scale: int = 1) -> Image.Image:
    """R rows of images in groups of columns; labels above the rows, titles above the groups.

    Args:
        labels: [R] labels of rows, cut to the width.
        groups: One or more groups, all with R rows and images of one size.
        scale: Integer factor that enlarges images.
    """
    height, width = (scale * side for side in groups[0].images.shape[2:4])
    widths = [len(g.images[0]) * (width + _GAP) + 2 * _GAP for g in groups]
    row = _TEXT + height + _GAP
    sheet = Image.new("RGB", (sum(widths) + _GAP, _TEXT + _GAP + row * len(labels)), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    left = _GAP
    for group, columns in zip(groups, widths, strict=True):
        pen.text((left, 1), group.title, _INK, font)
        for r, images in enumerate(group.images):
            for s, image in enumerate(images):
                top = _TEXT + _GAP + r * row + _TEXT
                at = (left + s * (width + _GAP), top)
                sheet.paste(
                    Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), at
                )
        left += columns
    room = max(8, sheet.width // 6)
    for r, label in enumerate(labels):
        text = shorten(
            label.encode("latin-1", "replace").decode("latin-1"), room, placeholder="..."
        )
        pen.text((_GAP, _TEXT + _GAP + r * row), text, _INK, font)
    return sheet
