"""The images of rows: files in a folder, named by a column, or images known by prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dori_fast.errors import UsageError
from dori_fast.runs.sources.rows import Reader, Rows

# checked before decoding: a small file may hold a huge image
_IMAGE_BYTES, _IMAGE_PIXELS = 32_000_000, 64_000_000
# formats whose decoders start no other program and fetch nothing
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

ImageOfRow = Callable[[Rows, int], NDArray[np.uint8] | str]
"""Called with rows and the place of one; returns its image, uint8 [H, W, 3], or
``"code: message"``."""


def open_images(
    source: str | Path | Mapping[str, NDArray[np.uint8]],
    reader: Reader,
    column: str,
    size: tuple[int, int],
) -> ImageOfRow:
    """A function that returns the image of a row.

    Args:
        source: a folder; or images of ``size`` by prompt, such as the embedded model's.
        reader: the rows.
        column: column of file names relative to the folder.
        size: (H, W) of the model's images. A file's image is rotated as its EXIF data say,
            converted to RGB, resized by PIL's Lanczos filter so that it just covers ``size``, and
            cropped evenly on both sides.

    Raises:
        UsageError: no such folder or column, or images of another size.
    """
    if isinstance(source, Mapping):
        return _by_prompt(source, size)
    folder = Path(source)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give --images a folder of images, or demo")
    if column not in reader.schema.names:
        names = ", ".join(reader.schema.names) or "none"
        raise UsageError(
            f"the prompts have no column {column!r} with names of images; name it with"
            f" --image-column, one of: {names}"
        )

    def image_of(rows: Rows, place: int) -> NDArray[np.uint8] | str:
        return read_image(folder, rows.extra.column(column)[place].as_py(), size)

    return image_of


def read_image(folder: Path, name: Any, size: tuple[int, int]) -> NDArray[np.uint8] | str:
    """A file of a folder at a size (H, W), or ``"code: message"``; never a file outside of it."""
    from PIL import Image, ImageOps

    if not isinstance(name, str) or not name or "\0" in name:
        return f"image: no name of a file: {name!r}"
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        return f"image: {name!r} leaves the folder"
    if not path.is_file():
        return f"image: no file {name!r} in the folder"
    if path.stat().st_size > _IMAGE_BYTES:
        return f"image: {name!r} has more than {_IMAGE_BYTES:,} bytes"
    try:
        with Image.open(path, formats=_FORMATS) as file:
            if file.width * file.height > _IMAGE_PIXELS:
                return f"image: {name!r} has more than {_IMAGE_PIXELS:,} pixels"
            if file.mode not in _MODES:
                return f"image: {name!r} is not of 8 bits a channel (mode {file.mode})"
            upright = ImageOps.exif_transpose(file).convert("RGB")
    # decoders raise anything at damaged data
    except Exception as error:
        return f"image: {name!r} cannot be read ({error})"
    height, width = size
    return np.array(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS))


def _by_prompt(known: Mapping[str, NDArray[np.uint8]], size: tuple[int, int]) -> ImageOfRow:
    for image in known.values():
        if image.shape[:2] != size:
            height, width = image.shape[:2]
            raise UsageError(
                f"an image of {height} x {width} for a model that draws {size[0]} x {size[1]};"
                " resize the images"
            )

    def image_of(rows: Rows, place: int) -> NDArray[np.uint8] | str:
        found = known.get(rows.prompts[place] or "")
        return "image: none is known for this prompt" if found is None else found

    return image_of
