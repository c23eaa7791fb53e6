"""Everything that can be told of a pipeline and its modules, to compare before and after."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)


def inventory(pipe: Any) -> dict[str, Any]:
    """By place: classes, attributes, hooks, processors, parameters and buffers with their bits.

    Objects are told apart by identity: an equal one in another's place is a difference.
    """
    found: dict[str, Any] = {"pipe": type(pipe)}
    found |= {f"pipe.{name}": _told(value) for name, value in vars(pipe).items()}
    found["pipe.config"] = repr(dict(pipe.config))
    for part, component in pipe.components.items():
        if isinstance(component, nn.Module):
            found |= {f"{part}:{place}": told for place, told in _of_network(component)}
        elif component is not None:
            found[part] = type(component)
            found |= {
                f"{part}.{n}": _told(v) for n, v in getattr(component, "__dict__", {}).items()
            }
    found |= {f"processor:{n}": id(p) for n, p in pipe.unet.attn_processors.items()}
    return found


def _of_network(network: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in network.named_modules():
        yield name, type(module)
        yield f"{name}.keys", sorted(module.__dict__)
        for attribute, value in module.__dict__.items():
            yield f"{name}.{attribute}", _told(value)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        yield f"{name}=", (tensor.data_ptr(), tensor._version, tensor.requires_grad, _bits(tensor))


def _told(value: Any) -> Any:
    """A value that is equal before and after if and only if nothing has changed."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return id(value), _bits(value)
    if isinstance(value, dict):
        return type(value), id(value), {repr(k): _told(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value), id(value), [_told(v) for v in value]
    return type(value), id(value)


def _bits(tensor: Tensor) -> str:
    if tensor.is_meta:
        return f"meta {tuple(tensor.shape)}"
    return sha256(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy()).hexdigest()


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The places that differ."""
    return sorted(n for n in {**before, **after} if before.get(n, ...) != after.get(n, ...))
