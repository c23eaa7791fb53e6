"""What a peer's swap consists of, and whether the code that is there is the released code."""

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
"""From the released function, the record and the options to the function in its place."""


@dataclass(frozen=True)
class Swap:
    """One function of a peer that is replaced.

    Attributes:
        module: the module's name as the peer's own scripts import it.
        target: the function, or ``Class.method``, in it.
        signature: names and defaults of the released function, as :func:`signature_of` writes them.
        make: gives what stands in its place.
        why: what the released function does in vain.
    """

    module: str
    target: str
    signature: str
    make: Make
    why: str


@dataclass(frozen=True)
class Shim:
    """A name that today's version of a library lacks and the peer's imports need."""

    module: str
    name: str
    value: Callable[[], Any]


@dataclass(frozen=True)
class Peer:
    """A paper's released code.

    Attributes:
        repository: where it is published, and the commit that was read.
        swaps: what is replaced.
        options: of :func:`dori_fast.patch` for this peer, with their defaults.
        check: raises UsageError for an option that makes no sense.
        shims: what its imports need.
    """

    repository: str
    swaps: tuple[Swap, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Mapping[str, Any]], None] = lambda options: None
    shims: tuple[Shim, ...] = ()


@dataclass
class Patch:
    """What :func:`dori_fast.patch` did.

    Attributes:
        name: of the peer.
        repository: the released code that the swap was made for.
        swapped: each replaced function, ``module.target``, and what it did in vain.
        shims: names that were added to other libraries so that the peer's code imports.
        evaluations: UNet samples that ran in parts of the UNet, not by its ``forward`` (NeMo's
            refinement), so that hooks on it do not see them.
        notes: calls that were left to the released function, and why; appended as they come.
        shared: what the peer's swaps keep for one another until :func:`dori_fast.unpatch`.
    """

    name: str
    repository: str
    swapped: dict[str, str] = field(default_factory=dict)
    shims: list[str] = field(default_factory=list)
    evaluations: int = 0
    notes: list[str] = field(default_factory=list)
    shared: dict[str, Any] = field(default_factory=dict, repr=False)

    def note(self, text: str) -> None:
        """Remember a reason once."""
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
        UsageError: it cannot be found, or its own imports fail.
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
        UsageError: it is not there, or not with the released signature.
    """
    *classes, attribute = swap.target.split(".")
    owner: Any = module
    for part in classes:
        owner = getattr(owner, part, None)
    function = vars(owner).get(attribute) if owner is not None else None
    if not callable(function):
        raise UsageError(
            f"patch: {name}: {swap.module} has no {swap.target} of its own; it is not the released"
            " code that this swap was made for"
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
    """Within it the module, and no other of its class, runs ``forward``."""
    had, before = "forward" in module.__dict__, module.forward
    module.forward = forward
    try:
        yield
    finally:
        if had:
            module.forward = before
        else:
            del module.__dict__["forward"]
