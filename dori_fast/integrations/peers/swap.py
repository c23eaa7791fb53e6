"""Parts of a peer's swap, and the check that the found code is the released code."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from dori_fast.errors import UsageError

Make = Callable[[Callable[..., Any], "Patch", Mapping[str, Any]], Callable[..., Any]]
"""Maker of the replacement, from the released function, the record and the options."""


@dataclass(frozen=True)
class Swap:
    """One replaced function of a peer.

    Attributes:
        module: Name of the module as the peer's own scripts import it.
        target: Name of the function, or ``Class.method``, in the module.
        signature: Names and defaults of the released function, as :func:`signature_of` writes them.
        make: Maker of the replacement.
        why: Useless work of the released function.
    """

    module: str
    target: str
    signature: str
    make: Make
    why: str


@dataclass(frozen=True)
class Shim:
    """A name that the peer imports and that current versions of a library lack."""

    module: str
    name: str
    value: Callable[[], Any]


@dataclass(frozen=True)
class Peer:
    """A paper's released code.

    Attributes:
        repository: URL, and the commit that the swaps were made for.
        swaps: Replaced functions.
        options: Options of :func:`dori_fast.patch` for this peer, with their defaults.
        check: Check of the options, which raises UsageError.
        shims: Names that its imports need.
    """

    repository: str
    swaps: tuple[Swap, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Mapping[str, Any]], None] = lambda options: None
    shims: tuple[Shim, ...] = ()


@dataclass
class Patch:
    """Record of :func:`dori_fast.patch`.

    Attributes:
        name: Name of the peer.
        repository: URL and commit of the released code that the swaps were made for.
        swapped: Useless work by replaced function, ``module.target``.
        shims: Names added to other libraries so that the peer's code imports.
        evaluations: Number of UNet samples computed in parts of the UNet instead of its ``forward``
            (NeMo's refinement), which hooks on the UNet do not see.
        notes: Reasons for calls left to the released function, appended as they occur.
        shared: Objects that the peer's swaps share until :func:`dori_fast.unpatch`.
    """

    name: str
    repository: str
    swapped: dict[str, str] = field(default_factory=dict)
    shims: list[str] = field(default_factory=list)
    evaluations: int = 0
    notes: list[str] = field(default_factory=list)
    shared: dict[str, Any] = field(default_factory=dict, repr=False)

    def note(self, text: str) -> None:
        """Add a reason, once."""
        if text not in self.notes:
            self.notes.append(text)


def signature_of(function: Callable[..., Any]) -> str:
    """Names and defaults of a function's parameters; annotations do not matter.

    >>> signature_of(lambda a, b=2, *, c=None: 0)
    'a, b=2, *, c=None'
    """
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(parameters)).removeprefix("(").removesuffix(")")


def module_of(name: str, module: str, repository: str) -> ModuleType:
    """The peer's module, imported if need be.

    Raises:
        UsageError: the module is missing, or its own imports fail.
    """
    if module in sys.modules:
        return sys.modules[module]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UsageError(
                f"patch: {name}: its module {module} imports {error.name}, which is missing;"
                " install what its own list of requirements names"
            ) from error
        package = sys.modules.get(module.split(".")[0])
        found = f" (found {package.__name__} in {package.__file__})" if package else ""
        raise UsageError(
            f"patch: {name}: no module {module}{found}; run the script from a checkout of"
            f" {repository}, or put that folder first on PYTHONPATH"
        ) from error
    except ImportError as error:
        raise UsageError(f"patch: {name}: importing {module} fails: {error}") from error


def owner_of(name: str, swap: Swap, module: ModuleType) -> tuple[Any, str, Callable[..., Any]]:
    """The module or class that holds the function, its name there, and the function.

    Raises:
        UsageError: the function is missing, or has another signature than released.
    """
    *classes, attribute = swap.target.split(".")
    owner: Any = module
    for part in classes:
        owner = getattr(owner, part, None)
    function = vars(owner).get(attribute) if owner is not None else None
    if not callable(function):
        raise UsageError(
            f"patch: {name}: {swap.module} has no {swap.target} of its own, so it is not the"
            " released code; check out the commit that the swap was made for"
        )
    found = signature_of(function)
    if found != swap.signature:
        raise UsageError(
            f"patch: {name}: {swap.module}.{swap.target} takes ({found}), the released code"
            f" ({swap.signature}); check out the commit that the swap was made for"
        )
    return owner, attribute, function


@contextmanager
def replaced_forward(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward of this module instance; restore it at exit."""
    had, before = "forward" in module.__dict__, module.forward
    module.forward = forward
    try:
        yield
    finally:
        if had:
            module.forward = before
        else:
            del module.__dict__["forward"]
