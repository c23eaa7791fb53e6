"""Options that have no effect without another one: refused, never ignored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Need:
    """Options of one command that act only together with a value of another option.

    Attributes:
        command: name of the command's function.
        options: names of the options' parameters.
        lacking: end of the sentence "--fpr has no effect LACKING", such as ``"without
            --calibration"``.
        met: function of the command's values by parameter that returns whether the options act.
    """

    command: str
    options: tuple[str, ...]
    lacking: str
    met: Callable[[Values], bool]


_ATTACK = ("inner_steps", "inner_batch", "inner_lr", "objective", "snr_cap")
_TRIGGERS = ("starts", "restart_after", "redirect")
_MODEL = ("model", "revision", "variant", "unet_weights", "device", "dtype")

NEEDS = (
    Need(
        "scan",
        ("fpr", "fdr", "fdr_variant", "fail_if_flagged", "cascade"),
        "without --calibration",
        lambda v: v["calibration"],
    ),
    Need("scan", ("fdr_variant",), "without --fdr", lambda v: v["fdr"] is not None),
    Need("flag", ("fdr_variant",), "without --fdr", lambda v: v["fdr"] is not None),
    Need(
        "scan",
        ("watchdog",),
        "without --workers or --engine ray",
        lambda v: v["workers"] != 1 or v["engine"] == "ray",
    ),
    Need(
        "prune",
        ("clean", "statistics", "layers", "mode", "threshold", "theta_end", "units"),
        "with --method wanda",
        lambda v: v["method"] == "nemo",
    ),
    Need(
        "prune",
        ("sparsity", "steps", "both_halves"),
        "without --method wanda",
        lambda v: v["method"] == "wanda",
    ),
    Need(
        "attack",
        ("snr_cap",),
        "without --objective min-snr",
        lambda v: v["objective"] == "min-snr",
    ),
    Need("attack", ("in_turn",), "without --masks", lambda v: v["masks"]),
    Need("attack", ("image_column",), "with --images demo", lambda v: v["images"] != "demo"),
    Need(
        "finetune",
        (*_ATTACK, *_TRIGGERS),
        "with --without-attack",
        lambda v: not v["without_attack"],
    ),
    Need(
        "finetune",
        ("snr_cap",),
        "without --objective min-snr",
        lambda v: v["objective"] == "min-snr",
    ),
    Need("finetune", ("image_column",), "with --images demo", lambda v: v["images"] != "demo"),
    Need("finetune", ("retained_images",), "with --retained demo", lambda v: not _demo_pairs(v)),
    Need("finetune", ("drawn",), "without --retained demo", lambda v: _demo_pairs(v)),
    Need(
        "report",
        ("seeds", "steps", "guidance", *_MODEL),
        "without --images",
        lambda v: v["images"],
    ),
    Need("report", ("positive",), "without --label", lambda v: v["label"]),
    Need("export", ("positive",), "without --label", lambda v: v["label"]),
    Need("export", ("formulas", "flagged"), "without --format csv", lambda v: v["format"] == "csv"),
    Need("export", ("label",), "with --format csv", lambda v: v["format"] != "csv"),
    Need("verify", ("seed",), "with --sample 0", lambda v: v["sample"]),
    Need(
        "verify",
        ("sample", "seed", "model"),
        "with --files-only",
        lambda v: not v["files_only"],
    ),
    Need("bench", ("results",), "with --no-write", lambda v: not v["no_write"]),
)


def _demo_pairs(values: Values) -> bool:
    return bool(values["retained"] == "demo")


def unmet(command: str, given: Collection[str], values: Values) -> str | None:
    """The first given option of a command that has no effect, as an error, or None.

    Args:
        command: name of the command's function.
        given: names of the parameters that were given on the command line.
        values: all values by parameter.
    """
    for need in NEEDS:
        if need.command != command or need.met(values):
            continue
        for name in need.options:
            if name in given:
                option = f"--{name.replace('_', '-')}"
                return (
                    f"{command}: {option} has no effect {need.lacking}; leave one of them out"
                    if need.lacking.startswith("with ")
                    else f"{command}: {option} has no effect {need.lacking}; add that, or leave out"
                    f" {option}"
                )
    return None
