"""Names of layers, settings, rates and figure files, on pages and in figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# figures that a run writes, and its page shows
ATTACK_FIGURE, LAYERS_FIGURE, IMAGES_FIGURE = "attack.png", "layers.png", "pictures.png"


def short_name(name: str) -> str:
    """``down_blocks.0.attentions.1.transformer_blocks.0.attn2`` as ``down 0.1``."""
    parts = name.split(".")
    numbers = [part for part in parts[:4] if part.isdigit()]
    return f"{parts[0].split('_')[0]} {'.'.join(numbers)}"


def settings(config: Mapping[str, Any]) -> str:
    """Plain JSON in one line: ``steps 50, lr 0.1``; nulls are left out."""
    return ", ".join(f"{name} {value}" for name, value in _flat(config) if value is not None)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}".replace("_", " "), _shown(value)


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return f"[{', '.join(str(_shown(item)) for item in value)}]"
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    return f"{value:g}" if isinstance(value, float) else value


def interval(rate: Sequence[float]) -> str:
    """Value and interval of a share: ``0.17 [0.09, 0.29]``."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*rate)
