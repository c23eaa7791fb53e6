"""``df.patch`` and ``df.unpatch``: swap functions of other papers' code, and restore them."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

from dori_fast.errors import UsageError
from dori_fast.integrations.peers import nemo, sail, unlearndiffatk, wen
from dori_fast.integrations.peers.swap import Patch, Peer, Shim, module_of, owner_of
from dori_fast.models.precision import fixed_precision

PEERS: dict[str, Peer] = {
    "wen": wen.PEER,
    "nemo": nemo.PEER,
    "sail": sail.PEER,
    "unlearndiffatk": unlearndiffatk.PEER,
}
Undo = Callable[[], None]
_active: dict[str, tuple[Patch, list[Undo]]] = {}


def patch(name: str, **options: Any) -> Patch:
    """Swap the slow functions of a paper's released code for ours, in the running process.

    Add this line at the top of a script that runs from a checkout of that code:

    >>> import dori_fast as df; df.patch("wen", scan_steps=1)

    Signatures, seeding and dtypes stay those of the released code; ``docs/drop_in.md`` lists kept
    and changed behavior per peer. Modules that imported the functions before are patched too.

    Args:
        name: Peer: "wen", "nemo", "sail" or "unlearndiffatk".
        options: Options of the peer. "wen" has ``scan_steps``, the number of steps of a scored
            call; default: all.

    Returns:
        A record of the swapped functions.

    Raises:
        UsageError: the name or an option is unknown, the peer is patched already, a module is
            missing, or a function has another signature than the released one.
    """
    peer = _peer(name)
    if name in _active:
        raise UsageError(f"patch: {name} is patched already; df.unpatch({name!r}) first")
    unknown = sorted(set(options) - set(peer.options))
    if unknown:
        known = ", ".join(peer.options) or "none"
        raise UsageError(f"patch: {name} has no option {unknown[0]!r}; it has: {known}")
    settings = {**peer.options, **options}
    peer.check(settings)
    record, undo = Patch(name, peer.repository), list[Undo]()
    try:
        for shim in peer.shims:
            _install(shim, record, undo)
        found = [
            (swap, *owner_of(name, swap, module_of(name, swap.module, peer.repository)))
            for swap in peer.swaps
        ]
        for swap, owner, attribute, released in found:
            ours = _precisely(swap.make(released, record, settings))
            _replace(owner, attribute, released, ours, undo)
            record.swapped[f"{swap.module}.{swap.target}"] = swap.why
    except BaseException:
        _undo(undo)
        raise
    _active[name] = record, undo
    return record


def unpatch(name: str) -> None:
    """Undo :func:`patch`: every attribute is the original object again.

    A peer that is not patched stays as it is.

    Raises:
        UsageError: the name is unknown.
    """
    _peer(name)
    if name in _active:
        record, undo = _active.pop(name)
        _undo(undo)
        record.shared.clear()


def _peer(name: str) -> Peer:
    if not isinstance(name, str):
        raise UsageError(
            f"patch: name must be one of {', '.join(PEERS)}, the released code to speed up, got a"
            f" {type(name).__name__}; use df.accelerate for a pipeline"
        )
    if name not in PEERS:
        raise UsageError(f"patch: unknown name {name!r}; use one of {', '.join(PEERS)}")
    return PEERS[name]


def _precisely(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, in the precision of every evaluation."""

    @functools.wraps(function)
    def precisely(*args: Any, **kwargs: Any) -> Any:
        with fixed_precision():
            return function(*args, **kwargs)

    return precisely


def _undo(undo: list[Undo]) -> None:
    for step in reversed(undo):
        step()


def _install(shim: Shim, record: Patch, undo: list[Undo]) -> None:
    module = importlib.import_module(shim.module)
    if hasattr(module, shim.name):
        return
    value = shim.value()
    setattr(module, shim.name, value)
    record.shims.append(f"{shim.module}.{shim.name}")

    def remove() -> None:
        if vars(module).get(shim.name) is value:
            delattr(module, shim.name)

    undo.append(remove)


def _replace(
    owner: Any,
    attribute: str,
    released: Callable[..., Any],
    ours: Callable[..., Any],
    undo: list[Undo],
) -> None:
    if isinstance(owner, type):
        # Python looks methods up in the class, so all importers see the change
        setattr(owner, attribute, ours)
        undo.append(lambda: setattr(owner, attribute, released))
        return
    _everywhere(released, ours)
    undo.append(lambda: _everywhere(ours, released))


def _everywhere(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Replace the old function by the new one in all modules, under any name."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if isinstance(names, dict):
            for name in [name for name, value in list(names.items()) if value is old]:
                names[name] = new
