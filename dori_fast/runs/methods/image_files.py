"""The pictures that rows are about: files of a folder named by a column, or known by prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dori_fast.errors import UsageError
from dori_fast.runs.sources.rows import Reader, Rows

# before anything is decoded: a small file may hold a huge picture
_PICTURE_BYTES, _PICTURE_PIXELS = 32_000_000, 64_000_000
# decoders that start no other program and fetch nothing
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

Originals = Callable[[Rows, int], NDArray[np.uint8] | str]
"""From rows and the place of one to its picture, uint8 [H, W, 3], or ``"code: message"``."""


def open_originals(
    source: str | Path | Mapping[str, NDArray[np.uint8]],
    reader: Reader,
    column: str,
    size: tuple[int, int],
) -> Originals:
    """Where the rows' pictures come from.

    Args:
        source: a folder; or pictures of that size by prompt, such as the embedded model's.
        reader: the rows.
        column: with file names relative to the folder.
        size: (H, W) of the model's pictures. A file's picture is turned as its EXIF data say,
            converted to RGB, resized by PIL's Lanczos filter so that it just covers that size, and
            cut evenly on both sides.

    Raises:
        UsageError: no such folder or column, or pictures of another size.
    """
    if isinstance(source, Mapping):
        return _by_prompt(source, size)
    folder = Path(source)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder — --images is a folder of pictures, or demo")
    if column not in reader.schema.names:
        names = ", ".join(reader.schema.names) or "none"
        raise UsageError(
            f"the prompts have no column {column!r} with names of pictures; there are: {names}"
        )

    def original(rows: Rows, place: int) -> NDArray[np.uint8] | str:
        return read_picture(folder, rows.extra.column(column)[place].as_py(), size)

    return original


def read_picture(folder: Path, name: Any, size: tuple[int, int]) -> NDArray[np.uint8] | str:
    """A file of a folder at a size (H, W), or why it cannot be had; never one outside of it."""
    from PIL import Image, ImageOps

    if not isinstance(name, str) or not name or "\0" in name:
        return f"image: no name of a file: {name!r}"
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        return f"image: {name!r} leaves the folder"
    if not path.is_file():
        return f"image: no file {name!r} in the folder"
    if path.stat().st_size > _PICTURE_BYTES:
        return f"image: {name!r} has more than {_PICTURE_BYTES:,} bytes"
    try:
        with Image.open(path, formats=_FORMATS) as file:
            if file.width * file.height > _PICTURE_PIXELS:
                return f"image: {name!r} has more than {_PICTURE_PIXELS:,} pixels"
            if file.mode not in _MODES:
                return f"image: {name!r} is not of 8 bits a channel (mode {file.mode})"
            upright = ImageOps.exif_transpose(file).convert("RGB")
    # what a decoder raises at damaged data is anything
    except Exception as error:
        return f"image: {name!r} cannot be read ({error})"
    height, width = size
    return np.array(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS))


def _by_prompt(known: Mapping[str, NDArray[np.uint8]], size: tuple[int, int]) -> Originals:
    for image in known.values():
        if image.shape[:2] != size:
            height, width = image.shape[:2]
            raise UsageError(
                f"a picture of {height} x {width} for a model that draws {size[0]} x {size[1]}"
            )

    def original(rows: Rows, place: int) -> NDArray[np.uint8] | str:
        found = known.get(rows.prompts[place] or "")
        return "image: no picture of this prompt is known" if found is None else found

    return original
