"""The run directory: one writer, shards committed by a rename, resumed from committed shards."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Literal, Self, get_args

import pyarrow as pa

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.store import shard_names
from dori_fast.runs.store.durable import TEMPORARY, sync_directory, write_text_durably
from dori_fast.runs.store.job import Job
from dori_fast.runs.store.lock import RunLock
from dori_fast.runs.store.manifest import MANIFEST, seal
from dori_fast.runs.store.record import Counts, RunRecord, differences
from dori_fast.runs.store.shard import Footer, as_stored, check_shard, commit_shard, read_footer

Resume = Literal["auto", "never", "must"]

_log = logging.getLogger("dori_fast.runs")


class LockedDirectory:
    """A directory that is open for writing: its lock, and a record that a resume must agree with.

    Use it as a context manager. Entering takes the lock, compares an earlier run's record with
    this one, and removes what a crash left half-written. A job that is not alone leaves everything
    that may be another job's.

    Raises:
        UsageError: ``resume`` is none of the three.

    Raises (on entering):
        UsageError: another process writes here, there is no run to resume (``resume="must"``) or
            there is one already (``"never"``), or the directory cannot be written.
        IntegrityError: the run that is here was made with another configuration, model or input.
    """

    def __init__(
        self, root: Path, record: RunRecord, resume: Resume = "auto", job: Job | None = None
    ) -> None:
        if resume not in get_args(Resume):
            choices = ", ".join(map(repr, get_args(Resume)))
            raise UsageError(f"{root}: resume must be one of {choices}, got {resume!r}")
        self.root = root
        self.record = record
        self.job = job or Job()
        self.earlier: RunRecord | None = None
        self._resume = resume
        self._lock = RunLock(root, self.job)

    def __enter__(self) -> Self:
        try:
            self._make()
            sync_directory(self.root)
            self._lock.acquire()
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(
                f"{self.root}: cannot be written ({reason}); use another --out"
            ) from error
        try:
            with self._lock.joining():
                self._join_earlier_run()
                self.save_record()
            self._sweep()
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

    def sign(self, share: float | None = None) -> None:
        """Write the owner file; ``share`` is the part of the input that has been read, 0..1."""
        self._lock.sign(share)

    def keep_record(self) -> None:
        """Keep the earlier run's record, since a call that adds no row has nothing to add to it.

        A finished run that is opened again thus ends with the same bytes of run.json.
        """
        if self.earlier is not None:
            kept = ("state", "counts", "evaluations", "rows_computed")
            now = {name: getattr(self.record, name) for name in kept}
            self.record = self.earlier.model_copy(update=now)

    def save_record(self) -> None:
        """Write run.json atomically; of several jobs only the first one to come writes it.

        A later call without jobs, which finds everything committed, writes the final record.
        """
        if not self.job.alone and self._record_path.exists():
            return
        write_text_durably(self._record_path, self.record.model_dump_json(indent=2) + "\n")

    def _make(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)

    def _has_results(self) -> bool:
        """Whether a run has been here, even if its record is gone."""
        return False

    def _sweep(self) -> None:
        if not self.job.alone:
            return
        for stale in self.root.glob(f".*{TEMPORARY}"):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()

    @property
    def _record_path(self) -> Path:
        return self.root / "run.json"

    def _join_earlier_run(self) -> None:
        here = self._record_path.exists()
        if self._resume == "must" and not here:
            raise UsageError(f"{self.root}: no run to resume; check --out, or drop --resume must")
        if self._resume == "never" and (here or self._has_results()):
            raise UsageError(f"{self.root}: holds a run; use another --out, or drop --resume never")
        if not here:
            return
        self.earlier = earlier = RunRecord.read(self._record_path)
        if earlier.run_hash != self.record.run_hash:
            changed = differences(earlier.identity, self.record.identity)
            raise IntegrityError(
                f"{self.root}: holds a run with another configuration ({changed});"
                " use another --out, or the earlier settings"
            )
        for name, now in self.record.versions.items():
            then = earlier.versions.get(name, "absent")
            if then != now:
                _log.warning("%s: begun with %s %s, resumed with %s", self.root, name, then, now)
        self.record.continue_from(earlier)


class RunDirectory(LockedDirectory):
    """A locked directory with shards.

    Entering also checks every committed shard of its job (``committed``) and removes the manifest,
    which holds for a finished run alone.
    """

    def __init__(
        self,
        root: Path,
        record: RunRecord,
        schema: pa.Schema,
        resume: Resume = "auto",
        job: Job | None = None,
    ) -> None:
        super().__init__(root, record, resume, job)
        self.committed: dict[int, Footer] = {}
        self._schema = as_stored(schema)
        self._shards = shard_names.directory(root)

    def path(self, index: int) -> Path:
        """The final path of shard ``index``."""
        return shard_names.path(self.root, index)

    def drop_unfinished(self, index: int) -> None:
        """Remove the temporary files that a dead writer of shard ``index`` left."""
        for stale in self._shards.glob(f".{self.path(index).name}.*{TEMPORARY}"):
            stale.unlink(missing_ok=True)

    def commit(self, index: int, table: pa.Table, batch_size: int | None = None) -> Footer:
        """Make shard ``index`` durable; StorageError if the disk refuses."""
        path, run_hash, first = self.path(index), self.record.run_hash, index * self._shard_size
        self.committed[index] = commit_shard(path, table, run_hash, first, batch_size)
        return self.committed[index]

    def discard(self, index: int, reason: str) -> None:
        """Move an unusable shard to ``quarantine/``, so that it is computed again."""
        self.committed.pop(index, None)
        self._set_aside(self.path(index), reason)

    def counted(self, indices: Iterable[int]) -> Counts:
        """Rows of the committed ones of these shards, by outcome.

        A shard counts as well if a signal came between its rename and its entry in ``committed``.
        """
        counts = Counts()
        for index in indices:
            footer, path = self.committed.get(index), self.path(index)
            if footer is None and path.exists():
                footer = read_footer(path)
            if footer is not None:
                counts.add(footer.rows, footer.quarantined)
        return counts

    def seal(self) -> str:
        """Write the manifest of the finished run and return its Merkle root, in hexadecimal."""
        return seal(self.root).merkle_root

    @property
    def _shard_size(self) -> int:
        return int(self.record.identity["shard_size"])

    def _make(self) -> None:
        self._shards.mkdir(parents=True, exist_ok=True)
        # an unwritable directory is refused before anything is computed
        with TemporaryFile(dir=self._shards):
            pass

    def _has_results(self) -> bool:
        return bool(shard_names.paths(self.root))

    def _sweep(self) -> None:
        super()._sweep()
        (self.root / MANIFEST).unlink(missing_ok=True)
        for stale in self._shards.glob(f".*{TEMPORARY}"):
            # .part-NNNNN.parquet.<pid>-<random>.tmp
            final = Path(stale.name.removeprefix(".").split(".")[0] + ".parquet")
            index = shard_names.number(final)
            if self.job.alone or (index is not None and self.job.has(index)):
                stale.unlink()
        for path in sorted(self._shards.iterdir()):
            index = shard_names.number(path)
            if index is None:
                if not path.name.endswith(TEMPORARY):
                    _log.warning("%s: not a shard, left alone", path)
                continue
            if not self.job.has(index):
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
