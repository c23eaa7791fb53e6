"""Fuzzing guided by coverage, if atheris is installed: inputs are mutated byte by byte.

    python -m tests.faults.lab.fuzz csv -runs=100000      libFuzzer's options; a folder is a corpus

A reader that neither reads nor rejects an input crashes; libFuzzer keeps that input in a file.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris
import pyarrow as pa
import pyarrow.parquet as pq

with atheris.instrument_imports(include=["dori_fast"]):
    from dori_fast.errors import IntegrityError, UsageError
    from dori_fast.models.files.tensor_file import read_tensors
    from dori_fast.runs.sources.where import Condition
    from dori_fast.runs.store.record import RunRecord
    from tests.faults.test_fuzz_readers import read_through
    from tests.faults.test_fuzz_safetensors import ENTRY, file_of
    from tests.report.pages.test_page import Reader, document


def _rows(suffix: str) -> Callable[[bytes], None]:
    path = Path(tempfile.mkdtemp(), f"p.{suffix}")

    def check(data: bytes) -> None:
        path.write_bytes(data)
        read_through(path)

    return check


def _refused(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    path = Path(tempfile.mkdtemp(), name)

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(IntegrityError):
            read(path)

    return check


def _condition(data: bytes) -> None:
    with suppress(UsageError):
        Condition.parse(data.decode("utf-8", "surrogateescape"))


def _page(data: bytes) -> None:
    plain, read = Reader(document("x")), Reader(document(data.decode("utf-8", "replace") or "x"))
    assert read.tags == plain.tags
    assert [a[:2] for a in read.attributes] == [a[:2] for a in plain.attributes]


FORMATS = ("txt", "csv", "tsv", "jsonl", "parquet", "arrow", "tar")
TARGETS: dict[str, Callable[[bytes], None]] = {
    **{suffix: _rows(suffix) for suffix in FORMATS},
    "safetensors": _refused("x.safetensors", lambda p: read_tensors(p, "dori_fast", "a mask")),
    "record": _refused("run.json", RunRecord.read),
    "condition": _condition,
    "page": _page,
}


_TABLE = pa.table({"prompt": ["a cat", None, "a dog"], "id": range(3)})


def _parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(_TABLE, sink)
    return sink.getvalue()


def _arrow() -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, _TABLE.schema) as stream:
        stream.write_table(_TABLE)
    return sink.getvalue()


def _tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        member = tarfile.TarInfo("0.txt")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"a cat"))
    return sink.getvalue()


# from an empty input the fuzzer finds no valid file of a format
SEEDS: dict[str, Callable[[], bytes]] = {
    "txt": lambda: b"a cat\n",
    "csv": lambda: b'id,prompt\n1,"a cat"\n',
    "tsv": lambda: b"id\tprompt\n1\ta cat\n",
    "jsonl": lambda: b'{"prompt": "a cat", "id": 1}\n',
    "parquet": _parquet,
    "arrow": _arrow,
    "tar": _tar,
    "safetensors": lambda: file_of(f"{{{ENTRY}}}", 8),
    "record": lambda: json.dumps({"run_hash": "a", "identity": {}, "model": {}}).encode(),
    "condition": lambda: b"language in [\"en\", 'de']",
    "page": lambda: b"<b>",
}


def main() -> None:
    """Fuzz one target from its seed, with libFuzzer's options."""
    target, options = sys.argv[1], sys.argv[2:]
    corpus = Path(tempfile.mkdtemp())
    (corpus / "seed").write_bytes(SEEDS[target]())
    atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
