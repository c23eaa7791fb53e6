"""Slots for workers in actors of a Ray cluster: `pip install 'dori-fast[ray]'`."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from dori_fast.errors import UsageError
from dori_fast.runs.errors import StorageError
from dori_fast.runs.workers.engine import Engine
from dori_fast.runs.workers.ledger import Lease
from dori_fast.runs.workers.slots import STOP_SECONDS, Slot
from dori_fast.runs.workers.worker import (
    Beat,
    Done,
    Failed,
    Ready,
    Worker,
    failure,
    known_answer,
    packed,
)

# leases and answers are small; Ray would take a third of the machine's memory
_STORE_BYTES = 200_000_000
_ANSWER_SECONDS = 20.0
# score, beat and stop at once; one more for a beat that is not waited for any more
_CALLS_AT_ONCE = 4

_log = logging.getLogger("dori_fast.runs")


class ActorWorker:
    """A worker as an actor. Several threads call it at once, one of them to score. No call raises.

    Every call returns when it has a message for the supervisor.
    """

    def __init__(self) -> None:
        self._lease: int | None = None
        self._rows, self._stopped, self._changed = 0, False, threading.Condition()

    def node(self) -> str:
        """The name of the actor's machine."""
        return socket.gethostname()

    def prepare(self, pickled: bytes) -> Ready | Failed:
        """Load the model."""
        try:
            self._worker = Worker(pickled)
            return known_answer(self._worker.model)
        except Exception as error:
            return failure(error)

    def score(self, lease: Lease) -> Done | Failed:
        """Score a lease."""
        try:
            self._note(lease.index, 0)
            return self._worker.score(lease, lambda rows: self._note(lease.index, rows))
        except Exception as error:
            return failure(error)
        finally:
            self._lease = None

    def beat(self, index: int, known: int) -> Beat:
        """Wait until the lease is begun and more or fewer rows than ``known`` of it are done."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._lease is not None and (self._lease, self._rows) != (index, known)
            )
            return Beat(self._rows)

    def stop(self) -> None:
        """Let the lease at work fail at its next block."""
        self._stopped = True

    def _note(self, lease: int, rows: int) -> None:
        if self._stopped:
            raise RuntimeError("stopped")
        with self._changed:
            self._lease, self._rows = lease, rows
            self._changed.notify_all()


class ActorSlot(Slot):
    """A slot for a worker in an actor, for which Ray finds a machine, now or later."""

    def __init__(self, number: int, pickled: bytes, kind: Any, ray: Any) -> None:
        super().__init__(number)
        self._pickled, self._kind, self._ray = pickled, kind, ray
        self._actor: Any = None
        # calls whose answers were not read yet, the most important first
        self.calls: dict[str, Any] = {}
        self._node, self._died = "", False

    @property
    def started(self) -> bool:
        return self._actor is not None

    @property
    def silence(self) -> float:
        # an actor that waits for a machine is not silent
        return super().silence if self._node else 0.0

    def start(self) -> None:
        self._actor, self._node, self._died = self._kind.remote(), "", False
        self.ready = False
        self.calls = {"node": self._actor.node.remote()}

    def send_lease(self) -> None:
        self.touch()
        self.calls = {"score": self._actor.score.remote(self.lease), "beat": self._beat(0)}

    def receive(self) -> Any:
        self.touch()
        answered = self._ray.wait(list(self.calls.values()))[0]
        kind = next(kind for kind, call in self.calls.items() if call in answered)
        try:
            answer = self._ray.get(self.calls.pop(kind))
        except self._ray.exceptions.RayError:
            self._died = True
            return None
        if kind == "node":
            self._node = answer
            self.calls = {"prepare": self._actor.prepare.remote(self._pickled)}
            return Beat(0)
        if kind == "beat":
            self.calls["beat"] = self._beat(answer.rows)
        elif kind == "score":
            self.calls = {}
        return answer

    def finished(self) -> Lease:
        lease = super().finished()
        if not lease.path.is_file():
            raise StorageError(
                f"{lease.path}: written on {self._node}, but not visible here;"
                " put --out on a file system that all machines of the cluster share"
            )
        return lease

    def stop(self) -> None:
        """Let the worker end before its lease is finished."""
        self._actor.stop.remote()

    def end(self) -> str:
        self._ray.kill(self._actor)
        where = self._node or "no machine yet"
        return f"died on {where}" if self._died else f"was ended on {where}"

    def lost(self) -> None:
        super().lost()
        self._actor, self.calls = None, {}

    def _beat(self, known: int) -> Any:
        if self.lease is None:
            raise RuntimeError(f"worker {self.number} was not given a shard")
        return self._actor.beat.remote(self.lease.index, known)


class Actors:
    """Slots for actors of a Ray cluster, each with a GPU or as many CPUs as this process's threads.

    The cluster is that of the environment's ``RAY_ADDRESS``, one that this process or machine has,
    or else one of this machine alone that ends with the scan. Actors for which it has no room yet
    begin when it grows. All its machines need dori_fast, the model and the run directory by the
    same paths.

    Args:
        engine: engine of this process, of which every worker has a copy.
        count: number of actors; "auto" is as many as there is room for now.

    Raises:
        UsageError: no Ray, the model cannot be loaded again, or the detector cannot be sent.
    """

    def __init__(self, engine: Engine, count: int | Literal["auto"]) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError("scan: engine 'ray' needs pip install 'dori-fast[ray]'") from error
        threads, device = torch.get_num_threads(), engine.model.device
        self._takes = {"GPU": 1} if device.type == "cuda" else {"CPU": threads}
        if device.type == "cuda":
            # the only device that an actor sees
            device = torch.device("cuda", 0)
        # Ray's pickler can send a detector that is defined in the calling script
        self._pickled = packed(engine, device, threads, ray.cloudpickle.dumps)
        self._ray: Any = ray
        self._count, self._ours = count, False
        self._slots: list[ActorSlot] = []

    @property
    def all(self) -> Sequence[ActorSlot]:
        """All slots; the first use connects to the cluster.

        Raises:
            UsageError: there is no such cluster, or no room in one of this machine alone.
        """
        if not self._slots:
            self._ours = self._connect()
            options = {f"num_{name.lower()}s": n for name, n in self._takes.items()}
            kind = self._ray.remote(ActorWorker).options(max_concurrency=_CALLS_AT_ONCE, **options)
            count = self._room() if self._count == "auto" else self._count
            self._slots = [ActorSlot(n, self._pickled, kind, self._ray) for n in range(count)]
        return self._slots

    def wait(self, seconds: float) -> Sequence[ActorSlot]:
        calls = {call: slot for slot in self._slots for call in slot.calls.values()}
        answered = self._ray.wait(list(calls), timeout=seconds)[0]
        if answered:
            answered = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)[0]
        return list(dict.fromkeys(calls[call] for call in answered))

    def stop(self) -> None:
        running = [slot for slot in self._slots if slot.started]
        for slot in running:
            slot.stop()
        if at_work := [slot.calls["score"] for slot in running if "score" in slot.calls]:
            self._ray.wait(at_work, num_returns=len(at_work), timeout=STOP_SECONDS)
        for slot in running:
            slot.end()
        self._slots = []
        if self._ours:
            self._ray.shutdown()

    def _connect(self) -> bool:
        """Connect to a cluster; whether it was started for this scan."""
        ray = self._ray
        if ray.is_initialized():
            return False
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        with _signals_kept():
            if address := os.environ.get("RAY_ADDRESS"):
                _check_there(address)
                ray.init(**quiet)
                return False
            try:
                ray.init(address="auto", **quiet)
                return False
            except ConnectionError:
                ray.init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=_STORE_BYTES,
                    **quiet,
                )
                return True

    def _room(self) -> int:
        """Number of actors that the cluster has room for, at least one."""
        (name, needed), has = next(iter(self._takes.items())), self._ray.cluster_resources()
        room = int(has.get(name, 0) // needed)
        if not room and self._ours:
            raise UsageError(f"scan: a worker takes {needed} {name}, and this machine has fewer")
        if not room:
            _log.warning("the Ray cluster does not have the %d %s of a worker yet", needed, name)
        return max(1, room)


def _check_there(address: str) -> None:
    """Raises UsageError if nothing answers at ``host:port``: Ray would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise UsageError(f"scan: no Ray cluster at RAY_ADDRESS={address} ({error})") from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM, which interrupts a scan; Ray's start would replace it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
