"""What an attack brought back: copies from the prompts and from the embeddings found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dori_fast.errors import UsageError

FIGURE = "attack.png"


def draw_attack(run: str | Path, threshold: float) -> Path:
    """Draw an attack's run directory as ``attack.png``: similarities and losses.

    Args:
        run: the run directory.
        threshold: similarity above which a picture is a copy.

    Returns:
        The file that was written.

    Raises:
        UsageError: the directory holds no attacked rows.
    """
    run = Path(run)
    shards = (run / "shards").glob("*.parquet")
    rows = [row for shard in shards for row in pq.read_table(shard, partitioning=None).to_pylist()]
    rows = sorted((row for row in rows if row.get("embedding")), key=lambda row: row["row_id"])
    if not rows:
        raise UsageError(f"{run}: no attacked rows — run dori-fast attack first")
    _draw(rows, threshold, run / FIGURE)
    return run / FIGURE


def _draw(rows: Sequence[dict[str, Any]], threshold: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    before, after = (
        np.array([row[key] for row in rows]) for key in ("similarity_before", "similarity")
    )
    places = np.arange(len(rows))
    for values, color, label in ((before, "#a0aec0", "prompt"), (after, "#c05621", "attacked")):
        low, middle, high = np.percentile(values, (0, 50, 100), axis=1)
        left.errorbar(
            places, middle, (middle - low, high - middle), fmt="o", color=color, label=label
        )
    left.axhline(threshold, color="#4a5568", linestyle="--", linewidth=1)
    left.set_xlabel("row, of those attacked")
    left.set_ylabel("similarity to the original")
    left.set_title("median and range over seeds", fontsize=10)
    left.legend()
    for row in rows:
        right.plot(row["losses"], color="#c05621", alpha=max(0.1, 1 / len(rows)))
    right.set_yscale("log")
    right.set_xlabel("attack step")
    right.set_ylabel("loss")
    right.set_title("loss of each problem", fontsize=10)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
