"""Metrics of result files, with intervals, for export into formats of other tools."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.evaluate import Interval, auc, clopper_pearson, tpr_at_fpr
from dori_fast.report.decided import decided
from dori_fast.report.labels import FALSE_RATE, Labels, Scores
from dori_fast.report.load import Run

_MITIGATIONS = "dori_fast/mitigations/1"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: Name of letters, digits and ``_ . -``.
        value: Value of the metric.
        interval: 95 % interval (low, high), or None.
        trials: Number of trials if the value is a share, else None.
        higher_is_better: Direction of improvement, or None if there is none.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    trials: int | None = None
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Task:
    """Metrics measured in one way.

    Attributes:
        name: Name of letters, digits and ``_ . -``.
        samples: Number of prompts or images.
        used: Number of prompts or images that the metrics cover.
        metrics: The metrics.
        config: Settings of the measurement, plain JSON.
    """

    name: str
    samples: int
    used: int
    metrics: Sequence[Metric]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """Metrics of one result.

    Attributes:
        model: The measured model: source (name without local folders), revision, dtype, files.
        data: Name of the data.
        data_sha256: SHA-256 of the data's file, or None.
        tasks: The tasks with their metrics.
        versions: Recorded versions of libraries.
    """

    model: Mapping[str, Any]
    data: str
    data_sha256: str | None
    tasks: Sequence[Task]
    versions: Mapping[str, str] = field(default_factory=dict)


def measured_scan(run: Run, labels: Labels | None = None) -> Measured:
    """Separation of a scan's scores (with labels), and its flagged rows (with a calibration).

    Args:
        run: A finished scan.
        labels: Labels of its rows, if any.

    Raises:
        UsageError: the scan is not finished, has neither labels nor a calibration, or its labels
            lack one of the two kinds of rows.
    """
    facts = run.summary()
    if facts["state"] == "over_budget":
        raise UsageError(
            f"{run.root}: {facts['counts']['quarantined']:,} of {facts['counts']['rows']:,} rows"
            " failed, more than the scan allows; correct the input, or run its command again with"
            " a larger --max-errors"
        )
    if facts["state"] != "done":
        raise UsageError(f"{run.root}: the scan is {facts['state']}; finish it first")
    seen, decision, metrics = Scores(run, 0, labels), decided(facts), []
    scored = sum(map(len, seen.scores))
    if labels is not None:
        memorized, others = seen.separated(labels)
        scored = len(memorized) + len(others)
        hits = tpr_at_fpr(memorized, others, FALSE_RATE)
        metrics.append(_metric("auc", auc(memorized, others), better=True))
        metrics.append(
            _metric(f"tpr_at_fpr_{FALSE_RATE:g}", hits, trials=len(memorized), better=True)
        )
        if decision is not None:
            threshold = math.inf if decision.threshold is None else decision.threshold
            for name, scores in (("memorized", memorized), ("others", others)):
                share = clopper_pearson(int((scores > threshold).sum()), len(scores))
                metrics.append(_metric(f"flagged_{name}", share, len(scores), name == "memorized"))
    if decision is not None:
        rows = sum(map(len, seen.scores))
        if rows:
            metrics.append(_metric("flagged", clopper_pearson(seen.flagged, rows), rows))
            metrics.append(Metric("flagged_rows", seen.flagged))
        # early runs did not record these
        if decision.expected_false is not None:
            metrics.append(Metric("flagged_rows_expected_by_chance", decision.expected_false))
        if decision.observed is not None and decision.clean is not None:
            observed, clean = Interval(*decision.observed), decision.clean
            metrics.append(_metric("clean_prompts_flagged", observed, clean, False))
    if not metrics:
        raise UsageError(
            f"{run.root}: scores alone are no metrics; name the column that labels memorized rows"
            " (--label), or scan with --calibration"
        )
    identity = facts["identity"]
    config = {**{n: v for n, v in identity.items() if n != "model"}, "run_hash": facts["run_hash"]}
    if facts.get("decision") is not None:
        config["decision"] = facts["decision"]
    if labels is not None:
        config["labels"] = {"column": labels.column, "positive": sorted(labels.positive)}
    task = Task(
        name=f"memorization_{_word(identity['detector']['name'])}",
        samples=facts["counts"]["rows"],
        used=scored,
        metrics=metrics,
        config=config,
    )
    return Measured(
        model=_public(facts["model"]),
        data=Path(facts["input_path"] or "prompts").name,
        data_sha256=identity["input_sha256"],
        tasks=[task],
        versions=facts["versions"],
    )


def measured_file(path: str | Path) -> Measured:
    """Metrics of a ``leaderboard.json``, or of a ``removal.json`` of the benchmarks.

    Raises:
        UsageError: the file is missing or of another kind.
        IntegrityError: the file is damaged.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path}: cannot be read as JSON ({error})") from error
    try:
        if isinstance(found, dict) and found.get("schema") == _MITIGATIONS:
            return _mitigations(found)
        if isinstance(found, dict) and {"fine_tuning", "prompts", "attacks"} <= found.keys():
            return _removal(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(
            f"{path}: damaged, a field is missing or wrong ({error!r}); make it again"
        ) from error
    raise UsageError(
        f"{path}: no metrics to export; give a scan's run directory, leaderboard.json of"
        " dori-fast benchmark-mitigations, or removal.json of benchmarks.quality.removal"
    )


def _mitigations(board: Mapping[str, Any]) -> Measured:
    setting = board["setting"]
    sizes = {"memorized": setting["pictures"], "control": setting["controls"]}
    tasks = []
    for row in board["rows"]:
        metrics = [
            _copies(f"{attack}_{which}_{budget}", points["images"], which, sizes[which], setting)
            for attack, sets in row["attacks"].items()
            for which, budgets in sets.items()
            for budget, points in budgets.items()
        ]
        metrics.append(Metric("excess", row["excess"], higher_is_better=False))
        metrics += _quality(row["quality"])
        samples = sum(sizes.values())
        tasks.append(
            Task(f"mitigation_{_word(row['mitigation'])}", samples, samples, metrics, setting)
        )
    model, versions = {"source": "demo", **board["model"]}, board["made_by"]
    return Measured(model, "images of the embedded model", None, tasks, versions)


def _removal(found: Mapping[str, Any]) -> Measured:
    sizes = {"memorized": found["images"], "control": found["controls"]}
    metrics: dict[str, list[Metric]] = {}
    for name, drawn in found["prompts"].items():
        rate = drawn["rate"]
        metrics[name] = [_copies("prompt", rate, "memorized", sizes["memorized"], found)]
    for attacked in found["attacks"]:
        which = attacked["pictures"]
        for budget, point in attacked["after"].items():
            name = f"{attacked['objective']}_{attacked['start']}_{which}_{budget}"
            rate = point["rate"]
            metrics[attacked["model"]].append(_copies(name, rate, which, sizes[which], found))
    metrics["fine-tuned"] += _quality(found["quality"])
    config = {name: found[name] for name in ("fine_tuning", "attack", "seeds")}
    samples = sum(sizes.values())
    tasks = [
        Task(f"removal_{_word(name)}", samples, samples, figures, config)
        for name, figures in metrics.items()
    ]
    return Measured({"source": "demo"}, "images of the embedded model", None, tasks)


def _copies(
    name: str, rate: Sequence[float], which: str, images: int, setting: Mapping[str, Any]
) -> Metric:
    # copies of an image that the model never saw were injected: neither direction is better
    better = False if which == "memorized" else None
    return _metric(f"copies_{_word(name)}", Interval(*rate), images * setting["seeds"], better)


def _quality(kept: Mapping[str, Any]) -> Iterator[Metric]:
    same, change = kept["same_seed_similarity"], kept["held_out_loss"]["change"]
    yield _metric("same_seed_similarity", Interval(*same), better=True)
    yield Metric("kernel_distance", kept["distance"]["value"], higher_is_better=False)
    yield _metric("held_out_loss_change", Interval(*change), better=False)


def _metric(
    name: str, found: Interval, trials: int | None = None, better: bool | None = None
) -> Metric:
    return Metric(name, float(found.value), (float(found.low), float(found.high)), trials, better)


def _word(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)


def _public(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's description without its place on the disk."""
    source = model["source"]
    return {**model, "source": source if model.get("revision") else Path(source).name}
