"""The status of a run, read from its directory while it may still be written.

Standard library alone: this returns in a fraction of the time that importing a reader of Parquet
takes. No file is opened for writing.
"""

from __future__ import annotations

import json
import os
import re
import socket
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.store import shard_names

# enough shards for a steady rate, few enough to follow a change
_RECENT = 20
_JOB = re.compile(r"\.owner-\d+-of-([2-9]|[1-9]\d+)")
_NAMED = 3


@dataclass(frozen=True)
class RunStatus:
    """The status of a run at one moment.

    Attributes:
        run: run directory.
        state: "running"; "stale" if run.json says so but its process, or those of all its jobs,
            are gone; "interrupted", "done" or "over_budget".
        owner: process that writes, or wrote last, as "pid 7 on host"; for jobs that share the run
            "2 of 4 jobs: pid 7 on host, pid 8 on host".
        shards, rows, quarantined: committed shards, their rows, and quarantined rows among them.
        set_aside: damaged shards that were moved to quarantine/.
        rate: rows per second of the last shards of this call; None if none was committed.
        share: share of the input that has been read, 0..1, by all jobs together; None if the run
            does not state it.
        remaining: estimated seconds to the end; None if unknown or not running.
    """

    run: Path
    state: str
    owner: str | None
    shards: int
    rows: int
    quarantined: int
    set_aside: int
    rate: float | None
    share: float | None
    remaining: float | None


class _Owner(NamedTuple):
    """The content of an owner file."""

    pid: int
    host: str
    since: float
    share: float | None

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


_SINCE = attrgetter("since")


@dataclass(frozen=True)
class _Owners:
    """The owner files of one run: those of its ``jobs`` that have signed so far."""

    signed: list[_Owner]
    jobs: int = 1

    @property
    def share(self) -> float | None:
        shares = [one.share for one in self.signed if one.share is not None]
        return sum(shares) / self.jobs if shares else None

    def summary(self, alive: list[_Owner]) -> str | None:
        """The owners that are alive, else the last one."""
        if not self.signed or self.jobs == 1:
            return str(self.signed[0]) if self.signed else None
        if not alive:
            return f"0 of {self.jobs} jobs, the last {max(self.signed, key=_SINCE)}"
        named = ", ".join(map(str, sorted(alive, key=_SINCE)[:_NAMED]))
        more = len(alive) - _NAMED
        rest = f" and {more} more" if more > 0 else ""
        return f"{len(alive)} of {self.jobs} jobs: {named}{rest}"


class _Shard(NamedTuple):
    committed: float
    rows: int
    quarantined: int


def status(run: str | Path) -> RunStatus:
    """Read the status of a run; safe at any moment, since files appear whole or not at all.

    Raises:
        UsageError: no run directory.
        IntegrityError: its run.json is damaged.
    """
    run = Path(run)
    state, owners = _state(run), _owners(run)
    alive = [one for one in owners.signed if _is_alive(one)]
    shards = sorted(filter(None, map(_shard, shard_names.paths(run))))
    rows = sum(shard.rows for shard in shards)
    if state == "running" and owners.signed and not alive:
        state = "stale"
    # jobs do not update the record of an interrupted run
    if state == "interrupted" and owners.jobs > 1 and alive:
        state = "running"
    running = state == "running" and alive
    rate = _rate(shards, min(map(_SINCE, alive))) if running else None
    share = owners.share
    return RunStatus(
        run=run,
        state=state,
        owner=owners.summary(alive),
        shards=len(shards),
        rows=rows,
        quarantined=sum(shard.quarantined for shard in shards),
        set_aside=sum(1 for _ in (run / "quarantine").glob("*")),
        rate=rate,
        share=share,
        remaining=rows * (1 - share) / share / rate if rate and share else None,
    )


def _state(run: Path) -> str:
    try:
        return str(json.loads((run / "run.json").read_bytes())["state"])
    except OSError as error:
        raise UsageError(f"{run}: no run directory (no run.json); check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{run / 'run.json'}: damaged; restore it from a copy") from error


def _owners(run: Path) -> _Owners:
    """The owners that signed last.

    Owner files outlive their processes. A run without jobs and arrays of different sizes never
    write at the same time, so only those of one size count.
    """
    found: dict[int, list[_Owner]] = {}
    for path in (run / ".owner", *run.glob(".owner-*")):
        job = _JOB.fullmatch(path.name)
        owner = _owner(path)
        if owner is not None and (job or path.name == ".owner"):
            found.setdefault(int(job[1]) if job else 1, []).append(owner)
    if not found:
        return _Owners([])
    jobs = max(found, key=lambda count: max(map(_SINCE, found[count])))
    return _Owners(found[jobs], jobs)


def _owner(path: Path) -> _Owner | None:
    """The content of an owner file; None if it is missing or damaged."""
    try:
        owner = json.loads(path.read_bytes())
        share = owner.get("share")
        return _Owner(
            pid=int(owner["pid"]),
            host=str(owner["host"]),
            since=float(owner["since"]),
            share=None if share is None else float(share),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def _is_alive(owner: _Owner) -> bool:
    """Whether the process exists; one on another host cannot be seen and counts as alive."""
    if owner.host != socket.gethostname():
        return True
    try:
        os.kill(owner.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _shard(path: Path) -> _Shard | None:
    """The counts in a shard's footer; None if the shard is damaged or was just moved away."""
    try:
        with path.open("rb") as file:
            committed = os.fstat(file.fileno()).st_mtime
            file.seek(-8, os.SEEK_END)
            size = int.from_bytes(file.read(4), "little")
            file.seek(-8 - size, os.SEEK_END)
            text = file.read(size)
        # key-value metadata comes last in a Parquet footer, and ours is plain JSON in it
        start = text.rindex(b'{"run_hash":')
        footer = json.JSONDecoder().raw_decode(text[start:].decode("latin-1"))[0]
        return _Shard(committed, footer["rows"], footer["quarantined"])
    except (OSError, ValueError, KeyError):
        return None


def _rate(shards: list[_Shard], since: float) -> float | None:
    """Rows per second of the last shards that were committed after ``since``."""
    own = [shard for shard in shards if shard.committed >= since]
    recent = own[-_RECENT:]
    if not recent:
        return None
    began = since if len(recent) == len(own) else own[-_RECENT - 1].committed
    seconds = recent[-1].committed - began
    return sum(shard.rows for shard in recent) / seconds if seconds > 0 else None
