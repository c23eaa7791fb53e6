"""Time, memory and disk space of a scan, estimated from its first rows; nothing is written."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dori_fast.errors import UsageError
from dori_fast.runs.scoring.score import score_rows
from dori_fast.runs.settings import (
    SEEDS,
    STEPS,
    Units,
    checked,
    chosen_detector,
    prepared,
)
from dori_fast.runs.sources.memory.values import described
from dori_fast.runs.sources.open import open_prompts, prompts_on_disk
from dori_fast.runs.sources.rows import Rows, limited
from dori_fast.runs.sources.where import Selection

if TYPE_CHECKING:
    from dori_fast.detect import Detector
    from dori_fast.models import Denoiser

_PROBE_BATCHES = 4


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a scan.

    Attributes:
        rows: number of rows of the input, counted.
        quarantined: rows among them that cannot be scored.
        shards: number of files that would be written.
        seconds: estimated wall time: the slower of scoring and reading.
        rate: rows per second in the probe.
        peak_bytes: peak memory of scoring: GPU memory that torch took, weights included; or the
            peak of this process so far, which loading the model may have set.
        written_bytes: size of the shards; rather too high, since few rows compress worse.
        probed: rows that were scored to measure this.
    """

    rows: int
    quarantined: int
    shards: int
    seconds: float
    rate: float
    peak_bytes: int
    written_bytes: int
    probed: int


def estimate(
    model: Denoiser | Callable[[], Denoiser],
    prompts: str | Path | Iterable[object],
    *,
    detector: str | Detector = "wen",
    seeds: int = SEEDS,
    steps: int = STEPS,
    units: Units = "epsilon",
    column: str | None = None,
    where: Sequence[str] = (),
    keep: Sequence[str] | None = None,
    header: bool | None = None,
    batch_size: int | Literal["auto"] = "auto",
    limit: int | None = None,
    shard_size: int = 2048,
) -> Estimate:
    """Count the input and score a few batches of its first shard; arguments as in a scan.

    Raises:
        UsageError: wrong arguments, unusable input, or no row in the first shard can be scored.
    """
    settings = checked(
        "scan",
        seeds=seeds,
        steps=steps,
        units=units,
        batch_size=batch_size,
        limit=limit,
        shard_size=shard_size,
    )
    chosen = chosen_detector(detector, settings)
    with ExitStack() as opened:
        path = opened.enter_context(prompts_on_disk(prompts))
        reader = open_prompts(path, column, Selection.of(where, keep, header))
        model = opened.enter_context(prepared(model, settings))
        began, first = perf_counter(), None
        rows = scorable = 0
        for chunk in limited(reader, settings.shard_size, settings.limit):
            first = first or chunk
            rows += len(chunk)
            scorable += sum(prompt is not None for prompt in chunk.prompts)
        reading = perf_counter() - began
        sample = _scorable(first, _PROBE_BATCHES * model.batch_size) if first else None
        if not sample:
            raise UsageError(
                f"scan: no row of the first {shard_size} of {described(prompts)} can be scored"
            )
        _forget_peak(model)
        # the first batch also pays for setup
        score_rows(model, chosen, _scorable(sample, model.batch_size), lambda done: None)
        began = perf_counter()
        table = score_rows(model, chosen, sample, lambda done: None)
        rate = len(sample) / (perf_counter() - began)
        shards, fixed = math.ceil(rows / shard_size), _stored_bytes(table.slice(0, 0))
        each = (_stored_bytes(table) - fixed) / len(sample)
        return Estimate(
            rows=rows,
            quarantined=rows - scorable,
            shards=shards,
            seconds=max(reading, scorable / rate),
            rate=rate,
            peak_bytes=_peak_bytes(model),
            written_bytes=round(shards * fixed + rows * each),
            probed=len(sample),
        )


def _scorable(rows: Rows, most: int) -> Rows:
    places = [i for i, prompt in enumerate(rows.prompts) if prompt is not None][:most]
    return Rows(
        first=rows.first,
        prompts=[rows.prompts[i] for i in places],
        errors=[None] * len(places),
        extra=rows.extra.take(pa.array(places, pa.int64())),
        fraction=rows.fraction,
    )


def _stored_bytes(table: pa.Table) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_statistics=False)
    return int(sink.tell())


def _forget_peak(model: Denoiser) -> None:
    """Leave out what loading took, such as the evaluations that chose the batch size."""
    import torch

    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)


def _peak_bytes(model: Denoiser) -> int:
    import torch

    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device)
    # kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
