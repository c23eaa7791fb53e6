"""Slots for workers in processes of this machine."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any

import torch

from dori_fast.runs.workers import worker
from dori_fast.runs.workers.engine import Engine
from dori_fast.runs.workers.slots import STOP_SECONDS, Slot

_spawn = multiprocessing.get_context("spawn")


class ProcessSlot(Slot):
    """A slot for a worker in a process of its own, at the other end of a pipe."""

    connection: Connection

    def __init__(self, number: int, pickled: bytes) -> None:
        super().__init__(number)
        self._pickled = pickled
        self._process: Any = None

    @property
    def started(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        self.connection, theirs = _spawn.Pipe()
        self._process = _spawn.Process(
            target=worker.run,
            args=(theirs, self._pickled),
            name=f"dori-fast worker {self.number}",
            daemon=True,
        )
        with _out_of_reach_of_the_terminal():
            self._process.start()
        # or the worker's end would not close the connection
        theirs.close()
        self.ready = False
        self.touch()

    def send_lease(self) -> None:
        self.touch()
        self.connection.send(self.lease)

    def receive(self) -> Any:
        self.touch()
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def await_end(self, deadline: float) -> None:
        """Wait until then for the worker to end by itself, unless it is still loading."""
        if self.ready:
            self._process.join(max(0.0, deadline - monotonic()))

    def kill(self) -> None:
        """Kill the worker without waiting for its end."""
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
    """Slots for ``count`` processes, spread over the GPUs or sharing this process's CPU threads.

    Raises:
        UsageError: the model cannot be loaded again, or the detector cannot be sent.
    """

    def __init__(self, engine: Engine, count: int) -> None:
        threads = max(1, torch.get_num_threads() // count)
        device, turns = engine.model.device, engine.model.device.index is None
        self._slots = []
        for number in range(count):
            if device.type == "cuda" and turns:
                device = torch.device("cuda", number % torch.cuda.device_count())
            self._slots.append(ProcessSlot(number, worker.packed(engine, device, threads)))

    @property
    def all(self) -> Sequence[ProcessSlot]:
        return self._slots

    def wait(self, seconds: float) -> Sequence[ProcessSlot]:
        started = {slot.connection: slot for slot in self._slots if slot.started}
        return [started[c] for c in wait(list(started), seconds)]  # type: ignore[index]

    def stop(self) -> None:
        running = [slot for slot in self._slots if slot.started]
        # a worker at work ends at its next message, so that no kernel is cut short
        for slot in running:
            slot.connection.close()
        deadline = monotonic() + STOP_SECONDS
        for slot in running:
            if not slot.ready:
                slot.kill()
        for slot in running:
            slot.await_end(deadline)
        # kill all before waiting for the first
        for slot in running:
            slot.kill()
        for slot in running:
            slot.end()


@contextmanager
def _out_of_reach_of_the_terminal() -> Iterator[None]:
    """A process started within never sees Ctrl-C, which a terminal sends to all at once."""
    # starting it later would unblock the signal
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
