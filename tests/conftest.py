"""Settings that precede the import of kernels, shared small models, and a summary of the run.

The summary names the tests that were left out, with the reason, and the slowest files.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# OpenMP reads this when torch is imported: threads that spin while waiting slow a busy machine down
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _PROCESSES > 1:
    # test processes and their children share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _PROCESSES)))

import pytest  # noqa: E402
import torch  # noqa: E402

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    # Triton reads this when it decorates a kernel; its kernels then run on CPU tensors.
    os.environ["TRITON_INTERPRET"] = "1"

_BROWSERS = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _BROWSERS)), None)

_OPTIONAL = ("slow", "nightly")
_LONG = ("tests/runs/workers/", "tests/faults/test_kill", "tests/faults/test_fuzz_guided")
_LEFT_OUT = pytest.StashKey[dict[str, int]]()
# seconds of setup, call and teardown by file, over all worker processes
_SECONDS: Counter[str] = Counter()
_SHARED: dict[str, Any] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    for marker in _OPTIONAL:
        parser.addoption(f"--run-{marker}", action="store_true", help=f"run {marker} tests as well")
    parser.addoption("--slowest-files", type=int, default=0, metavar="N", help="print N files")


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
    # the longest first: at the end no process waits for another that has just begun one of them
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG))
    if left_out:
        items[:] = [item for item in items if item not in set(left_out)]
        config.hook.pytest_deselected(items=left_out)


def pytest_sessionfinish(session: pytest.Session) -> None:
    # only worker processes collect tests; all of them leave out the same ones
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(_LEFT_OUT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    node.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", {})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _SECONDS[report.nodeid.split("::")[0]] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    slowest = _SECONDS.most_common(terminalreporter.config.getoption("--slowest-files"))
    if slowest:
        terminalreporter.section(f"slowest {len(slowest)} files")
        for path, seconds in slowest:
            terminalreporter.write_line(f"{seconds:7.1f} s  {path}")
    counts = terminalreporter.config.stash.get(_LEFT_OUT, {})
    if counts:
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
        terminalreporter.write_line(f"left out: {listed}")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion; read-only, so copy it before a change."""
    from tests.tiny_model import save_tiny_sd

    return save_tiny_sd(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_sdxl_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion XL; read-only, so copy it before a change."""
    from tests.tiny_sdxl import save_tiny_sdxl

    return save_tiny_sdxl(tmp_path_factory.mktemp("tiny_sdxl") / "model")


@pytest.fixture(scope="session")
def model(tiny_directory: Path) -> Any:
    """The tiny model in float32, shared by all tests; load your own to change it."""
    return _shared(tiny_directory, "float32")


@pytest.fixture(scope="session")
def model64(tiny_directory: Path) -> Any:
    """The tiny model in float64, shared by all tests; load your own to change it."""
    return _shared(tiny_directory, "float64")


def _shared(directory: Path, dtype: str) -> Any:
    import dori_fast as df

    _SHARED[dtype] = df.load(directory, device="cpu", dtype=dtype, batch_size=8)
    return _SHARED[dtype]


def _state(model: Any) -> tuple[object, ...]:
    """What a test could leave changed in a model."""
    weights = [*model.unet.parameters(), *model.text_encoder.parameters()]
    modules = [*model.unet.modules()]
    return (
        model.batch_size,
        model.schedule.prediction_type,
        sum(map(torch.Tensor.double, torch._foreach_norm([w.detach() for w in weights]))).item(),
        sum(w.requires_grad for w in weights),
        sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules),
    )


@pytest.fixture(autouse=True)
def _shared_models_stay_as_they_are(request: pytest.FixtureRequest) -> Iterator[None]:
    shared = list(_SHARED.values()) if {"model", "model64"} & {*request.fixturenames} else []
    before = [_state(model) for model in shared]
    yield
    assert [_state(model) for model in shared] == before, (
        "this test changed a model that others use; load one for it"
    )
