"""Every Triton kernel is launched on the device of its tensors and within the limits of a grid."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dori_fast
from dori_fast._library import OPS
from tests.ops.contract import SPECS, backends_of, inputs_of

KERNELS = Path(dori_fast.__file__).parent / "triton_kernels"
# slices of a head, of at least 16 columns: the second axis of a grid has room for 65,535
TWO_AXES = {"_sdpa_jvp_kernels.py"}


def calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text())
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_launches_go_through_the_one_function_that_sets_the_device() -> None:
    launching = {
        path.name
        for path in KERNELS.glob("*.py")
        for call in calls(path)
        if isinstance(call.func, ast.Subscript)
    }
    assert launching == {"_common.py"}


def test_programs_are_counted_on_the_first_axis() -> None:
    axes = {
        (path.name, ast.literal_eval(call.args[0]))
        for path in KERNELS.glob("*.py")
        for call in calls(path)
        if ast.unparse(call.func) == "tl.program_id"
    }
    assert {name for name, axis in axes if axis > 0} == TWO_AXES
    assert len(axes) > len(TWO_AXES)


@pytest.mark.parametrize("name", [name for name in SPECS if "triton" in backends_of(name)])
def test_the_device_is_that_of_the_tensors(name: str, monkeypatch: Any) -> None:
    guarded: list[torch.device] = []

    class Seen(torch.cuda.device_of):
        def __init__(self, x: torch.Tensor) -> None:
            guarded.append(x.device)
            super().__init__(x)

    monkeypatch.setattr(torch.cuda, "device_of", Seen)
    inputs = inputs_of(SPECS[name], SPECS[name].sizes[2], torch.float32)
    OPS[name].triton(*inputs)
    assert guarded and set(guarded) == {inputs[0].device}
