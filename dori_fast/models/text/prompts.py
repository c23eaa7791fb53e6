"""The check of every public argument that is a list of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from dori_fast.errors import UsageError


def require_prompts(where: str, prompts: Any, name: str = "prompts") -> list[str]:
    """The prompts as a list.

    A ``str`` is a sequence of its letters, and a mapping or a data frame is one of its keys or
    column names. Each would be scored without a word, so none of them is accepted.

    Args:
        where: name of the caller, for the error message.
        prompts: any ordered iterable of ``str``: a list, tuple, generator, array or series.
        name: name of the argument, for the error message.

    Raises:
        UsageError: another type, or an element that is not a ``str``.
    """
    remedy = _remedy(prompts)
    if remedy is not None:
        kind = type(prompts).__name__
        found = f"one {kind}" if isinstance(prompts, str | bytes) else f"a {kind}"
        raise UsageError(f"{where}: {name} must be a list of str, got {found}; {remedy}")
    try:
        listed = list(prompts)
    except TypeError:
        raise UsageError(
            f"{where}: {name} must be a list of str, got {type(prompts).__name__}; give a list"
        ) from None
    for position, prompt in enumerate(listed):
        if not isinstance(prompt, str):
            kind = type(prompt).__name__
            raise UsageError(f"{where}: prompt {position} must be a str, got {kind}")
    return listed


def _remedy(prompts: Any) -> str | None:
    """The remedy if the argument iterates over something else than prompts in order, else None."""
    if isinstance(prompts, str):
        return "use [prompt]"
    if isinstance(prompts, bytes | bytearray):
        return "decode it, and use [prompt]"
    if isinstance(prompts, Mapping):
        return "use list(mapping.values()), or the entry that holds the prompts"
    if isinstance(prompts, Set):
        return "use a list, since a set has no order"
    # pandas and polars frames, pyarrow tables, Hugging Face datasets
    if hasattr(prompts, "columns") or hasattr(prompts, "column_names"):
        return "use the column that holds the prompts, as a list"
    return None
