"""What a page needs of a run; the directory is read by others."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from dori_fast.report.names import settings
from dori_fast.report.pages.page import Html, facts, note, table

# longer lists are cut, and say so: a page is to be read
SHOWN = 100


class Run(Protocol):
    """A run with rows, such as :class:`dori_fast.runs.store.reopen.StoredRun`."""

    @property
    def root(self) -> Path:
        """The run directory."""
        ...

    def summary(self) -> dict[str, Any]:
        """run.json."""
        ...

    @property
    def merkle_root(self) -> str | None:
        """Of a finished run's manifest, in hexadecimal."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the rows."""
        ...

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """The rows in order, of these columns or of all, some at a time."""
        ...


def rows_of(run: Run, *columns: str) -> list[dict[str, Any]]:
    """All rows at once; for runs of few."""
    return [row for part in run.tables(*columns) for row in part.to_pylist()]


def unfinished(run: Run) -> list[Html]:
    """A note if this is not the whole of it."""
    state = run.summary()["state"]
    if state == "done":
        return []
    if state == "over_budget":
        return [note("More rows were quarantined than the scan allows.")]
    return [note("This run is not finished; the page shows what is committed so far.")]


def run_facts(run: Run) -> Html:
    """What was run, on what, with what."""
    record = run.summary()
    identity, model, counts = record["identity"], record["model"], record["counts"]
    hashes = model.get("files") or {}
    unet = [hashes[name] for name in hashes if _is_unet_weights(name)]
    return facts(
        [
            ("model", model.get("source")),
            ("revision", model.get("revision")),
            ("UNet sha256", ", ".join(unet) or None),
            ("UNet weights laid over, sha256", hashes.get("unet_weights")),
            ("masks sha256", model.get("masks")),
            ("dtype, device", f"{model.get('dtype')}, {model.get('device')}"),
            ("method", settings(identity["detector"])),
            ("input", record["input_path"]),
            ("input sha256", identity["input_sha256"]),
            ("column", identity["column"]),
            ("limit", identity["limit"]),
            ("rows", f"{counts['rows']:,}, {counts['quarantined']:,} of them quarantined"),
            ("batch size", record["batch_size"]),
            ("started", record["started"]),
            ("time", str(timedelta(seconds=round(record["seconds"])))),
            ("versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items())),
            ("run", record["run_hash"]),
            ("Merkle root of run.json and shards", run.merkle_root),
        ]
    )


def _is_unet_weights(name: str) -> bool:
    # a file of a directory, or all of a pipeline in memory
    return name == "unet" or (name.startswith("unet/") and name.endswith(".safetensors"))


def quarantine(rows: list[tuple[int, str]], total: int) -> list[Html]:
    """Rows that could not be used, (row, ``"code: message"``), the first of ``total``."""
    if not total:
        return []
    parts = [table(("row", "reason"), [(row, why) for row, why in rows], right=("row",))]
    if total > len(rows):
        parts.append(note(f"{total - len(rows):,} more are in the run directory."))
    return parts


def file_name(run: Run) -> str:
    """How a page calls the run."""
    return run.root.resolve().name
