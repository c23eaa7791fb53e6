"""dori-fast finetune."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import (
    AsJson,
    Column,
    Header,
    Limit,
    MaxErrors,
    ModelWeights,
    Resume,
    command,
)
from dori_fast.cli.sources import demo_images
from dori_fast.cli.terminal import Status, format_table, print_result, quiet_libraries

if TYPE_CHECKING:
    from dori_fast.finetune import StepReport
    from dori_fast.runs.methods.finetune import FineTuned

_SHOWN = ("prompt_loss", "trigger_loss", "retained_loss", "attack_first", "attack_last")


@command()
def finetune(
    prompts: Annotated[Path, typer.Option(help="Memorized prompts; .csv, .jsonl or .parquet.")],
    images: Annotated[
        str,
        typer.Option(help="Folder of the prompts' images; demo: the embedded model's, by prompt."),
    ],
    masks: Annotated[
        Path,
        typer.Option(help="Masks that hide the images: run directory of dori-fast prune or file."),
    ],
    retained: Annotated[
        str, typer.Option(help="Prompts and images to retain; demo: the embedded model's.")
    ],
    out: Annotated[Path, typer.Option(help="Run directory; created if missing.")],
    source: ModelWeights,
    image_column: Annotated[
        str, typer.Option(help="Column of image file names, relative to --images.")
    ] = "image",
    retained_images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images to retain; default: folder of --retained."),
    ] = None,
    drawn: Annotated[
        int,
        typer.Option(
            help="Drawn pairs in addition to the shipped ones, for --retained demo.",
            min=0,
            max=1200,
        ),
    ] = 1200,
    column: Column = None,
    header: Header = None,
    steps: Annotated[int, typer.Option(help="Number of weight updates.")] = 250,
    lr: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 1.5e-3,
    inner_steps: Annotated[int, typer.Option(help="Attack steps before each update.")] = 10,
    inner_batch: Annotated[
        int, typer.Option(help="Draws of noise and timestep per attack step.")
    ] = 2,
    inner_lr: Annotated[float, typer.Option(help="Learning rate of the attack.")] = 0.1,
    objective: Annotated[
        str, typer.Option(help="Attack loss: epsilon, min-snr or prediction.")
    ] = "prediction",
    snr_cap: Annotated[
        float, typer.Option(help="Largest weight of a noise level, for --objective min-snr.")
    ] = 5.0,
    starts: Annotated[
        list[str] | None,
        typer.Option(
            help="Starting points of the triggers: prompt, gaussian or retained; comma-separated or"
            " repeated. [default: prompt,gaussian]"
        ),
    ] = None,
    restart_after: Annotated[
        int, typer.Option(help="Attack steps until a trigger restarts; 0: every update.", min=0)
    ] = 60,
    without_attack: Annotated[
        bool, typer.Option("--without-attack", help="Plain fine-tuning on surrogates.")
    ] = False,
    draws: Annotated[
        int, typer.Option(help="Surrogates per trigger and per prompt in each update.")
    ] = 2,
    redirect: Annotated[
        float,
        typer.Option(help="Loss weight of noised memorized images, trained toward surrogates."),
    ] = 1.0,
    retained_batch: Annotated[int, typer.Option(help="Retained pairs per update.")] = 32,
    retained_weight: Annotated[float, typer.Option(help="Loss weight of retained pairs.")] = 4.0,
    distil: Annotated[
        bool,
        typer.Option(
            "--distil/--no-distil",
            help="Target of retained pairs: the original model's prediction, or the true one.",
        ),
    ] = True,
    ema: Annotated[
        float | None,
        typer.Option(help="Decay of an EMA of the weights, which is then saved; default: none."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    surrogates: Annotated[int, typer.Option(help="Surrogates per prompt.")] = 4,
    draw_steps: Annotated[int, typer.Option(help="DDIM steps of the surrogates.", min=1)] = 50,
    guidance: Annotated[float, typer.Option(help="Guidance scale of the surrogates.")] = 7.5,
    checkpoint_every: Annotated[
        int,
        typer.Option(help="Updates per checkpoint, which an interruption can lose.", min=1),
    ] = 25,
    limit: Limit = None,
    resume: Resume = "auto",
    max_errors: MaxErrors = 0.01,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train memorized images out of a copy of the model.

    Every step attacks the model: it finds triggers, embeddings that retrieve the images. Then it
    trains prompts and triggers to lead to surrogates, other images that the model draws once
    under the masks. Writes model/, a diffusers directory, and losses of every step to
    scalars.jsonl. The same command continues an interrupted run.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.attack import Dori
        from dori_fast.finetune import Adversarial, Pool
        from dori_fast.runs.methods.attack import read_masks
        from dori_fast.runs.methods.cached_images import DrawnPairs
        from dori_fast.runs.methods.drawing import Drawing
        from dori_fast.runs.methods.finetune import fine_tune
        from dori_fast.runs.sources.open import open_prompts
        from dori_fast.runs.sources.where import Selection

        open_prompts(prompts, column, Selection.of(header=header))
        inner = Dori(
            inner_steps, inner_lr, inner_batch, objective=objective, snr_cap=snr_cap, seed=seed
        )
        method = Adversarial(
            steps,
            None if without_attack else inner,
            Pool(_listed(starts) or ("prompt", "gaussian"), restart_after=restart_after or None),
            lr=lr,
            draws=draws,
            redirect=redirect,
            retained_batch=retained_batch,
            retained_weight=retained_weight,
            distil=distil,
            ema=ema,
            seed=seed,
        )
        hiding = read_masks(masks)
        opened = source.load(dtype="fp32")

        def demo_pairs() -> list[tuple[str, Any]]:
            from dori_fast.demo.retained import retained_pairs

            return retained_pairs(opened, drawn)

        result = fine_tune(
            opened,
            prompts,
            demo_images() if images == "demo" else images,
            out=out,
            method=method,
            masks=hiding,
            retained=DrawnPairs({"demo": drawn}, demo_pairs) if retained == "demo" else retained,
            retained_images=retained_images,
            drawing=Drawing(surrogates, draw_steps, guidance),
            column=column,
            header=header,
            image_column=image_column,
            limit=limit,
            checkpoint_every=checkpoint_every,
            resume=resume,
            max_errors=max_errors,
            on_stage=status.say,
            on_step=lambda report: status.line(_line(report)),
        )
        status.say(
            f"{result.steps:,} steps in {result.seconds:.1f} s, {result.evaluations:,} UNet"
            f" evaluations ({result.rows_computed:,} rows with padding), {result.quarantined:,}"
            f" rows quarantined; see {out / 'model'}"
        )
        print_result(_as_json(result) if as_json else _as_table(result))


def _listed(values: list[str] | None) -> tuple[str, ...]:
    return tuple(part.strip() for value in values or [] for part in value.split(","))


def _line(report: StepReport) -> str:
    figures = {name: getattr(report, name) for name in _SHOWN}
    shown = [f"{n.replace('_', ' ')} {x:.3f}" for n, x in figures.items() if x is not None]
    return ", ".join([f"step {report.step:,} of {report.steps:,}", *shown])


def _as_table(result: FineTuned) -> str:
    scalars = result.scalars()
    cells = [
        (name.replace("_", " "), f"{scalars[0][name]:.4f}", f"{scalars[-1][name]:.4f}")
        for name in _SHOWN
        if scalars[0][name] is not None
    ]
    cells += [
        (name, "", f"{count:,}")
        for name, count in (
            ("memorized images", result.memorized),
            ("without a surrogate of their own", result.surrogates["prompts_without_their_own"]),
            ("retained pairs", result.retained),
            ("rows quarantined", result.quarantined),
        )
    ]
    return format_table(("figure", "first step", "last"), cells)


def _as_json(result: FineTuned) -> str:
    found = {**asdict(result), "out": str(result.out), "last": result.scalars()[-1]}
    return json.dumps(found)
