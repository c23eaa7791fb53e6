"""Untrusted image files: eight bits of RGB or the reason for refusal, never a large decode."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dori_fast.runs.methods.image_files import read_image

SIZE = (16, 16)


def noise_image(side: int = 24) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return Image.fromarray(values)


def bomb(path: Path, side: int) -> None:
    """Write a PNG whose header claims ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10_000_000), 9)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    path.write_bytes(start + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def write(folder: Path, kind: str) -> str:
    name = {"cmyk": "x.jpg", "truncated": "x.jpg", "animated": "x.gif", "svg": "x.svg"}
    path = folder / name.get(kind, "x.png")
    whole = noise_image()
    if kind == "one pixel":
        noise_image(1).save(path)
    elif kind == "empty":
        path.touch()
    elif kind.startswith("bomb"):
        bomb(path, int(kind.split()[1]))
    elif kind == "truncated":
        whole.save(path)
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "cmyk":
        whole.convert("CMYK").save(path)
    elif kind == "16 bits":
        Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(path)
    elif kind == "animated":
        whole.save(path, save_all=True, append_images=[noise_image(24)])
    elif kind == "svg":
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    elif kind == "postscript":
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    elif kind == "large file":
        with path.open("wb") as file:
            file.truncate(33_000_000)
    return path.name


@pytest.mark.parametrize("kind", ["one pixel", "cmyk", "animated"])
def test_decoded(tmp_path: Path, kind: str) -> None:
    read = read_image(tmp_path, write(tmp_path, kind), SIZE)
    assert isinstance(read, np.ndarray) and read.shape == (16, 16, 3) and read.dtype == np.uint8


def test_turned_as_its_data_say(tmp_path: Path) -> None:
    values = np.zeros((16, 16, 3), np.uint8)
    values[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(values).save(tmp_path / "x.png", exif=exif)
    read = read_image(tmp_path, "x.png", SIZE)
    np.testing.assert_array_equal(read, values[::-1])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "cannot be read"),
        ("truncated", "cannot be read"),
        ("bomb 50000", "cannot be read"),
        ("bomb 9000", "more than 64,000,000 pixels"),
        ("16 bits", "not of 8 bits a channel"),
        ("svg", "cannot be read"),
        ("postscript", "cannot be read"),
        ("large file", "more than 32,000,000 bytes"),
    ],
)
def test_refused_with_the_reason(tmp_path: Path, kind: str, reason: str, recwarn: Any) -> None:
    name, began = write(tmp_path, kind), perf_counter()
    read = read_image(tmp_path, name, SIZE)
    assert isinstance(read, str) and read.startswith("image: ") and reason in read
    assert perf_counter() - began < 5
