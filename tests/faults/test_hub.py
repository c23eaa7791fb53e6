"""A hub that is down, busy or refuses; and no network at all."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants as constants
import pytest

import dori_fast as df
from dori_fast.cli.exits import RESUMABLE, USAGE, _explain
from dori_fast.errors import UnavailableError, UsageError
from dori_fast.models.files import directory


class Hub(ThreadingHTTPServer):
    """Answers everything with one status, and counts."""

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status, self.requests = status, 0


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Hub)
        self.server.requests += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def online(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(directory, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub(request: Any, monkeypatch: Any) -> Iterator[Hub]:
    with Hub(request.param) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("hub", [429, 503], indirect=True)
def test_asked_five_times_then_resumable(hub: Hub) -> None:
    with pytest.raises(UnavailableError, match=r"'some/model'.*; run the same command") as info:
        df.load("some/model", device="cpu")
    # the client may retry by itself
    assert 5 <= hub.requests <= 10
    assert _explain(info.value)[0] == RESUMABLE


@pytest.mark.parametrize(
    ("hub", "reason"),
    [
        (401, "no such model, or it is private or gated.*; check the name, and set HF_TOKEN"),
        (403, "access is restricted.*; accept the model's conditions on the hub and set HF_TOKEN"),
        (404, "no such model, or it is private or gated.*; check the name, and set HF_TOKEN"),
        (400, "status 400.*; check the name"),
    ],
    indirect=["hub"],
)
def test_a_no_is_taken_at_once(hub: Hub, reason: str) -> None:
    """A later try would not help, so a job must not be queued again."""
    with pytest.raises(UsageError, match=f"could not be fetched from the hub .*{reason}") as info:
        df.load("some/model", device="cpu")
    assert hub.requests == 1 and _explain(info.value)[0] == USAGE


def test_nobody_listens(monkeypatch: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(UnavailableError):
        df.load("some/model", device="cpu")


def test_offline_opens_no_socket(monkeypatch: Any) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", lambda self, place: opened.append(place))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: opened.append(arguments))
    with pytest.raises(UsageError, match="could not be fetched"):
        df.load("some/model", device="cpu")
    assert opened == []
