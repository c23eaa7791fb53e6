"""From rows to the table of a shard: scores in float32, unusable rows quarantined."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dori_fast.runs.sources.rows import Rows

if TYPE_CHECKING:
    from dori_fast.detect import Detector, PromptScores
    from dori_fast.models import Denoiser

_RESULT_TYPES = {
    "row_id": pa.int64(),
    "prompt": pa.string(),
    "status": pa.string(),
    "error": pa.string(),
    "score": pa.float32(),
    "score_per_seed": pa.list_(pa.float32()),
    "n_tokens": pa.int32(),
    "truncated": pa.bool_(),
}
# long enough for whole batches, short enough that progress moves
_BLOCK_SECONDS = 1.0


def shard_schema(extra: pa.Schema) -> pa.Schema:
    """The columns of a shard: row_id, prompt, the passed-through columns, then the results."""
    fields = [pa.field(name, kind) for name, kind in _RESULT_TYPES.items()]
    return pa.schema([*fields[:2], *extra, *fields[2:]])


def score_rows(
    model: Denoiser,
    detector: Detector,
    rows: Rows,
    on_block: Callable[[int], None],
) -> pa.Table:
    """Score N rows.

    Args:
        model: denoiser.
        detector: detector whose scores do not depend on how prompts are grouped. One with a method
            ``stream``, such as the cascade, may finish a block after later ones were begun.
        rows: N rows; quarantined ones are passed on without a score.
        on_block: called about every second with the number of rows handled so far.

    Returns:
        A table of N rows with the columns of :func:`shard_schema`. Rows whose scores are not
        finite are quarantined as ``nonfinite``.
    """
    scorable = [i for i, prompt in enumerate(rows.prompts) if prompt is not None]
    results: dict[str, list[Any]] = {name: [None] * len(rows) for name in _RESULT_TYPES}
    results["row_id"] = list(range(rows.first, rows.first + len(rows)))
    results["prompt"] = rows.prompts
    results["error"] = list(rows.errors)
    waiting: deque[list[int]] = deque()

    def blocks() -> Iterator[list[int]]:
        start, size = 0, model.batch_size
        while start < len(scorable):
            waiting.append(scorable[start : start + size])
            start += len(waiting[-1])
            began = perf_counter()
            yield waiting[-1]
            seconds = perf_counter() - began
            # whole multiples of the batch, so that no evaluation is padded needlessly
            if seconds < _BLOCK_SECONDS / 2:
                size *= 2
            elif seconds > _BLOCK_SECONDS * 2:
                size = max(model.batch_size, size // 2)

    for found in _scores(model, detector, rows, blocks()):
        places = waiting.popleft()
        _note(found, places, results)
        on_block(places[-1] + 1)
    results["status"] = ["ok" if error is None else "quarantined" for error in results["error"]]
    return _table(results, rows.extra)


def _scores(
    model: Denoiser, detector: Detector, rows: Rows, blocks: Iterator[list[int]]
) -> Iterator[PromptScores]:
    """Scores of each block of places, in order."""
    stream = getattr(detector, "stream", None)
    if stream is not None:
        yield from stream(model, ([rows.prompts[i] or "" for i in places] for places in blocks))
        return
    for places in blocks:
        prompts = [rows.prompts[i] or "" for i in places]
        yield detector.scores(model, prompts, positions=[rows.first + i for i in places])


def _note(found: PromptScores, places: list[int], results: dict[str, list[Any]]) -> None:
    """Write a block's scores into the results at its places."""
    score, per_seed = np.asarray(found.score), np.asarray(found.per_seed)
    seeds = per_seed.shape[1]
    used = np.full(len(places), seeds) if found.used is None else np.asarray(found.used)
    unusable = ~np.isfinite(per_seed) & (np.arange(seeds) < used[:, None])
    finite = np.isfinite(score) & ~unusable.any(axis=1)
    for row, place in enumerate(places):
        results["n_tokens"][place] = int(found.n_tokens[row])
        results["truncated"][place] = bool(found.truncated[row])
        if finite[row]:
            results["score"][place] = score[row]
            results["score_per_seed"][place] = per_seed[row, : used[row]]
        else:
            bad = int(unusable[row].sum())
            error = f"nonfinite: NaN or infinite scores for {bad} of {used[row]} seeds"
            results["error"][place] = error


def _table(results: dict[str, list[Any]], extra: pa.Table) -> pa.Table:
    schema = shard_schema(extra.schema)
    columns = [
        pa.array(results[field.name], field.type)
        if field.name in results
        else extra.column(field.name)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
