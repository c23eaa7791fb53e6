"""The images of rows: files in a folder, named by a column, or images known by prompt."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dori_fast._text import HEAD_BYTES, stand_in
from dori_fast.errors import UsageError
from dori_fast.runs.sources.rows import Reader, Rows

# checked before decoding: a small file may hold a huge image
_IMAGE_BYTES, _IMAGE_PIXELS = 32_000_000, 64_000_000
_LISTED = 10_000
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
        source: a folder; or images by prompt, uint8 [H, W, 3] of ``size``, such as the embedded
            model's.
        reader: the rows.
        column: column of file names relative to the folder.
        size: (H, W) of the model's images. A file's image is rotated as its EXIF data say,
            converted to RGB, resized by PIL's Lanczos filter so that it just covers ``size``, and
            cropped evenly on both sides.

    Raises:
        UsageError: no such folder or column, or images of another kind or size.
    """
    if isinstance(source, Mapping):
        return _by_prompt(source, size)
    if not isinstance(source, str | Path):
        raise UsageError(
            f"images: a {type(source).__name__}, neither a folder nor images by prompt; pass a path"
            " or a dict"
        )
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
    """A file of a folder at a size (H, W), or ``"code: message"``.

    The name, which comes from data, must not leave the folder. Links in the folder are followed,
    since its owner made them. A name with backslashes stands for one with slashes if no file has
    it literally.
    """
    from PIL import Image, ImageOps

    if not isinstance(name, str) or not name or "\0" in name:
        return f"image: no name of a file: {name!r}"
    path = _path(folder, name)
    if isinstance(path, str):
        return path
    try:
        if path.stat().st_size > _IMAGE_BYTES:
            return f"image: {name!r} has more than {_IMAGE_BYTES:,} bytes"
        with path.open("rb") as file:
            reason = stand_in(file.read(HEAD_BYTES))
    except OSError as error:
        return f"image: {name!r} cannot be read ({error.strerror})"
    if reason is not None:
        return f"image: {name!r} {reason}"
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


def _path(folder: Path, name: str) -> Path | str:
    """The file of this name, or ``"image: message"``."""
    if _leaves(PurePosixPath(name)):
        return f"image: {name!r} leaves the folder"
    try:
        if (folder / name).is_file():
            return folder / name
        windows = PureWindowsPath(name)
        # no file has this name literally, so a backslash or a drive makes it one of Windows
        if "\\" in name or windows.drive:
            if _leaves(windows):
                return f"image: {name!r} leaves the folder"
            if (path := folder.joinpath(*windows.parts)).is_file():
                return path
        return f"image: no file {name!r} in the folder{_near(folder, name)}"
    except OSError as error:
        return f"image: {name!r} cannot be read ({error.strerror})"


def _leaves(name: PurePath) -> bool:
    return bool(name.is_absolute() or name.anchor) or ".." in name.parts


def _near(folder: Path, name: str) -> str:
    """Hint at what is there instead of a file of this name, such as one in other case."""
    path = folder / name.replace("\\", "/")
    if path.is_symlink():
        target = os.readlink(path)
        fetch = "; run git annex get" if "annex/objects" in target else ""
        return f": it is a link to {target!r}, where nothing is{fetch}"
    if path.is_dir():
        return ", but a folder"
    try:
        others = sorted(os.listdir(path.parent))
    except OSError:
        others = []
    if len(others) > _LISTED:
        # compared anew for every row without a file
        others = []
    for other in others:
        if _plain(other) == _plain(path.name):
            return f", but {other!r}, in other case or another Unicode form"
    for other in others:
        if _plain(Path(other).stem) in (_plain(path.stem), _plain(path.name)):
            return f", but {other!r}"
    if (folder / path.name).is_file():
        return f", but {path.name!r}; give --images the folder that the names start from"
    return ""


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _by_prompt(known: Mapping[str, Any], size: tuple[int, int]) -> ImageOfRow:
    images = {prompt: _as_image(prompt, image) for prompt, image in known.items()}
    for image in images.values():
        if image.shape[:2] != size:
            height, width = image.shape[:2]
            raise UsageError(
                f"an image of {height} x {width} for a model that draws {size[0]} x {size[1]};"
                " resize the images"
            )

    def image_of(rows: Rows, place: int) -> NDArray[np.uint8] | str:
        found = images.get(rows.prompts[place] or "")
        return "image: none is known for this prompt" if found is None else found

    return image_of


def _as_image(prompt: object, value: Any) -> NDArray[np.uint8]:
    """An image in memory, also of PIL or torch, as uint8 [H, W, 3]."""
    kind = type(value).__name__
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        image = np.asarray(value)
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            return image
        kind = f"{image.dtype} {list(image.shape)}"
    raise UsageError(
        f"images: that of {str(prompt)[:40]!r} is {kind}, not uint8 [H, W, 3] with values 0 to 255;"
        " convert it"
    )
