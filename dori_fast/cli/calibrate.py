"""dori-fast calibrate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import (
    AsJson,
    BatchSize,
    ChannelsLast,
    Column,
    Compile,
    CudaGraphs,
    DetectorName,
    Device,
    Dtype,
    Limit,
    ModelSource,
    Revision,
    Seeds,
    Steps,
    UnetWeights,
    Variant,
)
from dori_fast.cli.terminal import Status, format_table, print_result, quiet_libraries

_RATES = (0.1, 0.05, 0.01, 0.005, 0.001, 0.0001)


def calibrate(
    prompts: Annotated[Path, typer.Argument(help="Clean prompts; .txt, .csv, .jsonl, .parquet.")],
    out: Annotated[Path, typer.Option(help="The calibration file to write, JSON.")],
    suspicious: Annotated[
        Path | None, typer.Option(help="Memorized prompts, for scan --cascade.")
    ] = None,
    model: ModelSource = "demo",
    revision: Revision = None,
    variant: Variant = None,
    unet_weights: UnetWeights = None,
    column: Column = None,
    detector: DetectorName = "wen",
    seeds: Seeds = 4,
    steps: Steps = 1,
    batch_size: BatchSize = "auto",
    limit: Limit = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    compile: Compile = "auto",
    channels_last: ChannelsLast = "auto",
    cuda_graphs: CudaGraphs = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score clean prompts, so that scans can flag rows at a stated false-positive rate.

    Pass the file to scan --calibration, with the same model, detector, seeds and dtype.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.evaluate.calibration import Calibration
        from dori_fast.models import load
        from dori_fast.runs.calibrate import calibrate as run_calibration
        from dori_fast.runs.sources.open import open_prompts

        open_prompts(prompts, column)
        record = run_calibration(
            load(
                model,
                revision=revision,
                variant=variant,
                unet_weights=unet_weights,
                dtype=dtype,
                device=device,
                compile=compile,
                channels_last=channels_last,
                cuda_graphs=cuda_graphs,
            ),
            prompts,
            out=out,
            detector=detector,
            seeds=seeds,
            steps=steps,
            column=column,
            batch_size=batch_size,
            limit=limit,
            suspicious=suspicious,
        )
        yardstick = Calibration(record.scores)
        status.say(
            f"{record.rows:,} rows: {len(record.scores):,} distinct clean prompts,"
            f" {record.repeated:,} repeated, {record.quarantined:,} quarantined;"
            f" {len(record.suspicious):,} memorized prompts; {out}"
        )
        supported = [rate for rate in _RATES if rate >= yardstick.resolution]
        found = [(r, yardstick.threshold(r), yardstick.false_positive_rate(r)) for r in supported]
        if as_json:
            keys = ("rate", "threshold", "low", "high")
            rates = [dict(zip(keys, (r, t, i.low, i.high), strict=True)) for r, t, i in found]
            prompts_used = len(record.scores)
            print_result(json.dumps({"out": str(out), "prompts": prompts_used, "rates": rates}))
        else:
            rows = [(f"{r:g}", f"{t:.4f}", f"{i.low:.2%} to {i.high:.2%}") for r, t, i in found]
            print_result(format_table(("rate", "threshold", "95 % interval"), rows))
