"""Output: results on stdout, everything else on stderr, control characters in data escaped."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from shutil import get_terminal_size
from time import monotonic
from typing import TYPE_CHECKING, TextIO

from dori_fast._text import harmless

if TYPE_CHECKING:
    from dori_fast.runs.progress import Progress

_QUIET = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}
_LOG_SECONDS = 10.0
_CLEAR = "\r\x1b[K"


def replace_closed_streams() -> None:
    """Open /dev/null for stdout and stderr that were closed before the start (``>&-``).

    Python sets such streams to None. Their descriptors must be taken too: the next opened file
    would get them, and a library that writes to descriptor 2 would write into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # open returns the lowest free number, which is this one; workers inherit it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def print_result(text: str) -> None:
    """Print to stdout; a closed pipe (``| head``) is no error."""
    try:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes stdout again on exit; that must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns; control characters are escaped, last cells are cut to the terminal."""
    cells = [list(header), *([harmless(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header) - 1)]
    room = get_terminal_size().columns - sum(widths) - 2 * len(widths)
    lines = []
    for row in cells:
        last = row[-1]
        if sys.stdout.isatty() and len(last) > max(room, 20):
            last = last[: max(room, 20) - 1] + "…"
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*padded, last]).rstrip())
    return "\n".join(lines)


class Status(logging.Handler):
    """Progress on stderr: one line that is redrawn on a terminal, else a line every ten seconds.

    As a context manager it also prints the package's warnings, between redraws.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._last = monotonic()

    def __enter__(self) -> Status:
        logging.getLogger("dori_fast").addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger("dori_fast").removeHandler(self)
        if self._live:
            self._write(_CLEAR)

    def progress(self, progress: Progress) -> None:
        """Show the progress of a run over rows."""
        self.line(_describe(progress))

    def line(self, text: str) -> None:
        """Show a line until the next one replaces it."""
        if self._live:
            room = get_terminal_size().columns - 1
            self._write(f"{_CLEAR}{text[:room]}")
        elif monotonic() - self._last >= _LOG_SECONDS:
            self._last = monotonic()
            self.say(text)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._write(f"{_CLEAR if self._live else ''}{harmless(text)}\n")

    def _write(self, text: str) -> None:
        # a closed pipe or a full disk must not end the run
        with suppress(OSError):
            self._stream.write(text)
            self._stream.flush()

    def emit(self, record: logging.LogRecord) -> None:
        self.say(f"{record.levelname.lower()}: {record.getMessage()}")


def _describe(progress: Progress) -> str:
    left = "?" if progress.remaining is None else _clock(progress.remaining)
    return (
        f"{progress.done:,} rows, {progress.rate:,.1f} rows/s, ETA {left},"
        f" {progress.quarantined:,} quarantined"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def quiet_libraries() -> None:
    """Silence progress bars and advice of libraries, which would break our redrawn line."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
