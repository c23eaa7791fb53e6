"""Tables and a plot out of benchmarks/results/*.csv: `python -m benchmarks.ops.report`.

The short table goes into README.md, everything into docs/benchmarks.md and docs/benchmarks.png;
`--check` writes nothing and fails where they are not what the CSV files give.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from benchmarks.harness import RESULTS

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- benchmark table: begin -->", "<!-- benchmark table: end -->"
# the first that is there is the one that "auto" takes
KERNELS = ("cuda", "triton", "cpp", "reference")
OURS = (*KERNELS, "dori_fast")
_PROVIDERS = ("eager", "compile", "reference", "cpp", "triton", "cuda")
_SHORT = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing measured: who computes it is what the table compares."""

    machine: str
    threads: int
    op: str
    mode: str
    size: int
    shape: str
    dtype: str
    unit: str


@dataclass
class Measured:
    """Medians of a problem's providers, and the share of the roofline that each reaches."""

    problem: Problem
    medians: dict[str, float] = field(default_factory=dict)
    shares: dict[str, str] = field(default_factory=dict)
    sources: set[tuple[str, str]] = field(default_factory=set)

    @property
    def ours(self) -> str | None:
        """The provider that stands for this package."""
        return next((name for name in OURS if name in self.medians), None)

    @property
    def speedup(self) -> float | None:
        """Times as fast as eager."""
        if self.ours is None or "eager" not in self.medians:
            return None
        return self.medians["eager"] / self.medians[self.ours]


def load(folder: Path = RESULTS) -> list[Measured]:
    """Everything that the CSV files of a folder hold, in a fixed order."""
    found: dict[Problem, Measured] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                problem = Problem(
                    machine=row["machine"],
                    threads=int(row["threads"]),
                    op=row["op"],
                    mode=row["mode"],
                    size=int(row["x"]),
                    shape=row["shape"],
                    dtype=row["dtype"],
                    unit=row["unit"],
                )
                measured = found.setdefault(problem, Measured(problem))
                measured.medians[row["provider"]] = float(row["p50"])
                measured.shares[row["provider"]] = row.get("roofline_pct") or ""
                measured.sources.add((row["versions"], row["commit"]))
    return [found[problem] for problem in sorted(found)]


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
    """Lines of a Markdown table; all columns but the first are aligned to the right."""
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


def place(machine: str, threads: int) -> str:
    """A machine and, if it computed on a CPU, with how many threads."""
    return f"{machine}, {threads} thread{'s' if threads > 1 else ''}" if threads else machine


def _by_machine(measured: Iterable[Measured]) -> Iterator[tuple[str, list[Measured]]]:
    for (machine, threads), group in groupby(
        measured, lambda m: (m.problem.machine, m.problem.threads)
    ):
        yield place(machine, threads), list(group)


def short_table(measured: Sequence[Measured]) -> str:
    """The README's table: one problem of each op and mode."""
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


def full_page(measured: Sequence[Measured]) -> str:
    """docs/benchmarks.md."""
    lines = [*_PREFACE]
    for where, group in _by_machine(measured):
        lines += [f"## {where}", ""]
        sources = sorted({source for m in group for source in m.sources})
        lines += [f"- {versions}, commit {commit}" for versions, commit in sources]
        for unit in sorted({m.problem.unit for m in group}, reverse=True):
            lines += ["", *_machine_table([m for m in group if m.problem.unit == unit]), ""]
    return "\n".join(lines)


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


_PREFACE = (
    "# Benchmarks",
    "",
    "Written by `python -m benchmarks.ops.report` from `benchmarks/results/*.csv`, which also"
    " hold the",
    "spread, the traffic, the versions and the command of every row. Medians; all providers of a",
    "row are timed in turn in one process, after each result was compared with a float64 oracle.",
    "",
    "- `eager` is what the papers' code does; the speed-up is that of the kernel that `auto` takes",
    "  (`cuda`, else `triton`; on a CPU `cpp`, else `reference`) over it.",
    "- With one thread the unit is CPU time, which other processes hardly change; with more, and",
    "  on GPUs, it is time by the clock.",
    "- 100 % of the roofline is as fast as copying as many bytes as the op must move, or as a",
    "  matrix product of as many operations, whichever takes longer, both timed in the same run on",
    "  the same device and threads. A CPU's copy is as large as the problem, so that both stay in",
    "  the same cache. An op that mostly reads can exceed 100 %.",
    "- `scan` rows are prompts scored end to end (model:prompts x seeds); `cfg_batched` is the",
    "  papers' way batched over prompts, `uncond_shared` ours with the network called whole.",
    "  `dori_fast` runs as `df.load` chooses by itself, `dori_fast_plain` with every switch off,",
    "  `dori_fast_channels_last`, `_compiled` and `_cuda_graphs` with that one on.",
    "",
    "![Speed-up over eager PyTorch](benchmarks.png)",
    "",
)


def replaced(text: str, table: str) -> str:
    """A page with what stands between the markers replaced.

    Raises:
        ValueError: the page has not exactly one pair of markers.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the page needs one line {BEGIN} and after it one line {END}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def fingerprint(measured: Iterable[Measured]) -> str:
    """Of everything that the plot shows; it is kept in the picture, which may differ in pixels."""
    shown = "\n".join(f"{m.problem} {m.ours} {m.speedup}" for m in measured)
    return hashlib.sha256(shown.encode()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Write, or compare, tables and plot; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a page is out of date")
    options = parser.parse_args(arguments)
    measured = load()
    readme, page = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
    wanted = {
        readme: replaced(readme.read_text(), short_table(measured)),
        page: full_page(measured),
    }
    stale = [path.name for path, text in wanted.items() if _text(path) != text]
    if options.check:
        print(f"out of date: {', '.join(stale)}" if stale else "up to date")
        return 1 if stale else 0
    from benchmarks.ops.plot import draw

    page.parent.mkdir(exist_ok=True)
    for path, text in wanted.items():
        path.write_text(text)
    draw(measured, ROOT / "docs" / "benchmarks.png", fingerprint(measured))
    return 0


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
