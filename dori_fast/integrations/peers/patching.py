"""``df.patch`` and ``df.unpatch``: functions of other papers' code, swapped and put back."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from dori_fast.errors import UsageError
from dori_fast.integrations.peers import nemo, sail, unlearndiffatk, wen
from dori_fast.integrations.peers.swap import Patch, Peer, Shim, module_of, owner_of

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

    The added line of a script that is run from a checkout of that code, at its top:

    >>> import dori_fast as df; df.patch("wen", scan_steps=1)

    Signatures, seeding and dtypes stay those of the released code; ``docs/drop_in.md`` says for
    each what is kept and what differs. Modules that imported the functions before are served too.

    Args:
        name: "wen", "nemo", "sail" or "unlearndiffatk".
        options: "wen" has ``scan_steps``, the steps of a scored call, by default all.

    Returns:
        A record of what was swapped.

    Raises:
        UsageError: an unknown name or option, a peer that is patched already, modules that cannot
            be found, or functions with another signature than the released ones.
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
            ours = swap.make(released, record, settings)
            _replace(owner, attribute, released, ours, undo)
            record.swapped[f"{swap.module}.{swap.target}"] = swap.why
    except BaseException:
        _undo(undo)
        raise
    _active[name] = record, undo
    return record


def unpatch(name: str) -> None:
    """Undo :func:`patch`: every attribute is the very object that it was.

    A peer that is not patched is left alone.

    Raises:
        UsageError: an unknown name.
    """
    _peer(name)
    if name in _active:
        record, undo = _active.pop(name)
        _undo(undo)
        record.shared.clear()


def _peer(name: str) -> Peer:
    if name not in PEERS:
        raise UsageError(f"patch: unknown name {name!r}; known are {', '.join(PEERS)}")
    return PEERS[name]


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
        # a method is looked up in its class, whoever imported that
        setattr(owner, attribute, ours)
        undo.append(lambda: setattr(owner, attribute, released))
        return
    _everywhere(released, ours)
    undo.append(lambda: _everywhere(ours, released))


def _everywhere(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Wherever a module holds the old function under any name, it holds the new one."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if isinstance(names, dict):
            for name in [name for name, value in list(names.items()) if value is old]:
                names[name] = new
