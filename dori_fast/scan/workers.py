"""Local workers: leases go to processes, each with a model of its own, and are taken back."""

from __future__ import annotations

import logging
import pickle
from collections import Counter, deque
from collections.abc import Callable
from multiprocessing.connection import wait
from statistics import median
from typing import TYPE_CHECKING

import torch

from dori_fast.errors import UsageError
from dori_fast.models.recipe import recipe_of
from dori_fast.scan.errors import WorkerError
from dori_fast.scan.ledger import Ledger
from dori_fast.scan.worker import Beat, Done, Failed, Order, Ready, known_answer
from dori_fast.scan.worker_process import WorkerProcess, part_from

if TYPE_CHECKING:
    from dori_fast.models import Denoiser
    from dori_fast.scan.engine import Work

_RESTARTS, _HANGS = 3, 1
_SHORTEST_HANG, _BLOCKS = 300.0, 10
# weights may come over a network, and kernels be compiled for the first time
_LONGEST_START = 1800.0
_TICK = 1.0

_log = logging.getLogger("dori_fast.scan")


class Workers:
    """Processes on this machine, started as there is work, replaced when they die.

    A lease goes to a process whose answer to a fixed input is the model's. It is given to another
    if its process dies, loses its device, or is silent for too long (once). What a lease raises
    otherwise would be raised elsewhere too, and is raised here.

    Args:
        model: what each process is to load again.
        work: what is done with it.
        count: number of processes. On GPUs they take turns; on a CPU they share the threads.
        watchdog: seconds of silence; None for ten times the median block, at least 300.

    Raises:
        UsageError: the model cannot be loaded again, or the detector not be sent.
    """

    def __init__(self, model: Denoiser, work: Work, count: int, watchdog: float | None) -> None:
        self.evaluations, self.batch_size = 0, model.batch_size
        self._model, self._watchdog = model, watchdog
        self._workers = [WorkerProcess(n, o) for n, o in enumerate(_orders(model, work, count))]
        self._answers: dict[str, str] = {}
        self._blocks: deque[float] = deque(maxlen=1000)
        self._losses: Counter[int] = Counter()
        self._hangs: Counter[int] = Counter()

    def finish(self, ledger: Ledger, show: Callable[[int], None]) -> None:
        """See :class:`dori_fast.scan.engine.Engine`.

        Raises:
            WorkerError: a shard's workers, or all workers, died too often.
        """
        try:
            while self._hand_out(ledger):
                self._listen(ledger)
                show(sum(worker.rows for worker in self._workers))
        finally:
            part_from(self._workers)
            for worker in self._workers:
                if worker.lease is not None:
                    ledger.give_back(worker.lease)

    def _hand_out(self, ledger: Ledger) -> bool:
        """Give every idle worker a lease; False if there is none and none is open."""
        for worker in self._workers:
            if worker.lease is None:
                worker.lease = ledger.take()
                if worker.lease is None:
                    break
                if not worker.started:
                    worker.start()
                elif worker.ready:
                    self._send(worker, ledger)
        return any(worker.lease is not None for worker in self._workers)

    def _send(self, worker: WorkerProcess, ledger: Ledger) -> None:
        try:
            worker.send_lease()
        except OSError:
            self._lose(worker, ledger, worker.end())

    def _listen(self, ledger: Ledger) -> None:
        started = {w.connection: w for w in self._workers if w.started}
        heard = [started[c] for c in wait(list(started), _TICK)]  # type: ignore[index]
        for worker in heard:
            self._hear(worker, ledger)
        # the others after all that was waiting to be read: this process may have been held up
        for worker in list(self._workers):
            if worker not in heard and worker.lease is not None and worker.started:
                self._watch(worker, ledger)

    def _hear(self, worker: WorkerProcess, ledger: Ledger) -> None:
        silence = worker.silence
        match worker.hear():
            case Ready() as ready:
                self._examine(worker, ready, ledger)
            case Beat(rows):
                worker.rows = rows
                if rows:
                    self._blocks.append(silence)
            case Done(footer, evaluations, batch_size):
                ledger.committed(worker.finished(), footer)
                self.evaluations += evaluations
                self.batch_size = min(self.batch_size, batch_size)
            case Failed(error, device_lost):
                if not device_lost:
                    raise error
                worker.end()
                self._lose(worker, ledger, f"lost its device ({error})")
            case None:
                self._lose(worker, ledger, worker.end())

    def _examine(self, worker: WorkerProcess, ready: Ready, ledger: Ledger) -> None:
        if not self._answers:
            ours = known_answer(self._model)
            self._answers[ours.device] = ours.answer
        if self._answers.setdefault(ready.device, ready.answer) == ready.answer:
            worker.ready = True
            self._send(worker, ledger)
            return
        worker.end()
        self._lose(worker, ledger, "failed its self-test: a known input has another answer there")

    def _watch(self, worker: WorkerProcess, ledger: Ledger) -> None:
        if not worker.ready:
            limit = _LONGEST_START
        elif self._watchdog is not None:
            limit = self._watchdog
        else:
            limit = max(_SHORTEST_HANG, _BLOCKS * median(self._blocks) if self._blocks else 0)
        if worker.silence > limit:
            worker.end()
            self._lose(worker, ledger, f"was silent for {limit:g} s", hung=True)

    def _lose(self, worker: WorkerProcess, ledger: Ledger, why: str, hung: bool = False) -> None:
        """Take the lease of a worker that has ended, and see whether to go on."""
        lease, was_ready = worker.lease, worker.ready
        worker.lost()
        if lease is None:
            return
        ledger.give_back(lease)
        _log.warning("worker %d %s; shard %d is done again", worker.number, why, lease.index)
        if was_ready:
            count = self._hangs if hung else self._losses
            count[lease.index] += 1
            if count[lease.index] > (_HANGS if hung else _RESTARTS):
                first, last = lease.rows.first, lease.rows.first + len(lease.rows) - 1
                raise WorkerError(
                    f"shard {lease.index} (rows {first} to {last}): its worker {why},"
                    f" {count[lease.index]} times; other shards are kept"
                    " — look at these rows and the device; the same command tries again"
                )
        if worker.failures > _RESTARTS:
            self._workers.remove(worker)
            if not self._workers:
                raise WorkerError(
                    f"no worker is left: the last one {why}; what is committed is kept"
                    " — see the messages above, and dori-fast doctor"
                )
            _log.warning("worker %d is not started again", worker.number)


def _orders(model: Denoiser, work: Work, count: int) -> list[bytes]:
    """What each worker is to be, pickled."""
    recipe, described = recipe_of(model), model.describe()
    threads = max(1, torch.get_num_threads() // count)
    orders = []
    for number in range(count):
        device = recipe["device"]
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", number % torch.cuda.device_count())
        order = Order({**recipe, "device": device}, described, threads, work)
        try:
            orders.append(pickle.dumps(order))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise UsageError(
                f"scan: the detector {work.detector.name!r} cannot be sent to another process"
                f" ({error}) — make it picklable, or use workers=1"
            ) from error
    return orders
