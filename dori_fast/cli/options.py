"""Options that several commands share, alone or as groups, and options with an old name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from dori_fast.cli.exits import USAGE, print_error, print_note, print_warning
from dori_fast.cli.needs import unmet

if TYPE_CHECKING:
    from dori_fast.models import Denoiser

Command = Callable[..., None]
_CONTEXT = "context"


def command(renamed: Mapping[str, str] | None = None) -> Callable[[Command], Command]:
    """Give a command the options of the groups among its parameters.

    Options that have no effect without another one are refused, by :mod:`dori_fast.cli.needs`.

    A parameter whose type is a dataclass below is replaced by one option per field of that class,
    and the command receives an instance with the given values. ``--help`` shows these options like
    any others.

    Args:
        renamed: Old names of parameters by their new names. The old options are hidden, print a
            warning, and set the new ones.
    """
    renamed = renamed or {}

    def decorate(function: Command) -> Command:
        hints = get_type_hints(function, include_extras=True)
        groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(function).parameters.items():
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters += (
                _fields(groups[name])
                if name in groups
                else [parameter.replace(kind=kind, annotation=_strict(hints[name]))]
            )
            if name in renamed:
                hidden = _hidden(hints[name])
                parameters.append(
                    inspect.Parameter(renamed[name], kind, default=None, annotation=hidden)
                )

        parameters.append(
            inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        )

        @functools.wraps(function)
        def run(**values: Any) -> None:
            given = _given(values.pop(_CONTEXT))
            for new, old in renamed.items():
                value = values.pop(old)
                if value is not None:
                    given.add(new)
                    option, now = (f"--{name.replace('_', '-')}" for name in (old, new))
                    print_warning(f"{option} is now {now}; the old name goes with the next version")
                    values[new] = value
            refusal = unmet(function.__name__, given, values)
            if refusal is not None:
                print_error(refusal)
                raise typer.Exit(USAGE)
            for name, group in groups.items():
                values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
            function(**values)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _given(context: typer.Context) -> set[str]:
    """Names of the parameters whose values do not come from their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {n for n, source in sources.items() if source and not source.name.startswith("DEFAULT")}


def _path(text: str) -> Path:
    if not text:
        # Path("") would be the current folder
        raise typer.BadParameter("the path is empty; give one (an unset variable of the shell?)")
    return Path(text)


def _strict(hint: Any) -> Any:
    """The hint of a parameter; one of a path rejects an empty text."""
    kind, option = get_args(hint) if get_origin(hint) is Annotated else (None, None)
    if kind not in (Path, Path | None, list[Path], list[Path] | None) or option.parser:
        return hint
    option = copy(option)
    option.parser, option.metavar = _path, option.metavar or "PATH"
    return Annotated[kind, option]


def _hidden(hint: Any) -> Any:
    """An option like that of a hint, with its bounds, but optional and absent from ``--help``."""
    kind, option = get_args(hint)
    option = copy(option)
    option.hidden = True
    return Annotated[kind | None, option]


def _fields(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=f.default,
            annotation=_strict(hints[f.name]),
        )
        for f in fields(group)
    ]


def _auto_or_int(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither 'auto' nor a whole number") from None


def _switch(text: str) -> bool | str:
    values: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}
    if text not in values:
        raise typer.BadParameter(f"{text!r} is none of auto, on and off")
    return values[text]


def listed(names: str | None) -> list[str] | None:
    """The names of a comma-separated list, which may be empty."""
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def _switched(help: str) -> Any:
    return typer.Option(parser=_switch, metavar="auto|on|off", help=help)


@dataclass(frozen=True)
class ModelSource:
    """Options that name a model."""

    model: Annotated[
        str,
        typer.Option(help="Model: demo, demo-finetuned, a diffusers directory or a hub id."),
    ] = "demo"
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a model from the hub.")
    ] = None

    def load(self, **fixed: Any) -> Denoiser:
        """Load the model, and print how it is read otherwise than by its own pipeline.

        Args:
            fixed: Further arguments of :func:`dori_fast.models.load`.
        """
        from dori_fast.models import load

        options = dict(vars(self))
        model = load(options.pop("model"), **options, **fixed)
        for note in model.reading:
            print_note(note)
        return model


@dataclass(frozen=True)
class ModelWeights(ModelSource):
    """Options that name a model and its weights, for a dtype that the command fixes."""

    variant: Annotated[str | None, typer.Option(help="Weight variant, such as fp16.")] = None
    unet_weights: Annotated[
        Path | None,
        typer.Option(help="Safetensors file whose weights replace the UNet's of the same names."),
    ] = None
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:N.")] = "auto"


@dataclass(frozen=True)
class ModelOptions(ModelWeights):
    """All options of loading a model that do not concern speed."""

    dtype: Annotated[str, typer.Option(help="Data type: auto, fp32, fp16, bf16 or fp64.")] = "auto"


@dataclass(frozen=True)
class FastModelOptions(ModelOptions):
    """All options of loading a model, for commands that only score."""

    compile: Annotated[Any, _switched("Compilation of the network by torch.compile.")] = "auto"
    channels_last: Annotated[
        Any, _switched("Memory layout with the channels innermost (channels_last).")
    ] = "auto"
    cuda_graphs: Annotated[Any, _switched("CUDA graphs, which launch small batches faster.")] = (
        "auto"
    )
    allow_tf32: Annotated[
        bool,
        typer.Option(
            "--allow-tf32",
            help="TF32 in float32 products of the UNet on a GPU: faster, scores less exact.",
        ),
    ] = False


@dataclass(frozen=True)
class Scoring:
    """Options of scoring prompts; the fields are arguments of scans and calibrations."""

    detector: Annotated[
        str, typer.Option(help="Detector by name; dori-fast ls detectors lists them.")
    ] = "wen"
    seeds: Annotated[int, typer.Option(help="Number of noise seeds, shared by all prompts.")] = 4
    steps: Annotated[int, typer.Option(help="Number of denoising steps to score.")] = 1
    units: Annotated[
        Literal["epsilon", "x0", "prediction"],
        typer.Option(help="Predictions to compare; prediction: the network's own output."),
    ] = "epsilon"
    batch_size: Annotated[
        Any,
        typer.Option(parser=_auto_or_int, metavar="auto|N", help="UNet samples per forward."),
    ] = "auto"


Column = Annotated[str | None, typer.Option(help="Column of prompts; default: found by its name.")]
Header = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header",
        help="First line of .csv and .tsv files: names of columns, or a row (columns 1, 2, ...);"
        " default: names, refused if they read like a prompt.",
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(metavar="CONDITION", help="Condition on rows, 'similarity > 0.3'; repeatable."),
]
Keep = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Columns to copy into the results; default: all."),
]
Workers = Annotated[
    Any,
    typer.Option(
        parser=_auto_or_int,
        metavar="auto|N",
        help="Number of worker processes; auto: one per GPU.",
    ),
]
Limit = Annotated[int | None, typer.Option(help="Number of rows to read; default: all.")]
Resume = Annotated[
    Literal["auto", "never", "must"],
    typer.Option(
        help="Existing run: auto continues it or starts one, never requires a new directory,"
        " must requires a run."
    ),
]
MaxErrors = Annotated[
    float,
    typer.Option(
        help="Allowed quarantined rows: a fraction if below 1, else a number; never all of them."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Output as JSON.")]
