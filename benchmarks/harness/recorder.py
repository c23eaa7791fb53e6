"""Records rows as they come; a case that fails is recorded as failed, and the others go on."""

from __future__ import annotations

import argparse
import gc
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.rows import FAILED, RESULTS, SKIPPED, Row, make_row, record

_LONGEST_NOTE = 300


class NotHere(Exception):
    """A case that cannot run here, with the reason: a library, a version or a device is missing."""


@dataclass
class Recorder:
    """Writer of a script's rows.

    Attributes:
        device, threads, command: as in :func:`benchmarks.harness.make_row`.
        folder: folder of the CSV; None writes nothing.
        rows: rows so far.
        failed: cases that failed.
    """

    device: str
    threads: int
    command: str
    folder: Path | None = RESULTS
    rows: list[Row] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, options: argparse.Namespace, command: str) -> Recorder:
        """The recorder of a command line with :func:`add_options`."""
        folder = None if options.no_write else options.results
        return cls(options.device, options.threads, command, folder)

    @contextmanager
    def case(self, **facts: Any) -> Iterator[Case]:
        """A case whose rows have these facts; an exception in it is recorded and ends it alone."""
        case = Case(self, {"shape": "", "dtype": "", "x": 1, "bytes": 0, "flops": 0, **facts})
        try:
            yield case
        except NotHere as reason:
            case.write([float("nan")], metric=SKIPPED, unit="", note=str(reason))
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}".replace("\n", " ")[:_LONGEST_NOTE]
            self.failed.append(f"{case.name}: {reason}")
            case.write([float("nan")], metric=FAILED, unit="", note=reason)
            # the traceback has kept the failed case's tensors
            gc.collect()
        finally:
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def write(self, rows: Sequence[Row]) -> None:
        """Record rows that were made elsewhere."""
        self.rows += rows
        if self.folder is not None:
            record(rows, self.folder)

    def finish(self) -> int:
        """Print what failed; return the exit code."""
        print(f"{len(self.rows)} rows, {len(self.failed)} cases failed")
        print(*(f"FAILED {line}" for line in self.failed), sep="\n")
        return 1 if self.failed else 0


@dataclass
class Case:
    """One case of a recorder: facts that its rows share."""

    recorder: Recorder
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """Facts that tell the case from others."""
        told = ("op", "mode", "provider", "shape", "dtype")
        return " ".join(str(self.facts[name]) for name in told if self.facts.get(name))

    def write(self, samples: Sequence[float], *, metric: str, unit: str, **facts: Any) -> Row:
        """Record a row and print it."""
        to = self.recorder
        facts = {**self.facts, "metric": metric, "unit": unit, **facts}
        row = make_row(
            samples, **{"device": to.device, "threads": to.threads, "command": to.command, **facts}
        )
        to.write([row])
        value = row.note if metric in (FAILED, SKIPPED) else f"{row.p50:g} {unit} {row.note}"
        print(
            f"{row.op:20} {row.mode:22} {row.provider:24} {row.shape:18} {row.dtype:9}"
            f" {metric:16} {value}".rstrip(),
            flush=True,
        )
        return row


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every script that records rows."""
    cuda = torch.cuda.is_available()
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--no-write", action="store_true", help="do not write results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV")
