"""Checked arguments that all calls over prompts share: settings, detector, batch size, limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dori_fast.errors import UsageError
from dori_fast.runs.budget import MAX_ERRORS
from dori_fast.runs.sources.files import SUFFIXES, input_files
from dori_fast.runs.sources.hub import HUB
from dori_fast.runs.store import shard_names
from dori_fast.runs.store.directory import Resume

if TYPE_CHECKING:
    from dori_fast.detect import Detector
    from dori_fast.models import Denoiser

SEEDS, STEPS, UNITS = 4, 1, "epsilon"
_SHOWN = 40
EngineName = Literal["local", "ray"]
Units = Literal["epsilon", "x0", "prediction"]


class Settings(BaseModel):
    """Arguments of a scan or calibration that can be checked one by one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seeds: Annotated[int, Field(ge=1, le=2**20)]
    steps: Annotated[int, Field(ge=1)]
    units: Units = "epsilon"
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"]
    # row numbers are int64, and the rows of a shard are in memory at once
    limit: Annotated[int, Field(ge=0, lt=2**63)] | None
    resume: Resume = "auto"
    max_errors: Annotated[float, Field(ge=0, allow_inf_nan=False)] = MAX_ERRORS
    shard_size: Annotated[int, Field(ge=1, le=2**31)] = 2048
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
        raise UsageError(f"{command}: {name}={_shown(first['input'])}: {first['msg']}") from error


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to write integers of more than some thousand digits
        return "a huge number"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def refuse_inside(out: str | Path, prompts: str | Path | Iterable[object]) -> None:
    """Raises UsageError if the next call would read the files in ``out`` as input."""
    if isinstance(prompts, str | Path) and _is_read(Path(out).resolve(), prompts):
        raise UsageError(
            f"{out}: lies inside the input {prompts}, which would take the results for prompts;"
            " use an --out outside it, or one in it whose name begins with _"
        )


def _is_read(out: Path, prompts: str | Path) -> bool:
    source = Path(prompts)
    if source.is_dir() and source.suffix.lower() not in SUFFIXES:
        if not out.is_relative_to(source.resolve()):
            return False
        # names that the reader of folders skips
        below = out.relative_to(source.resolve()).parts
        return not any(part.startswith((".", "_")) for part in below)
    if source.exists() or str(prompts).startswith(HUB):
        return False
    # a pattern: compare with the files that it matches
    shards = shard_names.directory(out)
    return any(file.path.absolute().is_relative_to(shards) for file in input_files(prompts))


def chosen_detector(detector: str | Detector, settings: Settings) -> Detector:
    """The detector of this name, or the given object."""
    from dori_fast import detect

    if isinstance(detector, str):
        # most detectors have no option steps, some no units
        given = {"steps": (settings.steps, STEPS), "units": (settings.units, UNITS)}
        options = {name: value for name, (value, usual) in given.items() if value != usual}
        return detect.get(detector, seeds=settings.seeds, **options)
    if (settings.seeds, settings.steps, settings.units) != (SEEDS, STEPS, UNITS):
        raise UsageError("a detector object has its own seeds, steps and units; set them there")
    return detector


@contextmanager
def prepared(model: Denoiser | Callable[[], Denoiser], settings: Settings) -> Iterator[Denoiser]:
    """The model, loaded if it is a loader, with the settings' batch size within the context.

    The context keeps no model that it loaded, so that its memory is free once the caller drops it.
    """
    if callable(model):
        yield _sized(model(), settings)
        return
    before = model.batch_size
    try:
        yield _sized(model, settings)
    finally:
        model.batch_size = before


def _sized(model: Denoiser, settings: Settings) -> Denoiser:
    if settings.batch_size != "auto":
        model.batch_size = settings.batch_size
    return model
