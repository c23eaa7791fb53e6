"""dori-fast doctor and ls."""

from __future__ import annotations

import dataclasses
import importlib
import json
from typing import Any

import torch

import dori_fast
from dori_fast._library import OPS
from dori_fast.ops.self_test import self_test

# the package's attribute of that name is the command
doctor_module = importlib.import_module("dori_fast.cli.commands.doctor")


def findings(cli: Any, code: int = 0) -> dict[str, dict[str, str]]:
    done = cli("doctor", "--json")
    assert done.code == code, done.out
    return {finding["part"]: finding for finding in json.loads(done.out)}


def test_every_part_is_looked_at(cli: Any) -> None:
    found = findings(cli)
    parts = {"dori_fast", "torch", "diffusers", "transformers", "triton", "xformers"}
    assert parts | {"CUDA device", "extension"} <= set(found)
    assert found["torch"]["detail"] == torch.__version__
    for op, devices in dori_fast.backends().items():
        for device, answer in devices.items():
            line = found[f"{op} on {device}"]
            assert (line["state"] == "ok") == (answer.backend is not None)
            assert all(reason in line["detail"] for reason in answer.unavailable.values())
            for backend in answer.available:
                assert found[f"{op} on {device}: {backend}"]["state"] == "ok"


def test_every_op_has_a_self_test() -> None:
    for op in dori_fast.backends():
        assert self_test(op, "reference", "cpu") is None
    assert self_test("unheard of", "reference", "cpu") == "has no self-test"


def test_a_wrong_kernel_is_found(cli: Any, monkeypatch: Any) -> None:
    right = OPS["noise_difference"]

    def wrong(*arguments: Any) -> Any:
        return right.dispatched(*arguments) * 1.001

    monkeypatch.setitem(OPS, "noise_difference", dataclasses.replace(right, dispatched=wrong))
    found = findings(cli, code=1)
    line = found["noise_difference on cpu: cpp"]
    assert line["state"] == "broken" and "disagrees with the reference" in line["detail"]
    assert found["neuron_mask on cpu: cpp"]["state"] == "ok"


def test_missing_parts_have_a_remedy(cli: Any, monkeypatch: Any) -> None:
    real = doctor_module.import_module

    def without(name: str) -> Any:
        if name in ("diffusers", "triton"):
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(doctor_module, "import_module", without)
    found = findings(cli, code=1)
    assert found["diffusers"]["state"] == "broken"
    assert found["diffusers"]["remedy"] == "pip install diffusers"
    assert found["triton"]["state"] == "absent"
    done = cli("doctor")
    assert "diffusers" in done.out and "pip install diffusers" in done.out


def test_a_missing_extension_is_no_fault_unless_required_a_broken_one_is(
    cli: Any, monkeypatch: Any, tmp_path: Any
) -> None:
    from dori_fast import _extension

    monkeypatch.setattr(_extension, "REASON", "it was not built: no compiler")
    monkeypatch.setattr(_extension, "LIBRARY", tmp_path / "absent.so")
    monkeypatch.delenv("DORI_REQUIRE_EXTENSION", raising=False)
    assert doctor_module._extension().state == "absent"
    monkeypatch.setenv("DORI_REQUIRE_EXTENSION", "1")
    required = doctor_module._extension()
    assert required.state == "broken" and "required by DORI_REQUIRE_EXTENSION" in required.detail
    monkeypatch.delenv("DORI_REQUIRE_EXTENSION")
    (tmp_path / "absent.so").write_text("")
    assert doctor_module._extension().state == "broken"


def test_ls(cli: Any) -> None:
    assert "wen" in cli("ls", "detectors").out
    listed = {row["op"] for row in json.loads(cli("ls", "ops", "--json").out)}
    assert listed == set(dori_fast.backends())
    models = json.loads(cli("ls", "models", "--json").out)
    assert models[0]["model"] == "demo"
    assert cli("ls", "sandwiches").code == 2
