"""The SHA-256 of a file."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

_BLOCK = 1 << 20


def file_sha256(path: Path, stopped: threading.Event | None = None) -> str:
    """The sha256 of a file's bytes, in hexadecimal; once ``stopped``, of those read so far."""
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while (read := file.readinto(block)) and not (stopped and stopped.is_set()):
            digest.update(block[:read])
    return digest.hexdigest()
