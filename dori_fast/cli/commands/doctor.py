"""dori-fast doctor."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, NamedTuple

import typer

from dori_fast.cli.exits import INTERNAL, Debug, reported
from dori_fast.cli.terminal import format_table, print_result

_REQUIRED = ("diffusers", "transformers")


class Finding(NamedTuple):
    """One line of the report; the state is ok, absent (optional, no fault) or broken."""

    part: str
    state: str
    detail: str
    remedy: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Output as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Examine the installation and test each op.

    Shows installed parts and the backend of each op. Exit codes: 0 no fault, 1 a part is
    broken, or the extension is absent and DORI_REQUIRE_EXTENSION=1.
    """
    with reported(debug):
        findings = list(examine())
        if as_json:
            print_result(json.dumps([finding._asdict() for finding in findings]))
        else:
            rows = [(f.part, f.state, _with_remedy(f)) for f in findings]
            print_result(format_table(("part", "state", "detail"), rows))
        if any(finding.state == "broken" for finding in findings):
            raise typer.Exit(INTERNAL)


def examine() -> Iterator[Finding]:
    """Examine every part, in order of dependence."""
    yield Finding("dori_fast", "ok", f"{version('dori-fast')}, Python {platform.python_version()}")
    torch_finding = _imported("torch", required=True)
    yield torch_finding
    if torch_finding.state == "broken":
        return
    yield from (_imported(name, required=True) for name in _REQUIRED)
    yield _imported("triton", required=False)
    yield _imported("xformers", required=False)
    yield _cuda()
    yield _extension()
    yield from _ops()


def _with_remedy(finding: Finding) -> str:
    return f"{finding.detail}; {finding.remedy}" if finding.remedy else finding.detail


def _imported(name: str, required: bool) -> Finding:
    try:
        import_module(name)
        return Finding(name, "ok", version(name))
    except (ImportError, PackageNotFoundError):
        state, kind = ("broken", "needed") if required else ("absent", "optional")
        return Finding(name, state, f"not installed ({kind})", f"pip install {name}")
    except Exception as error:  # a package can fail in any way while it is imported
        return Finding(name, "broken", f"{type(error).__name__}: {error}", f"reinstall {name}")


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        return Finding("CUDA device", "ok", f"{name}, sm_{capability[0]}{capability[1]}")
    if torch.version.cuda is None:
        return Finding("CUDA device", "absent", "this torch is built for the CPU only")
    return Finding("CUDA device", "absent", "none is visible", "check the driver with nvidia-smi")


def _extension() -> Finding:
    from dori_fast import _extension

    facts = _extension.build_facts()
    if _extension.REASON is not None:
        # absent is no fault, since reference kernels compute everything; unusable is one
        required = os.environ.get("DORI_REQUIRE_EXTENSION") == "1"
        state = "broken" if required or _extension.LIBRARY.exists() else "absent"
        asked = " (required by DORI_REQUIRE_EXTENSION=1)" if required else ""
        return Finding("extension", state, _extension.REASON + asked)
    if facts is None:
        return Finding("extension", "ok", "loaded, but without build facts", "pip install . again")
    archs = ", ".join(facts["cuda_archs"]) or "none"
    return Finding(
        "extension",
        "ok",
        f"{facts['version']} by {facts['compiler']}, {facts['simd_in_use']} in use,"
        f" CUDA {facts['cuda_version'] or 'none'} for {archs}",
    )


def _reasons(unavailable: dict[str, str]) -> str:
    """Reasons why backends are unavailable; a common reason appears once."""
    reasons = set(unavailable.values())
    if len(reasons) == 1:
        return f" ({', '.join(unavailable)}: {reasons.pop()})"
    said = "; ".join(f"{name}: {reason}" for name, reason in unavailable.items())
    return f" ({said})" if said else ""


def _ops() -> Iterator[Finding]:
    import dori_fast
    from dori_fast.ops.self_test import self_test

    for op, devices in dori_fast.backends().items():
        for device, found in devices.items():
            state = "absent" if found.backend is None else "ok"
            detail = f"{found.backend or 'no backend'} computes it{_reasons(found.unavailable)}"
            yield Finding(f"{op} on {device}", state, detail)
            for backend in found.available:
                fault = self_test(op, backend, device)
                passed = "agrees with the reference" if fault is None else fault
                state = "ok" if fault is None else "broken"
                yield Finding(f"{op} on {device}: {backend}", state, passed)
