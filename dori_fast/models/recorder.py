"""Statistics of what goes into or comes out of linear layers while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dori_fast.errors import UsageError
from dori_fast.ops import ActivationStats, activation_stats

__all__ = ["StatsRecorder", "linear_layers"]


def _is_linear(module: nn.Module) -> bool:
    """A linear layer, or an adapter (PEFT's LoRA and its kin) around one."""
    while not isinstance(module, nn.Linear):
        wrapped = getattr(module, "base_layer", None)
        if not isinstance(wrapped, nn.Module):
            return False
        module = wrapped
    return True


def linear_layers(root: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers of a network by qualified name.

    A layer with a low-rank adapter counts as one, under its own name: the adapter's parts are not
    listed, and its output is that of layer and adapter together.
    """
    found: dict[str, nn.Module] = {}
    for name, module in root.named_modules():
        inside = any(name.startswith(f"{outer}.") or outer == "" for outer in found)
        if not inside and _is_linear(module):
            found[name] = module
    return found


class StatsRecorder:
    """Record `activation_stats` of linear layers over any number of batches.

    While the recorder is entered, every call of a recorded layer adds its rows to the layer's
    statistics; leaving it removes all hooks and keeps the statistics. Rows are all axes but the
    last. Nothing waits for the device.

    >>> with StatsRecorder(network, ["encoder.fc1"], side="input") as seen:
    ...     network(batch)
    >>> seen.stats["encoder.fc1"].std()

    Layers that a Denoiser evaluates in padded batches see the padding as well; call the network or
    the layer itself where each row must count once.

    Args:
        root: the network.
        names: qualified names of linear layers in `root`; None records all of them.
        side: "output" for what a layer returns, "input" for its first argument.
        transform: applied to the activations [*, N] of a call before they count, such as
            `lambda x: x.abs().mean(-2)` for NeMo's one magnitude per prompt (a mean over its
            tokens) or `lambda x: torch.nn.functional.normalize(x, dim=-1)` for Wanda's tokens of
            length 1.

    Attributes:
        stats: statistics by name; a layer that was not called is absent.

    Raises:
        UsageError: a name is not that of a linear layer, or the recorder is already entered.
    """

    def __init__(
        self,
        root: nn.Module,
        names: Iterable[str] | None = None,
        *,
        side: Literal["input", "output"] = "output",
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        layers = linear_layers(root)
        chosen = list(layers) if names is None else list(names)
        unknown = [name for name in chosen if name not in layers]
        if unknown:
            raise UsageError(
                f"StatsRecorder: {unknown[0]!r} is not a linear layer of {type(root).__name__}; "
                f"linear_layers() lists its {len(layers)}"
            )
        if side not in ("input", "output"):
            raise UsageError(f"StatsRecorder: side must be input or output, got {side!r}")
        self.stats: dict[str, ActivationStats] = {}
        self._layers = {name: layers[name] for name in chosen}
        self._side = side
        self._transform = transform
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> StatsRecorder:
        if self._hooks:
            raise UsageError("StatsRecorder: already entered; leave it first")
        self._hooks = [
            layer.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, layer in self._layers.items()
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _hook(self, name: str) -> Callable[..., None]:
        def record(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> None:
            entered = args[0] if args else next(iter(kwargs.values()))
            self._add(name, output if self._side == "output" else entered)

        return record

    @torch.no_grad()
    def _add(self, name: str, activations: Tensor) -> None:
        values = activations.detach()
        stats = activation_stats(values if self._transform is None else self._transform(values))
        before = self.stats.get(name)
        self.stats[name] = stats if before is None else before.merge(stats)
