"""Whether a module runs the code that its library defined, or code that somebody hung on it.

Patches take four ways: another class (token merging), a method on the instance (step caches,
LyCORIS), a method on the class (before or after this package is imported), and hooks. A function
counts as a class's own if its code was compiled from the class's file under the same name.
Decorators of torch and diffusers are looked through.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

# modules whose layers treat every sample by itself, in evaluation mode
_BY_SAMPLE = ("torch.nn.modules.", "torch._dynamo.", "diffusers.", "peft.tuners.lora.")
_COMPILED = "torch._dynamo.eval_frame"
_HOOKS = {
    "forward": ("_forward_hooks", "_forward_pre_hooks"),
    "backward": ("_backward_hooks", "_backward_pre_hooks"),
}
# accelerate's hooks that move or cast weights
_MOVERS = {"AlignDevicesHook", "CpuOffload", "LayerwiseCastingHook", "SequentialHook"}
_CALLS = {"__call__", "_wrapped_call_impl", "_call_impl", "__getattr__"}
_ALIASES: dict[tuple[type, str], str] = {(nn.Module, "__call__"): "Module._wrapped_call_impl"}


@functools.cache
def processors() -> frozenset[type]:
    """The attention processors that change how attention is computed, but not what it is.

    Others (IP-Adapter, perturbed attention) change its result.
    """
    from diffusers.models import attention_processor as known

    return frozenset(
        {
            known.AttnProcessor,
            known.AttnProcessor2_0,
            known.FusedAttnProcessor2_0,
            known.SlicedAttnProcessor,
            known.XFormersAttnProcessor,
        }
    )


@functools.cache
def _libraries() -> tuple[str, ...]:
    """The folders whose decorators are looked through."""
    import diffusers
    import huggingface_hub

    found = torch, diffusers, huggingface_hub
    return tuple(f"{os.path.dirname(str(x.__file__))}{os.sep}" for x in found)


def is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """Whether a module is exactly of a class of torch, with nothing hung on it.

    Only then may its weights be read in place of a call.
    """
    if type(module) is not kind or changed_code(module) or hooks(module):
        return False
    own = [weight for weight in module._parameters.values() if weight is not None]
    # quantized weights have a class of their own; pruned and normalized ones are no parameters
    return "weight" in module._parameters and all(type(weight) is nn.Parameter for weight in own)


def not_its_weight(layer: Any) -> str | None:
    """Why a linear layer computes something else than its weight says, with a remedy, or None."""
    if not isinstance(layer, nn.Linear):
        return "has an adapter; fuse it (pipe.fuse_lora()) and unload it first"
    if is_plain(layer, nn.Linear):
        return None
    if "weight" not in layer._parameters:
        return (
            "is pruned by torch or reparametrized; make that permanent first:"
            " torch.nn.utils.prune.remove(layer, 'weight')"
        )
    reason = changed_code(layer) or (hooks(layer) and f"it has {hooks(layer)} hooks")
    reason = reason or f"it is a {type(layer).__name__} of {type(layer.weight).__name__}"
    return f"may compute something else than its weight says ({reason}); undo that first"


class Functions(dict[type, str | None]):
    """By class, the ``Class.name`` of the first function that the class's file did not define.

    Constructors are left out, since they have run. Classes may be patched at any time, so an object
    serves one pass over a network.
    """

    def __missing__(self, kind: type) -> str | None:
        self[kind] = next(_changed_functions(kind), None)
        return self[kind]


def changed_code(module: Any, functions: Functions | None = None) -> str | None:
    """Description of the code that replaces a class's, such as "its forward is replaced".

    None if the module runs its class's code, of whatever library.
    """
    kind = type(module)
    if kind.__module__ == _COMPILED:
        # torch.compile's wrapper keeps its compiled forward on the instance
        return None
    for name, value in vars(module).items():
        method = getattr(kind, name, None)
        if not isinstance(method, FunctionType):
            continue
        # module.forward = module.forward changes nothing
        if getattr(value, "__func__", None) is method and value.__self__ is module:
            continue
        if name != "forward" or not _moved_by_accelerate(module, value):
            return f"its {name} is replaced"
    changed = (Functions() if functions is None else functions)[kind]
    return changed and f"{changed} is patched"


def _moved_by_accelerate(module: Any, forward: Any) -> bool:
    """Whether a module's forward is accelerate's, around the class's own."""
    hook, before = vars(module).get("_hf_hook"), vars(module).get("_old_forward")
    each = getattr(hook, "hooks", [hook])
    kinds = [type(one) for one in each]
    known = all(k.__module__ == "accelerate.hooks" and k.__name__ in _MOVERS for k in kinds)
    wrapped = isinstance(forward, partial)
    own = getattr(before, "__func__", None) is type(module).forward
    return known and wrapped and own and forward.func.__module__ == "accelerate.hooks"


def _changed_functions(kind: type) -> Iterator[str]:
    for cls in kind.__mro__:
        if cls is not kind and not issubclass(cls, nn.Module):
            # mixins load and save
            continue
        home = getattr(sys.modules.get(cls.__module__), "__file__", None)
        for name, value in vars(cls).items():
            if not isinstance(value, FunctionType) or name == "__init__":
                continue
            if cls is nn.Module and name not in _CALLS:
                # transformers adds methods of its own
                continue
            named = _ALIASES.get((cls, name), f"{cls.__qualname__}.{name}")
            if not any(
                (code.co_filename, code.co_qualname) == (home, named) for code in _codes(value)
            ):
                yield f"{cls.__name__}.{name}"


def _codes(function: Any) -> Iterator[CodeType]:
    """The code of a function, then of what it decorates, while the decorators are libraries'."""
    while True:
        yield function.__code__
        inner = vars(function).get("__wrapped__")
        held = [cell.cell_contents for cell in function.__closure__ or ()]
        library = function.__code__.co_filename.startswith(_libraries())
        if not library or not isinstance(inner, FunctionType) or inner not in held:
            return
        function = inner


def hooks(module: Any) -> str | None:
    """The kind of a module's hooks, "forward" or "backward", or None."""
    for kind, names in _HOOKS.items():
        if any(getattr(module, name, None) for name in names):
            return kind
    return "forward" if hasattr(module, "_hf_hook") else None


def global_hooks() -> bool:
    """Whether torch calls hooks for every module there is."""
    return bool(torch_module._has_any_global_hook())


def place(name: str) -> str:
    """A module of the UNet, by its name in it."""
    return f"unet.{name}" if name else "the UNet"


def foreign_module(network: nn.Module, *, any_root: bool = False) -> str | None:
    """The first module whose samples may depend on each other or on earlier calls, or None.

    Layers of torch and diffusers and peft's LoRA treat every sample by itself. Others are unknown.
    With ``any_root``, the network itself may be of any class.
    """
    for name, module in network.named_modules():
        kind = type(module)
        home = sys.modules.get(kind.__module__)
        # some tools name their class after the one that they replace
        real = getattr(home, kind.__name__, None) is kind
        if any_root and module is network:
            continue
        if not real or not kind.__module__.startswith(_BY_SAMPLE):
            return f"{place(name)} ({kind.__name__})"
    return patched_module(network) or foreign_processor(network)


def patched_module(network: nn.Module) -> str | None:
    """The first module with other code than its class's, and which, or None."""
    functions = Functions()
    for name, module in network.named_modules():
        changed = changed_code(module, functions)
        if changed is not None:
            return f"{place(name)} ({changed})"
    return None


def foreign_processor(network: nn.Module) -> str | None:
    """The first attention processor that is not one of diffusers' own, or None."""
    functions = Functions()
    for name, module in network.named_modules():
        processor = getattr(module, "processor", None)
        if processor is None:
            continue
        changed = functions[type(processor)]
        if type(processor) not in processors() or changed:
            patched = f", {changed} is patched" if changed else ""
            return f"the attention processor {place(name)}.processor" + (
                f" ({type(processor).__name__}{patched})"
            )
    return None


def unbound_method(network: nn.Module) -> str | None:
    """The first replaced method that a deep copy would leave bound to this network, or None.

    Copies of bound methods, modules and accelerate's hooks belong to the copy.
    """
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            method = getattr(type(module), key, None)
            # a copy of accelerate's partial holds the copied module
            called = value.func if isinstance(value, partial) else value
            held = getattr(called, "__closure__", None) or called is value
            if isinstance(method, FunctionType) and isinstance(called, FunctionType) and held:
                return f"{place(name)} (its {key} is replaced)"
    return None


def hooked_module(network: nn.Module) -> str | None:
    """Name of the first module with a torch hook on its forward, or None."""
    if global_hooks():
        return "every module"
    for name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return place(name)
    return None


def random_module(network: nn.Module) -> str | None:
    """Description of the first module with random results, or None."""
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            return f"{place(name)} drops out at random; unet.eval() ends that"
    return None
