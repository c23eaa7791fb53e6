"""Rows on their way from a file to the detector, and what makes a prompt fit to be scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

PROMPT_BYTES = 1_000_000
PROMPT_COLUMNS = ("prompt", "caption", "text", "TEXT", "Caption", "Prompt")
RESULT_COLUMNS = (
    "row_id",
    "prompt",
    "status",
    "error",
    "score",
    "score_per_seed",
    "n_tokens",
    "truncated",
    "p_value",
    "flagged",
)


@dataclass(frozen=True)
class Rows:
    """N consecutive rows of an input.

    Attributes:
        first: position of the first row in the input, from 0.
        prompts: [N] the text, or None where the row is quarantined.
        errors: [N] ``"code: message"`` where the row is quarantined, else None.
        extra: the passed-through columns, N rows.
        fraction: share of the input that has been read at the end of these rows, 0..1.
    """

    first: int
    prompts: list[str | None]
    errors: list[str | None]
    extra: pa.Table
    fraction: float

    def __len__(self) -> int:
        return len(self.prompts)

    def __reduce__(self) -> tuple[Any, ...]:
        # pickled by itself, the slice of a table carries the buffers of the whole table
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.extra.schema) as writer:
            writer.write_table(self.extra)
        extra = sink.getvalue().to_pybytes()
        return _unpickled, (self.first, self.prompts, self.errors, extra, self.fraction)


def _unpickled(
    first: int,
    prompts: list[str | None],
    errors: list[str | None],
    extra: bytes,
    fraction: float,
) -> Rows:
    return Rows(first, prompts, errors, pa.ipc.open_stream(extra).read_all(), fraction)


class Reader(Protocol):
    """One input format. Made by :func:`dori_fast.runs.sources.open.open_prompts`."""

    column: str | None
    schema: pa.Schema

    def chunks(self, size: int) -> Iterator[Rows]:
        """All rows, ``size`` at a time (the last chunk may be shorter), in constant memory."""
        ...


def check_prompt(value: object) -> tuple[str | None, str | None]:
    """``(prompt, None)`` if the value can be scored, else ``(None, "code: message")``.

    The codes are ``null``, ``type``, ``encoding`` (lone surrogates) and ``too_long`` (over
    1,000,000 bytes of UTF-8).
    """
    if value is None:
        return None, "null: the row has no prompt"
    if not isinstance(value, str):
        return None, f"type: {type(value).__name__} where text was expected"
    if value.isascii():
        size = len(value)
    else:
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            return None, f"encoding: lone surrogate U+{code:04X} at character {error.start}"
    if size > PROMPT_BYTES:
        return None, too_long(size)
    return value, None


def too_long(size: int) -> str:
    return f"too_long: {size:,} bytes, the limit is {PROMPT_BYTES:,}"


def decode_prompt(raw: bytes, offset: int | None = None) -> tuple[str | None, str | None]:
    """:func:`check_prompt` of UTF-8 bytes that start at ``offset`` of the file (None: unknown)."""
    if len(raw) > PROMPT_BYTES:
        return None, too_long(len(raw))
    try:
        return raw.decode(), None
    except UnicodeDecodeError as error:
        return None, not_utf8(raw[error.start], error.start, offset)


def not_utf8(byte: int, position: int, offset: int | None = None) -> str:
    where = f"{position} of the prompt" if offset is None else f"{offset + position} of the file"
    return f"encoding: invalid UTF-8, byte 0x{byte:02X} at offset {where}"


def storable(text: str | None) -> str | None:
    """Text of a passed-through cell; bytes that are not UTF-8 are spelled out (``\\xff``)."""
    if text is None or text.isascii():
        return text
    raw = text.encode("utf-8", "surrogateescape" if _is_escaped(text) else "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def _is_escaped(text: str) -> bool:
    surrogates = [c for c in text if "\ud800" <= c <= "\udfff"]
    return all("\udc80" <= c <= "\udcff" for c in surrogates)


def passed_names(names: Sequence[str]) -> list[str]:
    """Names of passed-through columns in the output: unique, and none of the result columns'."""
    taken, result = set(RESULT_COLUMNS), []
    for position, name in enumerate(names):
        wanted = name or f"unnamed_{position}"
        if wanted in RESULT_COLUMNS:
            wanted = f"source_{wanted}"
        candidate, n = wanted, 2
        while candidate in taken:
            candidate, n = f"{wanted}_{n}", n + 1
        taken.add(candidate)
        result.append(candidate)
    return result


def find_column(names: Iterable[str], wanted: str | None) -> str | None:
    """The prompt column among ``names``: the wanted one, else the first usual name, else None."""
    present = set(names)
    candidates = PROMPT_COLUMNS if wanted is None else (wanted,)
    return next((name for name in candidates if name in present), None)
