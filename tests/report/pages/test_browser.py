"""The page in a real browser: hostile text is text, nothing runs, nothing is asked for."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dori_fast.report.pages.page import Html, image_row, note, page, table
from tests.conftest import CHROMIUM

pytestmark = pytest.mark.chromium
MAGENTA, GREEN = (255, 0, 255), (0, 200, 0)


def chromium(path: Path, *options: str) -> str:
    command = [
        str(CHROMIUM),
        "--headless",
        # tests may run as root, which its sandbox refuses
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--hide-scrollbars",
        f"--user-data-dir={path.parent / 'profile'}",
        *options,
        path.as_uri(),
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A server's address, and the paths that it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()
    thread.join()


def attack(address: str) -> str:
    return (
        f'<img src="{address}/img"><script>document.title="ran"</script>'
        f'<script src="{address}/js"></script><link rel="stylesheet" href="{address}/css">'
        f'<iframe src="{address}/frame"></iframe>'
    )


def dumped(path: Path, document: str) -> str:
    path.write_text(document, encoding="utf-8")
    return chromium(path, "--dump-dom")


def test_hostile_prompts_run_nothing_and_ask_for_nothing(tmp_path, asked):
    address, paths = asked
    hostile = attack(address)
    dom = dumped(tmp_path / "page.html", page("report", table(("prompt",), [(hostile,)])))
    assert "&lt;script&gt;" in dom and "<script" not in dom and "<title>report" in dom
    assert paths == []
    # the same markup without the page's care: what the assertions above would have seen
    dom = dumped(tmp_path / "bare.html", f"<title>report</title>{hostile}")
    assert "<title>ran" in dom and {"/img", "/js", "/css", "/frame"} <= set(paths)


def test_the_policy_holds_even_if_markup_came_through(tmp_path, asked):
    address, paths = asked
    dom = dumped(tmp_path / "page.html", page("report", Html(attack(address))))
    assert "<title>report" in dom and paths == []


@pytest.mark.parametrize("dark", [False, True])
def test_images_and_text_are_seen(tmp_path, dark):
    images = np.stack([np.full((8, 8, 3), color, np.uint8) for color in (MAGENTA, GREEN)])
    path, shot = tmp_path / "page.html", tmp_path / "shot.png"
    path.write_text(page("report", note("text"), image_row(images, "two")), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    chromium(path, f"--screenshot={shot}", "--window-size=600,400", scheme)
    seen = np.asarray(Image.open(shot).convert("RGB"))
    for color in (MAGENTA, GREEN):
        assert (seen == color).all(-1).sum() == 96 * 96
    paper = seen[-1, -1].mean()
    assert paper < 50 if dark else paper > 250
    # ink stands out against the paper
    ink = np.abs(seen[:120].astype(int).mean(-1) - paper).max()
    assert ink > 150
