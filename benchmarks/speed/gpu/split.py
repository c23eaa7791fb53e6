"""A scan's time by kind of op, from torch's profiler, and the share of it that the GPU is busy.

Kinds are those of the op that launched a kernel. Kernels that only change a memory layout are
launched by convolutions; they are counted a second time, as `layout`.

    python -m benchmarks.speed.gpu.split --model sd14
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import harness
from benchmarks.speed.end_to_end import sample_prompts
from benchmarks.speed.gpu.common import parsed, parser_of, synchronize
from benchmarks.speed.random_models import random_model
from dori_fast.detect import Wen

_SEEDS = 4
# the first kind with a part of its name in the op's counts
_KINDS = {
    "convolution": ("conv",),
    "attention": ("attention", "sdpa"),
    "norm": ("norm",),
    "linear": ("mm", "linear", "matmul"),
    "copies": ("copy", "cat", "clone", "contiguous", "index", "gather", "fill", "zero"),
    "ours": ("dori_fast",),
}
_LAYOUT = ("nchwtonhwc", "nhwctonchw", "nchw2nhwc", "nhwc2nchw")


def kind_of(op: str) -> str:
    """The kind of an op by its name; "elementwise" for all others."""
    name = op.lower()
    return next((k for k, parts in _KINDS.items() if any(p in name for p in parts)), "elementwise")


def shares(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Percent of the time by kind, from the time of each op."""
    found: Counter[str] = Counter()
    for name, time in times:
        found[kind_of(name)] += time
    total = sum(found.values())
    return {kind: 100 * time / total for kind, time in found.most_common()} if total else {}


def busy_share(intervals: Iterable[tuple[int, int]]) -> float:
    """Percent of the time from the first start to the last end that some interval covers."""
    ordered = sorted(intervals)
    if not ordered:
        return 0.0
    begin = reached = ordered[0][0]
    busy = 0
    for start, end in ordered:
        busy += max(0, end - max(start, reached))
        reached = max(reached, end)
    return 100 * busy / max(1, reached - begin)


def main(arguments: list[str] | None = None) -> int:
    """Profile one scan."""
    parser = parser_of("split", __doc__, model="sd14")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch-size", type=int, help="UNet samples; default: the model's")
    options = parsed(parser, arguments)
    recorder = harness.Recorder.of(
        options, f"python -m benchmarks.speed.gpu.split --model {options.model}"
    )
    facts = {
        "op": "scan_split",
        "provider": "dori_fast",
        "shape": f"{options.model}:{options.prompts}x{_SEEDS}",
        "dtype": options.dtype,
        "x": options.prompts,
    }
    with recorder.case(**facts, mode="all"):
        model = random_model(
            options.model, options.dtype, options.device, batch_size=options.batch_size or "auto"
        )
        detector, prompts = Wen(seeds=_SEEDS), sample_prompts(options.prompts)
        detector.score(model, prompts)
        synchronize(options.device)
        on_gpu = options.device == "cuda"
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
        with profile(activities=activities) as recorded:
            detector.score(model, prompts)
            synchronize(options.device)
        averages: Any = recorded.key_averages()
        ops = [
            (e.key, e.self_device_time_total if on_gpu else e.self_cpu_time_total)
            for e in averages
            # kernels are listed beside the ops that launched them
            if e.device_type == DeviceType.CPU
        ]
        for kind, share in shares(ops).items():
            with recorder.case(**facts, mode=kind) as case:
                case.write([share], metric="share", unit="%")
        for name, time in sorted(ops, key=lambda op: -op[1])[:15]:
            print(f"    {time / 1e3:10.2f} ms  {kind_of(name):12} {name}")
        if on_gpu:
            _kernels(recorder, facts, recorded)
        else:
            with recorder.case(**facts, mode="gpu_busy"):
                raise harness.NotHere("a CPU has no GPU that could wait")
    return recorder.finish()


def _kernels(recorder: harness.Recorder, facts: dict[str, Any], recorded: Any) -> None:
    """Rows that need the kernels themselves: the GPU's waiting, and changes of layout."""
    kernels = [
        event
        for event in recorded.profiler.kineto_results.events()
        if event.device_type() == DeviceType.CUDA
    ]
    spans = [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in kernels]
    with recorder.case(**facts, mode="gpu_busy") as case:
        case.write([busy_share(spans)], metric="share", unit="%")
    total = sum(e.duration_ns() for e in kernels)
    layout = sum(e.duration_ns() for e in kernels if any(x in e.name().lower() for x in _LAYOUT))
    with recorder.case(**facts, mode="layout") as case:
        case.write([100 * layout / max(1, total)], metric="share", unit="%")
    names: Counter[str] = Counter()
    for event in kernels:
        names[event.name()] += event.duration_ns()
    for name, time in names.most_common(15):
        print(f"    {time / 1e6:10.2f} ms  {name[:120]}")


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
