"""Settings before any kernel is imported, and an account of what was left out and why."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import Any

# read by the OpenMP runtime when torch loads it: threads that spin while they wait make a busy
# machine many times slower
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _PROCESSES > 1:
    # the processes share the cores, and so do those that they start
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _PROCESSES)))

import pytest  # noqa: E402
import torch  # noqa: E402

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    # Read by Triton when it decorates a kernel: its kernels then run on CPU tensors.
    os.environ["TRITON_INTERPRET"] = "1"

_BROWSERS = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _BROWSERS)), None)

_OPTIONAL = ("slow", "nightly")
_LEFT_OUT = pytest.StashKey[dict[str, int]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    for marker in _OPTIONAL:
        parser.addoption(f"--run-{marker}", action="store_true", help=f"run {marker} tests as well")


def _reason(item: pytest.Item) -> str | None:
    if item.get_closest_marker("gpu") and not HAS_CUDA:
        return "gpu (no CUDA device)"
    if item.get_closest_marker("chromium") and CHROMIUM is None:
        return "chromium (none installed; Debian: apt-get install chromium-headless-shell)"
    if item.get_closest_marker("peers") and not os.environ.get("DORI_PEERS"):
        return "peers (set DORI_PEERS to the folder of checkouts, docs/drop_in.md)"
    for needed in item.iter_markers("needs"):
        if find_spec(needed.args[0]) is None:
            return f"needs (no {needed.args[0]} installed; pip install 'dori-fast[dev]')"
    for marker in _OPTIONAL:
        if item.get_closest_marker(marker) and not item.config.getoption(f"--run-{marker}"):
            return f"{marker} (run with --run-{marker})"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    counts: dict[str, int] = {}
    left_out = []
    for item in items:
        reason = _reason(item)
        if reason is not None:
            left_out.append(item)
            counts[reason] = counts.get(reason, 0) + 1
    config.stash[_LEFT_OUT] = counts
    if left_out:
        items[:] = [item for item in items if item not in set(left_out)]
        config.hook.pytest_deselected(items=left_out)


def pytest_sessionfinish(session: pytest.Session) -> None:
    # only the processes that run tests know what they left out; all of them the same
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(_LEFT_OUT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    node.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = terminalreporter.config.stash.get(_LEFT_OUT, {})
    if counts:
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
        terminalreporter.write_line(f"left out: {listed}")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
