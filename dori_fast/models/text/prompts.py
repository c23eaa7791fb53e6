"""The check of every public argument that is a list of prompts or names."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from dori_fast.errors import UsageError


def list_of_str(where: str, values: Any, name: str = "prompts") -> list[str]:
    """The argument as a list.

    Args:
        where: name of the caller, for the error message.
        values: any ordered iterable of ``str``: a list, tuple, generator, array or series.
        name: name of the argument in the plural, for the error message.

    Raises:
        UsageError: another type, or an element that is not a ``str`` of whole characters.
    """
    refuse_other_iterables(where, values, name)
    listed = list(values)
    one = name.removesuffix("s")
    for position, value in enumerate(listed):
        if not isinstance(value, str):
            kind = type(value).__name__
            raise UsageError(f"{where}: {one} {position} must be a str, got {kind}")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise UsageError(
                f"{where}: {one} {position} holds half of a surrogate pair, which is no character;"
                " decode its bytes as UTF-8"
            )
    return listed


def refuse_other_iterables(where: str, values: Any, name: str = "prompts") -> None:
    """Reject an argument that iterates over something else than its prompts, in order.

    A ``str`` is a sequence of its letters, and a mapping or a data frame is one of its keys or
    column names. Each would be scored silently.

    Raises:
        UsageError: such an argument, or one that cannot be iterated.
    """
    remedy = _remedy(values)
    if remedy is not None:
        kind = f"one {type(values).__name__}"
        raise UsageError(f"{where}: {name} must be a list of str, got {kind}; {remedy}")


def _remedy(values: Any) -> str | None:
    if isinstance(values, str):
        return "put it into a list"
    if isinstance(values, bytes | bytearray):
        return "decode it, and put it into a list"
    if isinstance(values, Mapping):
        return "use a list of the entries that are meant"
    if isinstance(values, Set):
        return "use a list, since a set has no order"
    # pandas and polars frames, pyarrow tables, Hugging Face datasets
    if hasattr(values, "columns") or hasattr(values, "column_names"):
        return "use one of its columns, as a list"
    try:
        iter(values)
    except TypeError:
        return "use a list"
    return None
