"""The run directory: one writer, shards committed by a rename, resumed by what is committed."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Literal

import pyarrow as pa
from filelock import FileLock, Timeout

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.scan.durable import TEMPORARY, sync_directory, write_durably
from dori_fast.scan.record import RunRecord, differences
from dori_fast.scan.shard import Footer, as_stored, check_shard, commit_shard

Resume = Literal["auto", "never", "must"]

_log = logging.getLogger("dori_fast.scan")


class RunDirectory:
    """A run directory that is open for writing.

    Use it as a context manager: entering takes the lock, compares an earlier run's record with
    this one, sweeps up what a crash left, and checks every committed shard (``committed``).

    Raises (on entering):
        UsageError: another process writes here, there is no run to resume (``resume="must"``) or
            there is one already (``"never"``), or the directory cannot be written.
        IntegrityError: the run that is here was made with another configuration, model or input.
    """

    def __init__(
        self, root: Path, record: RunRecord, schema: pa.Schema, resume: Resume = "auto"
    ) -> None:
        self.root = root
        self.record = record
        self.committed: dict[int, Footer] = {}
        self._schema = as_stored(schema)
        self._resume = resume
        self._shards = root / "shards"
        self._lock = FileLock(root / ".lock", timeout=0)

    def __enter__(self) -> RunDirectory:
        try:
            self._shards.mkdir(parents=True, exist_ok=True)
            sync_directory(self.root)
            self._take_lock()
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(
                f"{self.root}: cannot be written ({reason}) — use another --out"
            ) from error
        try:
            self._join_earlier_run()
            self._sweep()
            self.save_record()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def path(self, index: int) -> Path:
        """The final path of shard ``index``."""
        return self._shards / f"part-{index:05d}.parquet"

    def commit(self, index: int, table: pa.Table) -> Footer:
        """Make shard ``index`` durable; StorageError if the disk refuses."""
        first = index * self._shard_size
        self.committed[index] = commit_shard(self.path(index), table, self.record.run_hash, first)
        return self.committed[index]

    def save_record(self) -> None:
        """Write run.json, atomically."""
        text = self.record.model_dump_json(indent=2)
        write_durably(self._record_path, lambda path: _write_text(path, text))

    def discard(self, index: int, reason: str) -> None:
        """Move a shard that cannot be used to ``quarantine/``, so that it is computed again."""
        self.committed.pop(index, None)
        self._set_aside(self.path(index), reason)

    @property
    def _record_path(self) -> Path:
        return self.root / "run.json"

    @property
    def _shard_size(self) -> int:
        return int(self.record.identity["shard_size"])

    def _take_lock(self) -> None:
        owner = self.root / ".owner"
        try:
            self._lock.acquire()
        except Timeout:
            raise UsageError(
                f"{self.root}: another scan writes here ({_owner(owner)})"
                " — wait for it, stop it, or use another --out"
            ) from None
        owner.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))

    def _join_earlier_run(self) -> None:
        here = self._record_path.exists()
        if self._resume == "must" and not here:
            raise UsageError(f"{self.root}: no run to resume — check --out, or drop --resume must")
        if self._resume == "never" and (here or any(self._shards.glob("part-*.parquet"))):
            raise UsageError(
                f"{self.root}: holds a run — use another --out, or drop --resume never"
            )
        if not here:
            return
        earlier = RunRecord.read(self._record_path)
        if earlier.run_hash != self.record.run_hash:
            changed = differences(earlier.identity, self.record.identity)
            raise IntegrityError(
                f"{self.root}: holds a run with another configuration ({changed})"
                " — use another --out, or the earlier settings"
            )
        for name, now in self.record.versions.items():
            then = earlier.versions.get(name, "absent")
            if then != now:
                _log.warning("%s: begun with %s %s, resumed with %s", self.root, name, then, now)
        self.record.started, self.record.seconds = earlier.started, earlier.seconds

    def _sweep(self) -> None:
        for stale in [*self.root.glob(f".*{TEMPORARY}"), *self._shards.glob(f".*{TEMPORARY}")]:
            stale.unlink()
        for path in sorted(self._shards.iterdir()):
            index = _shard_index(path)
            if index is None:
                _log.warning("%s: not a shard, left alone", path)
                continue
            try:
                self.committed[index] = check_shard(
                    path, self.record.run_hash, index * self._shard_size, self._schema
                )
            except IntegrityError as error:
                self._set_aside(path, str(error))

    def _set_aside(self, path: Path, reason: str) -> None:
        folder = self.root / "quarantine"
        folder.mkdir(exist_ok=True)
        target, n = folder / path.name, 1
        while target.exists():
            target, n = folder / f"{path.name}.{n}", n + 1
        os.replace(path, target)
        sync_directory(self._shards)
        sync_directory(folder)
        _log.warning("%s; moved to %s, its rows are computed again", reason, target)


def _shard_index(path: Path) -> int | None:
    number = path.name.removeprefix("part-").removesuffix(".parquet")
    if path.name != f"part-{number}.parquet" or not (number.isascii() and number.isdigit()):
        return None
    index = int(number)
    return index if number == f"{index:05d}" else None


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return f"pid {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its owner has not signed yet"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n")
