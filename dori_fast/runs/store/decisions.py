"""Decisions of a finished scan, kept beside its scores: ``decisions/NNNN/`` in a run directory.

A folder holds ``decision.json``, ``rows.parquet`` (row_id, p_value, flagged of every row; a row
group per shard) and ``calibration.json``, a copy of the calibration that was used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dori_fast._version import __version__
from dori_fast.errors import IntegrityError
from dori_fast.runs.store.digest import file_sha256
from dori_fast.runs.store.durable import write_folder_durably
from dori_fast.runs.store.manifest import decision_files, list_decisions

RECORD, ROWS, CALIBRATION = "decision.json", "rows.parquet", "calibration.json"
COLUMNS = pa.schema([("row_id", pa.int64()), ("p_value", pa.float64()), ("flagged", pa.bool_())])
DECIDED = ("p_value", "flagged")


class DecisionRecord(BaseModel):
    """The content of decision.json.

    Attributes:
        made: time of the decision, UTC.
        shards_root: Merkle root over the shards that were decided on.
        rule: wanted error rate: ``kind`` ("fpr" or "fdr"), ``rate`` and, of a false discovery
            rate, ``variant``.
        calibration: facts of the calibration: sha256 of its scores and of its file, its time, the
            sha256 of the clean prompts' input, and its number of rows.
        clean_prompts: number n of clean prompts.
        rows: rows with a score.
        flagged: flagged rows.
        expected_false: flagged rows that are expected by chance; see
            :class:`dori_fast.runs.scoring.decision.Verdict`.
        rank, p_value: largest flagged rank among the clean scores, and p-value; 0 if none is.
        threshold: score above which rows are flagged; None if there is none (no or every row).
        observed: share of the clean prompts above the threshold with its 95 % interval.
        files: sha256 of the other files of the folder.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    made: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    dori_fast: str = __version__
    shards_root: str
    rule: dict[str, Any]
    calibration: dict[str, Any]
    clean_prompts: int
    rows: int
    flagged: int
    expected_false: float
    rank: int
    p_value: float
    threshold: float | None
    observed: tuple[float, float, float]
    files: dict[str, str] = {}

    def same_as(self, other: DecisionRecord) -> bool:
        """Whether both are of the same rows, by the same calibration and rule."""
        return (self.shards_root, self.rule, self.calibration["scores_sha256"]) == (
            other.shards_root,
            other.rule,
            other.calibration["scores_sha256"],
        )


def keep_decision(
    root: Path, record: DecisionRecord, calibration: str, tables: Iterable[pa.Table]
) -> Path:
    """Write a decision as the newest of a sealed run and list it in the manifest.

    Args:
        root: run directory.
        record: the decision, without ``files``.
        calibration: text of the calibration file.
        tables: rows as :data:`COLUMNS`, a table per shard, in order.

    Returns:
        The decision's folder.

    Raises:
        StorageError: the disk refused.
    """
    numbers = [int(Path(path).parent.name) for path in decision_files(root)]
    folder = root / "decisions" / f"{max(numbers, default=0) + 1:04d}"

    def write(temporary: Path) -> None:
        temporary.mkdir()
        with pq.ParquetWriter(temporary / ROWS, COLUMNS, compression="zstd") as file:
            for table in tables:
                file.write_table(table, row_group_size=max(1, len(table)))
        (temporary / CALIBRATION).write_text(calibration, encoding="utf-8")
        record.files = {name: file_sha256(temporary / name) for name in (ROWS, CALIBRATION)}
        (temporary / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")

    folder.parent.mkdir(exist_ok=True)
    write_folder_durably(folder, write)
    list_decisions(root)
    return folder


def read_decision(path: Path) -> DecisionRecord:
    """Read a decision.json; IntegrityError if it is damaged."""
    try:
        return DecisionRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise IntegrityError(
            f"{path}: damaged, or another version's; move its folder away and run dori-fast flag"
        ) from error


def newest_decision(root: Path) -> tuple[Path, DecisionRecord] | None:
    """The folder and record of a run's newest decision, or None."""
    paths = decision_files(root)
    if not paths:
        return None
    newest = root / paths[-1]
    return newest.parent, read_decision(newest)


def decided_rows(folder: Path) -> Iterator[pa.Table]:
    """``row_id``, ``p_value`` and ``flagged``, a table per shard in order."""
    try:
        with pq.ParquetFile(folder / ROWS) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(
            f"{folder / ROWS}: cannot be read; move {folder} away and run dori-fast flag"
        ) from error
