"""The scan end to end on a small real model: every row once, the same in shards of any size."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dori_fast.detect import Wen
from dori_fast.errors import UsageError
from dori_fast.runs.budget import failures_of
from tests.runs.inputs import NASTY, write
from tests.runs.scanning import PROMPTS, Spelling, scanned


def test_scores_are_the_detectors_own(model: Any, tmp_path: Path) -> None:
    result = scanned(model, PROMPTS, tmp_path / "run", shard_size=5)
    expected = Wen(seeds=4).scores(model, PROMPTS)
    rows = list(result.rows())
    assert [row["row_id"] for row in rows] == list(range(len(PROMPTS)))
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["score"] for row in rows] == expected.score.tolist()
    assert [row["score_per_seed"] for row in rows] == expected.per_seed.tolist()
    assert [row["n_tokens"] for row in rows] == expected.n_tokens.tolist()
    assert [row["truncated"] for row in rows] == expected.truncated.tolist()
    assert {row["status"] for row in rows} == {"ok"}
    assert (result.counts.rows, result.counts.ok, result.scored) == (
        len(rows),
        len(rows),
        len(rows),
    )
    assert result.state == "done"
    best = sorted(range(len(rows)), key=lambda i: (-rows[i]["score"], i))
    assert [row["row_id"] for row in result.top(4)] == best[:4]


def test_rows_do_not_depend_on_how_they_are_cut_up(model: Any, tmp_path: Path) -> None:
    whole = list(scanned(model, PROMPTS, tmp_path / "whole").rows())
    for size in (1, 4, 7):
        rows = list(scanned(model, iter(PROMPTS), tmp_path / str(size), shard_size=size).rows())
        assert rows == whole


def test_resuming_computes_only_what_is_missing(model: Any, tmp_path: Path) -> None:
    detector, out = Spelling(), tmp_path / "run"
    first = scanned(model, PROMPTS, out, detector=detector, shard_size=4)
    rows = list(first.rows())
    assert detector.asked == PROMPTS
    assert detector.positions == list(range(len(PROMPTS)))
    again = scanned(model, PROMPTS, out, detector=detector, shard_size=4, resume="must")
    assert (len(detector.asked), again.scored) == (len(PROMPTS), 0)
    assert again.counts == first.counts
    first.shards[1].unlink()
    first.shards[3].write_bytes(first.shards[3].read_bytes()[:-1])
    last = scanned(model, PROMPTS, out, detector=detector, shard_size=4)
    assert detector.asked[len(PROMPTS) :] == PROMPTS[4:8] + PROMPTS[12:16]
    assert last.scored == 8
    assert list(last.rows()) == rows


def test_a_shard_of_the_wrong_length_is_computed_again(model: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "p.txt", tmp_path / "run"
    path.write_text("\n".join(f"p{i}" for i in range(9)))
    first = scanned(model, path, out, detector=Spelling(), shard_size=4)
    footer = pq.read_metadata(first.shards[1]).metadata[b"dori_fast"]
    short = json.loads(footer) | {"rows": 3}
    table = pq.read_table(first.shards[1]).slice(0, 3)
    from dori_fast.runs.store.shard import commit_shard

    commit_shard(first.shards[1], table, short["run_hash"], 4)
    rows = list(scanned(model, path, out, detector=Spelling(), shard_size=4).rows())
    assert [row["prompt"] for row in rows] == [f"p{i}" for i in range(9)]
    assert [path.name for path in (out / "quarantine").iterdir()] == ["part-00001.parquet"]


def test_bad_rows_are_quarantined_where_they_are(model: Any, tmp_path: Path) -> None:
    prompts = ["a", None, 5, "\ud800", "x" * 1_000_001, "bad", "", "z"]
    detector = Spelling(bad="bad")
    result = scanned(model, prompts, tmp_path / "run", detector=detector, shard_size=3)
    rows = list(result.rows())
    codes = [row["error"] and row["error"].split(":")[0] for row in rows]
    assert codes == [None, "null", "type", "encoding", "too_long", "nonfinite", None, None]
    assert [row["status"] == "ok" for row in rows] == [code is None for code in codes]
    assert [row["prompt"] for row in rows] == ["a", None, None, None, None, "bad", "", "z"]
    assert [row["score"] is None for row in rows] == [code is not None for code in codes]
    assert rows[5]["score_per_seed"] is None and rows[5]["n_tokens"] == 3
    assert detector.asked == ["a", "bad", "", "z"]
    assert result.counts.model_dump() == {"rows": 8, "ok": 3, "quarantined": 5}
    assert result.state == "over_budget"
    assert all(row["status"] == "ok" for row in result.top(10))


@pytest.mark.parametrize(
    ("max_errors", "state"),
    [(0, "over_budget"), (0.19, "over_budget"), (0.2, "done"), (1, "over_budget"), (2, "done")],
)
def test_error_budget(model: Any, tmp_path: Path, max_errors: float, state: str) -> None:
    prompts = ["a"] * 8 + [None, None]
    out, detector = tmp_path / "run", Spelling()
    result = scanned(model, prompts, out, detector=detector, max_errors=max_errors)
    assert result.state == state
    assert json.loads((out / "run.json").read_text())["state"] == state


@pytest.mark.parametrize("max_errors", [0, 0.5, 99])
def test_a_scan_whose_every_row_failed_is_never_done(
    model: Any, tmp_path: Path, max_errors: float
) -> None:
    detector = Spelling(bad="bad")
    result = scanned(
        model, [None, "bad", 5], tmp_path / "run", detector=detector, max_errors=max_errors
    )
    assert result.state == "over_budget" and result.counts.ok == 0
    assert failures_of(result) == (
        f"{result.out}: 3 of 3 rows failed, the first: row 0: null: the row has no prompt; see the"
        f" column error of {result.out}/shards"
    )


def test_an_input_without_rows_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the list of prompts: the input has no rows"):
        scanned(model, [], tmp_path / "run", max_errors=0)
    table = write(tmp_path / "p.csv", "prompt,n\na cat,1\n")
    with pytest.raises(UsageError, match="or none that meets its conditions"):
        scanned(model, table, tmp_path / "run", where=["n > 1"])
    assert not (tmp_path / "run").exists()


def test_no_rows_by_the_limit(model: Any, tmp_path: Path) -> None:
    result = scanned(model, ["a"], tmp_path / "run", max_errors=0, limit=0)
    assert (result.counts.rows, result.state, result.shards) == (0, "done", [])
    assert (result.top(5), list(result.rows()), result.rate) == ([], [], 0.0)


@pytest.mark.parametrize("limit", [0, 1, 4, 5, 8, 99])
def test_limit(model: Any, tmp_path: Path, limit: int) -> None:
    prompts = [f"p{i}" for i in range(11)]
    result = scanned(
        model, prompts, tmp_path / "run", detector=Spelling(), limit=limit, shard_size=4
    )
    assert [row["prompt"] for row in result.rows()] == prompts[:limit]


def test_source_columns_are_passed_through(model: Any, tmp_path: Path) -> None:
    n = 7
    types = {
        "when": pa.timestamp("s"),
        "day": pa.date64(),
        "span": pa.duration("us"),
        "clock": pa.time32("s"),
        "price": pa.decimal128(20, 3),
        "half": pa.float16(),
        "kind": pa.dictionary(pa.int8(), pa.string()),
        "view": pa.string_view(),
        "nested": pa.struct([("a", pa.list_(pa.int16())), ("b", pa.map_(pa.string(), pa.int8()))]),
        "sized": pa.list_(pa.float32(), 2),
        "nothing": pa.null(),
    }
    values: dict[str, Any] = {
        "half": pa.array([float(i) for i in range(n)], pa.float32()).cast(pa.float16()),
        "kind": pa.array(["x", "y", None, "x", "y", "x", "x"]).dictionary_encode(),
        "view": pa.array([str(i) for i in range(n)], pa.string_view()),
        "nested": [{"a": [i], "b": [("k", i)]} for i in range(n)],
        "sized": [[i, i] for i in range(n)],
        "nothing": [None] * n,
    }
    columns = {}
    for name, kind in types.items():
        value = values.get(name, pa.array(range(n), pa.int32()))
        if name in ("when", "day", "span"):
            value = pa.array([i * 86_400_000 for i in range(n)], pa.int64())
        columns[name] = value.cast(kind) if isinstance(value, pa.Array) else pa.array(value, kind)
    table = pa.table({"Caption": [f"p{i}" for i in range(n)], "score": range(n), **columns})
    path = tmp_path / "p.parquet"
    pq.write_table(table, path, row_group_size=3)
    source = pq.read_table(path)
    result = scanned(model, path, tmp_path / "run", detector=Spelling(), shard_size=2)
    out = pa.concat_tables([pq.read_table(shard) for shard in result.shards])
    assert out["source_score"].to_pylist() == list(range(n))
    for name in types:
        assert out[name].to_pylist() == source[name].to_pylist(), name
    assert out.column_names[:3] == ["row_id", "prompt", "source_score"]


def test_csv_rows_keep_their_columns(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    rows = [{"": str(i), "Caption": text, "URL": f"u;{i}"} for i, text in enumerate(NASTY)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["", "Caption", "URL"], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    result = scanned(model, path, tmp_path / "run", detector=Spelling(), shard_size=4)
    got = list(result.rows("unnamed_0", "prompt", "URL"))
    assert [list(row.values()) for row in got] == [list(row.values()) for row in rows]


def test_batch_size_is_put_back_and_recorded(model: Any, tmp_path: Path) -> None:
    before = model.batch_size
    scanned(model, ["a"], tmp_path / "run", batch_size=3)
    assert model.batch_size == before
    assert json.loads((tmp_path / "run" / "run.json").read_text())["batch_size"] == 3


def test_progress_is_honest(model: Any, tmp_path: Path) -> None:
    seen: list[Any] = []
    prompts = [f"p{i}" for i in range(50)]
    options: dict[str, Any] = {"detector": Spelling(), "shard_size": 20}
    scanned(model, prompts, tmp_path / "run", on_progress=seen.append, **options)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == seen[-1].computed == 50
    assert seen[-1].remaining == pytest.approx(0)
    assert all(p.remaining is None or p.remaining >= 0 for p in seen)


def test_importing_the_scan_is_light() -> None:
    code = (
        "import sys, dori_fast.runs.scan; "
        "heavy = {'torch', 'triton', 'diffusers', 'transformers'} & set(sys.modules); "
        "sys.exit(f'loads {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
