"""Tables and a plot of benchmarks/results/*.csv: `python -m benchmarks.ops.report`.

README.md gets the short table; docs/benchmarks.md and docs/benchmarks.png get everything. `--check`
writes nothing and fails if a page differs from the CSV files.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.ops.plot import draw
from benchmarks.ops.results import Figure, Measured, Problem, figures, load, place

ROOT = Path(__file__).resolve().parents[2]
PREFACE = Path(__file__).parent / "preface.md"
BEGIN, END = "<!-- benchmark table: begin -->", "<!-- benchmark table: end -->"
_PROVIDERS = ("eager", "compile", "reference", "cpp", "triton", "cuda")
_SHORT = ("float32", "float16", "bfloat16")


def headline(measured: Iterable[Measured]) -> list[Measured]:
    """The largest problem of each op and mode, in one dtype."""
    by_mode = groupby(
        measured, lambda m: (m.problem.machine, m.problem.threads, m.problem.op, m.problem.mode)
    )
    return [max(group, key=_rank) for _, group in by_mode]


def _rank(measured: Measured) -> tuple[int, int, str]:
    dtype = measured.problem.dtype
    preferred = -_SHORT.index(dtype) if dtype in _SHORT else -len(_SHORT)
    return measured.problem.size, preferred, measured.problem.shape


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table; all columns but the first are right-aligned."""
    yield f"| {' | '.join(header)} |"
    yield "|---|" + "---:|" * (len(header) - 1)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def _share(measured: Measured) -> str:
    share = measured.shares.get(measured.ours or "", "")
    return f"{float(share):.0f} %" if share else ""


def _name(problem: Problem) -> str:
    return f"`{problem.op}` {problem.mode.replace('_', ' ')}"


def _by_machine(measured: Iterable[Measured]) -> Iterator[tuple[str, list[Measured]]]:
    for (machine, threads), group in groupby(
        measured, lambda m: (m.problem.machine, m.problem.threads)
    ):
        yield place(machine, threads), list(group)


def short_table(measured: Sequence[Measured]) -> str:
    """The README's table: one problem per op and mode."""
    lines = []
    for where, group in _by_machine(headline(measured)):
        header = ("op", "shape", "dtype", "eager", "ours", "speed-up", "roofline")
        rows = [
            (
                _name(m.problem),
                m.problem.shape,
                m.problem.dtype,
                f"{_number(m.medians.get('eager'))} {m.problem.unit}",
                f"{_number(m.medians.get(m.ours or ''))} {m.problem.unit}",
                _times(m.speedup),
                _share(m),
            )
            for m in group
            if m.speedup is not None
        ]
        lines += [f"Medians on {where}, against eager PyTorch as the papers' code does it:", ""]
        lines += [*markdown(header, rows), ""]
    return "\n".join(lines).rstrip()


def full_page(measured: Sequence[Measured], other: Sequence[Figure] = ()) -> str:
    """The text of docs/benchmarks.md: the preface, tables of times, and tables of other figures."""
    lines = [*PREFACE.read_text().splitlines(), ""]
    for where, group in _by_machine(measured):
        lines += [f"## {where}", ""]
        sources = sorted({source for m in group for source in m.sources})
        lines += [f"- {versions}, commit {commit}" for versions, commit in sources]
        for unit in sorted({m.problem.unit for m in group}, reverse=True):
            lines += ["", *_machine_table([m for m in group if m.problem.unit == unit]), ""]
    for (machine, threads), found in groupby(other, lambda f: (f.machine, f.threads)):
        header = ("measurement", "shape", "dtype", "provider", "metric", "value")
        rows = ((f"`{f.op}` {f.mode.replace('_', ' ')}", *_columns(f, header[1:])) for f in found)
        lines += [f"## {place(machine, threads)}: other figures", "", *markdown(header, rows), ""]
    return "\n".join(lines)


def _columns(figure: Figure, names: Sequence[str]) -> list[str]:
    """Attributes as texts; a bar would end the table's cell."""
    return [str(getattr(figure, name)).replace("|", "\\|") for name in names]


def _machine_table(group: Sequence[Measured]) -> Iterator[str]:
    known = {name for m in group for name in m.medians}
    names = [*(n for n in _PROVIDERS if n in known), *sorted(known - set(_PROVIDERS))]
    header = ("op", "shape", "dtype", *names, "unit", "speed-up", "roofline")
    yield from markdown(
        header,
        (
            (
                _name(m.problem),
                m.problem.shape,
                m.problem.dtype,
                *(_number(m.medians.get(name)) for name in names),
                m.problem.unit,
                _times(m.speedup),
                _share(m),
            )
            for m in group
        ),
    )


def replaced(text: str, table: str) -> str:
    """The page with a new table between its markers.

    Raises:
        ValueError: the page does not have exactly one pair of markers.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the page needs one line {BEGIN} and after it one line {END}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def fingerprint(measured: Iterable[Measured]) -> str:
    """Hash of everything the plot shows, kept in its metadata: pixels differ between machines."""
    shown = "\n".join(f"{m.problem} {m.ours} {m.speedup}" for m in measured)
    return hashlib.sha256(shown.encode()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Write or check the tables and the plot; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    options = parser.parse_args(arguments)
    measured = load()
    readme, page = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
    wanted = {
        readme: replaced(readme.read_text(), short_table(measured)),
        page: full_page(measured, figures()),
    }
    stale = [path.name for path, text in wanted.items() if _text(path) != text]
    if options.check:
        print(f"out of date: {', '.join(stale)}" if stale else "up to date")
        return 1 if stale else 0
    page.parent.mkdir(exist_ok=True)
    for path, text in wanted.items():
        path.write_text(text)
    draw(measured, ROOT / "docs" / "benchmarks.png", fingerprint(measured))
    return 0


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
