"""What options name and commands hand on."""

from __future__ import annotations

from typing import Any

import dori_fast


def demo_pictures() -> dict[str, Any]:
    """The embedded model's own pictures by prompt."""
    demo = dori_fast.demo
    return {p.prompt: p.image for split in demo.SPLITS for p in demo.images(split)}
