"""dori-fast report."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import ModelOptions, command
from dori_fast.cli.terminal import Status, print_result, quiet_libraries

if TYPE_CHECKING:
    from dori_fast.report import Labels
    from dori_fast.runs.store.reopen import StoredRun

Label = Annotated[
    str | None, typer.Option(help="Column of the input that labels memorized rows, for scans.")
]
Positive = Annotated[
    list[str] | None,
    typer.Option(
        help="Value of --label that means memorized; repeatable. [default: 1, true, yes, memorized]"
    ),
]


@command(renamed={"images": "pictures"})
def report(
    run: Annotated[Path, typer.Argument(help="Run directory of scan, prune, attack or demo.")],
    source: ModelOptions,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write; default: report.html in RUN.")
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            help="Number of highest-scored prompts to list, for scans; default: 50, or all flagged"
            " rows up to 1,000.",
            min=1,
        ),
    ] = None,
    label: Label = None,
    positive: Positive = None,
    images: Annotated[
        int,
        typer.Option(help="Number of top prompts to draw with --model, for scans.", min=0),
    ] = 0,
    seeds: Annotated[int, typer.Option(help="Images per drawn prompt.", min=1)] = 4,
    steps: Annotated[int, typer.Option(help="DDIM steps of the drawn images.", min=1)] = 20,
    guidance: Annotated[float, typer.Option(help="Guidance scale of the drawn images.")] = 7.5,
    debug: Debug = False,
) -> None:
    """Write a run's results as one HTML page.

    The page loads nothing and runs no script. Reads only result files. Only --images loads a
    model.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.runs.methods.top_images import draw_top_images
        from dori_fast.runs.store.durable import write_text_durably
        from dori_fast.runs.store.manifest import REPORT, list_report
        from dori_fast.runs.store.reopen import open_run

        story = (run / "story.json").is_file()
        stored = open_run(run / "scan" if story else run)
        kind = "demo" if story else stored.kind
        _require_scan(run, kind, {"--label": label, "--images": images, "--top": top})
        if images:
            loaded = source.load()
            draw_top_images(loaded, stored, images, range(seeds), steps=steps, guidance=guidance)
        text = _page(run, kind, stored, top, read_labels(label, positive))
        path = out or run / REPORT
        write_text_durably(path, text)
        if path == stored.root / REPORT:
            list_report(stored.root)
        digest = hashlib.sha256(text.encode()).hexdigest()
        status.say(f"{len(text.encode()) / 1e6:.1f} MB, {kind}, sha256 {digest}")
        print_result(str(path))


def _page(run: Path, kind: str, stored: StoredRun, top: int | None, labels: Labels | None) -> str:
    from dori_fast.report import attack_page, prune_page, scan_page, story_page
    from dori_fast.runs.methods.top_images import read_top_images

    if kind == "demo":
        return story_page(run, stored)
    if kind == "scan":
        return scan_page(stored, top=top, labels=labels, drawn=read_top_images(run))
    return (prune_page if kind == "prune" else attack_page)(stored)


def read_labels(column: str | None, positive: list[str] | None) -> Labels | None:
    """Labels from --label and --positive, or None without them."""
    from dori_fast.errors import UsageError
    from dori_fast.report import Labels

    if column is None:
        if positive:
            raise UsageError("labels: --positive is a value of the column --label; add --label")
        return None
    if not positive:
        return Labels(column)
    return Labels(column, frozenset(value.strip().lower() for value in positive))


def _require_scan(run: Path, kind: str, options: dict[str, object]) -> None:
    from dori_fast.errors import UsageError

    given = [name for name, value in options.items() if value]
    if kind != "scan" and given:
        raise UsageError(f"report: {given[0]} is for scans, not for dori-fast {kind}; leave it out")
