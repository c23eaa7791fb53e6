"""Workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch

from dori_fast.runs.workers import worker
from dori_fast.runs.workers.slots import PARTING, Place

if TYPE_CHECKING:
    from dori_fast.models import Denoiser
    from dori_fast.runs.workers.engine import Work

_spawn = multiprocessing.get_context("spawn")


class Process(Place):
    """A worker in a process of its own, which is spoken to by a pipe."""

    connection: Connection

    def __init__(self, number: int, order: bytes) -> None:
        super().__init__(number)
        self._order = order
        self._process: Any = None

    @property
    def started(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        self.connection, theirs = _spawn.Pipe()
        self._process = _spawn.Process(
            target=worker.run,
            args=(theirs, self._order),
            name=f"dori-fast worker {self.number}",
            daemon=True,
        )
        with _out_of_reach_of_the_terminal():
            self._process.start()
        # or its end would not close the connection
        theirs.close()
        self.ready = False
        self.touch()

    def send_lease(self) -> None:
        self.touch()
        self.connection.send(self.lease)

    def hear(self) -> Any:
        self.touch()
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def await_end(self, deadline: float) -> None:
        """Let it end by itself until then; a loading one hears nothing, and is not waited for."""
        if self.ready:
            self._process.join(max(0.0, deadline - monotonic()))

    def kill(self) -> None:
        """Does not wait for its end."""
        self._process.kill()

    def end(self) -> str:
        self._process.join(0.5)
        code = self._process.exitcode
        self._process.kill()
        self._process.join()
        if code is None:
            return "was ended"
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def lost(self) -> None:
        super().lost()
        self.connection.close()
        self._process = None


class Processes:
    """So many processes: on GPUs they take turns; on a CPU they share this process's threads.

    Raises:
        UsageError: the model cannot be loaded again, or the detector not be sent.
    """

    def __init__(self, model: Denoiser, work: Work, count: int) -> None:
        threads, device = max(1, torch.get_num_threads() // count), model.device
        self._places = []
        for number in range(count):
            if model.device.type == "cuda" and model.device.index is None:
                device = torch.device("cuda", number % torch.cuda.device_count())
            order = worker.order(model, work, device, threads)
            self._places.append(Process(number, order))

    @property
    def places(self) -> Sequence[Process]:
        return self._places

    def heard(self, seconds: float) -> Sequence[Process]:
        started = {place.connection: place for place in self._places if place.started}
        return [started[c] for c in wait(list(started), seconds)]  # type: ignore[index]

    def part(self) -> None:
        running = [place for place in self._places if place.started]
        # whoever is at work ends when it next has something to say: no kernel is cut short
        for place in running:
            place.connection.close()
        deadline = monotonic() + PARTING
        for place in running:
            if not place.ready:
                place.kill()
        for place in running:
            place.await_end(deadline)
        # all before the first is waited for
        for place in running:
            place.kill()
        for place in running:
            place.end()


@contextmanager
def _out_of_reach_of_the_terminal() -> Iterator[None]:
    """A process started within never sees Ctrl-C, which a terminal sends to all at once."""
    # starting it later would let the signal in again
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
