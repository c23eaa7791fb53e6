"""Grids of pictures."""

from __future__ import annotations

import numpy as np

from dori_fast.report.figures.grid import Group, image_grid


def test_every_picture_is_at_its_place():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 2, 8, 8, 3), dtype=np.uint8)
    sheet = np.asarray(image_grid(["a", "b \u4e2d <b>", "c" * 400], [Group("x", pictures)], 2))
    for row in pictures:
        for picture in row:
            large = picture.repeat(2, 0).repeat(2, 1)
            windows = np.lib.stride_tricks.sliding_window_view(sheet, (16, 16, 3))
            assert (windows[:, :, 0] == large).all((2, 3, 4)).sum() == 1


def test_groups_stand_side_by_side():
    one = np.zeros((1, 1, 4, 4, 3), np.uint8)
    narrow = image_grid(["a"], [Group("x", one)])
    wide = image_grid(["a"], [Group("x", one), Group("y", one)])
    assert wide.width > narrow.width and wide.height == narrow.height
