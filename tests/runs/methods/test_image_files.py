"""Names of images from data: links, Windows names, near misses, and names that leave the folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dori_fast.errors import UsageError
from dori_fast.runs.methods.image_files import open_images, read_image
from dori_fast.runs.sources.open import open_prompts

PICTURE: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "img").mkdir(parents=True)
    for path in (folder / "000.png", folder / "img" / "001.png", tmp_path / "blobs" / "0a1b"):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(PICTURE).save(path, format="PNG")
    return folder


def read(folder: Path, name: Any) -> str:
    """The message, or "" if the image is read right."""
    found = read_image(folder, name, (16, 16))
    if isinstance(found, str):
        return found
    np.testing.assert_array_equal(found, PICTURE)
    return ""


def test_links_in_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "hub.png").symlink_to("../blobs/0a1b")
    (folder / "dvc.png").symlink_to(tmp_path / "blobs" / "0a1b")
    (folder / "linked").symlink_to(tmp_path / "blobs")
    (tmp_path / "other").symlink_to(folder)
    for name in ("hub.png", "dvc.png", "linked/0a1b", "./000.png", "img//001.png"):
        assert read(folder, name) == read(tmp_path / "other", name) == ""
    (folder / "gone.png").symlink_to("../.git/annex/objects/zW/S--0a.png")
    message = read(folder, "gone.png")
    assert (
        "a link to '../.git/annex/objects/zW/S--0a.png', where nothing is; run git annex" in message
    )
    (folder / "loop.png").symlink_to("loop.png")
    assert read(folder, "loop.png").startswith("image: ")


@pytest.mark.parametrize(
    "name",
    [
        "../images/000.png",
        "img/../000.png",
        "..",
        "/etc/hostname",
        "//etc/hostname",
        "..\\images\\000.png",
        "img\\..\\000.png",
        "img/..\\000.png",
        "C:\\images\\000.png",
        "C:000.png",
        "\\images\\000.png",
        "\\\\server\\share\\000.png",
    ],
)
def test_names_that_leave_the_folder(folder: Path, name: str) -> None:
    assert read(folder, name) == f"image: {name!r} leaves the folder"


def test_absolute_names_of_files_in_the_folder_are_refused_too(folder: Path) -> None:
    assert "leaves the folder" in read(folder, str(folder / "000.png"))


def test_names_made_on_windows(folder: Path) -> None:
    assert read(folder, "img\\001.png") == read(folder, ".\\img\\001.png") == ""
    # a name that holds a backslash, or a colon, is taken literally first
    Image.fromarray(PICTURE[::-1].copy()).save(folder / "img" / "b.png")
    for name in ("img\\b.png", "a:b.png"):
        os.link(folder / "000.png", folder / name)
        assert read(folder, name) == ""
    assert read(folder, "img\\none.png") == "image: no file 'img\\\\none.png' in the folder"


def test_near_misses_are_named(folder: Path) -> None:
    os.link(folder / "000.png", folder / "caf\u00e9.png")
    for name, near in {
        "000.PNG": "but '000.png', in other case",
        "IMG/001.png": "",
        "img/001.PNG": "but '001.png', in other case",
        "cafe\u0301.png": "in other case or another Unicode form",
        "000.jpg": "but '000.png'",
        "000": "but '000.png'",
        "images/000.png": "but '000.png'; give --images the folder that the names start from",
        "img": "but a folder",
        "none.png": "",
    }.items():
        message = read(folder, name)
        assert message.startswith(f"image: no file {name!r} in the folder") and near in message


def test_stand_ins_are_named(folder: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    (folder / "p.png").write_text(pointer)
    (folder / "h.png").write_text("<!DOCTYPE html><html><title>403</title>")
    assert read(folder, "p.png") == (
        "image: 'p.png' is a Git LFS pointer, not the data; run git lfs pull"
    )
    assert "'h.png' is a web page, not the data" in read(folder, "h.png")


def test_images_in_memory_are_images(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\n")
    reader = open_prompts(tmp_path / "p.txt")
    rows = next(iter(reader.chunks(1)))
    for image in (PICTURE, Image.fromarray(PICTURE), torch.from_numpy(PICTURE), PICTURE[::1]):
        found = open_images({"a": image}, reader, "image", (16, 16))(rows, 0)
        np.testing.assert_array_equal(found, PICTURE)
    grey, alpha = PICTURE[:, :, 0], np.dstack([PICTURE, PICTURE[:, :, :1]])
    for image in (PICTURE / 255, PICTURE.astype(int), grey, alpha, PICTURE.tolist(), "a.png", None):
        with pytest.raises(UsageError, match=r"that of 'a' is .*, not uint8 \[H, W, 3\]"):
            open_images({"b": PICTURE, "a": image}, reader, "image", (16, 16))
    for source in ([PICTURE], PICTURE, None, b"images"):
        with pytest.raises(UsageError, match="neither a folder nor images by prompt"):
            open_images(source, reader, "image", (16, 16))
