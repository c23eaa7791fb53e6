"""Arrow streams: columns that results cannot hold, and files that are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dori_fast.errors import UsageError
from dori_fast.runs.sources.open import open_prompts
from dori_fast.runs.sources.where import Selection
from tests.runs.inputs import prompts, write


def stream(path: Path, table: pa.Table, rows: int = 100) -> Path:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


@pytest.mark.parametrize(
    "column",
    [
        pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.nulls(2)]),
        pa.RunEndEncodedArray.from_arrays([1, 2], [5, 6]),
        pa.array([pa.MonthDayNano([1, 2, 3]), None]),
        pa.array([{}, {}], pa.struct([])),
        pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int8()), pa.nulls(1)),
    ],
    ids=lambda column: str(column.type),
)
def test_columns_that_results_cannot_hold(tmp_path: Path, column: Any) -> None:
    path = stream(tmp_path / "p.arrow", pa.table({"prompt": ["a", "b"], "odd": column}))
    with pytest.raises(UsageError, match=r"p\.arrow: column 'odd' is .* leave it out with --keep"):
        open_prompts(path)
    (chunk,) = open_prompts(path, selection=Selection.of(keep=[])).chunks(5)
    assert chunk.prompts == ["a", "b"]


def test_nulls_of_a_dictionary_can_be_stored(tmp_path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None], pa.int8()), ["x", None])
    path = stream(tmp_path / "p.arrow", pa.table({"prompt": ["a", "b", "c"], "few": column}))
    (chunk,) = open_prompts(path).chunks(5)
    pq.write_table(chunk.extra, tmp_path / "p.parquet")
    assert pq.read_table(tmp_path / "p.parquet")["few"].to_pylist() == ["x", None, None]


def test_a_stream_is_whole_or_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    # the last bytes of this batch equal those of the end mark
    table = pa.table({"prompt": ["a", "b", "c"], "n": pa.array([2**32 - 1] * 3, pa.uint64())})
    path = stream(tmp_path / "p.arrow", table, rows=1)
    data = path.read_bytes()
    assert prompts(path) == ["a", "b", "c"]
    for size in range(len(data)):
        with pytest.raises(UsageError, match=r"p\.arrow: "):
            prompts(write(path, data[:size]))
