"""run.json: the settings, model, input and outcome of a run, and the hash that shards carry."""

from __future__ import annotations

import hashlib
import json
import operator
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dori_fast._text import read_stand_in
from dori_fast._version import __version__
from dori_fast.errors import IntegrityError

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1
_LIBRARIES = ("torch", "triton", "diffusers", "transformers", "numpy", "pyarrow", "xformers")
_SHOWN_DIFFERENCES = 8
# a score depends on the weights (their sha256), not on where they lie
_WHEREABOUTS = ("source", "revision")


def _is_none(value: object) -> bool:
    return value is None


# left out of run.json where it is unknown, so that an older run keeps its bytes
_Counter = Annotated[int | None, Field(exclude_if=_is_none)]
_Switch = Literal["attention", "compile", "channels_last", "cuda_graphs", "allow_tf32"]


class Counts(BaseModel):
    """Number of rows of the input, by outcome."""

    model_config = ConfigDict(extra="forbid")

    rows: int = 0
    ok: int = 0
    quarantined: int = 0

    def add(self, rows: int, quarantined: int) -> None:
        """Count the rows of a shard."""
        self.rows += rows
        self.quarantined += quarantined
        self.ok += rows - quarantined


class _Identity(BaseModel):
    """Fields of an identity that a reader of the rows relies on."""

    model_config = ConfigDict(strict=True)

    shard_size: Annotated[int, Field(ge=1)]
    input_sha256: str
    detector: dict[str, Any]


class _Model(BaseModel):
    """Fields of a model's config() that loading and comparing it rely on."""

    model_config = ConfigDict(strict=True)

    source: str
    revision: str | None
    dtype: Literal["float64", "float32", "float16", "bfloat16"]
    device: str
    files: dict[str, str]
    masks: Any


class _Rows(BaseModel):
    """Parts of the record of a run with rows that :class:`RunRecord` does not validate."""

    identity: _Identity
    model: _Model
    execution: dict[_Switch, str | bool]


class RunRecord(BaseModel):
    """The content of run.json.

    ``identity`` is everything that a row's result depends on, and ``run_hash`` its sha256. All
    other fields may change when a run is resumed.

    Attributes:
        reading: sentences on what is read otherwise than by the model's own pipeline.
        execution: options by which the network was run. Without ``allow_tf32``, torch's switches
            of precision were those of the caller.
        device_name: device that it ran on.
        threads: CPU threads of each process; None if unknown, or if the run was resumed with
            another number. Execution, device and threads change scores by rounding alone.
        batch_size: UNet samples per evaluation in the last call, the smallest if there were
            several: memory ran out, or gradients had smaller batches. A fine-tuning notes only the
            one that it began with. The footer of a shard has its own.
        evaluations: UNet samples that all calls evaluated, without padding.
        rows_computed: UNet rows that all calls computed, padding and parts of the network included.
            Both are unknown (None) if a call was killed, if jobs shared the run, if fine-tuning
            was interrupted (its trained copy, which counts for itself, is then gone), or if an
            older version wrote the record.
        threshold: score above which a cascade keeps its stated share of rows; in early calibrated
            runs, score above which rows are flagged.
        observed, clean_prompts: of early calibrated runs, share of the clean prompts above the
            threshold with its 95 % interval, [value, low, high], and their number.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    run_hash: str
    identity: dict[str, Any]
    input_path: str | None
    model: dict[str, Any]
    batch_size: int
    reading: Annotated[list[str], Field(exclude_if=operator.not_)] = []
    execution: dict[str, Any] = {}
    device_name: str | None = None
    threads: int | None = None
    versions: dict[str, str]
    state: Literal["running", "interrupted", "done", "over_budget"] = "running"
    counts: Counts = Field(default_factory=Counts)
    threshold: float | None = None
    observed: tuple[float, float, float] | None = None
    clean_prompts: int | None = None
    started: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    seconds: float = 0.0
    evaluations: _Counter = 0
    rows_computed: _Counter = 0

    def add_spent(self, evaluations: int, rows_computed: int) -> None:
        """Add what a call has spent to the counters, where they are known."""
        if self.evaluations is not None:
            self.evaluations += evaluations
        if self.rows_computed is not None:
            self.rows_computed += rows_computed

    def continue_from(self, earlier: RunRecord) -> None:
        """Take over start, duration and counters of an earlier call of the same run."""
        self.started, self.seconds = earlier.started, earlier.seconds
        # a call that still counts as running was killed, or is another job's: it never said
        said = earlier.state != "running"
        self.evaluations = earlier.evaluations if said else None
        self.rows_computed = earlier.rows_computed if said else None

    @property
    def misfit(self) -> str | None:
        """First field that no real run could have written, with the reason; None if plausible."""
        try:
            _Rows.model_validate(self.model_dump())
        except ValidationError as error:
            first = error.errors()[0]
            return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        return None

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Raises IntegrityError if the file is not a run record of this version."""
        try:
            record = cls.model_validate_json(path.read_bytes())
            unknown = {"evaluations", "rows_computed"} - record.model_fields_set
            return record.model_copy(update=dict.fromkeys(unknown))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise IntegrityError(
                f"{path}: cannot be read ({error.strerror});"
                " move it away to start again, finished shards are kept"
            ) from error
        except (ValidationError, UnicodeDecodeError) as error:
            if reason := read_stand_in(path):
                raise IntegrityError(f"{path}: {reason}") from error
            raise IntegrityError(
                f"{path}: damaged, or written by another version of dori_fast;"
                " move it away to start again, finished shards are kept"
            ) from error


def make_identity(
    *,
    detector: Mapping[str, Any],
    model: Mapping[str, Any],
    input_sha256: str,
    column: str | None,
    limit: int | None,
    shard_size: int,
    selection: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The identity of a run: everything that its rows depend on, as plain JSON."""
    return {
        **({"selection": dict(selection)} if selection else {}),
        "schema_version": SCHEMA_VERSION,
        "detector": dict(detector),
        "model": model_identity(model),
        "input_sha256": input_sha256,
        "column": column,
        "limit": limit,
        "shard_size": shard_size,
    }


def model_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a model's config() that its scores depend on."""
    return {key: value for key, value in config.items() if key not in _WHEREABOUTS}


def hash_identity(identity: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON (sorted keys, no spaces) of an identity."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences between two identities in one line: ``detector.steps: 1 then, 2 now``."""
    then, new = dict(_flat(before)), dict(_flat(now))
    keys = [key for key in {**then, **new} if then.get(key) != new.get(key)]
    lines = [f"{key}: {_show(then.get(key))} then, {_show(new.get(key))} now" for key in keys]
    shown = "; ".join(lines[:_SHOWN_DIFFERENCES])
    rest = len(lines) - _SHOWN_DIFFERENCES
    return shown if rest <= 0 else f"{shown}; and {rest} more"


def library_versions() -> dict[str, str]:
    """Versions of dori_fast, Python and the installed libraries."""
    found = {"dori_fast": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def threads_of(device: torch.device, processes: int = 1) -> int | None:
    """CPU threads of each of ``processes`` that share this process's; None on other devices."""
    import torch

    return max(1, torch.get_num_threads() // processes) if device.type == "cpu" else None


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:24]}...{text[-8:]}"
