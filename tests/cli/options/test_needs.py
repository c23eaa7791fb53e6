"""Options that have no effect without another one are refused, each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dori_fast.cli.needs import NEEDS

# options that make the values on which others depend idle
IDLE: dict[tuple[str, str], list[str]] = {
    ("prune", "with --method wanda"): ["--method", "wanda"],
    ("attack", "with --images demo"): ["--images", "demo"],
    ("finetune", "with --without-attack"): ["--without-attack"],
    ("finetune", "with --images demo"): ["--images", "demo"],
    ("finetune", "with --retained demo"): ["--retained", "demo"],
    ("export", "with --format csv"): ["--format", "csv"],
    ("export", "without --format csv"): ["--format", "lm-eval"],
    ("verify", "with --sample 0"): ["--sample", "0"],
    ("verify", "with --files-only"): ["--files-only"],
    ("bench", "with --no-write"): ["--no-write"],
}
# and those that put them to use
USED: dict[tuple[str, str], list[str]] = {
    ("scan", "without --calibration"): ["--calibration", "c.json"],
    ("scan", "without --fdr"): ["--fdr", "0.1", "--calibration", "c.json"],
    ("flag", "without --fdr"): ["--fdr", "0.1"],
    ("scan", "without --workers or --engine ray"): ["--workers", "2"],
    ("prune", "without --method wanda"): ["--method", "wanda"],
    ("attack", "without --objective min-snr"): ["--objective", "min-snr"],
    ("attack", "without --masks"): ["--masks", "m"],
    ("finetune", "without --objective min-snr"): ["--objective", "min-snr"],
    ("finetune", "without --retained demo"): ["--retained", "demo"],
    ("report", "without --images"): ["--images", "1"],
    ("report", "without --label"): ["--label", "known"],
    ("export", "without --label"): ["--label", "known", "--format", "lm-eval"],
    ("export", "without --format csv"): ["--format", "csv"],
}
CASES = [(need, name) for need in NEEDS for name in need.options]


# what a command requires, and values of options that are no text
REQUIRED: dict[str, list[str]] = {
    "scan": ["p.txt", "--out", "o"],
    "prune": ["--prompts", "p.txt", "--out", "o"],
    "attack": ["--prompts", "p.txt", "--images", "i", "--out", "o"],
    "finetune": ["--prompts", "p.txt", "--images", "i", "--masks", "m", "--retained", "r.csv",
                 "--out", "o"],
    "flag": ["r", "--calibration", "c.json"],
    "report": ["r"],
    "export": ["r", "--format", "csv", "--out", "o"],
    "verify": ["r"],
    "bench": [],
}  # fmt: skip
FLAGS = ("in_turn", "formulas", "both_halves", "flagged", "fail_if_flagged")
TEXTS = ("image_column", "label", "positive", "starts", "device", "dtype", "model", "revision")
PATHS = ("clean", "statistics", "retained_images", "unet_weights", "results", "variant")
VALUES = {
    "fdr_variant": "by",
    "layers": "all",
    "mode": "paper",
    "objective": "epsilon",
    "units": "x0",
}


def command(name: str, option: str, *more: str) -> list[str]:
    """A command line with all that is required, one option, and more, which comes last."""
    number = VALUES.get(option, "x" if option in (*TEXTS, *PATHS) else "1")
    given = [] if option in FLAGS else [number]
    return [name, *REQUIRED[name], f"--{option.replace('_', '-')}", *given, *more]


@pytest.mark.parametrize(
    ("need", "option"), CASES, ids=[f"{n.command}-{name}-{n.lacking}" for n, name in CASES]
)
def test_an_option_without_effect_is_refused(
    cli: Any, tmp_path: Path, monkeypatch: Any, need: Any, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    key = need.command, need.lacking
    done = cli(*command(need.command, option, *IDLE.get(key, [])))
    named = f"{need.command}: --{option.replace('_', '-')} has no effect "
    assert done.code == 2 and named in done.err, done.err
    if key in USED:
        # refused for what is missing here, or not at all
        done = cli(*command(need.command, option, *USED[key]))
        assert f"{named}{need.lacking}" not in done.err
        assert done.code == 2, done.err
    assert not list(tmp_path.iterdir())


def test_a_default_that_is_given_is_refused_as_well(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    done = cli("scan", tmp_path / "p.txt", "--out", tmp_path / "run", "--fpr", "0.01")
    assert done.code == 2
    assert done.err == (
        "error: scan: --fpr has no effect without --calibration; add that, or leave out --fpr\n"
    )


def test_every_row_of_the_table_is_tried_in_one_of_two_ways() -> None:
    keys = {(need.command, need.lacking) for need in NEEDS}
    assert keys == set(IDLE) | set(USED)
