"""dori-fast ls."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.terminal import format_table, print_result


def ls(
    kind: Annotated[
        Literal["models", "detectors", "ops"], typer.Argument(help="Kind of thing to list.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Output as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """List the available models, detectors or ops."""
    with reported(debug):
        header, rows = {"models": _models, "detectors": _detectors, "ops": _ops}[kind]()
        if as_json:
            print_result(json.dumps([dict(zip(header, row, strict=True)) for row in rows]))
        else:
            print_result(format_table(header, rows))


_Listing = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _models() -> _Listing:
    import dori_fast
    from dori_fast.errors import IntegrityError

    try:
        state, where = "installed", str(dori_fast.demo.path())
    except IntegrityError as error:
        state, where = "missing", str(error)
    rows: list[tuple[str, ...]] = [
        ("demo", state, where),
        ("demo-finetuned", state, "demo after adversarial fine-tuning"),
        ("<directory>", "", "any Stable Diffusion 1.x, 2.x or XL of diffusers"),
        ("<owner>/<name>", "", "any such model on the hub"),
    ]
    return ("model", "state", "where"), rows


def _detectors() -> _Listing:
    from dori_fast import detect
    from dori_fast.errors import UsageError

    rows: list[tuple[str, ...]] = []
    for name in detect.names():
        try:
            rows.append((name, _first_line(detect.get(name))))
        except UsageError as error:
            # one broken package must not hide the others
            rows.append((name, str(error)))
    return ("detector", "description"), rows


def _ops() -> _Listing:
    import dori_fast

    rows: list[tuple[str, ...]] = [
        (name, device, found.backend or "-", " ".join(found.available) or "-")
        for name, devices in dori_fast.backends().items()
        for device, found in devices.items()
    ]
    return ("op", "device", "auto", "available"), rows


def _first_line(thing: object) -> str:
    return (type(thing).__doc__ or "").strip().split("\n")[0]
