"""Data that option values such as ``demo`` stand for."""

from __future__ import annotations

from typing import Any

import dori_fast


def demo_images() -> dict[str, Any]:
    """The embedded model's own images by prompt."""
    demo = dori_fast.demo
    return {p.prompt: p.image for split in demo.SPLITS for p in demo.images(split)}
