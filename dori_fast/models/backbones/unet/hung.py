"""What a UNet in memory does that neither its weights nor its config say."""

from __future__ import annotations

from typing import Any

from torch import nn

from dori_fast.models.backbones.unet.objections import FREEU
from dori_fast.models.backbones.unet.stock import foreign_module, hooked_module


def hung_on(network: nn.Module) -> list[str]:
    """Descriptions of foreign code, FreeU's factors and adapters at another scale than their own.

    Equal networks have equal descriptions. So do networks that differ only in the function that
    replaces one method.
    """
    found = [x for x in (foreign_module(network), hooked_module(network)) if x is not None]
    for name, module in network.named_modules():
        factors = [getattr(module, factor, None) for factor in FREEU]
        if any(factors):
            found.append(f"unet.{name} (FreeU {factors})")
        found += _scales(name, module)
    return found


def _scales(name: str, layer: Any) -> list[str]:
    """An adapter's state, where it is not as it was added."""
    if not hasattr(layer, "get_base_layer"):
        return []
    alpha, rank = getattr(layer, "lora_alpha", {}), getattr(layer, "r", {})
    active = [] if getattr(layer, "disable_adapters", False) else list(layer.active_adapters)
    own = {key: alpha[key] / rank[key] for key in alpha}
    now = {key: layer.scaling.get(key) for key in active if key in alpha}
    merged = list(getattr(layer, "merged_adapters", []))
    return [] if now == own and not merged else [f"unet.{name} (adapters {now}, merged {merged})"]


def why_not_files(network: nn.Module) -> str | None:
    """Why files with the weights would be another network, with a remedy, or None."""
    adapted = (name for name, m in network.named_modules() if hasattr(m, "get_base_layer"))
    if (layer := next(adapted, None)) is not None:
        return f"unet.{layer} has an adapter; pipe.fuse_lora() and pipe.unload_lora_weights() first"
    hung = hung_on(network)
    return f"{hung[0]}, which files do not hold; undo that first" if hung else None
