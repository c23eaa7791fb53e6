"""Workers that are actors of a Ray cluster: `pip install 'dori-fast[ray]'`."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from dori_fast.errors import UsageError
from dori_fast.runs.errors import StorageError
from dori_fast.runs.workers import worker
from dori_fast.runs.workers.ledger import Lease
from dori_fast.runs.workers.remote import CALLS_AT_ONCE, Remote
from dori_fast.runs.workers.slots import PARTING, Place

if TYPE_CHECKING:
    from dori_fast.models import Denoiser
    from dori_fast.runs.workers.engine import Work

# leases and answers are small; Ray would take a third of the machine's memory
_STORE_BYTES = 200_000_000
_ANSWER = 20.0

_log = logging.getLogger("dori_fast.runs")


class Actor(Place):
    """A worker in an actor, which is spoken to by calls; Ray finds it a machine, now or later."""

    def __init__(self, number: int, order: bytes, kind: Any, ray: Any) -> None:
        super().__init__(number)
        self._order, self._kind, self._ray = order, kind, ray
        self._actor: Any = None
        # what has been asked of it and not been heard; what matters most comes first
        self.calls: dict[str, Any] = {}
        self._node, self._died = "", False

    @property
    def started(self) -> bool:
        return self._actor is not None

    @property
    def silence(self) -> float:
        # waiting for a machine is no silence
        return super().silence if self._node else 0.0

    def start(self) -> None:
        self._actor, self._node, self._died = self._kind.remote(), "", False
        self.ready = False
        self.calls = {"node": self._actor.node.remote()}

    def send_lease(self) -> None:
        self.touch()
        self.calls = {"do": self._actor.do.remote(self.lease), "beat": self._beat(0)}

    def hear(self) -> Any:
        self.touch()
        said = self._ray.wait(list(self.calls.values()))[0]
        kind = next(kind for kind, call in self.calls.items() if call in said)
        try:
            answer = self._ray.get(self.calls.pop(kind))
        except self._ray.exceptions.RayError:
            self._died = True
            return None
        if kind == "node":
            self._node = answer
            self.calls = {"prepare": self._actor.prepare.remote(self._order)}
            return worker.Beat(0)
        if kind == "beat":
            self.calls["beat"] = self._beat(answer.rows)
        elif kind == "do":
            self.calls = {}
        return answer

    def finished(self) -> Lease:
        lease = super().finished()
        if not lease.path.is_file():
            raise StorageError(
                f"{lease.path}: written on {self._node}, and not to be seen here"
                " — let --out be on a file system that all machines of the cluster share"
            )
        return lease

    def stop(self) -> None:
        """Let it end its lease before it is done."""
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
    """So many actors of a Ray cluster, each with a GPU or as many CPUs as this process has threads.

    The cluster is that of the environment's ``RAY_ADDRESS``, one that this process or machine has,
    or else one of this machine alone that ends with the scan. Actors for which it has no room yet
    begin when it grows. All its machines need dori_fast, the model and the run directory by the
    same paths.

    Args:
        model: what each actor is to load again.
        work: what is done with it.
        count: number of actors; "auto" is as many as there is room for now.

    Raises:
        UsageError: no Ray, the model cannot be loaded again, or the detector not be sent.
    """

    def __init__(self, model: Denoiser, work: Work, count: int | Literal["auto"]) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError("scan: engine 'ray' needs pip install 'dori-fast[ray]'") from error
        threads = torch.get_num_threads()
        self._takes = {"GPU": 1} if model.device.type == "cuda" else {"CPU": threads}
        # the only device that an actor sees
        device = torch.device("cuda", 0) if model.device.type == "cuda" else model.device
        # Ray's pickler can send a detector that is defined in the script that calls
        self._order = worker.order(model, work, device, threads, ray.cloudpickle.dumps)
        self._ray: Any = ray
        self._count, self._ours = count, False
        self._places: list[Actor] = []

    @property
    def places(self) -> Sequence[Actor]:
        """All of them; the cluster is not asked before this is.

        Raises:
            UsageError: there is no such cluster, or no room in one of this machine alone.
        """
        if not self._places:
            self._ours = self._connect()
            options = {f"num_{name.lower()}s": n for name, n in self._takes.items()}
            kind = self._ray.remote(Remote).options(max_concurrency=CALLS_AT_ONCE, **options)
            count = self._room() if self._count == "auto" else self._count
            self._places = [Actor(n, self._order, kind, self._ray) for n in range(count)]
        return self._places

    def heard(self, seconds: float) -> Sequence[Actor]:
        asked = {call: place for place in self._places for call in place.calls.values()}
        said = self._ray.wait(list(asked), timeout=seconds)[0]
        if said:
            said = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)[0]
        return list(dict.fromkeys(asked[call] for call in said))

    def part(self) -> None:
        running = [place for place in self._places if place.started]
        for place in running:
            place.stop()
        if at_work := [place.calls["do"] for place in running if "do" in place.calls]:
            self._ray.wait(at_work, num_returns=len(at_work), timeout=PARTING)
        for place in running:
            place.end()
        self._places = []
        if self._ours:
            self._ray.shutdown()

    def _connect(self) -> bool:
        """Find a cluster; whether it is one of our own."""
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
        """How many actors the cluster has room for, at least one."""
        (name, needed), has = next(iter(self._takes.items())), self._ray.cluster_resources()
        room = int(has.get(name, 0) // needed)
        if not room and self._ours:
            raise UsageError(f"scan: a worker takes {needed} {name}, and this machine has fewer")
        if not room:
            _log.warning("the Ray cluster has not the %d %s of a worker yet", needed, name)
        return max(1, room)


def _check_there(address: str) -> None:
    """Raises UsageError if nothing answers at ``host:port``: Ray would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except OSError as error:
        raise UsageError(f"scan: no Ray cluster at RAY_ADDRESS={address} ({error})") from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray's start would take SIGTERM, by which a scan is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
