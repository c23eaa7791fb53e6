"""Stored rows scored again and compared, to the bit where nothing that rounds has changed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dori_fast.errors import UsageError
from dori_fast.runs.scoring.device_name import device_name
from dori_fast.runs.scoring.score import score_rows
from dori_fast.runs.sources.rows import Rows
from dori_fast.runs.store.record import RunRecord, library_versions, threads_of

if TYPE_CHECKING:
    from dori_fast.detect import Detector
    from dori_fast.models import Denoiser

TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}
"""Largest relative difference of a score if something that rounds has changed, by dtype.

Float32 with TF32 has float16's mantissa, and its tolerance."""
_COMPARED = ("status", "error", "score", "score_per_seed", "n_tokens", "truncated")
_ROUNDING = ("torch", "triton", "xformers")


def recorded_model(record: RunRecord, model: Denoiser | str | Path | None) -> Denoiser:
    """The given model, or the run's model loaded with its settings, from ``model`` if given.

    Raises:
        UsageError: the model is not there, or had masks.
        IntegrityError: its weights are damaged.
    """
    import torch

    from dori_fast.models import Denoiser, load

    described, execution = record.model, dict(record.execution)
    if isinstance(model, Denoiser):
        return model
    if described["masks"]:
        raise UsageError("verify: the run's model had masks; call df.verify(run, model=...)")
    if execution.get("attention") == "own":
        del execution["attention"]
    away = described["device"] == "cuda" and not torch.cuda.is_available()
    if away:
        # a GPU's switches, which cannot be on here
        execution = {}
    return load(
        described["source"] if model is None else model,
        revision=described["revision"] if model is None else None,
        variant=recorded_variant(record),
        dtype=described["dtype"],
        device="auto" if away else described["device"],
        batch_size=record.batch_size,
        **execution,
    )


def recorded_variant(record: RunRecord) -> str | None:
    """The variant of the weight files in the record; parts that do not have it are plain."""
    from dori_fast.models.files.hashes import variant_of

    paths = map(Path, record.model["files"])
    found = (variant_of(path) for path in paths if path.suffix == ".safetensors")
    return next(filter(None, found), None)


def recorded_detector(config: dict[str, Any]) -> Detector:
    """The detector with this config(); UsageError if none can be made."""
    from dori_fast import detect

    options = {k: v for k, v in config.items() if k not in ("name", "images", "futility_bound")}
    made: Detector = detect.get(
        str(config.get("name")), **{"seeds": config.get("images")} | options
    )
    if isinstance(made, detect.Wen) and "futility_bound" in config:
        made = detect.Cascade(made, config["futility_bound"])
    if made.config() != config:
        raise UsageError(f"verify: detector {config['name']!r} cannot be made from run.json")
    return made


def unlike(record: RunRecord, model: Denoiser) -> list[str]:
    """Differences in device, switches, threads and libraries from the run's."""
    then = {"device": record.device_name, **record.execution}
    if record.model["device"] == "cuda":
        # older runs have the precision that their caller's torch had
        then.setdefault("allow_tf32", "unknown")
    now = {"device": device_name(model.device), **asdict(model.engine.execution)}
    if (threads := threads_of(model.device)) is not None:
        # None in older runs, and in those that were resumed with another number
        then["threads"] = "unknown" if record.threads is None else record.threads
        now["threads"] = threads
    versions = library_versions()
    then |= {name: record.versions.get(name) for name in _ROUNDING}
    now |= {name: versions.get(name) for name in _ROUNDING}
    return [f"{k} {then[k]} then, {now.get(k)} now" for k in then if then[k] != now.get(k)]


@contextmanager
def batches_of(model: Denoiser, size: int) -> Iterator[Denoiser]:
    """The model with a shard's batch size within the context, less if memory runs out."""
    before = model.batch_size
    if before != size:
        model.batch_size = size
    try:
        yield model
    finally:
        if model.batch_size != before:
            model.batch_size = before


def tolerance_of(record: RunRecord, model: Denoiser) -> float:
    """The tolerance where :func:`unlike` finds a difference."""
    dtype = record.model["dtype"]
    # older runs on a GPU had TF32 in convolutions
    then = record.execution.get("allow_tf32", record.model["device"] == "cuda")
    tf32 = dtype == "float32" and (then or model.engine.execution.allow_tf32)
    return TOLERANCE["float16" if tf32 else dtype]


def differing_rows(
    model: Denoiser, detector: Detector, shard: Path, wanted: Collection[int], tolerance: float
) -> Iterator[tuple[int, str]]:
    """Yield (row, difference) for every ``wanted`` row of a shard that is scored otherwise now.

    The tolerance is at least that of another batch size if memory runs out.
    """
    size = model.batch_size
    stored = pq.read_table(shard, columns=["row_id", "prompt", *_COMPARED], partitioning=None)
    rows = stored.to_pylist()
    prompts = [row["prompt"] if row["row_id"] in wanted else None for row in rows]
    nothing: list[str | None] = [None] * len(rows)
    chunk = Rows(rows[0]["row_id"], prompts, nothing, pa.table({}), 1.0)
    again = score_rows(model, detector, chunk, lambda done: None).to_pylist()
    if model.batch_size != size:
        tolerance = max(tolerance, TOLERANCE[str(model.dtype).removeprefix("torch.")])
    for then, now, prompt in zip(rows, again, prompts, strict=True):
        names = (
            []
            if prompt is None
            else [n for n in _COMPARED if not _same(then[n], now[n], tolerance)]
        )
        if names:
            shown = "; ".join(f"{name} {then[name]} stored, {now[name]} now" for name in names)
            yield then["row_id"], shown


def _same(then: Any, now: Any, tolerance: float) -> bool:
    if isinstance(then, list) and isinstance(now, list):
        pairs = zip(then, now, strict=False)
        return len(then) == len(now) and all(_same(a, b, tolerance) for a, b in pairs)
    if isinstance(then, float) and isinstance(now, float) and tolerance:
        return math.isclose(then, now, rel_tol=tolerance)
    return bool(then == now)
