"""A page in one file: no script, nothing loaded from elsewhere, every text escaped.

Markup is made in this module alone: its functions take plain text, escape it, and return
:class:`Html`. Text of the data never becomes a tag, an attribute or a file name.
"""

from __future__ import annotations

import base64
import html
import io
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from dori_fast._text import harmless

# makes the browser refuse scripts and requests, whatever the page contains
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Html:
    """Finished markup; only this module makes it."""

    markup: str


Cell = Html | str | int | float | None


def page(title: str, *parts: Html, footer: str = "") -> str:
    """The whole document.

    Args:
        title: Title of the window and first heading.
        parts: Content in order.
        footer: Last line.
    """
    name = _text(title)
    body = "\n".join(part.markup for part in parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{name}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n"
        f"<h1>{name}</h1>\n{body}\n<footer>{_text(footer)}</footer>\n</body>\n</html>\n"
    )


def section(title: str, *parts: Html) -> Html:
    """A heading and its content."""
    inner = "\n".join(part.markup for part in parts)
    return Html(f"<section>\n<h2>{_text(title)}</h2>\n{inner}\n</section>")


def paragraph(text: str) -> Html:
    """A paragraph of plain text."""
    return Html(f"<p>{_text(text)}</p>")


def note(text: str) -> Html:
    """A paragraph that stands out."""
    return Html(f'<p class="note">{_text(text)}</p>')


def tiles(figures: Iterable[tuple[str, str]]) -> Html:
    """A few large figures: (name, value)."""
    each = [
        f'<div class="tile"><b>{_text(value)}</b><span>{_text(name)}</span></div>'
        for name, value in figures
    ]
    return Html(f'<div class="tiles">{"".join(each)}</div>')


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names with values; pairs without a value are left out."""
    rows = [(name, value) for name, value in pairs if value not in (None, "")]
    inner = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in rows)
    return Html(f"<dl>{inner}</dl>")


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    right: Collection[str] = (),
    grid: bool = False,
) -> Html:
    """A table.

    Args:
        header: [C] names of the columns.
        rows: Rows of C cells; None is shown as an empty cell.
        right: Names of right-aligned columns, such as numbers.
        grid: Style for images, narrow and without lines.
    """
    kinds = [' class="right"' if name in right else "" for name in header]
    head = "".join(
        f"<th{kind}>{_text(name)}</th>" for name, kind in zip(header, kinds, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{_cell(x)}</td>" for x, kind in zip(row, kinds, strict=True))
        + "</tr>\n"
        for row in rows
    )
    name = ' class="grid"' if grid else ""
    return Html(
        f'<div class="wide"><table{name}>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table></div>"
    )


def figure(png: bytes, description: str, caption: str = "", *, density: float = 1.0) -> Html:
    """A PNG with a caption.

    Args:
        png: Content of the file.
        description: Alternative text.
        caption: Text below the figure, if any.
        density: Pixels of the figure per pixel of the page.

    Raises:
        ValueError: ``png`` is no PNG file.
    """
    width, _ = _size(png)
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return Html(f"<figure>{_image(png, description, round(width / density))}{below}</figure>")


def image_row(images: NDArray[np.uint8], description: str, side: int = 96) -> Html:
    """Images in a row, small enough for a cell.

    Args:
        images: uint8 [S, H, W, 3].
        description: Alternative text.
        side: Width of each image, in pixels of the page.
    """
    from PIL import Image

    each = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        each.append(_image(file.getvalue(), description, side, "pixels"))
    return Html(f'<div class="row">{"".join(each)}</div>')


def _image(png: bytes, description: str, width: int, kind: str = "") -> str:
    data = base64.b64encode(png).decode("ascii")
    wide, high = _size(png)
    size = f'width="{width}" height="{round(width * high / wide)}"'
    name = f' class="{kind}"' if kind else ""
    return f'<img{name} {size} alt="{_text(description)}" src="data:image/png;base64,{data}">'


def _size(png: bytes) -> tuple[int, int]:
    if not png.startswith(_PNG) or len(png) < 24:
        raise ValueError("not a PNG")
    width, height = struct.unpack(">II", png[16:24])
    return max(1, width), max(1, height)


def _cell(value: Cell) -> str:
    if isinstance(value, Html):
        return value.markup
    return "" if value is None else _text(value)


def _text(value: object) -> str:
    return html.escape(harmless(str(value)), quote=True)


@cache
def _style() -> str:
    return files("dori_fast.report.pages").joinpath("style.css").read_text(encoding="utf-8")
