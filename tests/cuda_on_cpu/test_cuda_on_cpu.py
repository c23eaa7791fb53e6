"""csrc/cuda under sanitizers: no report, and the values of the float64 oracle.

ASan and UBSan always; TSan, which sees a missing barrier, with --run-nightly.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dori_fast.reference import accumulate_dtype
from dori_fast.testing import assert_close_to_oracle, run, to_oracle
from tests.cuda_headers import CUDA_INCLUDE, WHY_NOT
from tests.cuda_on_cpu.program import HERE, Program, build, call, taken
from tests.cuda_on_cpu.translate import SOURCES, translated
from tests.ops.contract import DTYPES, IN_CUDA, SPECS, laid_out, layouts_of

OPS = {"noise_difference": ("noise_difference",), "neuron_mask": ("neuron_mask", "neuron_mask_")}
needs_headers = pytest.mark.skipif(CUDA_INCLUDE is None, reason=WHY_NOT)
nightly = pytest.mark.nightly


@dataclass(frozen=True)
class Call:
    """One call of a kernel: its inputs, and a tensor laid out as its result."""

    op: str
    inputs: tuple[Any, ...]
    result: Tensor
    packed: bytes


def contiguous_rows(x: Tensor, leading: int) -> Tensor:
    """Return x, or a contiguous copy, as the bindings in csrc/ do."""
    rows = x.flatten(leading) if x.dim() > leading else x.unsqueeze(-1)
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def made(op: str, inputs: tuple[Any, ...]) -> Call:
    """Return the call of an op with its spec's inputs."""
    dtype = inputs[0].dtype
    if op == "noise_difference":
        cond, uncond = contiguous_rows(inputs[0], 2), contiguous_rows(inputs[1], 1)
        result = torch.empty(cond.shape[:2], dtype=accumulate_dtype(dtype))
        return Call(op, inputs, result, call(0, dtype, cond, uncond))
    if op == "neuron_mask":
        x, scale = contiguous_rows(inputs[0], 2), contiguous_rows(inputs[1], inputs[1].dim() - 1)
        return Call(op, inputs, torch.empty(x.shape, dtype=dtype), call(0, dtype, x, scale))
    x, indices, offsets, factor = inputs
    lists = (indices.contiguous(), None if offsets is None else offsets.contiguous())
    return Call(op, inputs, x, call(1, dtype, x, *lists, factor))


def calls(stem: str, layouts: tuple[str, ...] | None = None) -> Iterator[Call]:
    """Every size of the specs, in the layouts, or once in a dtype and layout that take turns."""
    for op in OPS[stem]:
        turns = zip(itertools.cycle(DTYPES), itertools.cycle(layouts_of(op)))  # noqa: B905
        # the bindings launch nothing for an empty call
        for size in (size for size in SPECS[op].sizes if 0 not in size):
            for dtype, layout in itertools.product(DTYPES, layouts) if layouts else [next(turns)]:
                inputs = SPECS[op].make_inputs(size, dtype, "cpu", torch.Generator())
                yield made(op, laid_out(inputs, layout))


def wrong_values(program: Program, made_calls: list[Call]) -> list[str]:
    """Run all calls; return the errors against the oracle. A report of a sanitizer fails."""
    done = program.run([one.packed for one in made_calls])
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    data, wrong = done.stdout, []
    for one in made_calls:
        reference = SPECS[one.op].reference
        found, data = taken(data, one.result)
        (expected, *_), (exact, *_) = (
            run(reference, one.inputs),
            run(reference, to_oracle(one.inputs)),
        )
        try:
            assert_close_to_oracle(found, expected, exact)
        except AssertionError as error:
            wrong.append(f"{one.op} {list(one.inputs[0].shape)} {one.inputs[0].dtype}: {error}")
    assert data == b""
    return wrong


def test_every_source_has_calls() -> None:
    assert set(SOURCES) == set(OPS) == {path.stem for path in HERE.glob("*.cpp")}
    assert {op for ops in OPS.values() for op in ops} == IN_CUDA


@needs_headers
@pytest.mark.parametrize("stem", OPS)
@pytest.mark.parametrize("sanitizer", ["address", pytest.param("thread", marks=nightly)])
def test_values_without_a_report(stem: str, sanitizer: str, tmp_path: Path) -> None:
    program = build(stem, SOURCES[stem].read_text(), sanitizer, tmp_path)
    assert wrong_values(program, list(calls(stem))) == []


@nightly
@needs_headers
@pytest.mark.parametrize("stem", OPS)
def test_all_dtypes_and_layouts(stem: str, tmp_path: Path) -> None:
    program = build(stem, SOURCES[stem].read_text(), "address", tmp_path)
    assert wrong_values(program, list(calls(stem, layouts_of(OPS[stem][-1])))) == []


# (source, what to replace, by what, which sanitizer sees it: none where the values are wrong)
MUTANTS = (
    ("neuron_mask", r"(for \(int64_t \w+ = first; \w+) < (\w+;)", r"\1 <= \2", "address"),
    ("neuron_mask", r"\bb \* task\.scale_batch_stride", "0", "none"),
    ("noise_difference", r"(\bi \+ c) >= (task\.length)", r"\1 > \2", "address"),
    ("noise_difference", r"\bs \* task\.uncond_seed_stride", "0", "none"),
    ("noise_difference", r"__syncthreads\(\);", "", "thread"),
)
REPORTS = {"address": b"AddressSanitizer", "thread": b"ThreadSanitizer: data race"}


@needs_headers
@pytest.mark.parametrize(
    ("stem", "pattern", "by", "sanitizer"),
    [pytest.param(*m, marks=[nightly] if m[-1] == "thread" else []) for m in MUTANTS],
    ids=[f"{mutant[0]}-{mutant[-1]}" for mutant in MUTANTS],
)
def test_a_planted_mistake_is_seen(
    stem: str, pattern: str, by: str, sanitizer: str, tmp_path: Path
) -> None:
    mutant, changed = re.subn(pattern, by, SOURCES[stem].read_text())
    assert changed, f"{pattern} is not in {stem}.cu any more; plant another mistake"
    program, some = build(stem, mutant, sanitizer, tmp_path), list(calls(stem))
    if sanitizer == "none":
        assert wrong_values(program, some)
        return
    done = program.run([one.packed for one in some])
    assert done.returncode != 0 and REPORTS[sanitizer] in done.stderr


def test_launches_are_read() -> None:
    source = "k<T, 1><<<f(a, b), kThreads, 0, stream>>>(task, g(x));\nz::k<<<dim3(1, 2), n>>>(y);"
    assert translated(source).splitlines() == [
        "cuda_on_cpu::launch(cuda_on_cpu::extent(f(a, b)), cuda_on_cpu::extent(kThreads),"
        " [&] { k<T, 1>(task, g(x)); });",
        "cuda_on_cpu::launch(cuda_on_cpu::extent(dim3(1, 2)), cuda_on_cpu::extent(n),"
        " [&] { z::k(y); });",
    ]
    with pytest.raises(ValueError, match="cannot read the launch"):
        translated("template <<<nothing")
