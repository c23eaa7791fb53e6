"""The mechanics of df.patch, on small modules that have the names and signatures of the peers'."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.integrations.peers.patching import PEERS
from dori_fast.integrations.peers.swap import signature_of


def stand_in(name: str) -> dict[str, ModuleType]:
    """The peer's modules, with functions that say their own name."""
    found: dict[str, ModuleType] = {}
    for swap in PEERS[name].swaps:
        module = found.setdefault(swap.module, ModuleType(swap.module))
        *classes, function = swap.target.split(".")
        space: dict[str, Any] = {}
        exec(f"def {function}({swap.signature}):\n    return {swap.target!r}", space)
        owner: Any = module
        for part in classes:
            if not hasattr(owner, part):
                setattr(owner, part, type(part, (), {}))
            owner = getattr(owner, part)
        setattr(owner, function, space[function])
    return found


def contents(modules: dict[str, ModuleType]) -> dict[str, Any]:
    found = {}
    for name, module in modules.items():
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = value
            if isinstance(value, type):
                found |= {f"{name}.{key}.{k}": v for k, v in vars(value).items()}
    return found


@pytest.fixture(params=sorted(PEERS))
def peer(request: Any, monkeypatch: Any) -> Any:
    modules = stand_in(request.param)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield request.param, modules
    df.unpatch(request.param)


def test_every_attribute_comes_back(peer):
    name, modules = peer
    before = contents(modules)
    record = df.patch(name)
    patched = contents(modules)
    changed = {key for key in before if patched[key] is not before[key]}
    assert changed == set(record.swapped)
    df.unpatch(name)
    after = contents(modules)
    assert after.keys() == before.keys()
    assert all(after[key] is before[key] for key in before)


def test_signatures_stay(peer):
    name, modules = peer
    df.patch(name)
    after = contents(modules)
    for swap in PEERS[name].swaps:
        found = signature_of(after[f"{swap.module}.{swap.target}"])
        # diffusers reads __init__ to learn the components, and needs one more there
        added = ", image_encoder=None" if swap.target.endswith("__init__") else ""
        assert found == swap.signature + added


def test_another_signature_is_refused_and_nothing_is_touched(peer):
    name, modules = peer
    swap = PEERS[name].swaps[-1]
    *classes, function = swap.target.split(".")
    owner: Any = modules[swap.module]
    for part in classes:
        owner = getattr(owner, part)
    setattr(owner, function, lambda something_else: None)
    before = contents(modules)
    with pytest.raises(UsageError, match="something_else"):
        df.patch(name)
    assert all(value is before[key] for key, value in contents(modules).items())


def test_replaced_functions_run_in_the_precision_of_evaluations(monkeypatch):
    modules, seen = stand_in("wen"), []
    (call,) = [swap for swap in PEERS["wen"].swaps if swap.target.endswith("__call__")]
    space: dict[str, Any] = {"look": lambda: seen.append(torch.backends.cudnn.conv.fp32_precision)}
    exec(f"def released({call.signature}):\n    look()", space)
    pipeline = modules[call.module].LocalStableDiffusionPipeline
    pipeline.__call__ = space["released"]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    new = pipeline.__new__
    new(pipeline)()
    df.patch("wen")
    try:
        # without norms, the replacement calls the released function
        new(pipeline)()
    finally:
        df.unpatch("wen")
    new(pipeline)()
    assert seen == [before := torch.backends.cudnn.conv.fp32_precision, "ieee", before]


def test_a_second_patch_is_refused(peer):
    name, _ = peer
    df.patch(name)
    with pytest.raises(UsageError, match="patched already"):
        df.patch(name)


def test_names_imported_before_and_after_are_served(monkeypatch):
    modules = stand_in("nemo")
    (module,) = modules.values()
    early, late = ModuleType("early_script"), ModuleType("late_script")
    for name, value in {**modules, "early_script": early, "late_script": late}.items():
        monkeypatch.setitem(sys.modules, name, value)
    released = module.compute_noise_diff
    early.renamed = released
    df.patch("nemo")
    try:
        assert early.renamed is module.compute_noise_diff is not released
        late.compute_noise_diff = module.compute_noise_diff
    finally:
        df.unpatch("nemo")
    assert early.renamed is late.compute_noise_diff is released


def test_unknown_names_and_options_are_listed():
    with pytest.raises(UsageError, match="use one of wen, nemo, sail, unlearndiffatk"):
        df.patch("somebody")
    with pytest.raises(UsageError, match="it has: scan_steps"):
        df.patch("wen", steps=1)
    with pytest.raises(UsageError, match="1 or more"):
        df.patch("wen", scan_steps=0)


def test_missing_modules_say_what_to_do():
    with pytest.raises(UsageError, match=r"checkout of\s+https://github.com/Dongjae0324"):
        df.patch("sail")
    assert not any(name.startswith("local_model") for name in sys.modules)


def test_a_shim_goes_where_the_import_fails():
    import diffusers.utils

    with pytest.raises(UsageError, match="local_sd_pipeline"):
        df.patch("wen")
    assert not hasattr(diffusers.utils, "randn_tensor")
