"""Any bytes as prompts: consistent rows or one clear refusal, never another exception."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.settings import checked
from dori_fast.runs.sources.open import open_prompts
from dori_fast.runs.store.record import RunRecord

BYTES = st.binary(max_size=300)
PIECES = st.sampled_from(
    [
        b"prompt",
        b'"',
        b"\n",
        b"\r\n",
        b",",
        b";",
        b"\t",
        b"{",
        b"}",
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
    ]
    + [
        b'{"prompt": "a"}\n',
        b'{"prompt": 1e999}\n',
        b'{"prompt": "\\ud800"}\n',
        b"[" * 40,
        b"1" * 30,
    ]
)
TEXTUAL = st.one_of(BYTES, st.lists(PIECES, max_size=30).map(b"".join))
EXAMPLES = [
    50,
    pytest.param(1000, marks=pytest.mark.nightly),
]


def fuzzed(examples: int, strategy: Any, check: Any) -> None:
    """Check ``examples`` examples, the same ones at every run."""
    options = {"deadline": None, "database": None, "derandomize": True}
    health = [HealthCheck.too_slow, HealthCheck.data_too_large]
    tried = settings(max_examples=examples, suppress_health_check=health, **options)
    tried(given(strategy)(check))()


def read_through(path: Path) -> None:
    """Rows are consecutive, and each has a prompt or the reason why not."""
    try:
        reader = open_prompts(path)
        rows = 0
        for chunk in reader.chunks(7):
            assert chunk.first == rows
            assert len(chunk) == len(chunk.errors) <= 7
            assert all(len(column) == len(chunk) for column in chunk.extra.columns)
            for prompt, error in zip(chunk.prompts, chunk.errors, strict=True):
                assert (prompt is None) == (error is not None)
                assert prompt is None or isinstance(prompt.encode(), bytes)
            assert chunk.extra.validate(full=True) is None
            rows += len(chunk)
    except UsageError as error:
        assert path.name in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("suffix", ["txt", "csv", "tsv", "jsonl", "json"])
def test_text(tmp_path: Path, suffix: str, examples: int) -> None:
    path = tmp_path / f"p.{suffix}"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        read_through(path)

    fuzzed(examples, TEXTUAL, check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_parquet(tmp_path: Path, examples: int) -> None:
    path, sink = tmp_path / "p.parquet", io.BytesIO()
    table = pa.table({"prompt": [f"a cat {i}" for i in range(30)], "id": range(30)})
    pq.write_table(table, sink, row_group_size=10, write_page_checksum=True)
    whole = sink.getvalue()

    def check(change: tuple[int, bytes, int]) -> None:
        at, data, keep = change
        changed = bytearray(whole)
        changed[at : at + len(data)] = data
        path.write_bytes(changed[:keep])
        read_through(path)

    place = st.integers(0, len(whole) - 1)
    keep = st.one_of(st.just(len(whole) + 40), st.integers(0, len(whole)))
    fuzzed(examples, st.tuples(place, st.binary(min_size=1, max_size=4), keep), check)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = ("seeds", "steps", "batch_size", "limit", "resume", "max_errors", "shard_size")


@pytest.mark.parametrize("examples", EXAMPLES)
def test_settings(examples: int) -> None:
    good = {"seeds": 4, "steps": 1, "batch_size": "auto", "limit": None}

    def check(changes: dict[str, Any]) -> None:
        with suppress(UsageError):
            made = checked("scan", **{**good, **changes})
            assert made.seeds >= 1 and made.shard_size >= 1 and made.max_errors >= 0

    fuzzed(examples, st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_run_records(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "run.json"
    good = {"run_hash": "a", "identity": {}, "input_path": None, "model": {}, "batch_size": 1}
    good |= {"versions": {}}
    names = st.sampled_from([*good, "state", "counts", "threshold", "more"])

    def check(data: bytes | dict[str, Any]) -> None:
        raw = data if isinstance(data, bytes) else json.dumps({**good, **data}).encode()
        path.write_bytes(raw)
        with suppress(IntegrityError):
            RunRecord.read(path)

    fuzzed(examples, st.one_of(BYTES, st.dictionaries(names, VALUES, max_size=3)), check)
