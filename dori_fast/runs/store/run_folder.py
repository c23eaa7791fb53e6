"""The folder of a run: one writer, and a record that a resume must agree with."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.store.durable import TEMPORARY, sync_directory, write_durably
from dori_fast.runs.store.job import Part
from dori_fast.runs.store.lock import RunLock
from dori_fast.runs.store.record import RunRecord, differences

Resume = Literal["auto", "never", "must"]

_log = logging.getLogger("dori_fast.runs")


class RunFolder:
    """A folder that is open for writing.

    Use it as a context manager: entering takes the lock, compares an earlier run's record with
    this one, and sweeps up what a crash left. One job of several (``part``) leaves alone what may
    be another's.

    Raises (on entering):
        UsageError: another process writes here, there is no run to resume (``resume="must"``) or
            there is one already (``"never"``), or the folder cannot be written.
        IntegrityError: the run that is here was made with another configuration, model or input.
    """

    def __init__(
        self, root: Path, record: RunRecord, resume: Resume = "auto", part: Part | None = None
    ) -> None:
        self.root = root
        self.record = record
        self.part = part or Part()
        self.earlier: RunRecord | None = None
        self._resume = resume
        self._lock = RunLock(root, self.part)

    def __enter__(self) -> Self:
        try:
            self._make()
            sync_directory(self.root)
            self._lock.acquire()
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(
                f"{self.root}: cannot be written ({reason}) — use another --out"
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
        """Tell others who writes here, since when, and what share of the input has been read."""
        self._lock.sign(share)

    def keep_record(self) -> None:
        """Go on with the earlier run's record: a call that adds no row says nothing new of them.

        So a finished run that is opened again ends with the same bytes of run.json.
        """
        if self.earlier is not None:
            now = {"state": self.record.state, "counts": self.record.counts}
            self.record = self.earlier.model_copy(update=now)

    def save_record(self) -> None:
        """Write run.json, atomically; of several jobs, only the first to come writes it.

        A whole run afterwards, which finds everything committed, closes the books.
        """
        if not self.part.whole and self._record_path.exists():
            return
        text = self.record.model_dump_json(indent=2)
        write_durably(self._record_path, lambda path: _write_text(path, text))

    def _make(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)

    def _has_results(self) -> bool:
        """Whether a run has been here, even if its record is gone."""
        return False

    def _sweep(self) -> None:
        if not self.part.whole:
            return
        for stale in self.root.glob(f".*{TEMPORARY}"):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()

    @property
    def _record_path(self) -> Path:
        return self.root / "run.json"

    def _join_earlier_run(self) -> None:
        here = self._record_path.exists()
        if self._resume == "must" and not here:
            raise UsageError(f"{self.root}: no run to resume — check --out, or drop --resume must")
        if self._resume == "never" and (here or self._has_results()):
            raise UsageError(
                f"{self.root}: holds a run — use another --out, or drop --resume never"
            )
        if not here:
            return
        self.earlier = earlier = RunRecord.read(self._record_path)
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


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n")
