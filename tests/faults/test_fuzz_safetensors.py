"""Hostile headers of weight files: one clear refusal, in memory that the file's size bounds."""

from __future__ import annotations

import json
import resource
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

import dori_fast as df
from dori_fast.errors import IntegrityError
from dori_fast.models.files.tensor_file import read_tensors
from tests.faults.test_fuzz_readers import EXAMPLES, fuzzed

UNET = "unet/diffusion_pytorch_model.safetensors"
ENTRY = '"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
OVERLAP = '"y": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}'
HUGE = '"x": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 8]}'
WRONG = '"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}'


def file_of(header: str, data: int = 16, size: int | None = None) -> bytes:
    raw = header.encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + bytes(data)


HOSTILE = {
    "empty": b"",
    "2^63 header": file_of("{}", size=2**63),
    "2^64 - 1 header": file_of("{}", size=2**64 - 1),
    "100 MB header of nothing": file_of("{}", size=99_000_000),
    "truncated": file_of(f"{{{ENTRY}}}", data=4),
    "overlap": file_of(f"{{{ENTRY}, {OVERLAP}}}", data=12),
    "duplicate keys": file_of(f"{{{ENTRY}, {ENTRY}}}", data=8),
    "a shape that overflows": file_of(f"{{{HUGE}}}", data=8),
    "a shape of another size": file_of(f"{{{WRONG}}}", data=8),
    "bytes that nobody owns": file_of(f"{{{ENTRY}}}", data=24),
    "deep": file_of("[" * 100_000),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_weights_are_refused_in_little_memory(
    tiny_directory: Path, tmp_path: Path, kind: str
) -> None:
    directory = shutil.copytree(tiny_directory, tmp_path / "model")
    (directory / UNET).write_bytes(HOSTILE[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IntegrityError, match="cannot be read") as info:
        df.load(directory, device="cpu")
    assert "\n" not in str(info.value)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, f"{grown} KiB more"


def test_one_doubled_name_in_a_sound_file_is_refused(tiny_directory: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(tiny_directory, tmp_path / "model")
    data = (directory / UNET).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].decode().strip()
    name, entry = next((n, e) for n, e in json.loads(header).items() if n != "__metadata__")
    doubled = f"{header[:-1]}, {json.dumps(name)}: {json.dumps(entry)}}}"
    (directory / UNET).write_bytes(file_of(doubled, 0) + data[8 + size :])
    with pytest.raises(IntegrityError, match="occurs twice"):
        df.load(directory, device="cpu")


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_header(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "x.safetensors"
    number = st.integers(-1, 2**64)
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "U8", "BOOL", "F8_E4M3", "X", ""]),
            "shape": st.lists(number | st.integers(0, 4), max_size=3),
            "data_offsets": st.lists(number | st.integers(0, 16), max_size=3),
        }
    )
    header = st.dictionaries(st.text(max_size=3), entry, max_size=3)
    size = st.none() | number.map(lambda n: max(0, min(n, 2**64 - 1)))

    def check(example: tuple[Any, int, int | None]) -> None:
        table, data, size = example
        path.write_bytes(file_of(json.dumps(table), data, size))
        with pytest.raises(IntegrityError, match="x.safetensors"):
            read_tensors(path, "dori_fast", "a mask")

    fuzzed(examples, st.tuples(header, st.integers(0, 20), size), check)
