"""Quality of each detector on the embedded model, and the effect of the dtype on its scores.

Positives are the photographs that the model replicates on every seed (repeated 4 times or more in
training). Negatives are all held-out prompts. A dtype's noise is the difference of its scores from
those in float64, rounding of the initial noise included. "tf32" is float32 with the products of the
network as a GPU computes them with ``allow_tf32=True``, emulated.

    python -m benchmarks.quality.detectors
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dori_fast as df
from benchmarks.quality.tf32 import Tf32
from dori_fast.demo.facts import reproduced
from dori_fast.evaluate import auc, roc, tpr_at_fpr

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "quality" / "detectors.csv"
PAGE, FIGURE = ROOT / "docs" / "detectors.md", ROOT / "docs" / "detectors_roc.png"
DTYPES = ("fp64", "fp32", "tf32", "fp16", "bf16")
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One detector in one dtype.

    Attributes:
        noise_rms, noise_max: difference of the scores from float64.
        spread: standard deviation of the held-out scores in float64.
    """

    detector: str
    dtype: str
    positives: int
    negatives: int
    auc: float
    auc_low: float
    auc_high: float
    tpr_at_1_fpr: float
    tpr_low: float
    tpr_high: float
    noise_rms: float
    noise_max: float
    spread: float


def scores_of(dtype: str, positives: Sequence[str], negatives: Sequence[str]) -> dict[str, Scores]:
    """Scores [positives + negatives] by detector, each with its defaults."""
    model = df.load("demo", dtype="fp32" if dtype == "tf32" else dtype, device="cpu")
    prompts = [*positives, *negatives]
    with Tf32(model.unet) if dtype == "tf32" else nullcontext():
        return {
            name: df.detect.get(name).scores(model, prompts).score.double().numpy()
            for name in df.detect.names()
        }


def measure(name: str, dtype: str, found: Scores, exact: Scores, positives: int) -> Row:
    """The row of one detector."""
    pos, neg = found[:positives], found[positives:]
    area, rate, noise = auc(pos, neg), tpr_at_fpr(pos, neg), np.abs(found - exact)
    return Row(
        name,
        dtype,
        len(pos),
        len(neg),
        *(area.value, area.low, area.high),
        *(rate.value, rate.low, rate.high),
        noise_rms=float(np.sqrt((noise**2).mean())),
        noise_max=float(noise.max()),
        spread=float(exact[positives:].std()),
    )


def stored() -> list[Row]:
    """The committed rows."""
    kinds = {
        field.name: {"str": str, "int": int, "float": float}[field.type] for field in fields(Row)
    }
    with RESULTS.open(newline="") as file:
        return [Row(**{n: kinds[n](x) for n, x in row.items()}) for row in csv.DictReader(file)]


def tf32_share(rows: Sequence[Row]) -> str:
    """The smallest and largest quotient of the errors (rms) with TF32 and in float16."""
    rms = {(r.detector, r.dtype): r.noise_rms for r in rows}
    names = sorted({r.detector for r in rows})
    shares = [rms[name, "tf32"] / rms[name, "fp16"] for name in names]
    return f"{min(shares):.0%} to {max(shares):.0%}"


def page(rows: Sequence[Row]) -> str:
    """The Markdown page."""
    lines = [
        "# Detectors on the embedded model",
        "",
        "`python -m benchmarks.quality.detectors` runs each detector with its defaults on the CPU."
        f" {rows[0].positives} photographs that the model replicates on every seed are compared"
        f" with {rows[0].negatives} held-out prompts. Intervals are 95 % intervals. The numbers"
        " show that a detector works here. They do not rank it for a web-scale model.",
        "",
        f"![ROC curves of the detectors]({FIGURE.name})",
        "",
        "| detector | AUC | TPR at 1 % FPR |",
        "|---|---|---|",
    ]
    for r in rows:
        if r.dtype == "fp32":
            area = f"{r.auc:.3f} [{r.auc_low:.3f}, {r.auc_high:.3f}]"
            rate = f"{r.tpr_at_1_fpr:.2f} [{r.tpr_low:.2f}, {r.tpr_high:.2f}]"
            lines.append(f"| `{r.detector}` | {area} | {rate} |")
    lines += [
        "",
        f"With {rows[0].negatives} negatives, the rate at 1 % FPR is the rate without a false"
        " positive.",
        "",
        "## Effect of the dtype",
        "",
        "A score is a small difference of large predictions, so rounding in the network is visible."
        " The table gives the difference from float64, also relative to the spread (standard"
        " deviation) of the held-out scores.",
        "",
        "| detector | dtype | rms | largest | largest / spread | AUC |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| `{r.detector}` | {r.dtype} | {r.noise_rms:.1e} | {r.noise_max:.1e}"
        f" | {r.noise_max / r.spread:.1e} | {r.auc:.4f} |"
        for r in rows
        if r.dtype != "fp64"
    ]
    lines += [
        "",
        "Hence the defaults: fp32 on the CPU, and fp16 with sums in fp32 on a GPU."
        " `asthana` compares predictions at low noise, where they differ least, so it needs fp32"
        " without TF32. bf16 is for screening: its noise is about ten times that of fp16.",
        "",
        "## Precision of a dtype",
        "",
        "Every evaluation and every backward pass (scores, images, attacks, mitigation,"
        " fine-tuning, text encoders, image autoencoder, `df.accelerate`, `df.patch`) sets torch's"
        " switches of precision, and sets them back as the caller had them:",
        "",
        "| products of | are |",
        "|---|---|",
        "| float32, float64 | IEEE. As torch comes, a GPU rounds the inputs of float32 convolutions"
        " to TF32 (10 bits of mantissa); `torch.set_float32_matmul_precision` can lower matrix"
        " products, also on a CPU. |",
        "| float16, bfloat16 | added up in float32. As torch comes, partial sums may be in 16 bits"
        " on a GPU. |",
        "",
        "cuDNN takes deterministic kernels and does not choose by time"
        " (`torch.backends.cudnn.benchmark`), so that equal shapes have equal kernels. With"
        " `compile=True`, inductor does not choose by time either, where torch has that option"
        " (`torch._inductor.config.deterministic`).",
        "",
        "`df.load(..., allow_tf32=True)`, on the command line `--allow-tf32`, lets a GPU compute"
        " the UNet's float32 convolutions and matrix products in TF32. Row tf32 of the table is its"
        " error, emulated on the CPU: both factors of every product are rounded to TF32, except"
        " within attention. It is"
        f" {tf32_share(rows)} of fp16's error (rms), in float32's memory. Text encoders and the"
        " autoencoder stay in IEEE float32. The choice is in run.json (`execution.allow_tf32`), in"
        " what workers compare before they score, and in what `dori-fast verify` compares: other"
        " precision means comparison within the tolerance. A run.json without it is older, and its"
        " switches were the caller's.",
        "",
        "The switches are global to a process. Contexts of several threads are counted: the"
        " caller's switches are back when the last evaluation ends, and TF32 is used only while"
        " every evaluation that goes on allows it. A backward pass of your own through"
        " `model.epsilon` runs under your switches, unless you enter `model.engine.precision()`"
        " around it.",
    ]
    return "\n".join([*lines, ""])


def draw(scores: dict[str, Scores], positives: int) -> None:
    """Write a PNG of the ROC curves, one per detector."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 5), layout="constrained")
    for style, (name, found) in zip(cycle(("-", "--", "-.", ":")), scores.items(), strict=False):
        fpr, tpr, _ = roc(found[:positives], found[positives:])
        area = auc(found[:positives], found[positives:])
        axis.step(fpr, tpr, style, where="post", label=f"{name}: AUC {area.value:.3f}")
    axis.plot([0, 1], [0, 1], color="0.8", lw=1, zorder=0)
    axis.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1))
    axis.set_title("Detectors on the embedded model, fp32, default settings", fontsize=10)
    axis.legend(loc="center right", frameon=False)
    figure.savefig(FIGURE, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the CSV, the page and the figure."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args(arguments)
    positives = [p.prompt for p in reproduced()]
    negatives = [p.prompt for p in df.demo.images("held_out")]
    found = {dtype: scores_of(dtype, positives, negatives) for dtype in DTYPES}
    rows = [
        measure(name, dtype, found[dtype][name], found["fp64"][name], len(positives))
        for name in found["fp64"]
        for dtype in DTYPES
    ]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    PAGE.write_text(page(rows))
    draw(found["fp32"], len(positives))


if __name__ == "__main__":
    main()
