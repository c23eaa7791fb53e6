"""Results as a Hugging Face model card: metadata for the hub, and a table for readers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dori_fast._text import harmless
from dori_fast.report.export.measured import Measured, Metric

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#&])")


def model_card(measured: Measured) -> str:
    """The text of a README.md: YAML with a ``model-index`` between two ``---``, and Markdown.

    ``huggingface_hub.ModelCard(text)`` reads the text, and ``.push_to_hub(repo_id)`` publishes
    it. The metrics' ``args`` hold the 95 % intervals.
    """
    from huggingface_hub import EvalResult, ModelCardData

    model = measured.model
    results = [
        EvalResult(
            task_type="text-to-image",
            task_name=task.name,
            dataset_type="prompts",
            dataset_name=measured.data,
            dataset_config=task.name,
            dataset_revision=measured.data_sha256,
            metric_type=metric.name,
            metric_name=metric.name,
            metric_value=metric.value,
            metric_args=_arguments(metric),
        )
        for task in measured.tasks
        for metric in task.metrics
    ]
    data = ModelCardData(
        # name on the hub, for models from the hub
        base_model=model["source"] if model.get("revision") else None,
        eval_results=results,
        library_name="diffusers",
        model_name=model["source"],
        pipeline_tag="text-to-image",
        tags=["memorization", "dori_fast"],
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_body(measured)) + "\n"


def _arguments(metric: Metric) -> dict[str, float] | None:
    found: dict[str, float] = {}
    if metric.interval is not None:
        found["confidence"] = 0.95
        found["low"], found["high"] = metric.interval
    if metric.trials is not None:
        found["trials"] = metric.trials
    return found or None


def _body(measured: Measured) -> Iterator[str]:
    yield f"# Memorization in {_plain(str(measured.model['source']))}"
    yield ""
    yield (
        f"Measured by dori_fast {measured.versions.get('dori_fast', '')} on"
        f" {_plain(measured.data)}; intervals are 95 % ones."
    )
    yield ""
    yield "| task | metric | value | interval | trials |"
    yield "|---|---|---:|---|---:|"
    for task in measured.tasks:
        for metric in task.metrics:
            low_high = "[{:.4g}, {:.4g}]".format(*metric.interval) if metric.interval else ""
            cells = (task.name, metric.name, f"{metric.value:.4g}", low_high, metric.trials or "")
            yield f"| {' | '.join(map(str, cells))} |"


def _plain(text: str) -> str:
    """Text from data as one line of Markdown without markup."""
    return _MARKDOWN.sub(r"\\\1", harmless(text))
