"""The run directory: one writer, shards committed by a rename, resumed by what is committed."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from tempfile import TemporaryFile

import pyarrow as pa

from dori_fast.errors import IntegrityError
from dori_fast.runs.store.durable import TEMPORARY, sync_directory
from dori_fast.runs.store.job import Part
from dori_fast.runs.store.manifest import MANIFEST, seal
from dori_fast.runs.store.record import RunRecord
from dori_fast.runs.store.run_folder import Resume, RunFolder
from dori_fast.runs.store.shard import Footer, as_stored, check_shard, commit_shard

__all__ = ["Resume", "RunDirectory"]

_log = logging.getLogger("dori_fast.runs")


class RunDirectory(RunFolder):
    """A run directory that is open for writing: a run folder with shards.

    Entering also checks every committed shard (``committed``), of its part alone, and removes the
    manifest, which is true of a finished run alone.
    """

    def __init__(
        self,
        root: Path,
        record: RunRecord,
        schema: pa.Schema,
        resume: Resume = "auto",
        part: Part | None = None,
    ) -> None:
        super().__init__(root, record, resume, part)
        self.committed: dict[int, Footer] = {}
        self._schema = as_stored(schema)
        self._shards = root / "shards"

    def path(self, index: int) -> Path:
        """The final path of shard ``index``."""
        return self._shards / f"part-{index:05d}.parquet"

    def drop_unfinished(self, index: int) -> None:
        """Remove what a dead writer of shard ``index`` left of it, short of its final name."""
        for stale in self._shards.glob(f".{self.path(index).name}.*{TEMPORARY}"):
            stale.unlink(missing_ok=True)

    def commit(self, index: int, table: pa.Table) -> Footer:
        """Make shard ``index`` durable; StorageError if the disk refuses."""
        first = index * self._shard_size
        self.committed[index] = commit_shard(self.path(index), table, self.record.run_hash, first)
        return self.committed[index]

    def discard(self, index: int, reason: str) -> None:
        """Move a shard that cannot be used to ``quarantine/``, so that it is computed again."""
        self.committed.pop(index, None)
        self._set_aside(self.path(index), reason)

    def seal(self) -> str:
        """Write the manifest of the finished run; its Merkle root, in hexadecimal."""
        return seal(self.root).merkle_root

    @property
    def _shard_size(self) -> int:
        return int(self.record.identity["shard_size"])

    def _make(self) -> None:
        self._shards.mkdir(parents=True, exist_ok=True)
        # a folder that cannot be written should be known before anything is computed
        with TemporaryFile(dir=self._shards):
            pass

    def _has_results(self) -> bool:
        return any(self._shards.glob("part-*.parquet"))

    def _sweep(self) -> None:
        super()._sweep()
        (self.root / MANIFEST).unlink(missing_ok=True)
        for stale in self._shards.glob(f".*{TEMPORARY}"):
            index = _shard_index(stale.name.removeprefix(".").split(".")[0] + ".parquet")
            if self.part.whole or (index is not None and self.part.has(index)):
                stale.unlink()
        for path in sorted(self._shards.iterdir()):
            index = _shard_index(path.name)
            if index is None:
                if not path.name.endswith(TEMPORARY):
                    _log.warning("%s: not a shard, left alone", path)
                continue
            if not self.part.has(index):
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


def _shard_index(name: str) -> int | None:
    number = name.removeprefix("part-").removesuffix(".parquet")
    if name != f"part-{number}.parquet" or not (number.isascii() and number.isdigit()):
        return None
    index = int(number)
    return index if number == f"{index:05d}" else None
