"""Results as JSON in the layout of the LM Evaluation Harness (EleutherAI)."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

from dori_fast.report.export.measured import Measured, Metric, Task

# version of the tasks' definition; raise it when the meaning of a metric changes
_VERSION = 1
_UNKNOWN = "N/A"


def lm_eval(measured: Measured) -> dict[str, Any]:
    """The harness's document as plain JSON, without its git hashes.

    As in the harness, each metric has the keys ``<name>,none`` and ``<name>_stderr,none``: for a
    share of n trials the standard error of a mean, sqrt(p (1 - p) / (n - 1)), else ``"N/A"``. The
    keys ``<name>_low,none`` and ``<name>_high,none`` hold the 95 % interval, which unlike the
    standard error is also right for shares of 0 and 1.
    """

    def by_task(value: Callable[[Task], Any]) -> dict[str, Any]:
        return {task.name: value(task) for task in measured.tasks}

    model = measured.model
    return {
        "results": by_task(_results),
        "group_subtasks": by_task(lambda task: []),
        "configs": by_task(
            lambda task: {
                "task": task.name,
                "dataset_name": measured.data,
                "dataset_sha256": measured.data_sha256,
                "num_fewshot": 0,
                "metadata": {"version": _VERSION, **task.config},
            }
        ),
        "versions": by_task(lambda task: _VERSION),
        "n-shot": by_task(lambda task: 0),
        "higher_is_better": by_task(
            lambda task: {m.name: m.higher_is_better for m in task.metrics}
        ),
        "n-samples": by_task(lambda task: {"original": task.samples, "effective": task.used}),
        "config": {"model": "dori_fast", "model_args": dict(model)},
        "model_source": "dori_fast",
        "model_name": model["source"],
        "library_versions": dict(measured.versions),
    }


def _results(task: Task) -> dict[str, Any]:
    found: dict[str, Any] = {"alias": task.name}
    for metric in task.metrics:
        found[f"{metric.name},none"] = metric.value
        found[f"{metric.name}_stderr,none"] = _stderr(metric)
        if metric.interval is not None:
            found[f"{metric.name}_low,none"], found[f"{metric.name}_high,none"] = metric.interval
    return found


def _stderr(metric: Metric) -> float | str:
    if metric.trials is None or metric.trials < 2:
        return _UNKNOWN
    return sqrt(metric.value * (1 - metric.value) / (metric.trials - 1))
