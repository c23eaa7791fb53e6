"""Experiments with disks that refuse, fill up or may not be written to."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
from pathlib import Path
from typing import Any

from dori_fast.runs.store import shard
from tests.faults.lab.lab import Lab

_LIBC = ctypes.CDLL(None, use_errno=True)
_READ_ONLY, _REMOUNT, _BIND, _DETACH = 1, 32, 4096, 2


def failing_call(lab: Lab, call: str, nth: int, number: int) -> dict[str, Any]:
    """The nth ``fsync`` or ``replace`` of a scan fails with an error number."""
    lab.fast, out = True, lab.work / f"{call}-{nth}-{number}"
    real, calls = getattr(os, call), iter(range(1, 1_000_000))

    def injected(*arguments: Any) -> None:
        if next(calls) == nth:
            raise OSError(number, os.strerror(number))
        real(*arguments)

    fault = lab.run(out, lambda: setattr(os, call, injected))
    return {"fault": fault, "end": lab.finish(out)}


def refused_write(lab: Lab, number: int) -> dict[str, Any]:
    """Writing the third shard fails with an error number after half of its bytes."""
    lab.fast, out = True, lab.work / f"write-{number}"
    write = shard._write

    def injected(path: Path, *arguments: Any) -> None:
        write(path, *arguments)
        if "part-00002" in path.name:
            os.truncate(path, path.stat().st_size // 2)
            raise OSError(number, os.strerror(number))

    fault = lab.run(out, lambda: setattr(shard, "_write", injected))
    return {"fault": fault, "end": lab.finish(out)}


def file_size_limit(lab: Lab) -> dict[str, Any]:
    """A file-size limit of half a shard, which acts as a quota does."""
    lab.fast, out = True, lab.work / "limited"
    whole = min(path.stat().st_size for path in (lab.baseline / "shards").iterdir())

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole // 2, whole // 2))

    fault = lab.run(out, limit)
    return {"fault": fault, "end": lab.finish(out)}


def full_disk(lab: Lab) -> dict[str, Any]:
    """A small file system that fills up in the middle of a scan and is then cleared."""
    lab.fast, place = True, lab.work / "small"
    place.mkdir()
    if refused := _mount(b"tmpfs", place, 0, b"size=1m"):
        return {"left_out": refused}
    try:
        ballast = place / "ballast"
        # room for some shards, not for all
        ballast.write_bytes(bytes(shutil.disk_usage(place).free - 60_000))
        fault = lab.run(place / "run")
        done = len(list((place / "run" / "shards").iterdir()))
        ballast.unlink()
        return {"fault": fault, "committed": done, "end": lab.finish(place / "run")}
    finally:
        # a process that is about to end may hold it a moment longer
        _LIBC.umount2(os.fsencode(place), _DETACH)


def read_only(lab: Lab, part: str) -> dict[str, Any]:
    """A run directory, or its folder of shards, on a file system that is read-only."""
    lab.fast, out = True, lab.work / f"read-only-{part}"
    place = out if part == "run" else out / part
    place.mkdir(parents=True)
    for flags in (_BIND, _BIND | _REMOUNT | _READ_ONLY):
        if refused := _mount(os.fsencode(place), place, flags, b""):
            return {"left_out": refused}
    try:
        lab.reset()
        fault = lab.run(out) | {"asked": lab.asked}
    finally:
        # a process that is about to end may hold it a moment longer
        _LIBC.umount2(os.fsencode(place), _DETACH)
    return {"fault": fault, "end": lab.finish(out)}


def no_permission(lab: Lab) -> dict[str, Any]:
    """Another user's folder of shards, scanned as nobody since root may write everywhere."""
    lab.fast, out = True, lab.work / "foreign"
    (out / "shards").mkdir(parents=True)
    os.chmod(out, 0o777)
    os.chmod(out / "shards", 0o555)
    os.chmod(lab.work, 0o755)
    os.chmod(lab.work / "stderr", 0o666)
    lab.reset()
    fault = lab.run(out, _as_nobody) | {"asked": lab.asked}
    shutil.rmtree(out)
    return {"fault": fault, "end": lab.finish(out)}


def full_terminal(lab: Lab, streams: list[int]) -> dict[str, Any]:
    """Standard streams on a full device; a foreign file among the shards provokes a warning."""
    lab.fast, out = True, lab.work / f"full-{len(streams)}"

    (out / "shards").mkdir(parents=True)
    (out / "shards" / "notes.md").touch()

    def redirect() -> None:
        full = os.open("/dev/full", os.O_WRONLY)
        for stream in streams:
            os.dup2(full, stream)

    fault = lab.run(out, redirect)
    (out / "shards" / "notes.md").unlink()
    return {"fault": fault, "end": lab.finish(out)}


def _as_nobody() -> None:
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def _mount(source: bytes, place: Path, flags: int, options: bytes) -> str | None:
    """Mount a file system; return the reason if that fails, else None."""
    kind = None if flags else b"tmpfs"
    if _LIBC.mount(source, os.fsencode(place), kind, flags, options) == 0:
        return None
    number = ctypes.get_errno()
    name = errno.errorcode[number]
    return f"a file system cannot be mounted here ({name}); it takes root"
