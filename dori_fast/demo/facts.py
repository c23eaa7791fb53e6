"""Generation settings of the embedded model, and the photographs that it reproduces."""

from __future__ import annotations

from typing import Any

from dori_fast.demo import DemoImage, images
from dori_fast.prune import Wanda

# DDIM steps and guidance scale of every image that the model draws
GENERATION: dict[str, Any] = {"steps": 20, "guidance": 4.0}
# hides the photographs: images drawn under this mask for their prompts serve as surrogates
HIDING = Wanda(0.3, both_halves=False, joint=False)
# least repetitions in training from which on the model reproduces a photograph
REPRODUCED_FROM = 4


def reproduced() -> list[DemoImage]:
    """The photographs that the embedded model reproduces from their prompts."""
    return [image for image in images("memorized") if image.duplication >= REPRODUCED_FROM]
