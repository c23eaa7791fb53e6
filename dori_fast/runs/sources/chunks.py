"""Rows cut anew, whatever pieces they come in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from dori_fast.runs.sources.rows import Rows


def rechunk(parts: Iterable[Rows], size: int) -> Iterator[Rows]:
    """The same rows ``size`` at a time (the last chunk may be shorter), numbered from 0."""
    waiting: list[Rows] = []
    first = count = 0
    for part in parts:
        if not len(part):
            # a condition that holds nowhere would pile them up
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
