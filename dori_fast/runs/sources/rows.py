"""Rows between a file and a method, and the checks that a prompt must pass to be scored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from dori_fast.errors import UsageError

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
        prompts: [N], None where the row is quarantined.
        errors: [N], ``"code: message"`` where the row is quarantined, else None.
        extra: the passed-through columns, N rows.
        fraction: share of the input read up to the end of these rows, 0..1.
    """

    first: int
    prompts: list[str | None]
    errors: list[str | None]
    extra: pa.Table
    fraction: float

    def __len__(self) -> int:
        return len(self.prompts)

    def __reduce__(self) -> tuple[Any, ...]:
        # a pickled slice of a table carries the buffers of the whole table
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
    """An opened input, as :func:`dori_fast.runs.sources.open.open_prompts` returns it.

    Attributes:
        column: the prompt column, None if the input has no columns.
        schema: the passed-through columns.
    """

    column: str | None
    schema: pa.Schema

    def chunks(self, size: int) -> Iterator[Rows]:
        """All rows, ``size`` at a time (the last chunk may be shorter), in constant memory."""
        ...


def rechunk(parts: Iterable[Rows], size: int) -> Iterator[Rows]:
    """The same rows ``size`` at a time (the last chunk may be shorter), numbered from 0."""
    waiting: list[Rows] = []
    first = count = 0
    for part in parts:
        if not len(part):
            # a condition that no row meets would pile up empty parts
            continue
        waiting.append(part)
        count += len(part)
        while count >= size:
            whole = _joined(waiting)
            yield _cut(whole, 0, size, first, whole.fraction)
            waiting = [_cut(whole, size, count, 0, part.fraction)]
            count, first = count - size, first + size
    if count:
        yield _cut(_joined(waiting), 0, count, first, 1.0)


def _joined(parts: list[Rows]) -> Rows:
    return Rows(
        first=0,
        prompts=[prompt for part in parts for prompt in part.prompts],
        errors=[error for part in parts for error in part.errors],
        extra=pa.concat_tables([part.extra for part in parts]),
        fraction=parts[-1].fraction,
    )


def _cut(rows: Rows, start: int, stop: int, first: int, fraction: float) -> Rows:
    return Rows(
        first=first,
        prompts=rows.prompts[start:stop],
        errors=rows.errors[start:stop],
        extra=rows.extra.slice(start, stop - start),
        fraction=fraction,
    )


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
    """:func:`check_prompt` for UTF-8 bytes that start at ``offset`` of the file (None: unknown)."""
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
    """Text of a passed-through cell; bytes that are not UTF-8 are escaped (``\\xff``)."""
    if text is None or text.isascii():
        return text
    raw = text.encode("utf-8", "surrogateescape" if _is_escaped(text) else "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def _is_escaped(text: str) -> bool:
    surrogates = [c for c in text if "\ud800" <= c <= "\udfff"]
    return all("\udc80" <= c <= "\udcff" for c in surrogates)


def passed_names(names: Sequence[str]) -> list[str]:
    """Output names of passed-through columns: unique, and different from the result columns'."""
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
    """The prompt column among ``names``: ``wanted``, or the first usual name; None if absent.

    A name may have a byte order mark in front, as that of a file's first column often has.
    """
    present = set(names)
    candidates = PROMPT_COLUMNS if wanted is None else (wanted,)
    marked = (name for wanted in candidates for name in (wanted, f"\ufeff{wanted}"))
    return next((name for name in marked if name in present), None)


def missing_column(
    path: Path, missing: str, names: Sequence[str], note: str = "", remedy: str = ""
) -> UsageError:
    """The refusal of a file in which :func:`find_column` finds nothing."""
    shown = ", ".join(repr(name) for name in names[:20]) or "none at all"
    return UsageError(f"{path}: {missing} among {shown}{note}; name it with --column{remedy}")


def limited(reader: Reader, size: int, limit: int | None) -> Iterator[Rows]:
    """Yield a reader's rows in chunks, up to a limit.

    Args:
        reader: reader to take rows from.
        size: rows per chunk.
        limit: number of rows to read; default: all.

    Yields:
        Consecutive rows; ``fraction`` is the share of the first ``limit`` rows.
    """
    most = math.inf if limit is None else limit
    whole = math.ceil(most / size) if most != math.inf else None
    for rows in islice(reader.chunks(size), whole):
        keep = int(min(len(rows), most - rows.first))
        fraction = max(rows.fraction, (rows.first + keep) / most) if most else 1.0
        yield Rows(
            first=rows.first,
            prompts=rows.prompts[:keep],
            errors=rows.errors[:keep],
            extra=rows.extra.slice(0, keep),
            fraction=fraction,
        )
