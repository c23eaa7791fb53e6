"""No loop of a hot module copies a tensor to a GPU in a way that waits for the GPU.

A plain ``.to(device)`` of a CPU tensor first waits until the GPU has done everything that it was
given. ``_checks.to_device`` does not, and neither does a copy with ``non_blocking=True``. The rule
reads one function at a time; attack/test_waiting.py sees what an attack calls.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "dori_fast"
HOT = (
    "attack",
    "finetune",
    "mitigate",
    "models/backbones",
    "models/engine",
    "models/prefixed.py",
    "models/schedules",
    "models/text",
    "ops",
    "prune/nemo",
    "reference",
    "triton_kernels",
)
# by module and function
EXCEPTIONS = {
    ("finetune/optimizer.py", "restore"): "reads a checkpoint, once per run",
    ("mitigate/wen.py", "run"): "the stop rule reads F in every iteration, so each waits anyway",
    ("models/backbones/unet/by_sample.py", "_batches"): "tests foreign code, once per network",
    ("ops/activation_stats.py", "to"): "moves statistics where the caller wants them",
}
LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# what a tensor is cast to, not where it goes
DTYPES = ("dtype", "ACC", "KEY", "DTYPE", "wide")


def waiting(source: str) -> Iterator[tuple[str, str]]:
    """(function, call) for every copy within a loop that may wait for a device."""
    yield from _waiting(ast.parse(source), "", in_loop=False)


def _waiting(node: ast.AST, function: str, in_loop: bool) -> Iterator[tuple[str, str]]:
    if in_loop and isinstance(node, ast.Call) and _copies(node):
        yield function, ast.unparse(node)
    if isinstance(node, ast.FunctionDef):
        function = node.name
    for name, value in ast.iter_fields(node):
        # what a for loop walks over is evaluated once
        inside = in_loop or (isinstance(node, LOOPS) and name != "iter")
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _waiting(child, function, inside)


def _copies(call: ast.Call) -> bool:
    """Whether a call puts a tensor on a device, as far as its text tells."""
    options = {option.arg: ast.unparse(option.value) for option in call.keywords}
    if options.get("non_blocking") == "True":
        return False
    called = ast.unparse(call.func)
    if called in ("torch.tensor", "torch.as_tensor", "torch.from_numpy"):
        return "device" in options
    if not isinstance(call.func, ast.Attribute):
        return False
    if call.func.attr == "cuda":
        return True
    if call.func.attr != "to":
        return False
    places = [*map(ast.unparse, call.args), *options.values()]
    return any(not _is_dtype(place) and place != "'cpu'" for place in places)


def _is_dtype(text: str) -> bool:
    return text.startswith(("torch.", "tl.")) or text.endswith(DTYPES) or text.endswith("_ty")


def offenders(sources: dict[str, str]) -> list[tuple[str, str, str]]:
    found = ((path, *call) for path, text in sources.items() for call in waiting(text))
    return sorted({one for one in found if (one[0], one[1]) not in EXCEPTIONS})


def hot_sources() -> dict[str, str]:
    paths = {p for name in HOT for p in [ROOT / name, *(ROOT / name).rglob("*.py")] if p.is_file()}
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def test_no_loop_of_a_hot_module_waits_for_a_copy() -> None:
    assert offenders(hot_sources()) == []


def test_every_exception_is_needed() -> None:
    sources = hot_sources()
    needed = {(path, call[0]) for path, text in sources.items() for call in waiting(text)}
    assert set(EXCEPTIONS) <= needed


def test_the_rule_sees_what_it_is_for() -> None:
    planted = """
def slow(x, device, like):
    for i in x.to(device):
        a = i.to(device)
        b = [j.to(like.device, torch.float32) for j in i]
        while c.cuda():
            d = torch.tensor([1], device=device)
        e = i.to(like)
def fast(x, device, like):
    y = x.to(device)
    for i in y:
        a = to_device(i, device)
        b = i.to(torch.float32), i.to(like.dtype), i.to(dtype=dtype), i.to("cpu")
        c = i.to(device, non_blocking=True)
        d = torch.zeros(1, device=device)
"""
    assert {call for _, call in waiting(planted)} == {
        "i.to(device)",
        "j.to(like.device, torch.float32)",
        "c.cuda()",
        "torch.tensor([1], device=device)",
        "i.to(like)",
    }
    assert {function for function, _ in waiting(planted)} == {"slow"}
