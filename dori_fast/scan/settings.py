"""What calls that score prompts have in common: their arguments, checked, and what they select."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dori_fast.errors import UsageError
from dori_fast.scan.rows import Reader, Rows
from dori_fast.scan.run_directory import Resume

if TYPE_CHECKING:
    from dori_fast.detect import Detector
    from dori_fast.models import Denoiser

SEEDS, STEPS, FPR = 4, 1, 0.01
EngineName = Literal["local", "ray"]


class Settings(BaseModel):
    """The arguments of a scan or calibration that can be wrong by themselves."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seeds: Annotated[int, Field(ge=1, le=2**20)]
    steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"]
    limit: Annotated[int, Field(ge=0)] | None
    resume: Resume = "auto"
    max_errors: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    shard_size: Annotated[int, Field(ge=1)] = 2048
    workers: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = 1
    watchdog: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    engine: EngineName = "local"


def checked(command: str, **arguments: object) -> Settings:
    """Raises UsageError if an argument cannot be right."""
    try:
        return Settings.model_validate(arguments)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:1])
        raise UsageError(f"{command}: {name}={first['input']!r}: {first['msg']}") from error


def chosen_detector(detector: str | Detector, settings: Settings) -> Detector:
    """The detector of a name, or the given one."""
    from dori_fast import detect

    if isinstance(detector, str):
        # most detectors look at one step and know no other number
        steps = {} if settings.steps == STEPS else {"steps": settings.steps}
        return detect.get(detector, seeds=settings.seeds, **steps)
    if (settings.seeds, settings.steps) != (SEEDS, STEPS):
        raise UsageError("a detector object has its own seeds and steps — set them there")
    return detector


@contextmanager
def batch_size_of(model: Denoiser, settings: Settings) -> Iterator[None]:
    """Let the model evaluate so many samples at a time, for a while."""
    before = model.batch_size
    if settings.batch_size != "auto":
        model.batch_size = settings.batch_size
    try:
        yield
    finally:
        model.batch_size = before


def limited(reader: Reader, settings: Settings) -> Iterator[Rows]:
    """The chunks of the first ``limit`` rows; ``fraction`` counts towards them."""
    limit = math.inf if settings.limit is None else settings.limit
    whole = math.ceil(limit / settings.shard_size) if limit != math.inf else None
    for rows in islice(reader.chunks(settings.shard_size), whole):
        keep = int(min(len(rows), limit - rows.first))
        fraction = max(rows.fraction, (rows.first + keep) / limit) if limit else 1.0
        yield Rows(
            first=rows.first,
            prompts=rows.prompts[:keep],
            errors=rows.errors[:keep],
            extra=rows.extra.slice(0, keep),
            fraction=fraction,
        )
