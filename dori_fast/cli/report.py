"""dori-fast report."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import Device, Dtype, ModelSource, Revision, UnetWeights, Variant
from dori_fast.cli.terminal import Status, print_result, quiet_libraries

if TYPE_CHECKING:
    from dori_fast.report import Labels
    from dori_fast.runs.store.reopen import StoredRun


def report(
    run: Annotated[Path, typer.Argument(help="Run directory of scan, prune, attack or demo.")],
    out: Annotated[
        Path | None, typer.Option(help="The page; report.html in the directory if not given.")
    ] = None,
    top: Annotated[int, typer.Option(help="Scan: highest-scored prompts to list.", min=1)] = 50,
    label: Annotated[
        str | None, typer.Option(help="Scan: column of the input that says what is memorized.")
    ] = None,
    positive: Annotated[
        list[str] | None, typer.Option(help="Its values that mean memorized; may be repeated.")
    ] = None,
    pictures: Annotated[
        int, typer.Option(help="Scan: draw so many of the first prompts; needs --model.", min=0)
    ] = 0,
    seeds: Annotated[int, typer.Option(help="Pictures of each.", min=1)] = 4,
    steps: Annotated[int, typer.Option(help="DDIM steps of the pictures.", min=1)] = 20,
    guidance: Annotated[float, typer.Option(help="Their guidance scale.")] = 7.5,
    model: ModelSource = "demo",
    revision: Revision = None,
    variant: Variant = None,
    unet_weights: UnetWeights = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Draw a run's results as one HTML file that loads nothing and runs no script.

    Only result files are read; a model is loaded for --pictures alone.
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
        _require_scan(run, kind, {"--label": label, "--positive": positive, "--pictures": pictures})
        if pictures:
            from dori_fast.models import load

            loaded = load(
                model,
                revision=revision,
                variant=variant,
                unet_weights=unet_weights,
                dtype=dtype,
                device=device,
            )
            draw_top_images(loaded, stored, pictures, range(seeds), steps=steps, guidance=guidance)
        text = _page(run, kind, stored, top, read_labels(label, positive))
        path = out or run / REPORT
        write_text_durably(path, text)
        if path == stored.root / REPORT:
            list_report(stored.root)
        digest = hashlib.sha256(text.encode()).hexdigest()
        status.say(f"{len(text.encode()) / 1e6:.1f} MB, {kind}, sha256 {digest}")
        print_result(str(path))


def _page(run: Path, kind: str, stored: StoredRun, top: int, labels: Labels | None) -> str:
    from dori_fast.report import attack_page, prune_page, scan_page, story_page
    from dori_fast.runs.methods.top_images import read_top_images

    if kind == "demo":
        return story_page(run, stored)
    if kind == "scan":
        return scan_page(stored, top=top, labels=labels, drawn=read_top_images(run))
    return (prune_page if kind == "prune" else attack_page)(stored)


def read_labels(column: str | None, positive: list[str] | None) -> Labels | None:
    """The labels that --label and --positive name; None if they name none."""
    from dori_fast.errors import UsageError
    from dori_fast.report import Labels

    if column is None:
        if positive:
            raise UsageError("labels: --positive needs --label, the column that it is a value of")
        return None
    if not positive:
        return Labels(column)
    return Labels(column, frozenset(value.strip().lower() for value in positive))


def _require_scan(run: Path, kind: str, options: dict[str, object]) -> None:
    from dori_fast.errors import UsageError

    given = [name for name, value in options.items() if value]
    if kind != "scan" and given:
        raise UsageError(f"report: {given[0]} is for scans; {run} is of dori-fast {kind}")
